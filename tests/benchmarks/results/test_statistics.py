import itertools

import numpy as np
import pytest

from benchmarks.results.statistics import (
    Estimate,
    PairedDifference,
    estimate,
    harmonic_mean,
    interquartile_mean,
    mean_over_tasks,
    normalized,
    paired_difference,
    pareto_front,
    probability_of_improvement,
)


def scores(efficacy, generalization, specificity):
    return {"efficacy": efficacy, "generalization": generalization, "specificity": specificity}


def test_harmonic_mean_by_hand():
    assert harmonic_mean(scores(100.0, 50.0, 25.0)) == pytest.approx(3 / (1 / 100 + 1 / 50 + 1 / 25))
    assert harmonic_mean(scores(80.0, 80.0, 80.0)) == pytest.approx(80)
    assert harmonic_mean(scores(100.0, None, 50.0)) == pytest.approx(200 / 3)
    assert harmonic_mean(scores(100.0, 0.0, 100.0)) == 0


def test_interquartile_mean_by_hand():
    assert interquartile_mean([0.0, 10.0, 20.0, 1000.0]) == 15
    assert interquartile_mean([1.0, 2.0, 9.0]) == 4, "below four runs it is the mean"
    assert interquartile_mean([0.0, 10.0], [20.0, 1000.0]) == 15, "tasks are pooled"
    values = np.random.default_rng(3).normal(size=41)
    assert interquartile_mean(values) == pytest.approx(np.sort(values)[10:31].mean())


def test_interval_of_two_values_is_the_two():
    """A resample's mean is an end with probability 1/4 each, far above 2.5%."""
    assert estimate([[3.0, 5.0]]) == Estimate(4.0, (3.0, 5.0))


def test_interval_of_equal_values_is_a_point():
    assert estimate([[7.0, 7.0, 7.0]]) == Estimate(7.0, (7.0, 7.0))


@pytest.mark.parametrize(
    ("strata", "statistic"),
    [
        ([[1.0, 2.0, 4.0, 8.0, 16.0]], interquartile_mean),
        ([[0.0, 1.0, 5.0], [100.0, 140.0, 190.0]], interquartile_mean),
        ([[0.0, 1.0], [10.0, 14.0, 19.0, 40.0]], mean_over_tasks),
    ],
)
def test_interval_is_that_of_all_resamples_within_tasks(strata, statistic):
    """Every resample there is, instead of a random few."""
    redrawn = [list(itertools.product(values, repeat=len(values))) for values in strata]
    values_of_all = np.sort([statistic(*map(np.array, resample)) for resample in itertools.product(*redrawn)])
    low, high = estimate(strata, statistic, resamples=20_000).interval
    for end, share in ((low, 0.025), (high, 0.975)):
        assert np.quantile(values_of_all, share - 0.005) <= end <= np.quantile(values_of_all, share + 0.005)


def test_resampling_across_tasks_would_be_wider():
    apart = [[0.0, 1.0, 2.0, 3.0], [100.0, 101.0, 102.0, 103.0]]
    stratified, pooled = estimate(apart, mean_over_tasks), estimate([[*apart[0], *apart[1]]], mean_over_tasks)
    assert stratified.value == pooled.value == 51.5
    assert np.diff(stratified.interval)[0] < 3 < 50 < np.diff(pooled.interval)[0]


def test_no_interval_where_a_task_has_one_run():
    assert estimate([[7.0]]) == Estimate(7.0, None)
    assert estimate([[1.0, 2.0], [7.0]], mean_over_tasks) == Estimate(4.25, None)


def test_the_same_seed_gives_the_same_interval_and_another_one_another():
    values = [list(np.random.default_rng(1).normal(size=9))]
    assert estimate(values, seed=4) == estimate(values, seed=4)
    assert estimate(values, seed=4).interval != estimate(values, seed=5).interval


def test_probability_of_improvement_by_hand():
    first = {("a", 0): 3.0, ("a", 1): 1.0, ("a", 2): 5.0, ("b", 0): 1.0, ("b", 1): 9.0}
    second = {("a", 0): 2.0, ("a", 1): 2.0, ("a", 2): 5.0, ("b", 0): 0.0, ("c", 0): 100.0}
    improvement = probability_of_improvement(first, second)
    assert improvement == Estimate((0.5 + 1.0) / 2, None), "one pair in task b: no interval"
    assert probability_of_improvement(second, first).value == pytest.approx(1 - improvement.value)


