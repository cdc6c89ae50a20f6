"""Returns of policies that have learned nothing on LifelongEdit-v1: what a learned one is to be compared with.

    python -m benchmarks.returns --out docs/results/returns.jsonl
    python -m benchmarks.returns --out docs/results/returns.jsonl --edits-per-step 20

Every policy plays the same streams of the validation split. What is in the file already is not played again; the
table of the whole file is printed.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import tyro

import editenv  # noqa: F401 - registers the environment
from benchmarks.results import records
from benchmarks.results.tables import markdown
from benchmarks.run import parse_seeds
from editenv.deltas import LowRank
from editenv.env import lifelong_edit
from editenv.evaluation import metrics
from editenv.evaluation.batch import encode_evaluation
from editenv.wrappers import SketchedAction, StepSizeAction

Environment = gym.Env[Any, Any]
T = TypeVar("T")
Act = Callable[[Any], Any]
"""From an observation to an action."""

GRADIENT_RATE = 5.0
"""Learning rate of the plain gradient step, on the sum over the batch. Of rates from 0.05 to 60, a factor of three apart,
the best on a stream of the validation split that is not shown is 6 for batches of 5 edits and 5 for those of 20."""

BEST_CONSTANT = (float(np.log10(2.0)), -1.0)
"""Step 2 and ridge 0.01: the best of steps 0.25 to 4 and ridges 0.01 to 1 with batches of 5 on the stream of seed 0,
which is one of those shown."""


@dataclass(frozen=True)
class Play:
    """One policy on one stream.

    Attributes:
        policy: Name of :data:`POLICIES`.
        seed: Of the stream and of a random policy.
        edits_per_step: n.
        horizon: Batches of an episode.
        steps: How many were played: fewer where the model broke.
        episode_return: Sum of the rewards.
        loss_return: The same of eq. 10, in nats, up to there.
        scores: Teacher-forced, over all edits after the last one; none where the model broke.
        versions: What it was made with.
    """

    policy: str
    seed: int
    edits_per_step: int
    horizon: int
    steps: int
    episode_return: float
    loss_return: float
    scores: dict[str, float | None]
    versions: dict[str, str]


def no_edit(env: Environment, seed: int) -> tuple[Environment, Act]:
    """Nothing is changed."""
    lm = lifelong_edit(env).language_model
    zero = {name: np.zeros(lm.shape(name), np.float32) for name in lm.modules}
    return env, lambda observation: zero


def uniform(env: Environment, seed: int) -> tuple[Environment, Act]:
    """Uniform over the action space."""
    env.action_space.seed(seed)
    return env, lambda observation: env.action_space.sample()


def gradient_step(env: Environment, seed: int) -> tuple[Environment, Act]:
    """Stochastic gradient descent: one step down the batch's gradient."""
    editing = lifelong_edit(env)

    def act(observation: Any) -> Any:
        return {name: LowRank(g.keys.T, -GRADIENT_RATE * g.value_grads) for name, g in editing.gradients.items()}

    return env, act


def constant(action: Sequence[float]) -> Callable[[Environment, int], tuple[Environment, Act]]:
    """The same step size and ridge at every step, in the units of StepSizeAction."""

    def policy(env: Environment, seed: int) -> tuple[Environment, Act]:
        step, ridge = action
        modules = len(lifelong_edit(env).language_model.modules)
        values = np.repeat([step, ridge], modules).astype(np.float32)
        return StepSizeAction(env), lambda observation: values

    return policy


POLICIES: dict[str, tuple[str, Callable[[Environment, int], tuple[Environment, Act]]]] = {
    "no-edit": ("zeros", no_edit),
    "random": ("uniform over the full action space", uniform),
    "random-step": ("uniform, StepSizeAction", lambda env, seed: uniform(StepSizeAction(env), seed)),
    "random-step-2": ("the same with decades=2", lambda env, seed: uniform(StepSizeAction(env, decades=2.0), seed)),
    "random-sketch": ("uniform, SketchedAction", lambda env, seed: uniform(SketchedAction(env), seed)),
    "gradient-step": ("plain gradient descent, one step a batch", gradient_step),
    "constant": ("zeros of StepSizeAction", constant((0.0, 0.0))),
    "best-constant": ("the best two numbers of a grid, StepSizeAction", constant(BEST_CONSTANT)),
}
"""By name, what it does and how it is made: from an environment and a seed to the environment as the policy sees it,
and the policy."""


