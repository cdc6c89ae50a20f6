"""LocFT-BF (Yang et al. 2026, ICLR): fine-tuning done as usual, breadth first, and at a place that was searched for."""

import random
from collections.abc import Iterator
from typing import Any, Literal

from agents.base import Agent, Observation, ProgressCallback, zero_action
from agents.baselines.weight_training import WeightTraining, draws_seed, encode_targets, latest_targets
from editenv.arguments import NonNegativeFloat, PositiveFloat, PositiveInt
from editenv.env import Action, LifelongEditEnv


class LocFTBF(Agent):
    """Adam on the edited modules, epoch after epoch over all edits in shuffled mini-batches (after the public code).

    Fine-tuning as editors were compared with it goes depth first: one edit, or one batch, to convergence, then the
    next. Breadth first, every epoch sees every edit once:

        for each epoch, for each mini-batch B:  one step down  mean_B -log p(target, end of sequence | prompt)

    A mini-batch whose loss is below ``least_loss`` is left out, and the epoch whose mean loss is below it is the last.
    With ``edits="stream"``, as in the paper, all edits are known from the beginning, and made in the first action:
    like joint-fine-tune, no lifelong editor. The place, which the paper searches for in each model, is the
    environment's: a ``down_proj`` (layer 22 of Llama-3-8B, 6 of Qwen2.5-7B) or a whole layer (23 of Mistral-7B),
    where attention and MLP projections have to be named.

    Precomputes nothing; needs the model and the edits' prompts and targets. Defaults are the public code's for
    Llama-3-8B.

    Args:
        epochs: At most.
        mini_batch: Edits in a step.
        learning_rate: Adam's.
        least_loss: See above, in nats.
        end_of_answer: Teach the end-of-sequence token after each target, whatever the environment does.
        edits: ``"stream"``, the whole of it in the first action; ``"batch"``, each batch as it comes.

    Raises:
        ValueError: By :meth:`begin`, if the environment has no stream and ``edits`` is ``"stream"``; by :meth:`act`, if
            ``end_of_answer`` is set and the tokenizer has no such token.
    """

    looks_at_model = True

    def __init__(
        self,
        epochs: PositiveInt = 25,
        mini_batch: PositiveInt = 100,
        learning_rate: PositiveFloat = 5e-4,
        least_loss: NonNegativeFloat = 1e-2,
        end_of_answer: bool = True,
        edits: Literal["stream", "batch"] = "stream",
    ) -> None:
        self.epochs, self.mini_batch, self.learning_rate = epochs, mini_batch, learning_rate
        self.least_loss, self.end_of_answer, self.edits = least_loss, end_of_answer, edits

    @property
    def looks_ahead(self) -> bool:  # type: ignore[override]
        """Where it makes the whole stream at once."""
        return self.edits == "stream"

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        self._seed = seed

    def begin(self, env: LifelongEditEnv) -> None:
        if self.edits == "stream" and not len(env.stream):
            raise ValueError(
                "LocFT-BF makes all edits of a stream at once, and here they come batch after batch: "
                "set edits='batch' (row locft-bf-batch)"
            )
        self._env = env

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        env, lm = self._env, self._env.language_model
        if self.edits == "stream" and (info["batch"] > 0 or info["attempt"] > 0):
            return zero_action(lm)
        edits = env.stream if self.edits == "stream" else env.batch
        targets = list(latest_targets(edits).items())
        append_eos = self.end_of_answer or env.train_eos
        draws = random.Random(draws_seed(self._seed, info["attempt"], env.batch))
        training = WeightTraining(lm, self.learning_rate)
        with lm.unchanged():
            for _ in range(self.epochs):
                draws.shuffle(targets)
                total = 0.0
                for chosen in self._mini_batches(targets):
                    prompts = encode_targets(lm, chosen, append_eos)
                    total += len(chosen) * training.step(prompts, self.least_loss)
                if total / len(targets) < self.least_loss:
                    break
        return training.deltas()

    def _mini_batches(self, targets: list[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
        for start in range(0, len(targets), self.mini_batch):
            yield targets[start : start + self.mini_batch]
