"""How noisy two estimates of one policy gradient are: RLEdit's, through the model, and REINFORCE's, from rewards alone.

    python -m benchmarks.gradient_variance --out runs/rl/gradient_variance.json --streams 12 --trajectories 0 15

Both estimate how the mean reward changes with the hypernetwork's parameters, at one policy that stays as it is,
once for each of several streams; REINFORCE from several noisy rollouts of the stream, with their leave-one-out
baseline. What is reported:

``variance``
    ``tr Cov(g) / |E g|^2`` over streams: how many estimates must be averaged until the noise is as long as the
    gradient. ``|E g|^2`` is the differentiable one's, as the mean inner product of different streams' estimates,
    which has no bias from noise; REINFORCE's own is buried in its noise.
``projection``
    ``<g, e> / |E g|`` with its standard error, and its standard deviation over streams: what an estimate says about the
    differentiable gradient's direction e. The first half of the streams gives e, the second half is projected. With
    REINFORCE it need not be 1: it knows that later observations depend on earlier actions, which RLEdit holds constant,
    and it sees the return averaged over its noise.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from agents.base import ProgressCallback
from agents.hypernetwork.config import PolicyConfig, TrainConfig
from agents.hypernetwork.training import Trainer, training_environment
from agents.progress import silent
from agents.rl.reinforce import ReinforceConfig, ReinforceTrainer
from agents.rledit.trainer import RLEditTrainer
from benchmarks.results.records import versions
from benchmarks.results.tables import markdown
from benchmarks.running.progress import console_progress
from editenv.atomic_files import atomic_write_text
from editenv.env import LifelongEditEnv

SHARED: dict[str, Any] = {
    "horizon": 10,
    "edits_per_step": 10,
    "warm_up_batches": 10,
    "policy": PolicyConfig(step_size=1.0, ridge=0.1),
}
RLEDIT = TrainConfig(learning_rate=3e-3, scalar_learning_rate=0.05, memory_samples=3, **SHARED)
"""The paper's form: no preconditioner, one action per batch."""


@dataclass(frozen=True)
class Noise:
    """What :func:`compare` finds for one estimator and one group of parameters.

    Attributes:
        estimator: ``differentiable`` or ``REINFORCE``.
        parameters: ``all``, or ``scalars``: the logarithms of step size and ridge, or ``network``: the others.
        trajectories: Of RLEdit's training, that the policy has behind it.
        steps: Environment steps an estimate takes.
        streams: Estimates.
        variance: See above, like the rest.
        projection: Mean.
        projection_error: Its standard error.
        projection_deviation: Standard deviation over streams.
    """

    estimator: str
    parameters: str
    trajectories: int
    steps: int
    streams: int
    variance: float
    projection: float
    projection_error: float
    projection_deviation: float


def gradients(trainer: Trainer, streams: Sequence[int], progress: ProgressCallback = silent) -> torch.Tensor:
    """The gradient that a trainer estimates on each stream; the policy does not change.

    Args:
        trainer: With a configuration of :func:`standing_still`.
        streams: Numbers of trajectories, which seed their streams.
        progress: Called with each stream.

    Returns:
        ``(streams, parameters)``.

    Raises:
        ValueError: If the trainer would take steps or clip.
    """
    config = trainer.config
    if config.learning_rate or config.scalar_learning_rate or config.gradient_clip != float("inf"):
        raise ValueError("gradients are measured with learning rates of 0 and without clipping")
    rows: list[torch.Tensor] = []
    for trainer.trajectory in streams:
        progress(f"{trainer.title}'s gradients", len(rows), len(streams))
        trainer.learn()
        rows.append(torch.cat([p.grad.flatten() for p in trainer.policy.parameters() if p.grad is not None]))
    return torch.stack(rows)


def standing_still(config: TrainConfig) -> TrainConfig:
    """A training whose gradients are left as they are, and its policy too."""
    return replace(config, learning_rate=0.0, scalar_learning_rate=0.0, gradient_clip=float("inf"))


