r"""RLEdit's differentiable trajectory beside reinforcement learning in general, at equal steps and equal seconds.

    python -m benchmarks.rl --out runs/rl --steps 150 --seconds 40 --seeds 0-4
    python -m benchmarks.rl_report runs/rl --figure docs/results/rl.png
    python -m benchmarks.rl --out runs/rl-choice --steps 100 --seconds 20 --judgements 1 --seeds 100 --stream 1 \
        --rate-factor 0.3

Every run trains until *both* budgets are spent, on streams of the training split, and is judged now and then on one
fixed stream of the validation split; OUT/rl.jsonl gets one line for each algorithm and seed. Runs that are there
are not run again; each has a process and a thread of its own.

*Steps* are actions that the environment has rewarded. *Seconds* are the thread's own CPU seconds from the making of the
policy on, judging aside: what a clock on the wall shows if nothing else needs the core, and the same if something
does. Settings are below; the last command, with other factors, is how learning rates were chosen
(docs/results/rl.md).
"""

import json
import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from agents.base import Agent, ProgressCallback
from agents.hypernetwork.config import PolicyConfig, TrainConfig
from agents.hypernetwork.online import OnlineTrainer
from agents.hypernetwork.training import Trainer, training_environment
from agents.progress import silent
from agents.rl import sb3
from agents.rl.cma_es import CMAES, CMAESAgent
from agents.rl.evolution import EvolutionConfig, EvolutionTrainer
from agents.rl.reinforce import ReinforceConfig, ReinforceTrainer
from agents.rledit.agent import RLEdit
from agents.rledit.trainer import RLEditTrainer
from benchmarks.results import records
from benchmarks.run import parse_seeds
from benchmarks.running.processes import end_with_parent
from benchmarks.running.progress import console_progress
from benchmarks.running.rollout import play
from editenv.env import LifelongEditEnv
from editenv.evaluation import metrics
from editenv.evaluation.batch import encode_evaluation

EDITS_PER_STEP = 10
"""Edits in a batch, of training and of the validation stream."""

HORIZON = 10
"""Batches of a training episode."""

JUDGED_BATCHES = 20
"""Batches of the validation stream: twice as many as an episode of training has."""

FIGURES = ("episode_return", "efficacy", "generalization", "specificity")


@dataclass(frozen=True)
class Run:
    """One algorithm, one seed: its settings, and its figures along the way.

    Attributes:
        algorithm: Name of :data:`ALGORITHMS`.
        seed: Of the policy and the training streams.
        steps: Budget.
        seconds: Budget.
        stream: Seed of the validation stream's order.
        rate_factor: What the learning rates of :data:`ALGORITHMS` were multiplied by.
        settings: Everything else that was chosen.
        points: ``steps``, ``seconds`` and :data:`FIGURES` each time it was judged: the undiscounted return of the
            whole stream, and teacher-forced percentages over all its edits after the last one.
        versions: What it was made with.
    """

    algorithm: str
    seed: int
    steps: int
    seconds: float
    stream: int
    rate_factor: float
    settings: dict[str, Any]
    points: list[dict[str, float]]
    versions: dict[str, str]


class Judge:
    """Lets an agent edit the validation stream, always the same one.

    Args:
        stream: Seed of its order.
    """

    def __init__(self, stream: int) -> None:
        self.stream = stream
        self.env = LifelongEditEnv(split="validation", edits_per_step=EDITS_PER_STEP, horizon=JUDGED_BATCHES)

    def __call__(self, agent: Agent) -> dict[str, float]:
        """An agent's :data:`FIGURES`: the undiscounted return, and percentages over all edits after the last one."""
        env = self.env
        env.reset(seed=self.stream, options={"keep_cache": True})
        episode_return = sum(step.reward for step in play(env, agent))
        evaluation = encode_evaluation(env.language_model, list(env.edits_done))
        scores = metrics.teacher_forced(env.language_model, evaluation).percentages()
        return {"episode_return": episode_return} | {name: float(scores[name] or 0.0) for name in metrics.METRICS}


