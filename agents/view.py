"""What an agent sees of the environment it edits in: the one contract of benchmarks, editor and training runs.

A view is data that whoever runs the agent puts there before each action. It holds no reference to the environment, so
nothing that is judged can be reached from it by attributes: not the stream, not the prompts that metrics and reward
are taken on, not the reward. What one Python process cannot prevent is said in docs/guides/run_benchmarks.md.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NoReturn, overload

import torch

from agents.base import Agent, Observation
from editenv.data import Edit
from editenv.env import Action, LifelongEditEnv
from editenv.evaluation.batch import PROMPT, EvaluationBatch
from editenv.language_model.activation_cache import ActivationCache


def request_of(edit: Edit) -> Edit:
    """What is asked for: the edit without the rephrases and locality prompts that it is judged by."""
    return replace(edit, rephrases=(), locality=())


class LengthOnly(Sequence[Edit]):
    """A stream of which the length is known and nothing else."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Edit: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Edit]: ...
    def __getitem__(self, index: int | slice) -> NoReturn:
        raise PermissionError("an agent is not shown the stream's edits; one that acts by them sets looks_ahead = True")


class AgentView(LifelongEditEnv):
    """The environment as an agent gets it from :meth:`agents.base.Agent.begin`.

    =====================================  ==================================================================
    shown to                               what
    =====================================  ==================================================================
    every agent                            ``batch`` (the edits without rephrases and locality prompts),
                                           ``gradients``, ``batches_done``, ``attempt``, ``len(stream)``,
                                           ``edits_per_step``, ``actions_per_batch``, ``train_eos``
    agents with ``looks_at_model``         ``language_model``; ``training_targets``, of the edits' own prompts
    agents with ``looks_ahead``            ``stream``, likewise without rephrases and locality prompts
    =====================================  ==================================================================

    All else raises an AttributeError that says so. It is a :class:`editenv.env.LifelongEditEnv` by type alone, for
    annotations and the wrappers of :mod:`editenv.wrappers`: nothing of an environment is behind it.

    Args:
        env: The environment, after its reset.
        agent: Who looks.
    """

    def __init__(self, env: LifelongEditEnv, agent: Agent) -> None:  # the environment's own is not called
        self.edits_per_step, self.actions_per_batch = env.edits_per_step, env.actions_per_batch
        self.train_eos, self.max_tokens = env.train_eos, env.max_tokens
        self.observation_space, self.render_mode = env.observation_space, None
        self._looks_at_model = agent.looks_at_model
        if agent.looks_at_model:
            self.language_model = env.language_model
        self.stream = [request_of(edit) for edit in env.stream] if agent.looks_ahead else LengthOnly(len(env.stream))
        self.show(env)

    def show(self, env: LifelongEditEnv) -> None:
        """Brings the view to where the environment stands."""
        self.batches_done, self.attempt = env.batches_done, env.attempt
        self._requests = [request_of(edit) for edit in env.batch]
        self._gradients = dict(env.gradients)
        self._targets = _own_prompts(env, self._requests) if self._looks_at_model and self._requests else None

    @property
    def batch(self) -> Sequence[Edit]:
        """The edits that the next action is for, without rephrases and locality prompts."""
        return self._requests

    @property
    def training_targets(self) -> EvaluationBatch:
        """The edits' own prompts with their targets, for agents that declare ``looks_at_model``.

        Raises:
            AttributeError: For others.
            RuntimeError: If there is no batch.
        """
        if not self._looks_at_model:
            raise AttributeError(_not_shown("training_targets"))
        if self._targets is None:
            raise RuntimeError("there is no batch at hand: the stream is over, or never began")
        return self._targets

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(_not_shown(name))


def _not_shown(name: str) -> str:
    if name in ("language_model", "training_targets"):
        return f"env.{name} is shown to agents that declare it: set looks_at_model = True in the class"
    return f"an agent is not shown env.{name} (docs/guides/write_a_policy.md says what it sees)"


def _own_prompts(env: LifelongEditEnv, requests: Sequence[Edit]) -> EvaluationBatch:
    """The environment's training targets without the questions that are judged."""
    targets = env.training_targets
    prompts = targets.prompts.select(targets.kind == PROMPT)
    # Copies: what the frozen layers made of a prompt is a view into what they made of its neighbours.
    prompts = replace(prompts, pieces=[piece.clone() for piece in prompts.pieces])
    which = torch.arange(len(requests), device=prompts.labels.device)
    texts = [(edit.prompt, edit.target) for edit in requests]
    return EvaluationBatch(requests, texts, prompts, which, torch.full_like(which, PROMPT), prompts.labels[:0])


class Actor:
    """An agent at work in an environment of which it sees a view. The agent is not given the actor.

    While the agent is at work, the model that it may look at has a cache of its own: what it asks on its own counts
    as its cost, and the environment's cache, which holds the texts of all that was asked so far and, filled by an
    earlier run, what the whole stream becomes, is not within its reach.

    Args:
        env: The environment.
        agent: After its preparation.
        cache_bytes: Limit of the agent's cache.
    """

    def __init__(self, env: LifelongEditEnv, agent: Agent, cache_bytes: int = 256 * 2**20) -> None:
        self.env, self.agent = env, agent
        self._cache = ActivationCache(cache_bytes)

    def begin(self) -> None:
        """A new episode; to be called after the environment's reset."""
        self._cache.clear()
        self._view = AgentView(self.env, self.agent)
        with self._agents_cache():
            self.agent.begin(self._view)

    def forget_prompts(self) -> None:
        """Empties the agent's cache: what it computes for the next batch depends on no earlier one, to the last bit."""
        self._cache.clear()

    def look(self) -> tuple[Observation, dict[str, Any]]:
        """Shows the agent where the environment stands: what :meth:`act` is to be given."""
        env = self.env
        self._view.show(env)
        if self.agent.looks_at_model and env.batch:
            self._take_over_batch()
        position = {"batch": env.batches_done, "attempt": env.attempt, "edits": env.batches_done * env.edits_per_step}
        return self._view.gradients, position

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        """The agent's action.

        Args:
            observation: Of :meth:`look`.
            info: Likewise.
        """
        with self._agents_cache():
            return self.agent.act(observation, info)

    def _take_over_batch(self) -> None:
        """Gives the agent's cache what the frozen layers made of the edits' own prompts: they need not run again."""
        lm, batch = self.env.language_model, self.env.batch
        source = lm.activation_cache
        with self._agents_cache(), self._cache.copying_from(source):
            for append_eos in {False, self.env.train_eos}:
                lm.encode([edit.prompt for edit in batch], [edit.target for edit in batch], append_eos=append_eos)

    @contextmanager
    def _agents_cache(self) -> Iterator[None]:
        """Within the context the model's frozen layers use the agent's cache."""
        lm = self.env.language_model
        usual_cache, lm.activation_cache = lm.activation_cache, self._cache
        try:
            yield
        finally:
            lm.activation_cache = usual_cache
