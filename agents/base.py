"""What an agent is: it observes a batch's fine-tuning gradient and proposes a delta for each edited module."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any, Self

import torch

from editenv.arguments import check_arguments
from editenv.deltas import LowRank
from editenv.env import Action, LifelongEditEnv
from editenv.language_model.editable_lm import EditableLM, Gradient

Observation = Mapping[str, Gradient]
"""By edited module the two factors of the batch's fine-tuning gradient, ``keys`` (tokens, d_in) and ``value_grads``
(tokens, d_out), of the tokens that the environment shows: float32, unpadded, on the model's device;
``env.gradients``. To be read, not to be changed."""

ProgressCallback = Callable[[str, int, int], None]
"""Called with what is going on, how much of it is done, and of how much."""


class Agent(ABC):
    """Proposes a delta for each observation.

    A benchmark calls :meth:`prepare` once (its time is reported as setup), then :meth:`begin` at the start of each
    episode and :meth:`act` for each step.
    An agent sees the observation; what it needs besides it declares in the attributes below.
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
    """Whether :meth:`act` looks at the language model: only then :meth:`begin` is shown it."""

    fair_first_batch: int = 1
    """Edits that a first batch should have, for an agent whose statistics begin with it; fewer are made badly."""

    independent_batches: bool = False
    """Whether what it does for a batch is the same whatever batches came before, and leaves nothing for later ones: then
    one batch can be taken out of a run and the others stay as they are."""

    looks_ahead: bool = False
    """Whether it acts by the whole stream, or by where the stream ends: only then :meth:`begin` is shown the stream.

    Its figures in the middle of a stream are then not those of a shorter stream.
    """

    workspace: Path | None = None
    """Folder in which :meth:`prepare` may keep what it made, for the next suite with the same agent and seed."""

    kept_seconds: float = 0.0
    """What making the things taken from the workspace had cost; part of the reported setup."""

    changes: tuple[str, ...] = ("weights",)
    """What its actions change: ``"weights"`` by deltas, ``"side memory"`` by :class:`editenv.memories.Memory`, ``"context"``
    by :class:`editenv.contexts.Context`."""

    environment: Mapping[str, Any] = {}
    """Where it edits, if its settings say: arguments of the environment (:data:`agents.settings.ENVIRONMENT`), which hold
    where a suite leaves them open."""

    constructor_arguments: Mapping[str, Any]
    """What the agent was constructed with, defaults included; set by the class, for records.

    Arguments are checked by their annotations (:mod:`editenv.arguments`); what does not fit is a ValueError.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        agent = super().__new__(cls)
        # A copy or an unpickled agent is made without arguments; its attributes come afterwards.
        bound = signature(cls.__init__).bind_partial(agent, *args, **kwargs)
        check_arguments(cls.__init__, bound.arguments)
        bound.apply_defaults()
        variadic = {"self", "args", "kwargs"} if cls.__init__ is object.__init__ else {"self"}
        agent.constructor_arguments = {n: value for n, value in bound.arguments.items() if n not in variadic}
        return agent

    @property
    def needs(self) -> tuple[str, ...]:
        """What it must have besides the observation: ``model``, ``edits`` to learn from, ``text``, ``subjects``."""
        needed = {"model": self.looks_at_model, "edits": self.learns, "text": self.reads_text}
        return tuple(name for name, is_needed in needed.items() if is_needed)

    def prompts_together(self, edits: int) -> tuple[int, int]:
        """How many prompts go through the model at a time for a batch of so many edits, with a gradient and without one;
        for estimates of memory.
        """
        return edits, edits

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:  # noqa: B027 - optional
        """Training, statistics: whatever is done once for a model, before any edit.

        Args:
            env: On the *training* split. The edits that the agent will be judged on are not to be seen from here.
            seed: For everything that is drawn.
            progress: To be called now and then.
        """

    def begin(self, env: LifelongEditEnv) -> None:  # noqa: B027 - optional
        """Forget the last episode. Called after ``env.reset``.

        Args:
            env: What the agent may see of the environment that is edited: a :class:`agents.view.AgentView`.
        """

    @abstractmethod
    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        """The delta for each edited module.

        Args:
            observation: The batch's gradient at the current weights.
            info: ``info["batch"]`` and ``info["attempt"]`` say what is observed, both from 0.

        Returns:
            For each module a ``(d_in, d_out)`` tensor, array or :class:`editenv.deltas.LowRank`; or, of an agent that
            declares it (:attr:`changes`), a :class:`editenv.memories.Memory`. Beside the modules, of an agent that declares
            that, a :class:`editenv.contexts.Context` under ``"context"``.
        """

    # -- what a batch leaves in the agent: for runs that are reverted, interrupted and gone on with ------------------

    def revert_batch(self) -> None:  # noqa: B027 - optional
        """The last batch has been undone: what it left in the agent goes, too. Called before :meth:`batch_state`.

        Called after an :meth:`act` of that batch, which may have ended in an error. Calling it again changes nothing.
        """

    def batch_state(self) -> dict[str, torch.Tensor]:
        """What the last batch left in the agent, if anything, for :meth:`load_batch_state`.

        It changes nothing: until the next :meth:`act` every call gives the same.
        """
        return {}

    def load_batch_state(self, state: dict[str, torch.Tensor]) -> None:  # noqa: B027 - optional
        """Takes in what one batch had left, so that an interrupted run goes on as if it had not been.

        Called once for each batch in order; each call adds a batch, so a second one with the same state is an error.
        """


def zero_action(lm: EditableLM) -> Action:
    """A delta of rank zero for each edited module: no change."""
    shapes = {name: lm.shape(name) for name in lm.modules}
    return {name: LowRank(torch.zeros(d_in, 0), torch.zeros(0, d_out)) for name, (d_in, d_out) in shapes.items()}


def nan_action(lm: EditableLM) -> Action:
    """NaN for each edited module, which environments refuse: of a method that has nothing finite to offer."""
    return {name: torch.full(lm.shape(name), math.nan) for name in lm.modules}