class Meter:
    """Keeps the clock of one training, and judges it at the marks.

    Args:
        steps: Budget.
        seconds: Budget.
        judgements: How often, over each budget, at equal distances; and once before anything is learned.
        judge: From an agent to its figures; not on the clock.
        progress: Called with what is going on, and how many percent of the budgets are spent.
        clock: Seconds.

    Attributes:
        points: ``steps``, ``seconds`` and :data:`FIGURES` each time it was judged.
    """

    def __init__(
        self,
        steps: int,
        seconds: float,
        judgements: int,
        judge: Callable[[Agent], dict[str, float]],
        progress: ProgressCallback = silent,
        clock: Callable[[], float] = time.process_time,
    ) -> None:
        self.budget = {"steps": float(steps), "seconds": seconds}
        self.judgements, self.judge, self.progress, self.clock = judgements, judge, progress, clock
        self.points: list[dict[str, float]] = []
        self._marks = dict.fromkeys(self.budget, 0)  # of each budget the last mark that was reached
        self._spent, self._resumed = 0.0, clock()

    def __call__(self, steps: int, agent: Agent) -> bool:
        """Judges the agent if it is time; to be called after every change of it.

        Args:
            steps: Environment steps so far.
            agent: As it is now.

        Returns:
            Whether training is to go on.
        """
        self._spent += self.clock() - self._resumed
        now = {"steps": float(steps), "seconds": self._spent}
        going = any(now[unit] < budget for unit, budget in self.budget.items())
        shares = {unit: min(1, now[unit] / budget) for unit, budget in self.budget.items()}
        reached = {unit: int(self.judgements * share) for unit, share in shares.items()}
        self.progress(f"{steps} steps, {self._spent:.0f} s", int(100 * min(shares.values())), 100)
        if not self.points or not going or any(reached[unit] > self._marks[unit] for unit in reached):
            self.points.append(now | self.judge(agent))
        self._marks = reached
        self._resumed = self.clock()
        return going


class Algorithm(Protocol):
    """A way to train a policy."""

    def settings(self, rate_factor: float) -> dict[str, Any]:
        """What was chosen, for the record."""
        ...

    def train(self, seed: int, rate_factor: float, meter: Meter) -> None:
        """Trains from a seed until the meter says that it is over."""
        ...


@dataclass(frozen=True)
class OnTheNetwork:
    """An algorithm that trains the hypernetwork.

    Attributes:
        trainer: The algorithm.
        config: Its settings.
    """

    trainer: type[Trainer]
    config: TrainConfig

    def _config(self, rate_factor: float) -> TrainConfig:
        rates = (self.config.learning_rate, self.config.scalar_learning_rate)
        return replace(self.config, learning_rate=rates[0] * rate_factor, scalar_learning_rate=rates[1] * rate_factor)

    def settings(self, rate_factor: float) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self._config(rate_factor))))

    def train(self, seed: int, rate_factor: float, meter: Meter) -> None:
        config = self._config(rate_factor)
        trainer = self.trainer(training_environment(LifelongEditEnv(), config), config, seed, None)
        agent = RLEdit.of(trainer)
        going = meter(0, agent)
        while going:
            trainer.train_one()
            going = meter(trainer.trajectory * trainer.steps_per_update, agent)


