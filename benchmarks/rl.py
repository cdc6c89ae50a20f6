r"""General reinforcement learning beside RLEdit's differentiable trajectory: one setting, up to 10,000 environment steps.

    python -m benchmarks.rl --out runs/rl
    python -m benchmarks.rl_report runs/rl --figure docs/results/rl.png
    python -m benchmarks.rl --out runs/rl-choice --steps 500 --seeds 100 --streams 10-12 --rate-factors 0.3 1 3

All train on LifelongEdit-v1 and its bounded reward, ten batches of five edits, on streams drawn from the training split.
A policy is judged by its mode before it has learned anything and at the first update after each of :data:`MARKS`, on
streams of the validation split that are always the same. OUT/rl.jsonl gets a line for each algorithm, seed, number of
steps and rate factor; what is there is not run again. A run's points so far are in OUT/unfinished until it is done.

All runs share a thread and what the frozen layers made of prompts: a step on prompts met before costs a fifth. *Steps*
are actions that the environment has rewarded. *Seconds* are CPU seconds of training, judging aside. The last command
is how learning rates were chosen (docs/results/rl.md).
"""

import copy
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from agents.base import Agent, Observation, ProgressCallback
from agents.hypernetwork.config import PolicyConfig, TrainConfig
from agents.hypernetwork.training import Trainer
from agents.progress import silent
from agents.rl import sb3
from agents.rl.cma_es import CMAES, CMAESAgent
from agents.rl.evolution import EvolutionConfig, EvolutionTrainer
from agents.rl.reinforce import ReinforceConfig, ReinforceTrainer
from agents.rledit.agent import RLEdit
from agents.rledit.trainer import RLEditTrainer
from benchmarks import learning_curves
from benchmarks.results import records
from benchmarks.returns import BEST_CONSTANT, read_as
from benchmarks.run import parse_seeds
from benchmarks.running.progress import console_progress
from benchmarks.running.rollout import play
from editenv.arguments import PositiveFloat, PositiveInt, check_fields
from editenv.atomic_files import atomic_write_text
from editenv.env import Action, LifelongEditEnv
from editenv.evaluation import metrics
from editenv.evaluation.batch import encode_evaluation
from editenv.wrappers.chain import inner_action

SETTING: dict[str, Any] = {"edits_per_step": 5, "horizon": 10, "reward": "improvement"}
"""Of the training and the validation environment; all else is as gym.make("LifelongEdit-v1") has it."""