def compare(differentiable: torch.Tensor, other: torch.Tensor) -> tuple[float, float, float, float]:
    """How noisy an estimator is, and what it says about the differentiable gradient.

    Args:
        differentiable: ``(streams, parameters)``, float64.
        other: The same of the estimator.

    Returns:
        ``variance`` and ``projection`` as above, the projection's standard error, and its standard deviation.

    Raises:
        ValueError: If the differentiable gradient itself cannot be told from noise.
    """
    streams = len(differentiable)
    total = differentiable.sum(0)
    # The mean inner product of two different streams' estimates: that of each with itself is left out.
    squared_norm = float((total @ total - differentiable.square().sum()) / (streams * (streams - 1)))
    if squared_norm <= 0:
        raise ValueError("the differentiable gradient is not told from 0 by so few streams; give more")
    variance = float(other.var(0).sum()) / squared_norm
    half = streams // 2
    direction = differentiable[:half].mean(0)
    projections = other[half:] @ (direction / direction.norm()) / squared_norm**0.5
    deviation = float(projections.std())
    return variance, float(projections.mean()), deviation / len(projections) ** 0.5, deviation


def measure(args: "Args", trajectories: int, progress: ProgressCallback) -> list[Noise]:
    """Both estimators at the policy that so many trajectories of RLEdit's training make.

    Raises:
        ValueError: If there are too few streams to tell a gradient from noise.
    """
    trained = RLEditTrainer(training_environment(LifelongEditEnv(), RLEDIT), RLEDIT, args.seed, None)
    trained.run(trajectories, lambda log: progress("RLEdit's training", trained.trajectory, trajectories))
    reinforce = ReinforceConfig(rollouts=args.rollouts, noise=args.noise, **SHARED)
    trainers: dict[str, tuple[type[Trainer], TrainConfig]] = {
        "differentiable": (RLEditTrainer, standing_still(RLEDIT)),
        "REINFORCE": (ReinforceTrainer, standing_still(reinforce)),
    }
    streams = range(trajectories, trajectories + args.streams)
    estimates: dict[str, torch.Tensor] = {}
    steps: dict[str, int] = {}
    for name, (algorithm, config) in trainers.items():
        trainer = algorithm(trained.env, config, args.seed, None)
        trainer.policy.load_state_dict(trained.policy.state_dict())
        estimates[name], steps[name] = gradients(trainer, streams, progress), trainer.steps_per_update
    scalars = {id(parameter) for parameter in trained.policy.scalars()}
    is_scalar = torch.cat([torch.full((p.numel(),), id(p) in scalars) for p in trained.policy.parameters()])
    results = []
    for group, columns in (("all", torch.ones_like(is_scalar)), ("network", ~is_scalar), ("scalars", is_scalar)):
        differentiable = estimates["differentiable"][:, columns].double()
        for name, values in estimates.items():
            figures = compare(differentiable, values[:, columns].double())
            results.append(Noise(name, group, trajectories, steps[name], args.streams, *figures))
    return results


def as_markdown(results: Sequence[Noise]) -> str:
    """A row for each policy, group of parameters and estimator."""
    headings = ("policy after", "parameters", "estimator", "steps each", "variance", "projection", "its deviation")
    body = [
        [
            f"{noise.trajectories} trajectories",
            noise.parameters,
            noise.estimator,
            str(noise.steps),
            f"{noise.variance:.3g}",
            f"{noise.projection:.2f} ± {noise.projection_error:.2f}",
            f"{noise.projection_deviation:.2f}",
        ]
        for noise in results
    ]
    return markdown(headings, body)


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        out: JSON file for the figures.
        streams: Estimates by each estimator; four or more.
        trajectories: Policies: how many trajectories RLEdit has trained them for.
        rollouts: Of each stream, for REINFORCE.
        noise: REINFORCE's, as in agents/rl/reinforce.py.
        seed: Of the policy and the streams.
    """

    out: Path
    streams: int = 12
    trajectories: tuple[int, ...] = (0, 15)
    rollouts: int = 8
    noise: float = 0.1
    seed: int = 0


def main(args: Args) -> None:
    """Measures, prints and writes.

    Raises:
        SystemExit: If there are too few streams.
    """
    if args.streams < 4:
        raise SystemExit(f"streams must be at least 4, not {args.streams}")
    torch.set_num_threads(1)
    results: list[Noise] = []
    for trajectories in args.trajectories:
        with console_progress(f"policy after {trajectories} trajectories") as progress:
            results += measure(args, trajectories, progress)
    content = {"figures": [asdict(noise) for noise in results], "seed": args.seed, "versions": versions()}
    atomic_write_text(args.out, json.dumps(content, indent=2) + "\n")
    print(as_markdown(results))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
