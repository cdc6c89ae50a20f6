"""LifelongEdit-v1 as an environment of the package verifiers, in many turns; needs the extra ``verifiers``.

A turn of the user is a batch of corrections and a table of the modules (:class:`editenv.language_agents.episode.Situation`);
the model's reply is read by :func:`editenv.language_agents.choices.modules_in`. verifiers finds tasksets by the name of a
top-level module: examples/lifelongedit_text.py is one.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import verifiers.v1 as vf

from editenv.env import RefusedActionError
from editenv.language_agents.choices import BadChoiceError, modules_in
from editenv.language_agents.episode import RULES, TextEpisode


class LifelongEditData(vf.TaskData):
    """One episode."""

    seed: int
    """Of its stream."""
    arguments: dict[str, Any]
    """Of gym.make("LifelongEdit-v1")."""


class LifelongEditTask(vf.Task[LifelongEditData]):
    """An episode; its reward is recorded by :class:`LifelongEditTextEnv`."""


class LifelongEditTasksetConfig(vf.TasksetConfig):
    """Which episodes there are."""

    episodes: int = 8
    """How many."""
    first_seed: int = 0
    """Of the first episode's stream; the next one has the next number."""
    arguments: dict[str, Any] = {"edits_per_step": 5, "horizon": 10, "redraw": True}  # noqa: RUF012 - pydantic copies it
    """Of gym.make("LifelongEdit-v1")."""


class LifelongEditTaskset(vf.Taskset[LifelongEditTask, LifelongEditTasksetConfig]):
    """Episodes on streams of their own."""

    def load(self) -> Iterator[LifelongEditTask]:
        for number in range(self.config.episodes):
            seed = self.config.first_seed + number
            data = LifelongEditData(
                name=f"LifelongEdit-v1#{seed}", system_prompt=RULES, seed=seed, arguments=self.config.arguments
            )
            yield LifelongEditTask(data, self.config.task)


class LifelongEditTextEnvConfig(vf.EnvConfig):
    """Who plays."""

    player: vf.AgentConfig = vf.AgentConfig()
    """The language model."""
    mistakes: int = 3
    """Replies in a row that are no choice; after one more the episode ends as it stands."""


class LifelongEditTextEnv(vf.Env[LifelongEditTextEnvConfig]):
    """A language model edits another one. Its reward, ``return``, is the sum of the environment's."""

    async def run(self, task: Any, agents: Any) -> None:
        """One episode; a reply that is no choice is answered with what is wrong with it."""
        episode = await asyncio.to_thread(TextEpisode, **task.data.arguments)
        situation = await asyncio.to_thread(episode.reset, task.data.seed)
        total, mistakes, refused = 0.0, 0, 0
        async with agents.player.interaction(task) as interaction:
            segment = await interaction.turn(situation.as_text())
            while not segment.terminated:
                try:
                    situation = await asyncio.to_thread(episode.step, modules_in(segment.last_reply))
                except (BadChoiceError, RefusedActionError) as error:
                    mistakes, refused = mistakes + 1, refused + 1
                    if mistakes > self.config.mistakes:
                        interaction.trace.stop("no_choice")
                        break
                    segment = await interaction.turn(f"That is no choice: {error}. Nothing was changed; choose again.")
                    continue
                mistakes = 0
                total += situation.last_reward or 0.0
                if situation.done:
                    break
                segment = await interaction.turn(situation.as_text())
        interaction.trace.record_reward("return", total)
        interaction.trace.record_metric("batches", situation.batch)
        interaction.trace.record_metric("refused_replies", refused)


__all__ = ["LifelongEditTaskset", "LifelongEditTextEnv"]