MARKS = (0, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
"""Environment steps at which a policy is judged, as far as the budget goes, and at its end."""

FIGURES = ("episode_return", "efficacy", "generalization", "specificity")

CACHE_BYTES = 2**30
"""Room for what the frozen layers make of the whole training split."""


@dataclass(frozen=True)
class Run:
    """One algorithm, one seed: its settings, and its figures along the way.

    Attributes:
        algorithm: Name of :data:`ALGORITHMS`.
        seed: Of the policy and the training streams.
        steps: Budget.
        streams: Seeds of the validation streams.
        rate_factor: What the learning rates of :data:`ALGORITHMS` were multiplied by.
        settings: Everything else that was chosen.
        points: ``steps``, ``seconds`` and :data:`FIGURES` each time it was judged, means over the streams: the
            undiscounted return, and teacher-forced percentages over all edits after the last one.
        versions: What it was made with.
    """

    algorithm: str
    seed: int
    steps: int
    streams: list[int]
    rate_factor: float
    settings: dict[str, Any]
    points: list[dict[str, float]]
    versions: dict[str, str]

    @property
    def key(self) -> tuple[str, int, int, float]:
        """What no two runs of a file share."""
        return self.algorithm, self.seed, self.steps, self.rate_factor


class CachedStreams(LifelongEditEnv):
    """Keeps what the frozen layers made of prompts from one stream to the next, whoever resets it."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return super().reset(seed=seed, options={**(options or {}), "keep_cache": True})


def training_streams() -> LifelongEditEnv:
    """The environment that all algorithms train on. Targets are not redrawn: a step on prompts met before is cheap."""
    env = CachedStreams(split="train", **SETTING)
    env.language_model.activation_cache.limit = CACHE_BYTES
    return env


class Judge:
    """Lets an agent edit the validation streams, always the same ones.

    Args:
        streams: Seeds of their orders.
    """

    def __init__(self, streams: Sequence[int]) -> None:
        self.streams = streams
        self.env = CachedStreams(split="validation", **SETTING)

    def __call__(self, agent: Agent) -> dict[str, float]:
        """An agent's :data:`FIGURES`, means over the streams. A stream on which the model breaks has percentages, too:
        those of the broken model over the edits until then.
        """
        figures = [self._one(agent, stream) for stream in self.streams]
        return {name: float(np.mean([one[name] for one in figures])) for name in FIGURES}

    def _one(self, agent: Agent, stream: int) -> dict[str, float]:
        env = self.env
        env.reset(seed=stream)
        episode_return = sum(step.reward for step in play(env, agent))
        evaluation = encode_evaluation(env.language_model, list(env.edits_done) or list(env.stream[:1]))
        scores = metrics.teacher_forced(env.language_model, evaluation).percentages()
        known = {
            name: score for name, score in scores.items() if score is not None
        }  # the embedded data has all of them
        return {"episode_return": episode_return} | {name: known[name] for name in metrics.METRICS}


class Meter:
    """Keeps the clock of one training, and judges it at the marks.

    Args:
        marks: Environment steps, rising; the last one is the budget.
        judge: From an agent to its figures; not on the clock.
        after_each: Called with the points whenever there is one more.
        progress: Called with what is going on, and how much of the budget is spent.
        clock: Seconds.

    Attributes:
        points: ``steps``, ``seconds`` and the judge's figures.
    """

    def __init__(
        self,
        marks: Sequence[int],
        judge: Callable[[Agent], dict[str, float]],
        after_each: Callable[[list[dict[str, float]]], None] = lambda points: None,
        progress: ProgressCallback = silent,
        clock: Callable[[], float] = time.process_time,
    ) -> None:
        self.marks, self.judge, self.after_each, self.progress, self.clock = marks, judge, after_each, progress, clock
        self.points: list[dict[str, float]] = []
        self._spent, self._resumed = 0.0, clock()

    @property
    def budget(self) -> int:
        """Environment steps."""
        return self.marks[-1]

    def __call__(self, steps: int, agent: Agent) -> bool:
        """Judges the agent if a mark is reached; to be called after every change of it.

        Args:
            steps: Environment steps so far.
            agent: As it is now.

        Returns:
            Whether training is to go on.
        """
        self._spent += self.clock() - self._resumed
        self.progress(f"{steps} steps, {self._spent:.0f} s", min(steps, self.budget), self.budget)
        last = self.points[-1]["steps"] if self.points else -1
        if any(last < mark <= steps for mark in self.marks):
            self.points.append({"steps": float(steps), "seconds": self._spent} | self.judge(agent))
            self.after_each(self.points)
        self._resumed = self.clock()
        return steps < self.budget


class Algorithm(Protocol):
    """A way to train a policy."""

    def settings(self, rate_factor: float) -> dict[str, Any]:
        """What was chosen, for the record."""
        ...

    def train(self, env: LifelongEditEnv, seed: int, rate_factor: float, meter: Meter) -> None:
        """Trains on :func:`training_streams` from a seed until the meter says that it is over."""
        ...


@dataclass(frozen=True)
class OnTheNetwork:
    """An algorithm that trains the hypernetwork, on its whole delta.

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

    def train(self, env: LifelongEditEnv, seed: int, rate_factor: float, meter: Meter) -> None:
        trainer = self.trainer(env, self._config(rate_factor), seed, None)
        agent = RLEdit.of(trainer)
        going = meter(0, agent)
        while going:
            trainer.train_one()
            # Whole episodes are counted, also where a broken model ended one.
            going = meter(trainer.trajectory * trainer.steps_per_update, agent)


@dataclass(frozen=True)
class OnTheWrapped:
    """An algorithm of Stable-Baselines3, which sees the environment through agents.rl.sb3.wrapped.

    Attributes:
        name: Of the algorithm.
        keywords: Of its class.
    """

    name: str
    keywords: dict[str, Any]

    def settings(self, rate_factor: float) -> dict[str, Any]:
        keywords = copy.deepcopy(self.keywords)
        return keywords | {"learning_rate": self.keywords["learning_rate"] * rate_factor}

    def train(self, env: LifelongEditEnv, seed: int, rate_factor: float, meter: Meter) -> None:
        from stable_baselines3.common.callbacks import BaseCallback

        settings = {"reward_scale": 1.0, "algorithm": self.settings(rate_factor)}
        model = sb3.make_model(self.name, env, seed, settings)
        agent = sb3.SB3Agent.of(self.name, model)

        class Metered(BaseCallback):
            """A rollout begins when what came before it is learned from."""

            def _on_rollout_start(self) -> None:
                meter(self.num_timesteps, agent)

            def _on_step(self) -> bool:
                return True

        sb3.train(model, meter.budget, callbacks=[Metered()])
        meter(model.num_timesteps, agent)


@dataclass(frozen=True)
class OnALinearPolicy:
    """CMA-ES of the package cmaes, on a linear policy that sees the environment as Stable-Baselines3's algorithms do.

    Attributes:
        deviation: Of the first generation's parameters; what a rate factor multiplies.
    """

    deviation: float

    def settings(self, rate_factor: float) -> dict[str, Any]:
        return {"deviation": self.deviation * rate_factor}

    def train(self, env: LifelongEditEnv, seed: int, rate_factor: float, meter: Meter) -> None:
        search = CMAES(env, EPISODES, seed, self.deviation * rate_factor)
        agent = CMAESAgent(search)
        going = meter(0, agent)
        while going:
            search.generation()
            going = meter(search.steps, agent)


class ConstantAgent(Agent):
    """The same numbers at every step, whatever is observed.

    Args:
        step: Of StepSizeAction, for all modules.
        ridge: Likewise.
    """

    looks_at_model = True  # of which the actions are a share

    def __init__(self, step: float, ridge: float) -> None:
        self.numbers = (step, ridge)

    def begin(self, env: LifelongEditEnv) -> None:
        self._wrapped = sb3.wrapped(env)
        self._action = np.repeat(self.numbers, len(env.language_model.modules)).astype(np.float32)

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        return inner_action(self._wrapped, self._action)


@dataclass(frozen=True)
class Constant:
    """No learning: what the others are to be compared with.

    Attributes:
        step, ridge: Of StepSizeAction.
    """

    step: float
    ridge: float

    def settings(self, rate_factor: float) -> dict[str, Any]:
        return asdict(self)

    def train(self, env: LifelongEditEnv, seed: int, rate_factor: float, meter: Meter) -> None:
        agent = ConstantAgent(self.step, self.ridge)
        for steps in (0, meter.budget):  # a line across the figure
            meter(steps, agent)


EPISODES = TrainConfig(horizon=SETTING["horizon"], edits_per_step=SETTING["edits_per_step"])
# The paper's form: no preconditioner, one action per batch; step size and ridge as the network begins with them.
NETWORK: dict[str, Any] = {
    "horizon": SETTING["horizon"],
    "edits_per_step": SETTING["edits_per_step"],
    "warm_up_batches": SETTING["horizon"],
    "policy": PolicyConfig(step_size=1.0, ridge=0.1),
    "learning_rate": 3e-3,
    "scalar_learning_rate": 0.05,
}

# PPO and SAC are those of docs/reference/wrappers.md.
ALGORITHMS: dict[str, Algorithm] = {
    "best-constant": Constant(*BEST_CONSTANT),
    "rledit": OnTheNetwork(RLEditTrainer, TrainConfig(memory_samples=3, **NETWORK)),
    "reinforce": OnTheNetwork(ReinforceTrainer, ReinforceConfig(**NETWORK)),
    "evolution": OnTheNetwork(EvolutionTrainer, EvolutionConfig(**NETWORK)),
    "cma-es": OnALinearPolicy(deviation=0.1),
    "ppo": OnTheWrapped("ppo", learning_curves.ALGORITHMS["ppo"]),
    "sac": OnTheWrapped("sac", learning_curves.ALGORITHMS["sac"]),
    "a2c": OnTheWrapped("a2c", sb3.read_settings("a2c")["algorithm"]),
    "td3": OnTheWrapped("td3", sb3.read_settings("td3")["algorithm"]),
}

CHOSEN = {"rledit": 0.3, "cma-es": 0.3, "ppo": 0.3, "evolution": 3.0}
"""Factors of the learning rates above, of 0.3, 1 and 3 (docs/results/rl.md); 1 of the others."""


def marks_up_to(steps: int) -> tuple[int, ...]:
    """Those of :data:`MARKS` below a budget, and the budget."""
    return (*(mark for mark in MARKS if mark < steps), steps)


def read(path: Path) -> list[Run]:
    """All runs of an rl.jsonl.

    Raises:
        ValueError: If a line is not a run, or a run that was there already; names the file and the line.
    """
    runs = read_as(Run, path)
    for number, run in enumerate(runs, start=1):
        expected = {"steps", "seconds", *FIGURES}
        if not run.points or any(set(point) != expected for point in run.points):
            raise ValueError(f"{path}, line {number}: points must be a list of {', '.join(sorted(expected))}")
        if run.key in (earlier.key for earlier in runs[: number - 1]):
            raise ValueError(
                f"{path}, line {number}: {run.algorithm}, seed {run.seed}, {run.steps} steps, is there twice"
            )
    return runs


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        out: Folder; runs go to OUT/rl.jsonl.
        steps: Environment steps of a training; one that learns from whole generations finishes its last.
        seeds: Like 0 or 0-4 or 0,3; each seeds the policy and the training streams.
        algorithms: Which ones; all of them by default.
        streams: Seeds of the validation streams, in the same form.
        rate_factors: Each multiplies every learning rate, in trainings of its own; what was chosen if none is given.
    """

    out: Path
    steps: PositiveInt = 10_000
    seeds: str = "0-2"
    algorithms: tuple[str, ...] = tuple(ALGORITHMS)
    streams: str = "0-2"
    rate_factors: tuple[PositiveFloat, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)


def main(args: Args) -> int:
    """Runs what is missing; 1 if a training failed.

    Raises:
        SystemExit: For wrong arguments, with a message.
    """
    import torch

    path = args.out / "rl.jsonl"
    try:
        if unknown := set(args.algorithms) - set(ALGORITHMS):
            raise ValueError(f"--algorithms: unknown {sorted(unknown)}; there are {', '.join(ALGORITHMS)}")
        # Algorithm after algorithm within a seed: whatever else the machine does meets them all.
        trainings = [
            (name, seed, args.steps, factor)
            for seed in parse_seeds(args.seeds)
            for name in args.algorithms
            for factor in args.rate_factors or (CHOSEN.get(name, 1.0),)
        ]
        done = {run.key for run in comparable_runs(path, args)}
    except ValueError as error:
        raise SystemExit(str(error)) from None
    missing = [key for key in trainings if key not in done]
    print(f"{len(trainings) - len(missing)} of {len(trainings)} runs are there", flush=True)
    if not missing:
        return 0
    torch.set_num_threads(1)
    env, judge = training_streams(), Judge(parse_seeds(args.streams))
    failed = []
    for number, (name, seed, steps, factor) in enumerate(missing, start=1):
        label = f"[{number}/{len(missing)}] {name}, seed {seed}, rates times {factor:g}"
        try:
            run = run_one(ALGORITHMS[name], empty_run(name, seed, steps, factor, judge), args.out, env, judge)
        except Exception:
            failed.append(label)
            traceback.print_exc()
            continue
        last = run.points[-1]
        figures = ", ".join(f"{figure} {last[figure]:.2f}" for figure in FIGURES)
        print(f"{label}: {last['steps']:.0f} steps, {last['seconds']:.0f} s, {figures}", flush=True)
    for label in failed:
        print(f"failed: {label}", file=sys.stderr)
    return 1 if failed else 0


def empty_run(name: str, seed: int, steps: int, rate_factor: float, judge: Judge) -> Run:
    """A run that is still to be made."""
    settings = ALGORITHMS[name].settings(rate_factor)
    return Run(name, seed, steps, list(judge.streams), rate_factor, settings, [], records.versions())


def run_one(algorithm: Algorithm, run: Run, out: Path, env: LifelongEditEnv, judge: Judge) -> Run:
    """One training; its points so far are in OUT/unfinished, in the end it is a line of OUT/rl.jsonl.

    Args:
        algorithm: What trains.
        run: Of :func:`empty_run`; gets its points here.
        out: Folder.
        env: :func:`training_streams`.
        judge: On the run's streams.
    """
    unfinished = out / "unfinished" / f"{'-'.join(map(str, run.key))}.json"
    unfinished.parent.mkdir(parents=True, exist_ok=True)

    def keep(points: list[dict[str, float]]) -> None:
        run.points[:] = points
        atomic_write_text(unfinished, json.dumps(asdict(run)) + "\n")

    with console_progress(f"{run.algorithm}, seed {run.seed}") as progress:
        algorithm.train(env, run.seed, run.rate_factor, Meter(marks_up_to(run.steps), judge, keep, progress))
    records.append(out / "rl.jsonl", run)
    unfinished.unlink()
    return run


def comparable_runs(path: Path, args: Args) -> list[Run]:
    """The runs that are there.

    Raises:
        ValueError: If the file cannot be read, or holds runs that cannot stand beside new ones.
    """
    runs = read(path) if path.exists() else []
    streams = parse_seeds(args.streams)
    if any(run.streams != streams for run in runs):
        raise ValueError(f"{path} holds runs that were judged on other streams; choose another --out")
    return runs


if __name__ == "__main__":
    import tyro

    sys.exit(main(tyro.cli(Args, description=__doc__)))
