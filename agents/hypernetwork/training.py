"""What every training of a hypernetwork does: the policy edits streams of training edits, and an optimiser learns from
what the rewards say about its deltas.

RLEdit's own training, over whole trajectories, is :mod:`agents.rledit.trainer`.
Online training (:mod:`agents.hypernetwork.online`), by which MEND and MALMEN are made, and those that see rewards only
(:mod:`agents.rl.reinforce`, :mod:`agents.rl.evolution`) are subclasses of :class:`Trainer`, too.
"""

import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch

from agents.base import ProgressCallback
from agents.covariance import covariance_of
from agents.hypernetwork.config import TrainConfig
from agents.hypernetwork.networks import make_policy
from agents.preconditioner import Preconditioner, inverse_covariance
from agents.progress import silent
from editenv.deltas import LowRank, inner_gradient, squared_norm
from editenv.env import LifelongEditEnv
from editenv.language_model.editable_lm import Gradient
from editenv.rewards import RewardTerms

Credit = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""By module ``S R^T`` (d_in, r) and ``L^T S`` (r, d_out): the gradients of ``<S, L R>`` with respect to the factors."""


@dataclass(slots=True)
class Step:
    """One step of a trajectory: what was observed (with ``P U^T`` where there is a preconditioner), and its reward.

    Attributes:
        terms: What the reward is made of; the reward itself is in the environment's unit.
        unit: That unit in nats: 1 of eq. 10, the unedited model's loss of the improvement.
    """

    gradients: Mapping[str, Gradient]
    projected: dict[str, torch.Tensor] | None
    terms: RewardTerms
    unit: float = field(default=1.0, kw_only=True)


@dataclass(slots=True)
class Transition(Step):
    """A step with what was done in it, and the gradient of its reward.

    Attributes:
        deltas: By module the delta, ``D = L R``.
        loss_gradient: By module the gradient of ``-gamma^t r_t``, in the reward's unit, with respect to the weight,
            ``(d_in, d_out)`` in factors.
        weights_end: Whether the next step begins at other weights than this one led to: the stream has ended, or in
            the environment ``fixed`` the batch has.
    """

    deltas: dict[str, LowRank]
    loss_gradient: dict[str, LowRank]
    weights_end: bool


@dataclass(slots=True)
class CreditedStep(Step):
    """A step with what its delta answers for.

    Attributes:
        credit: Of S, the sum of the loss gradients that the delta has a share in.
    """

    credit: Credit


def make_preconditioner(
    env: LifelongEditEnv,
    config: TrainConfig,
    text: str | None = None,
    progress: ProgressCallback = silent,
) -> Preconditioner:
    """From a text, as :func:`agents.covariance.covariance_of` takes it; of the training split by default."""
    covariance = covariance_of(env, text, config.covariance_texts, progress)
    start = {name: inverse_covariance(matrix, config.epsilon) for name, matrix in covariance.items()}
    return Preconditioner(start, config.recursive)


def project(preconditioner: Preconditioner | None, gradients: Mapping[str, Gradient]) -> dict[str, torch.Tensor] | None:
    """``P U^T`` (d_in, tokens) for each module; None without a preconditioner."""
    if preconditioner is None:
        return None
    return {name: preconditioner.project(name, gradient.keys) for name, gradient in gradients.items()}


def training_environment(
    env: LifelongEditEnv, config: TrainConfig, reward: Literal["loss", "improvement"] = "loss"
) -> LifelongEditEnv:
    """The same model, modules and data set on its training edits, endlessly redrawn where the data set allows it.

    Args:
        env: Whose.
        config: Horizon, batch size and the reward's coefficients.
        reward: What ``step`` returns and trainers learn from: the paper's reward, or the bounded one.

    Raises:
        ValueError: If there are not enough edits for a trajectory.
    """
    training = LifelongEditEnv(
        **env.model_arguments,
        split="train",
        redraw=env.dataset == "atlas",
        edits_per_step=config.edits_per_step,
        actions_per_batch=config.actions_per_batch,
        horizon=config.horizon,
        locality=config.locality,
        reference=config.reference,
        memory_decay=config.memory_decay,
        memory_batches=config.memory_batches,
        regularization=config.regularization,
        reward=reward,
    )
    possible = training.longest_stream // config.edits_per_step
    if possible < config.horizon:
        raise ValueError(
            f"horizon: a trajectory of {config.horizon} batches of {config.edits_per_step} edits is more than the "
            f"{training.longest_stream} training edits of {env.dataset}; set horizon to {possible} at most, or "
            "edits_per_step lower"
        )
    return training


class Trainer(ABC):
    """A policy, its optimiser, and a training environment; :meth:`learn` is what sets trainings apart.

    Args:
        env: A :func:`training_environment`.
        config: How the policy is trained.
        seed: Seeds the network, every stream and whatever else is drawn.
        preconditioner: P of the ridge regression, if the config has one.
    """

    title: ClassVar[str]
    """Its name in progress bars and in policies' files."""

    def __init__(
        self, env: LifelongEditEnv, config: TrainConfig, seed: int, preconditioner: Preconditioner | None
    ) -> None:
        self.env, self.config, self.seed, self.preconditioner = env, config, seed, preconditioner
        self.lm = env.language_model
        shapes = {name: self.lm.shape(name) for name in self.lm.modules}
        with torch.random.fork_rng(devices=[]):  # the network is made on the CPU; the caller's generator is not touched
            torch.random.default_generator.manual_seed(seed)
            self.policy = make_policy(shapes, config.policy).to(self.lm.device)
        scalars = self.policy.scalars()
        network = list(self.policy.networks.parameters())
        groups = [{"params": network, "lr": config.learning_rate}]
        groups.append({"params": scalars, "lr": config.scalar_learning_rate})
        if self.policy.gate is not None:
            groups.append({"params": list(self.policy.gate.parameters()), "lr": config.learning_rate})
        self.optimizer = torch.optim.Adam(groups)
        self.trajectory = 0
        self._warm_up()

    def _warm_up(self) -> None:
        """Normalizer statistics and key scales from batches on theta_0."""
        self.env.reset(seed=self.seed * 100_003 + 99_999)
        inputs, outputs = dict.fromkeys(self.lm.modules, 0.0), dict.fromkeys(self.lm.modules, 0.0)
        tokens = dict.fromkeys(self.lm.modules, 0)
        edits = self.env.edits_per_step
        for batch in range(min(self.config.warm_up_batches, self.config.horizon)):
            gradients = self.env.gradient_of(self.env.stream[batch * edits : (batch + 1) * edits])
            self.policy.observe(gradients)
            for name, gradient in gradients.items():
                inputs[name] += float(gradient.keys.square().sum())
                outputs[name] += float((gradient.keys @ self.lm.weight(name)).square().sum())
                tokens[name] += len(gradient.keys)
        self.policy.set_scales(
            {name: total / tokens[name] for name, total in inputs.items()},
            {name: total / tokens[name] for name, total in outputs.items()},
        )

    # -- the loop -------------------------------------------------------------------------------------------------

    def run(self, trajectories: int, after_each: Callable[[dict[str, float]], None] = lambda _: None) -> None:
        """Trains up to so many trajectories in all."""
        while self.trajectory < trajectories:
            after_each(self.train_one())

    def train_one(self) -> dict[str, float]:
        """One trajectory and what is learned from it; the mean reward terms along it."""
        started = time.monotonic()
        steps, norm = self.learn()
        for step in steps:
            self.policy.observe(step.gradients)
        self.trajectory += 1
        log = {key: sum(step.terms.as_dict()[key] for step in steps) / len(steps) for key in steps[0].terms.as_dict()}
        return log | {"gradient_norm": norm, "seconds": time.monotonic() - started}

    @abstractmethod
    def learn(self) -> tuple[Sequence[Step], float]:
        """Plays one trajectory or several, and updates the policy; the steps, and the norm of the policy gradient."""

    @property
    def stream_seed(self) -> int:
        """Of the current trajectory's stream."""
        return self.seed * 100_003 + self.trajectory

    @property
    def steps_per_update(self) -> int:
        """Environment steps that one :meth:`train_one` takes."""
        return self.config.horizon * self.config.actions_per_batch

    # -- what trainings are made of -------------------------------------------------------------------------------

    def roll_out(self) -> Iterator[Transition]:
        """The policy, as it is at each step, edits one stream from theta_0, and each reward is differentiated.

        That of an environment whose reward is the improvement is; a model that breaks is edited on to the horizon, as
        the penalty for breaking it has no gradient.
        """
        config, env = self.config, self.env
        rng = random.Random(f"{self.seed}/{self.trajectory}")
        env.reset(seed=self.stream_seed)
        if self.preconditioner is not None:
            self.preconditioner.reset()
        for batch in range(config.horizon):
            for attempt in range(config.actions_per_batch):
                gradients = env.gradients
                projected = project(self.preconditioner, gradients)
                with torch.no_grad():
                    deltas = self.policy(gradients, projected)
                lags = sample_lags(env.batches_in_memory, config.memory_samples, rng)
                last_attempt = attempt == config.actions_per_batch - 1
                if last_attempt and self.preconditioner is not None and config.environment == "lifelong":
                    self.preconditioner.absorb(gradients, dict.fromkeys(gradients, config.absorb_noise), projected)
                unit = env.unedited_loss if env.rewards_improvement else 1.0
                terms, reward_gradient = env.transition(deltas, lags)
                if env.rewards_improvement:
                    terms = replace(terms, reward=1 + terms.reward / unit)
                weight = config.discount ** (batch * config.actions_per_batch + attempt) / unit
                # Batches of the fixed environment do not share weights; attempts on one batch do.
                yield Transition(
                    gradients,
                    projected,
                    terms,
                    deltas,
                    loss_gradient={n: LowRank(g.keys.T, weight * g.value_grads) for n, g in reward_gradient.items()},
                    weights_end=last_attempt and (config.environment == "fixed" or batch == config.horizon - 1),
                    unit=unit,
                )
            if config.environment == "fixed":
                env.undo_all_edits()

    def backward(self, steps: Sequence[CreditedStep]) -> None:
        """Adds to the policy's gradient ``sum_i <S_i, dD_i/dphi>``, D_i = L_i R_i; observations are constants."""
        config = self.config
        for t, step in enumerate(steps):
            weight = config.discount**t / step.unit
            deltas: dict[str, LowRank] = self.policy(step.gradients, step.projected)
            loss = torch.zeros((), device=self.lm.device)
            for name, delta in deltas.items():
                left, right = step.credit[name]
                loss = loss + (left * delta.left).sum() + (right * delta.right).sum()
                # The L2 term of eq. 10 depends on the delta alone: its gradient goes around the language model.
                loss = loss + weight * config.regularization * squared_norm(delta)
            (loss / len(steps)).backward()

    def ascend(self) -> float:
        """An optimiser step along the gradient at hand, which is clipped; its norm before that.

        Raises:
            FloatingPointError: If it is not finite; the policy is as it was.
        """
        norms = [
            torch.nn.utils.clip_grad_norm_(parameters, self.config.gradient_clip)
            for parameters in self.policy.clipped_together()
        ]
        if not all(norm.isfinite() for norm in norms):
            raise FloatingPointError(
                f"trajectory {self.trajectory + 1}: the policy's gradient is not finite; its deltas have broken the "
                "model. Set policy.step_size or the learning rates lower"
            )
        self.optimizer.step()
        return math.hypot(*map(float, norms))

    def state(self) -> dict[str, Any]:
        """What :meth:`load_state` goes on from, to the same bits: for a checkpoint."""
        return {
            "trajectory": self.trajectory,
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes in what :meth:`state` gave."""
        self.trajectory = state["trajectory"]
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])


def step_credit(transitions: Iterable[Transition]) -> Iterator[CreditedStep]:
    """Each delta answers for its own reward only: ``S_i = gamma^i g_i``, as the public code of RLEdit has it."""
    for step in transitions:
        credit = {name: inner_gradient(step.loss_gradient[name], delta) for name, delta in step.deltas.items()}
        yield CreditedStep(step.gradients, step.projected, step.terms, credit, unit=step.unit)


def sample_lags(past: int, samples: int | None, rng: random.Random) -> list[int] | None:
    """Which past batches to look back at; None means all."""
    if samples is None or samples >= past:
        return None
    return rng.sample(range(1, past + 1), samples)


def several_modules(env: LifelongEditEnv) -> dict[str, object]:
    """Tells policies of several modules from those made when each of them began with a whole step."""
    return {"shared_step": True} if len(env.language_model.modules) > 1 else {}


def previous_reference(config: TrainConfig) -> dict[str, object]:
    """Tells policies trained with ``reference="previous"`` from those made when each batch that was looked back at
    kept the weights it had come to as its reference.
    """
    return {"one_reference": True} if config.reference == "previous" else {}


def describe(log: dict[str, float]) -> str:
    """The running reward terms in a few words."""
    return "reward {reward:.2f} (edit {edit:.2f}, locality {locality:.3f}, memory {memory:.2f})".format(**log)
