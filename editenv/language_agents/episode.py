"""An episode of LifelongEdit-v1 in numbers with names, and in text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch

from editenv.deltas import LowRank
from editenv.env import lifelong_edit
from editenv.evaluation.metrics import METRICS
from editenv.language_agents.choices import EXAMPLE, step_sizes
from editenv.wrappers import GradientStatistics, LayerStatistics
from editenv.wrappers.actions import gradient_step

GRADIENT = ("log10_key_length", "log10_longest_key", "log10_gradient_length", "log10_longest_gradient", "key_cosine")
"""Columns of :class:`editenv.wrappers.GradientStatistics`."""

LAYER = ("log10_weight_norm", "weight_change", "log10_output_length", "output_spread", "output_change")
"""Columns of :class:`editenv.wrappers.LayerStatistics`."""

RULES = f"""\
You edit a language model. Batch after batch of corrections comes in; the model is to say each new answer, keep the
earlier ones, and answer unrelated questions as before. For each module of the model you choose a gradient step:

* step: how far the module's outputs move down the gradient, relative to their length. 0.1 is gentle, 1 to 3 is usual, and
  30 does more harm than good. A module that you leave out, or a step of 0, stays as it is.
* ridge: how strongly the step is held back for keys that are unlike the batch's, relative to a key's squared length.
  0.1 is usual.

The reward of a batch is 1 if nothing is lost and 0 if it is as without editing. If the model breaks, the episode ends
with -1 for each batch that was left. Answer with JSON alone: {EXAMPLE}"""


@dataclass(frozen=True, slots=True)
class Situation:
    """What a choice is made on.

    Attributes:
        batch: Batches done.
        batches: Batches of the episode.
        attempt: Actions taken on the batch at hand, where it is presented more than once.
        edits: The corrections of the batch at hand: ``prompt`` and ``target``.
        modules: Of each edited module, by its full name, the numbers of :data:`GRADIENT` and :data:`LAYER`.
        last_reward: Of the choice before; None at the beginning.
        last_scores: Efficacy, generalization and specificity of the batch before, right after it was edited, in percent.
        done: Whether the episode is over.
    """

    batch: int
    batches: int
    attempt: int
    edits: Sequence[Mapping[str, str]]
    modules: Mapping[str, Mapping[str, float]]
    last_reward: float | None
    last_scores: Mapping[str, float | None]
    done: bool

    def as_text(self) -> str:
        """For a language model: the batch's corrections and a table of the modules."""
        lines = [f"{self.batch} of {self.batches} batches are done."]
        if self.last_reward is not None:
            scores = ", ".join(f"{name} {value:.0f}%" for name, value in self.last_scores.items() if value is not None)
            lines.append(f"The last one's reward was {self.last_reward:.3f} ({scores}).")
        if self.done:
            return "\n".join([*lines, "The episode is over."])
        lines += ["", "Corrections of this batch:"]
        lines += [f"* {edit['prompt']} -> {edit['target']}" for edit in self.edits]
        columns = (*GRADIENT, *LAYER)
        lines += ["", f"| module | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
        for name, numbers in self.modules.items():
            lines.append(f"| {name} | {' | '.join(f'{numbers[column]:.3g}' for column in columns)} |")
        return "\n".join(lines)


class TextEpisode:
    """LifelongEdit-v1 for agents that choose step sizes and ridges from a table of statistics.

    The deltas are those of :class:`editenv.wrappers.StepSizeAction`, and the statistics those of
    :class:`editenv.wrappers.GradientStatistics` and :class:`editenv.wrappers.LayerStatistics`.

    Args:
        arguments: Of ``gym.make("LifelongEdit-v1")``.
    """

    def __init__(self, **arguments: Any) -> None:
        import editenv  # noqa: F401 - which registers the environment

        env = gym.make("LifelongEdit-v1", disable_env_checker=True, **arguments)
        self._env: gym.Env[Any, Any] = LayerStatistics(GradientStatistics(env))
        self._editing = lifelong_edit(env)

    def reset(self, seed: int | None = None) -> Situation:
        """A new episode, its stream drawn from the seed."""
        observation, _ = self._env.reset(seed=seed)
        return self._situation(observation, None, {}, False)

    def step(self, modules: Any) -> Situation:
        """Edits the batch at hand.

        Args:
            modules: As :func:`editenv.language_agents.choices.step_sizes` takes them.

        Raises:
            BadChoiceError: If they are something else; the episode is as it was.
            RefusedActionError: If the deltas are not finite; likewise.
            RuntimeError: If the episode is over, or never began.
        """
        lm = self._editing.language_model
        sizes = step_sizes(modules, lm.modules)
        deltas = {name: _nothing(lm.shape(name)) for name in lm.modules}
        for name, size in sizes.items():
            gradient = self._editing.gradients[name]
            if size.step and len(gradient.keys):
                deltas[name] = gradient_step(lm, name, gradient, size.step, size.ridge)
        observation, reward, terminated, truncated, info = self._env.step(deltas)
        scores = {name: info[name] for name in METRICS}
        return self._situation(observation, float(reward), scores, terminated or truncated)

    def close(self) -> None:
        """Nothing is kept open; for callers that close what they opened."""
        self._env.close()

    def _situation(
        self, observation: Mapping[str, Any], reward: float | None, scores: Mapping[str, float | None], done: bool
    ) -> Situation:
        env = self._editing
        rows = zip(env.language_model.modules, observation["gradient"], observation["layers"], strict=True)
        return Situation(
            batch=env.batches_done,
            batches=len(env.stream) // env.edits_per_step,
            attempt=env.attempt,
            edits=[] if done else [{"prompt": edit.prompt, "target": edit.target} for edit in env.batch],
            modules={
                name: dict(zip((*GRADIENT, *LAYER), map(float, (*gradient, *layer)), strict=True))
                for name, gradient, layer in rows
            },
            last_reward=reward,
            last_scores=scores,
            done=done,
        )


def _nothing(shape: tuple[int, int]) -> LowRank:
    """A delta of zeros."""
    return LowRank(torch.zeros(shape[0], 0), torch.zeros(0, shape[1]))
