"""What an agent is."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from editenv.env import Action, LifelongEditEnv, Observation

ProgressCallback = Callable[[str, int, int], None]
"""Called with what is going on, how much of it is done, and of how much."""


class Agent(ABC):
    """Proposes a delta for each observation.

    A benchmark calls :meth:`prepare` once (its time is reported as setup), then :meth:`begin` at the start of each
    episode and :meth:`act` for each step.
    """

    actions_per_batch: int = 1
    """How often the agent wants to see each batch (K)."""

    learns: bool = False
    """Whether :meth:`prepare` needs edits to learn from."""

    reads_text: bool = False
    """Whether :meth:`prepare` takes statistics of text: of :attr:`text`, or else of the training edits."""

    text: str | None = None
    """A text file, a hub data set or a folder of statistics, as :func:`agents.covariance.covariance_of` takes it."""

    looks_at_model: bool = False
    """Whether it looks at the language model and the texts of the edits, and not only at the observation."""

    @property
    def needs(self) -> tuple[str, ...]:
        """What it must have besides the observation: ``model``, ``edits`` to learn from, ``text``, ``subjects``."""
        found = {"model": self.looks_at_model, "edits": self.learns, "text": self.reads_text}
        return tuple(name for name, needed in found.items() if needed)

    looks_ahead: bool = False
    """Whether it acts by the whole stream, or by where it ends: in its middle it is not what it is for a shorter
    one.
    """

    workspace: Path | None = None
    """Folder in which :meth:`prepare` may keep what it made, for the next suite with the same agent and seed."""

    kept_seconds: float = 0.0
    """What making the things taken from the workspace had cost; part of the reported setup."""

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:  # noqa: B027 - optional
        """Training, statistics: whatever is done once for a model, before any edit.

        Args:
            env: On the *training* split. The edits that the agent will be judged on are not to be seen from here.
            seed: For everything that is drawn.
            progress: To be called now and then.
        """

    def begin(self, env: LifelongEditEnv) -> None:  # noqa: B027 - optional
        """Forget the last episode. Called after ``env.reset``."""

    def revert_batch(self) -> None:  # noqa: B027 - optional
        """The last batch has been undone: what it left in the agent goes too. Called before :meth:`batch_state`.

        Called after an :meth:`act` of that batch, which may have ended in an error.
        """

    def batch_state(self) -> dict[str, torch.Tensor]:
        """What the last batch left in the agent, if anything, for :meth:`load_batch_state`."""
        return {}

    def load_batch_state(self, memory: dict[str, torch.Tensor]) -> None:  # noqa: B027 - optional
        """Takes in what a batch had left, in order: an interrupted run goes on as if it had not been."""

    @abstractmethod
    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        """The delta for each edited module; ``info["batch"]`` and ``info["attempt"]`` say what is observed."""
