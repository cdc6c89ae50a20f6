"""How soon the documented lines of Stable-Baselines3 learn: PPO and SAC on LifelongEdit-v1, on one core.

    python -m benchmarks.learning_curves --out docs/results/learning_curves.jsonl
    python -m benchmarks.figures learning_curves.png

A policy is judged before it has learned anything and after every ``--judge-every`` steps, by its mode, on three streams
of the validation split that are always the same. Seconds are CPU seconds of training alone. What is in the file already
is not trained again; the table of the whole file is printed.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
import tyro

import editenv  # noqa: F401 - registers the environment
from benchmarks.results import records
from benchmarks.results.charts import Chart, Panel, Series, choose_highlighted
from benchmarks.results.tables import markdown
from benchmarks.returns import play, read_as
from benchmarks.run import parse_seeds
from editenv.arguments import PositiveInt, check_fields
from editenv.wrappers import GradientStatistics, LayerStatistics, StepSizeAction

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

ALGORITHMS: dict[str, dict[str, Any]] = {
    "ppo": {
        "n_steps": 50,
        "batch_size": 25,
        "learning_rate": 3e-3,
        "gamma": 0.9,
        "gae_lambda": 0.9,
        "policy_kwargs": {"log_std_init": -1.0},
    },
    "sac": {
        "learning_starts": 30,
        "batch_size": 64,
        "learning_rate": 3e-3,
        "gamma": 0.9,
        "tau": 0.02,
        "ent_coef": "auto_0.05",
    },
}
"""Keywords of the classes of Stable-Baselines3, as docs/reference/wrappers.md shows them; chosen by hand, with one run of
seed 0 each."""

JUDGED_STREAMS = (0, 1, 2)
"""Seeds of the validation streams."""


@dataclass(frozen=True)
class Curve:
    """One training.

    Attributes:
        algorithm: Name of :data:`ALGORITHMS`.
        seed: Of the networks, the exploration and the training streams.
        steps: Budget.
        settings: Keywords of the algorithm's class.
        points: ``steps``, ``seconds`` and ``episode_return``, the mean over the judged streams.
        versions: What it was made with.
    """

    algorithm: str
    seed: int
    steps: int
    settings: dict[str, Any]
    points: list[dict[str, float]]
    versions: dict[str, str]


def environment(**arguments: Any) -> gym.Env[Any, Any]:
    """What the documented lines train on.

    Args:
        **arguments: More of the environment's.
    """
    env = gym.make("LifelongEdit-v1", edits_per_step=5, horizon=10, **arguments)
    return LayerStatistics(GradientStatistics(StepSizeAction(env)))


def judge(model: "BaseAlgorithm", env: gym.Env[Any, Any]) -> float:
    """The mean return of a policy's mode on the judged streams."""
    return float(np.mean([play(env, lambda o: model.predict(o, deterministic=True)[0], s)[0] for s in JUDGED_STREAMS]))


def train(algorithm: str, seed: int, steps: int, judge_every: int) -> Curve:
    """One training, on one thread."""
    import stable_baselines3
    from stable_baselines3.common.callbacks import BaseCallback

    torch.set_num_threads(1)
    validation = environment(split="validation")
    settings = ALGORITHMS[algorithm]
    model = getattr(stable_baselines3, algorithm.upper())(
        "MultiInputPolicy", environment(redraw=True), seed=seed, device="cpu", **copy.deepcopy(settings)
    )
    points: list[dict[str, float]] = []

    class Judged(BaseCallback):
        """Keeps the clock, which stands still while a policy is judged."""

        def _on_training_start(self) -> None:
            self.spent = 0.0
            self._point()

        def _on_step(self) -> bool:
            if self.num_timesteps % judge_every == 0 or self.num_timesteps == steps:
                self.spent += time.process_time() - self.resumed
                self._point()
            return True

        def _point(self) -> None:
            score = judge(self.model, validation)
            points.append({"steps": float(self.num_timesteps), "seconds": self.spent, "episode_return": score})
            self.resumed = time.process_time()

    model.learn(steps, callback=Judged())
    return Curve(algorithm, seed, steps, settings, points, records.versions())


def as_markdown(curves: Sequence[Curve]) -> str:
    """A row for each algorithm and seed: the return before training and along it."""
    marks = sorted({int(point["steps"]) for curve in curves for point in curve.points})
    headings = ("algorithm", "seed", *(f"after {mark} steps" for mark in marks), "CPU seconds")
    body = []
    for curve in curves:
        returns = {int(point["steps"]): point["episode_return"] for point in curve.points}
        cells = [f"{returns[mark]:.2f}" if mark in returns else "-" for mark in marks]
        body.append([curve.algorithm, str(curve.seed), *cells, f"{curve.points[-1]['seconds']:.0f}"])
    return markdown(headings, body)


def chart(curves: Sequence[Curve]) -> Chart:
    """Mean returns over seeds against steps, with the lowest and the highest; of trainings of one length."""
    series = []
    for algorithm in dict.fromkeys(curve.algorithm for curve in curves):
        group = [curve for curve in curves if curve.algorithm == algorithm]
        steps = [point["steps"] for point in group[0].points]
        returns = np.array([[point["episode_return"] for point in curve.points] for curve in group])
        spread = tuple((float(low), float(high)) for low, high in zip(returns.min(0), returns.max(0), strict=True))
        series.append(Series(algorithm, tuple(steps), tuple(map(float, returns.mean(0))), spread))
    last = max(point["steps"] for curve in curves for point in curve.points)
    panel = Panel(
        "LifelongEdit-v1, 10 batches of 5 edits",
        "environment steps",
        tuple(series),
        "return (10: nothing lost)",
        log=False,
        y_limits=(min(0.0, *(low for line in series for low in line.y)), 10.0),
        x_limits=(0.0, last),
    )
    note = "three validation streams; bands: lowest and highest seed"
    highlighted = choose_highlighted([line.agent for line in series], ())
    return Chart("Learning curves of Stable-Baselines3", note, (panel,), 1, "lines", highlighted=highlighted)


def read(path: Path) -> list[Curve]:
    """All curves of a file.

    Raises:
        ValueError: If a line is none; names the file and the line.
    """
    return read_as(Curve, path)


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        out: File of records, a line for each training; it is added to.
        algorithms: Which ones; all of them by default.
        seeds: Like 0 or 0-2 or 0,3.
        steps: Environment steps of a training; PPO finishes its rollout of 50.
        judge_every: Steps between judgements.
    """

    out: Path
    algorithms: tuple[str, ...] = tuple(ALGORITHMS)
    seeds: str = "0-2"
    steps: PositiveInt = 400
    judge_every: PositiveInt = 50

    def __post_init__(self) -> None:
        check_fields(self)


def main(args: Args) -> None:
    """Trains what is missing.

    Raises:
        SystemExit: For wrong arguments, with a message.
    """
    if unknown := set(args.algorithms) - set(ALGORITHMS):
        raise SystemExit(f"--algorithms: unknown {sorted(unknown)}; there are {', '.join(ALGORITHMS)}")
    try:
        curves = read(args.out) if args.out.exists() else []
        seeds = parse_seeds(args.seeds)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    done = {(curve.algorithm, curve.seed, curve.steps) for curve in curves}
    for algorithm in args.algorithms:
        for seed in seeds:
            if (algorithm, seed, args.steps) not in done:
                curves.append(train(algorithm, seed, args.steps, args.judge_every))
                records.append(args.out, curves[-1])
    print(as_markdown(curves))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
