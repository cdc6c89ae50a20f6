"""How a table is made of seeds, after Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice".

A *task* is one suite with one model; its runs differ in their seed, which sets training and the stream's order.
Runs are given as strata: one sequence of values for each task. What cannot be said is None, never an invented number:
see docs/reference/statistics.md.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from editenv.evaluation.metrics import METRICS

Strata = Sequence[Sequence[float]]
"""For each task the values of its runs."""

TaskSeed = tuple[str, int]
"""A task and a seed: what two agents have in common that edited the same facts in the same order."""

CONFIDENCE = 0.95
RESAMPLES = 2000
"""Of each bootstrap; Agarwal et al. take as many."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic and its 95% stratified bootstrap interval.

    Attributes:
        value: The statistic of all runs.
        interval: Its ends; None if a task has fewer than two runs, whose spread nobody has seen.
    """

    value: float
    interval: tuple[float, float] | None = None


def harmonic_mean(scores: Mapping[str, float | None]) -> float:
    """Of efficacy, generalization and specificity, those that are known; 0 if one of them is 0.

    Raises:
        ValueError: If none is known.
    """
    values = [value for metric in METRICS if (value := scores[metric]) is not None]
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)


def interquartile_mean(*strata: Any, axis: int = -1) -> Any:
    """Mean of the middle half of all runs: a quarter of them, rounded down, is left out at either end.

    Below four runs nothing is left out, and it is the mean.

    Args:
        strata: For each task an array of its runs along ``axis``; other axes, which a bootstrap adds for its
            resamples, are kept.
        axis: Of the runs.
    """
    return stats.trim_mean(np.concatenate(strata, axis=axis), 0.25, axis=axis)


def interquartile_mean_over_tasks(*strata: Any, axis: int = -1) -> Any:
    """Interquartile mean of all runs, each of which counts by its share in its task: tasks count the same.

    With as many runs in every task it is :func:`interquartile_mean`.
    """
    sizes = [np.shape(values)[axis] for values in strata]
    common_size = math.lcm(*sizes)
    equal_sized = [
        np.repeat(values, common_size // size, axis=axis) for values, size in zip(strata, sizes, strict=True)
    ]
    return interquartile_mean(*equal_sized, axis=axis)


def mean_over_tasks(*strata: Any, axis: int = -1) -> Any:
    """Mean of the tasks' means: each task counts the same, however many runs it has."""
    return sum(np.mean(values, axis=axis) for values in strata) / len(strata)


def estimate(
    strata: Strata, statistic: Callable[..., Any] = interquartile_mean, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """A statistic with its percentile bootstrap interval, runs redrawn within each task (stratified).

    Args:
        strata: For each task the values of its runs; no task may be empty.
        statistic: Takes the strata and ``axis``.
        resamples: Of the bootstrap.
        seed: Of the bootstrap's generator.

    Raises:
        ValueError: If a task is empty.
    """
    if not strata or not all(map(len, strata)):
        raise ValueError("strata: a task without runs has no statistic")
    samples = [np.asarray(values, dtype=float) for values in strata]
    value = float(statistic(*samples, axis=-1))
    if min(map(len, samples)) < 2:
        return Estimate(value)
    interval = stats.bootstrap(
        samples,
        statistic,
        n_resamples=resamples,
        vectorized=True,
        paired=False,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, (float(interval.low), float(interval.high)))


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """How much better one agent is than another on the same streams.

    Attributes:
        value: Mean of the differences, one for each stream that both have run.
        interval: Its 95% interval by Student's t; None of a single stream.
        streams: How many.
    """

    value: float
    interval: tuple[float, float] | None
    streams: int


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> PairedDifference | None:
    """The mean difference of two agents' scores over the streams of a task that both have run.

    What a stream does to both agents alike is no part of it, as it is where two intervals are compared. The interval is
    that of the one-sample t-test of the differences (``scipy.stats.ttest_1samp``), which is as wide as few streams make
    it: with three it is 4.3 standard errors to either side.

    Args:
        first: Scores of one agent by seed.
        second: Scores of the other.

    Returns:
        None if they have no stream in common.
    """
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if not differences:
        return None
    value = float(np.mean(differences))
    if len(differences) == 1:
        return PairedDifference(value, None, 1)
    if np.ptp(differences) == 0:  # scipy has no interval of what does not vary
        return PairedDifference(value, (value, value), len(differences))
    interval = stats.ttest_1samp(differences, 0).confidence_interval(CONFIDENCE)
    return PairedDifference(value, (float(interval.low), float(interval.high)), len(differences))


def probability_of_improvement(
    first: Mapping[TaskSeed, float], second: Mapping[TaskSeed, float], resamples: int = RESAMPLES, seed: int = 0
) -> Estimate | None:
    """How often the first agent is better than the second on the same stream; a tie counts half.

    ``P(X > Y)`` of Agarwal et al. (section 4.3), but paired: a run is compared with the other agent's run of the
    same task and seed, not with all of its runs. Tasks count the same.

    Args:
        first: Scores of one agent's runs.
        second: Scores of the other's.
        resamples: Of the bootstrap.
        seed: Of the bootstrap's generator.

    Returns:
        The share, 0 to 1, with its interval over pairs redrawn within tasks; None if they have no stream in common.
    """
    wins: dict[str, list[float]] = {}
    for task, seed_in_common in sorted(first.keys() & second.keys()):
        difference = first[task, seed_in_common] - second[task, seed_in_common]
        wins.setdefault(task, []).append(float(np.sign(difference) + 1) / 2)
    return estimate(list(wins.values()), mean_over_tasks, resamples, seed) if wins else None


def normalized(
    score: float,
    task_seed: TaskSeed,
    lower_scores: Mapping[TaskSeed, float],
    upper_scores: Mapping[TaskSeed, float],
) -> float | None:
    """A score on the scale where the lower reference, no editing, is 0 and the upper one, joint fine-tuning, is 1.

    Neither end is clipped.

    Args:
        score: Of one run.
        task_seed: Of that run.
        lower_scores: Of the lower reference's runs.
        upper_scores: Of the upper reference's runs.

    Returns:
        None if the task has no run of one of the two, or if the upper is not above the lower. Where the two have not
        run this seed, the mean of the seeds they have run on this task stands in.
    """
    lower, upper = reference_score(lower_scores, task_seed), reference_score(upper_scores, task_seed)
    return None if lower is None or upper is None or upper <= lower else (score - lower) / (upper - lower)


def reference_score(scores: Mapping[TaskSeed, float], task_seed: TaskSeed) -> float | None:
    """A reference's score on this task and seed, or else the mean over the task's other seeds, or else None."""
    if task_seed in scores:
        return scores[task_seed]
    other_seeds = [score for (task, _), score in scores.items() if task == task_seed[0]]
    return float(np.mean(other_seeds)) if other_seeds else None


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each ``(cost, quality)``: whether no other point is at least as cheap and as good, and better in one of
    the two.
    """
    return [
        not any(c <= cost and q >= quality and (c < cost or q > quality) for c, q in points) for cost, quality in points
    ]
