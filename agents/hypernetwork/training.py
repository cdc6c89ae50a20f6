"""RLEdit's training (Li et al. 2025, sections 3.1 to 3.3): the policy gradient over whole editing trajectories.

It reads like Algorithm 1 of the paper. In each trajectory the frozen policy edits a fresh stream from theta_0 and
every reward's gradient with respect to the *weights* is added up; then the policy is run once more over what it
observed, which turns these sums into the gradient with respect to the *policy*, and the optimiser takes one step.
The agent is :class:`agents.rledit.agent.RLEdit`; other algorithms on its network are subclasses of
:class:`Trainer`.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch

from agents.base import ProgressCallback
from agents.covariance import covariance_of
from agents.hypernetwork.networks import PolicyConfig, make_policy
from agents.preconditioner import Preconditioner, inverse_covariance
from editenv.deltas import LowRank, inner_gradient, squared_norm
from editenv.env import LifelongEditEnv
from editenv.language_model.editable_lm import Gradient
from editenv.rewards import RewardTerms


@dataclass(frozen=True)
class TrainConfig:
    """How a policy is trained. Symbols are the paper's.

    gamma, mu, k, eta and lambda_loc are the paper's values (appendix A.5 and B). Its rates, 1e-5 for the network
    and 1e-6 for step sizes in the model's own units, belong to networks of rank 1,024 and more on models of 8
    billion parameters; here step sizes are relative to a typical output, and the rates are those that the embedded
    model was trained with.
    """

    trajectories: int = 60
    """Trajectories, each over a freshly drawn and shuffled training stream; one optimiser step each (eq. 12)."""
    horizon: int = 50
    """T: batches per trajectory."""
    edits_per_step: int = 20
    """n: edits per batch."""
    actions_per_batch: int = 1
    """K: how often each batch is shown, each time with the gradient at the current weights. The paper has 1."""
    learning_rate: float = 1e-3
    """Adam's rate for the network."""
    scalar_learning_rate: float = 0.03
    """Adam's rate for the logarithms of step size and ridge."""
    gradient_clip: float = 1.0
    """Largest norm of the policy gradient."""
    discount: float = 1.0
    """gamma of eq. 11."""
    credit: Literal["trajectory", "step"] = "trajectory"
    """Whether a delta answers for all later rewards, or (as the public code has it) only for its own."""
    environment: Literal["lifelong", "fixed"] = "lifelong"
    """fixed undoes every batch, so that the policy only ever sees theta_0: how MEND and MALMEN are trained."""
    locality: float = 0.6
    """lambda_loc of eq. 8."""
    reference: Literal["initial", "previous"] = "initial"
    """What the locality loss compares with: theta_0 (eq. 7), or, as the public code has it, theta_{t-1}."""
    memory_decay: float = 0.95
    """mu of eq. 9."""
    memory_batches: int = 10
    """k of eq. 9: how many past batches are looked back at."""
    memory_samples: int | None = None
    """Estimate the sum over the k past batches from so many of them, drawn anew at each step; None takes all."""
    regularization: float = 1e-4
    """eta of eq. 10; the squared norm carries gradient."""
    preconditioner: bool = False
    """Solve the ridge regression under the text's key covariance (not in the paper)."""
    covariance_texts: int = 3000
    """Sentences of the training split that the covariance is estimated from."""
    epsilon: float = 0.01
    """Ridge on that covariance, relative to its mean eigenvalue."""
    recursive: bool = True
    """Add the keys of finished batches to the covariance; needs the preconditioner."""
    absorb_noise: float = 1.0
    """How firmly they are added (smaller is firmer), relative to a typical key."""
    warm_up_batches: int = 50
    """Batches on theta_0 that the normalizer sees before training, of one stream: ``horizon`` at most."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """The network; the training is a plug-in to any of them (section 3.3)."""

    def __post_init__(self) -> None:
        least = {"trajectories": 0, "horizon": 1, "edits_per_step": 1, "actions_per_batch": 1, "memory_batches": 0}
        least |= {"memory_samples": 1, "warm_up_batches": 1, "covariance_texts": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name} must be {low} or more, not {value}")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount must be from 0 to 1, not {self.discount}")
        if self.reference == "previous" and self.environment == "fixed":
            raise ValueError("reference: in the environment 'fixed' every batch comes to theta_0; there is no other")
        if self.preconditioner and self.policy.network != "malmen":
            raise ValueError(
                f"preconditioner: it goes into a ridge regression, which the network {self.policy.network!r} does not have"
            )


@dataclass(slots=True)
class Step:
    """One step of a trajectory: what was observed (with ``P U^T`` where there is a preconditioner), and its reward."""

    gradients: dict[str, Gradient]
    projected: dict[str, torch.Tensor] | None
    terms: RewardTerms


@dataclass(slots=True)
class DifferentiableStep(Step):
    """With what its delta ``D = L R`` answers for.

    Attributes:
        credit: By module ``S R^T`` (d_in, r) and ``L^T S`` (r, d_out), the gradients of ``<S, L R>`` with respect
            to the factors; S is the sum, from this step on to where its credit ends, of ``gamma^t`` times the
            gradient of minus the reward with respect to the weight.
    """

    credit: dict[str, tuple[torch.Tensor, torch.Tensor]]


def make_preconditioner(
    env: LifelongEditEnv,
    config: TrainConfig,
    text: str | None = None,
    progress: ProgressCallback = lambda what, done, total: None,
) -> Preconditioner:
    """From a text, as :func:`agents.covariance.covariance_of` takes it; of the training split by default."""
    covariance = covariance_of(env, text, config.covariance_texts, progress)
    start = {name: inverse_covariance(matrix, config.epsilon) for name, matrix in covariance.items()}
    return Preconditioner(start, config.recursive)


def project(preconditioner: Preconditioner | None, gradients: dict[str, Gradient]) -> dict[str, torch.Tensor] | None:
    if preconditioner is None:
        return None
    return {name: preconditioner.project(name, gradient.keys) for name, gradient in gradients.items()}


def training_environment(env: LifelongEditEnv, config: TrainConfig) -> LifelongEditEnv:
    """The same model, modules and data set on its training edits, endlessly redrawn where the data set allows it.

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
    )
    possible = training.longest_stream // config.edits_per_step
    if possible < config.horizon:
        raise ValueError(
            f"horizon: a trajectory of {config.horizon} batches of {config.edits_per_step} edits is more than the "
            f"{training.longest_stream} training edits of {env.dataset}; set horizon to {possible} at most, or edits_per_step lower"
        )
    return training