@dataclass(frozen=True)
class OnTheWrapped:
    """An algorithm of Stable-Baselines3, which sees the environment through agents.rl.sb3.wrapped.

    Attributes:
        name: Of its settings in agents/settings/sb3.
        learning_rate: In place of the one there.
    """

    name: str
    learning_rate: float

    def settings(self, rate_factor: float) -> dict[str, Any]:
        settings = dict(sb3.read_settings(self.name))
        return settings | {"algorithm": settings["algorithm"] | {"learning_rate": self.learning_rate * rate_factor}}

    def train(self, seed: int, rate_factor: float, meter: Meter) -> None:
        from stable_baselines3.common.callbacks import BaseCallback

        config = TrainConfig(horizon=HORIZON, edits_per_step=EDITS_PER_STEP)
        env = training_environment(LifelongEditEnv(), config)
        model = sb3.make_model(self.name, env, seed, self.settings(rate_factor))
        agent = sb3.SB3Agent.of(self.name, model)

        class Metered(BaseCallback):
            def _on_step(self) -> bool:
                return meter(self.num_timesteps, agent)

        if meter(0, agent):
            sb3.train(model, sys.maxsize, callbacks=[Metered()])


@dataclass(frozen=True)
class OnALinearPolicy:
    """CMA-ES of the package cmaes, on a linear policy that sees the environment as Stable-Baselines3's algorithms do.

    Attributes:
        deviation: Of the first generation's parameters; what a rate factor multiplies.
    """

    deviation: float

    def settings(self, rate_factor: float) -> dict[str, Any]:
        return {"deviation": self.deviation * rate_factor, "horizon": HORIZON, "edits_per_step": EDITS_PER_STEP}

    def train(self, seed: int, rate_factor: float, meter: Meter) -> None:
        config = TrainConfig(horizon=HORIZON, edits_per_step=EDITS_PER_STEP)
        search = CMAES(LifelongEditEnv(), config, seed, self.deviation * rate_factor)
        agent = CMAESAgent(search)
        going = meter(0, agent)
        while going:
            search.generation()
            going = meter(search.steps, agent)


# The paper's form: no preconditioner, one action per batch; step size and ridge untuned. Of learning rates 0.3, 1
# and 3 times 3e-3 (and 0.05 for the scalars) each algorithm has the one with the best return: docs/results/rl.md.
SHARED: dict[str, Any] = {
    "horizon": HORIZON,
    "edits_per_step": EDITS_PER_STEP,
    "warm_up_batches": HORIZON,
    "policy": PolicyConfig(step_size=1.0, ridge=0.1),
}
RLEDIT = TrainConfig(learning_rate=3e-3, scalar_learning_rate=0.05, memory_samples=3, **SHARED)

ALGORITHMS: dict[str, Algorithm] = {
    "rledit": OnTheNetwork(RLEditTrainer, RLEDIT),
    "rledit-step-credit": OnTheNetwork(RLEditTrainer, replace(RLEDIT, credit="step")),
    "online-rledit": OnTheNetwork(OnlineTrainer, replace(RLEDIT, learning_rate=9e-4, scalar_learning_rate=0.015)),
    "reinforce": OnTheNetwork(
        ReinforceTrainer, ReinforceConfig(learning_rate=3e-3, scalar_learning_rate=0.05, **SHARED)
    ),
    "evolution": OnTheNetwork(
        EvolutionTrainer, EvolutionConfig(learning_rate=9e-3, scalar_learning_rate=0.15, **SHARED)
    ),
    "cma-es": OnALinearPolicy(deviation=0.1),
    **{name: OnTheWrapped(name, learning_rate=9e-4) for name in ("ppo", "a2c", "sac", "td3", "ddpg")},
}


def run_one(name: str, seed: int, args: "Args") -> Run:
    """One training; runs in its own process, on one thread.

    Args:
        name: Of :data:`ALGORITHMS`.
        seed: Of the policy and the training streams.
        args: The command's.
    """
    import torch

    torch.set_num_threads(1)
    algorithm = ALGORITHMS[name]
    with console_progress(f"{name}, seed {seed}") as progress:
        meter = Meter(args.steps, args.seconds, args.judgements, Judge(args.stream), progress)
        algorithm.train(seed, args.rate_factor, meter)
    return Run(
        algorithm=name,
        seed=seed,
        steps=args.steps,
        seconds=args.seconds,
        stream=args.stream,
        rate_factor=args.rate_factor,
        settings=algorithm.settings(args.rate_factor),
        points=meter.points,
        versions=records.versions(),
    )