def test_probability_of_improvement_pairs_streams():
    """Streams differ more than agents: against all runs of the other (unpaired) this would be 2/3, stream by stream
    it is 1.
    """
    second = {("a", seed): 10.0 * seed for seed in range(3)}
    first = {stream: score + 1 for stream, score in second.items()}
    assert probability_of_improvement(first, second) == Estimate(1.0, (1.0, 1.0))


def test_its_interval_is_the_bootstrap_of_the_pairs():
    second = {("a", seed): 0.0 for seed in range(6)}
    first = {("a", seed): sign for seed, sign in enumerate((1.0, 1.0, -1.0, 0.0, 1.0, -1.0))}
    wins = np.array([1, 1, 0, 0.5, 1, 0])
    resampled = np.sort(wins[np.random.default_rng(8).integers(6, size=(40_000, 6))].mean(1))
    improvement = probability_of_improvement(first, second, resamples=20_000)
    assert improvement.value == pytest.approx(wins.mean())
    for end, share in zip(improvement.interval, (0.025, 0.975), strict=True):
        assert np.quantile(resampled, share - 0.005) <= end <= np.quantile(resampled, share + 0.005)


def test_nothing_in_common_is_no_probability():
    assert probability_of_improvement({("a", 0): 1.0}, {("a", 1): 1.0}) is None


def test_normalized_by_hand():
    lower, upper = {("a", 0): 10.0, ("a", 1): 20.0}, {("a", 0): 90.0}
    assert normalized(50.0, ("a", 0), lower, upper) == pytest.approx(0.5)
    assert normalized(55.0, ("a", 1), lower, upper) == pytest.approx(0.5), "the other seed's upper reference stands in"
    assert normalized(52.5, ("a", 2), lower, upper) == pytest.approx(0.5), "the mean of the lower, too"
    assert normalized(98.0, ("a", 0), lower, upper) == pytest.approx(1.1), "not clipped"
    assert normalized(2.0, ("a", 0), lower, upper) == pytest.approx(-0.1)


def test_no_normalized_score_without_both_references():
    assert normalized(50.0, ("b", 0), {("a", 0): 1.0}, {("b", 0): 2.0}) is None
    assert normalized(50.0, ("b", 0), {("b", 0): 1.0}, {("a", 0): 2.0}) is None
    assert normalized(50.0, ("b", 0), {("b", 0): 2.0}, {("b", 0): 2.0}) is None


def test_pareto_front_by_hand():
    points = [(1.0, 5.0), (2.0, 5.0), (2.0, 9.0), (3.0, 8.0), (4.0, 9.5), (4.0, 9.5)]
    assert pareto_front(points) == [True, False, True, False, True, True]
    assert pareto_front([]) == []


def test_a_difference_by_stream_is_over_the_streams_that_both_have_run():
    """By hand: differences 1, 2 and 6 have the mean 3, the standard error sqrt(7 / 3), and t(0.975; 2) is 4.302653."""
    difference = paired_difference({0: 11.0, 1: 52.0, 2: 36.0, 7: 0.0}, {0: 10.0, 1: 50.0, 2: 30.0, 9: 99.0})
    half = 4.302653 * (7 / 3) ** 0.5
    assert (difference.value, difference.streams) == (3.0, 3)
    assert difference.interval == pytest.approx((3 - half, 3 + half), rel=1e-6)


def test_streams_of_unlike_difficulty_do_not_blur_a_difference():
    first = {0: 20.0, 1: 50.0, 2: 81.0}
    second = {0: 18.0, 1: 48.0, 2: 78.5}
    assert paired_difference(first, second).interval[0] > 1
    low, high = (estimate([list(scores.values())]).interval for scores in (second, first))
    assert low[1] > high[0], "the intervals of the means meet by far"


def test_one_stream_has_no_interval_and_none_no_difference():
    assert paired_difference({0: 2.0}, {0: 1.0, 1: 5.0}) == PairedDifference(1.0, None, 1)
    assert paired_difference({0: 2.0}, {1: 5.0}) is None
    assert paired_difference({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}) == PairedDifference(1.0, (1.0, 1.0), 2)