class Trainer:
    """Algorithm 1: trajectories, rewards, one policy gradient step for each trajectory."""

    title = "RLEdit"

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
        self.optimizer = torch.optim.Adam(
            [{"params": network, "lr": config.learning_rate}, {"params": scalars, "lr": config.scalar_learning_rate}]
        )
        self.trajectory = 0
        self._warm_up()

    def _warm_up(self) -> None:
        """Normalizer statistics and key scales from batches on theta_0."""
        self.env.reset(seed=self.seed * 100_003 + 99_999)
        inputs, outputs = dict.fromkeys(self.lm.modules, 0.0), dict.fromkeys(self.lm.modules, 0.0)
        tokens = 0
        edits = self.env.edits_per_step
        for batch in range(min(self.config.warm_up_batches, self.config.horizon)):
            gradients = self.env.gradient_of(self.env.stream[batch * edits : (batch + 1) * edits])
            self.policy.observe(gradients)
            for name, gradient in gradients.items():
                inputs[name] += float(gradient.keys.square().sum())
                outputs[name] += float((gradient.keys @ self.lm.weight(name)).square().sum())
            tokens += len(next(iter(gradients.values())).keys)
        self.policy.set_scales({n: s / tokens for n, s in inputs.items()}, {n: s / tokens for n, s in outputs.items()})

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

    @property
    def stream_seed(self) -> int:
        """Of the current trajectory's stream."""
        return self.seed * 100_003 + self.trajectory

    @property
    def steps_per_update(self) -> int:
        """Environment steps that one :meth:`train_one` takes."""
        return self.config.horizon * self.config.actions_per_batch

    def learn(self) -> tuple[Sequence[Step], float]:
        """The steps of a whole trajectory, then one optimiser step; its gradient's norm."""
        steps = list(self.roll_out())
        self.optimizer.zero_grad()
        self.backward(steps)
        return steps, self.ascend()

    def ascend(self) -> float:
        """An optimiser step along the gradient at hand, which is clipped; its norm before that.

        Raises:
            FloatingPointError: If it is not finite; the policy is as it was.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.gradient_clip)
        if not norm.isfinite():
            raise FloatingPointError(
                f"trajectory {self.trajectory + 1}: the policy's gradient is not finite; its deltas have broken the model. Set "
                "policy.step_size or the learning rates lower"
            )
        self.optimizer.step()
        return float(norm)

    def roll_out(self) -> Iterator[DifferentiableStep]:
        """The policy edits one stream; each step comes with what the rewards say about its delta.

        A step is given out once all rewards that it answers for are known: at the end of the stream, unless its
        credit ends before. No step keeps S, which is as large as the weight: with ``G_t = sum_{s<=t} gamma^s g_s``,
        g_s being the gradient of minus the reward at step s, ``S_i = G_T - G_{i-1}``, and one G is enough for all
        steps.
        """
        config, env, lm = self.config, self.env, self.lm
        rng = random.Random(f"{self.seed}/{self.trajectory}")
        env.reset(seed=self.stream_seed)
        if self.preconditioner is not None:
            self.preconditioner.reset()
        so_far: dict[str, torch.Tensor] = {}
        if config.credit == "trajectory":
            so_far = {name: torch.zeros(lm.shape(name), device=lm.device) for name in lm.modules}
        waiting: list[tuple[DifferentiableStep, dict[str, LowRank]]] = []
        for batch in range(config.horizon):
            for attempt in range(config.actions_per_batch):
                gradients = env.gradients
                projected = project(self.preconditioner, gradients)
                with torch.no_grad():
                    deltas = self.policy(gradients, projected)
                lags = sample_lags(len(env.reward.memory), config.memory_samples, rng)
                last = attempt == config.actions_per_batch - 1
                if last and self.preconditioner is not None and config.environment == "lifelong":
                    self.preconditioner.absorb(gradients, dict.fromkeys(gradients, config.absorb_noise), projected)
                terms, found = env.transition(deltas, lags)
                weight = config.discount ** (batch * config.actions_per_batch + attempt)
                own = {name: LowRank(g.keys.T, weight * g.value_grads) for name, g in found.items()}
                if config.credit == "step":
                    credit = {name: inner_gradient(own[name], delta) for name, delta in deltas.items()}
                    yield DifferentiableStep(gradients, projected, terms, credit)
                    continue
                before = {name: inner_gradient(so_far[name], delta) for name, delta in deltas.items()}
                waiting.append((DifferentiableStep(gradients, projected, terms, before), deltas))
                for name, gradient in own.items():
                    so_far[name].addmm_(gradient.left, gradient.right)
            # Batches of the fixed environment do not share weights; attempts on one batch do.
            if config.environment == "fixed" or batch == config.horizon - 1:
                yield from _with_credit(waiting, so_far)
                waiting = []
                for matrix in so_far.values():
                    matrix.zero_()
            if config.environment == "fixed":
                lm.restore()
                env.reward.memory = []
                env.refresh()

    def backward(self, steps: Sequence[DifferentiableStep]) -> None:
        """dR/dphi = sum_i <S_i, dD_i/dphi>, D_i = L_i R_i; observations are constants."""
        config = self.config
        for t, step in enumerate(steps):
            weight = config.discount**t
            deltas: dict[str, LowRank] = self.policy(step.gradients, step.projected)
            loss = torch.zeros((), device=self.lm.device)
            for name, delta in deltas.items():
                left, right = step.credit[name]
                loss = loss + (left * delta.left).sum() + (right * delta.right).sum()
                loss = loss + weight * config.regularization * squared_norm(delta)
            (loss / len(steps)).backward()

    def state(self) -> dict[str, Any]:
        return {
            "trajectory": self.trajectory,
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.trajectory = state["trajectory"]
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])


def _with_credit(
    waiting: Sequence[tuple[DifferentiableStep, dict[str, LowRank]]], so_far: dict[str, torch.Tensor]
) -> Iterator[DifferentiableStep]:
    """Steps whose ``credit`` is that of the sum before them, made that of the sum from them on."""
    for step, deltas in waiting:
        for name, delta in deltas.items():
            after, before = inner_gradient(so_far[name], delta), step.credit[name]
            step.credit[name] = after[0] - before[0], after[1] - before[1]
        yield step


def sample_lags(past: int, samples: int | None, rng: random.Random) -> list[int] | None:
    """Which past batches to look back at; None means all."""
    if samples is None or samples >= past:
        return None
    return rng.sample(range(1, past + 1), samples)


def several_modules(env: LifelongEditEnv) -> dict[str, object]:
    """Tells policies of several modules from those made when each of them began with a whole step."""
    return {"shared_step": True} if len(env.language_model.modules) > 1 else {}


def config_from_json(record: Any) -> TrainConfig:
    """What every algorithm on this network shares; options of a single one are left out."""
    names = {field.name for field in fields(TrainConfig)}
    record = {name: value for name, value in record.items() if name in names}
    record["policy"] = PolicyConfig(**record["policy"])
    return TrainConfig(**record)


def describe(log: dict[str, float]) -> str:
    """The running reward terms in a few words."""
    return "reward {reward:.2f} (edit {edit:.2f}, locality {locality:.3f}, memory {memory:.2f})".format(**log)