def read(path: Path) -> list[Run]:
    """All runs of an rl.jsonl.

    Raises:
        ValueError: If a line is not a run, or a run that was there already; names the file and the line.
    """
    runs: list[Run] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            run = Run(**json.loads(line))
            keys = {"steps", "seconds", *FIGURES}
            if not run.points or any(set(point) != keys for point in run.points):
                raise ValueError(f"points must be a list of {', '.join(sorted(keys))}")
            if (run.algorithm, run.seed) in ((earlier.algorithm, earlier.seed) for earlier in runs):
                raise ValueError(f"{run.algorithm}, seed {run.seed}, is there twice")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        runs.append(run)
    return runs


@dataclass
class Args:
    out: Path
    """Folder; runs go to OUT/rl.jsonl."""
    steps: int = 150
    """Environment steps of a training."""
    seconds: float = 40.0
    """CPU seconds of a training."""
    seeds: str = "0-4"
    """Like 0 or 0-4 or 0,3; each seeds the policy and the training streams."""
    algorithms: tuple[str, ...] = tuple(ALGORITHMS)
    """Which ones; all of them by default."""
    stream: int = 0
    """Seed of the validation stream's order."""
    rate_factor: float = 1.0
    """Multiplies every learning rate."""
    judgements: int = 4
    """How often a training is judged over each of the two budgets."""


def main(args: Args) -> int:
    """Runs what is missing; 1 if a training failed.

    Raises:
        SystemExit: For wrong arguments, with a message.
    """
    path = args.out / "rl.jsonl"
    try:
        check(args)
        # Algorithm after algorithm within a seed: whatever else the machine does meets them all.
        trainings = [(name, seed) for seed in parse_seeds(args.seeds) for name in args.algorithms]
        runs = comparable_runs(path, args)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    done = {(run.algorithm, run.seed) for run in runs}
    failed = []
    context = multiprocessing.get_context("spawn")
    for i, (name, seed) in enumerate(trainings, start=1):
        label = f"[{i}/{len(trainings)}] {name}, seed {seed}"
        if (name, seed) in done:
            print(f"{label}: already there", flush=True)
            continue
        try:
            with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
                run = pool.submit(run_one, name, seed, args).result()
        except Exception:
            failed.append(label)
            traceback.print_exc()
            continue
        records.append(path, run)
        done.add((name, seed))
        last = run.points[-1]
        figures = ", ".join(f"{figure} {last[figure]:.1f}" for figure in FIGURES)
        print(f"{label}: {last['steps']:.0f} steps, {last['seconds']:.0f} s, {figures}", flush=True)
    for label in failed:
        print(f"failed: {label}", file=sys.stderr)
    return 1 if failed else 0


def check(args: Args) -> None:
    """Checks the arguments.

    Raises:
        ValueError: If an algorithm is unknown or a number is not positive.
    """
    unknown = set(args.algorithms) - set(ALGORITHMS)
    if unknown:
        raise ValueError(f"unknown algorithms {sorted(unknown)}; there are {', '.join(ALGORITHMS)}")
    if args.steps < 1 or args.seconds <= 0 or args.judgements < 1:
        raise ValueError(
            f"steps, seconds and judgements must be positive, not {args.steps}, {args.seconds}, {args.judgements}"
        )


def comparable_runs(path: Path, args: Args) -> list[Run]:
    """The runs that are there.

    Raises:
        ValueError: If the file cannot be read, or holds runs that cannot stand beside new ones.
    """
    runs = read(path) if path.exists() else []
    for run in runs:
        if any(getattr(run, name) != getattr(args, name) for name in ("steps", "seconds", "stream", "rate_factor")):
            raise ValueError(f"{path} holds runs of other steps, seconds, stream or rate factor; choose another --out")
    return runs


if __name__ == "__main__":
    import tyro

    sys.exit(main(tyro.cli(Args, description=__doc__)))