def play(env: Environment, act: Act, seed: int) -> tuple[float, float, int, bool]:
    """One episode.

    Args:
        env: LifelongEdit-v1, wrapped as the policy sees it.
        act: The policy.
        seed: Of the stream. What the frozen layers made of its prompts is kept for the next policy.

    Returns:
        The return, that of eq. 10 in nats, how many steps there were, and whether the model broke.
    """
    observation, info = env.reset(seed=seed, options={"keep_cache": True})
    total, losses, steps, over = 0.0, 0.0, 0, False
    while not over:
        observation, reward, terminated, truncated, info = env.step(act(observation))
        total += float(reward)
        losses += info["reward_terms"]["reward"]
        steps, over = steps + 1, terminated or truncated
    return total, losses, steps, bool(info["broken"])


def play_policy(name: str, env: Environment, seed: int) -> Play:
    """One policy on one stream of an environment that is not wrapped."""
    editing = lifelong_edit(env)
    wrapped, act = POLICIES[name][1](env, seed)
    total, losses, steps, broken = play(wrapped, act, seed)
    scores: dict[str, float | None] = dict.fromkeys(metrics.METRICS)
    if not broken:
        evaluation = encode_evaluation(editing.language_model, list(editing.edits_done))
        percentages = metrics.teacher_forced(editing.language_model, evaluation).percentages()
        scores = {metric: percentages[metric] for metric in metrics.METRICS}
    horizon = len(editing.stream) // editing.edits_per_step
    return Play(name, seed, editing.edits_per_step, horizon, steps, total, losses, scores, records.versions())


def as_markdown(plays: Sequence[Play]) -> str:
    """A row for each policy and batch size: means over the streams, with the lowest and the highest return."""
    headings = (
        "policy",
        "edits in a batch",
        "streams",
        "return",
        "steps",
        "eq. 10, nats",
        "efficacy / general. / spec.",
    )
    body = []
    for size in sorted({item.edits_per_step for item in plays}):
        for name in POLICIES:
            rows = [item for item in plays if (item.policy, item.edits_per_step) == (name, size)]
            if rows:
                body.append([f"{name}: {POLICIES[name][0]}", str(size), str(len(rows)), *_cells(rows)])
    return markdown(headings, body)


def _cells(rows: Sequence[Play]) -> list[str]:
    returns = [round(item.episode_return, 2) + 0.0 for item in rows]  # no -0.00
    scores = [[value for item in rows if (value := item.scores[metric]) is not None] for metric in metrics.METRICS]
    return [
        f"{np.mean(returns):.2f} [{min(returns):.2f}, {max(returns):.2f}]",
        f"{np.mean([item.steps for item in rows]):.1f}",
        f"{np.mean([item.loss_return for item in rows]):.0f}",
        " / ".join(f"{np.mean(values):.0f}" if values else "-" for values in scores),
    ]


def read(path: Path) -> list[Play]:
    """All plays of a file.

    Raises:
        ValueError: If a line is none; names the file and the line.
    """
    return read_as(Play, path)


def read_as(kind: type[T], path: Path) -> list[T]:
    """A dataclass from each line of a file.

    Raises:
        ValueError: If a line is not of that kind; names the file and the line.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(kind(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return rows


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        out: File of records, a line for each policy and stream; it is added to.
        policies: Which ones; all of them by default.
        seeds: Like 0 or 0-4 or 0,3; each seeds a stream.
        edits_per_step: n: edits in a batch.
        horizon: Batches of an episode.
    """

    out: Path
    policies: tuple[str, ...] = tuple(POLICIES)
    seeds: str = "0-4"
    edits_per_step: int = 5
    horizon: int = 10


def main(args: Args) -> None:
    """Plays what is missing.

    Raises:
        SystemExit: For wrong arguments, with a message.
    """
    if unknown := set(args.policies) - set(POLICIES):
        raise SystemExit(f"--policies: unknown {sorted(unknown)}; there are {', '.join(POLICIES)}")
    try:
        seeds = parse_seeds(args.seeds)
        plays = read(args.out) if args.out.exists() else []
        env = gym.make("LifelongEdit-v1", split="validation", edits_per_step=args.edits_per_step, horizon=args.horizon)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    done = {(item.policy, item.seed, item.edits_per_step, item.horizon) for item in plays}
    for seed in seeds:
        for name in args.policies:
            if (name, seed, args.edits_per_step, args.horizon) not in done:
                plays.append(play_policy(name, env, seed))
                records.append(args.out, plays[-1])
    print(as_markdown(plays))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
