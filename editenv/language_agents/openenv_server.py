"""An OpenEnv server of LifelongEdit-v1; needs the extra ``openenv``. :mod:`editenv.language_agents.serve` is its command.

A session (the WebSocket ``/ws``, which clients use) is an episode on edited weights of its own; the rest of the model
is in memory once. ``POST /reset`` and ``POST /step`` are OpenEnv's requests without a session: each has a new
environment, so that a step there is refused, for nothing was reset.
"""

from functools import partial
from typing import Any
from uuid import uuid4

from openenv.core.env_server import create_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import EnvironmentMetadata

from editenv import __version__
from editenv.language_agents.episode import RULES, Situation, TextEpisode
from editenv.language_agents.openenv_types import EditAction, EditObservation, EditState

NAME = "lifelong_edit"


class LifelongEditEnvironment(Environment[EditAction, EditObservation, EditState]):
    """An episode of LifelongEdit-v1 as OpenEnv has it.

    The model is there from the first reset on: the server makes an environment for every request about schemas, too.

    Args:
        arguments: Of ``gym.make("LifelongEdit-v1")``.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self._arguments = arguments
        self._episode: TextEpisode | None = None
        self._state = EditState()

    def reset(self, seed: int | None = None, episode_id: str | None = None, **unknown: Any) -> EditObservation:
        """A new episode, its stream drawn from the seed.

        Raises:
            ValueError: If it is given anything else.
        """
        if unknown:
            raise ValueError(f"reset: unknown {', '.join(sorted(unknown))}; known are seed and episode_id")
        self._episode = self._episode or TextEpisode(**self._arguments)
        situation = self._episode.reset(seed)
        self._state = EditState(episode_id=episode_id or str(uuid4()), seed=seed, batches=situation.batches)
        return _observation(situation)

    def step(self, action: EditAction, timeout_s: float | None = None, **_: Any) -> EditObservation:
        """Edits the batch at hand; raises as :meth:`editenv.language_agents.episode.TextEpisode.step` does."""
        if self._episode is None:
            raise RuntimeError("step: the episode never began; call reset() first, in the same session (/ws)")
        situation = self._episode.step(action.modules)
        self._state.step_count += 1
        self._state.returned += situation.last_reward or 0.0
        self._state.done = situation.done
        return _observation(situation)

    @property
    def state(self) -> EditState:
        """Where the episode stands."""
        return self._state

    def get_metadata(self) -> EnvironmentMetadata:
        return EnvironmentMetadata(name=NAME, description=RULES, version=__version__)

    def close(self) -> None:
        if self._episode is not None:
            self._episode.close()


def _observation(situation: Situation) -> EditObservation:
    return EditObservation(
        batch=situation.batch,
        batches=situation.batches,
        attempt=situation.attempt,
        edits=[dict(edit) for edit in situation.edits],
        modules={name: dict(numbers) for name, numbers in situation.modules.items()},
        scores=dict(situation.last_scores),
        text=situation.as_text(),
        reward=situation.last_reward,
        done=situation.done,
    )


def make_app(sessions: int = 4, **arguments: Any) -> Any:
    """The server's FastAPI application.

    Args:
        sessions: Episodes at the same time; each has edited weights and a cache of its own.
        arguments: Of ``gym.make("LifelongEdit-v1")``.
    """
    return create_app(
        partial(LifelongEditEnvironment, **arguments),
        EditAction,
        EditObservation,
        max_concurrent_envs=sessions,
        env_name=NAME,
        state_cls=EditState,
    )


app = make_app(edits_per_step=5, horizon=10, redraw=True)
"""With the command's defaults, for other servers of ASGI; models are loaded when episodes begin."""
