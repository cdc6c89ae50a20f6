import json
from dataclasses import replace

import pytest
from test_records import RECORD

from benchmarks.results.leaderboard import MEAN, FailedCell, Leaderboard, Task, curve, entries, read, read_failures
from benchmarks.results.records import append
from benchmarks.results.statistics import Estimate, probability_of_improvement


def scores(value, specificity=None):
    return {"efficacy": value, "generalization": value, "specificity": value if specificity is None else specificity}


def run(agent, seed=0, value=50.0, suite="micro", **changes):
    changes.setdefault(
        "floor_ratio", 1000 * changes.get("edit_seconds", RECORD.edit_seconds)
    )  # the floor is a millisecond
    return replace(RECORD, agent=agent, seed=seed, suite=suite, generation=scores(value), **changes)


def board(*records):
    return Leaderboard(entries(records), "generation")


def row(leaderboard, agent, suite="micro"):
    (one,) = [entry for entry in leaderboard.rows if (entry.agent, entry.task.suite) == (agent, suite)]
    return one


def test_a_row_is_an_agent_on_a_suite_with_a_model():
    rows = entries([run("a", 1), run("b"), run("a", 0), run("a", suite="other"), run("a", model="big")])
    assert [(entry.agent, entry.task) for entry in rows] == [
        ("a", Task("micro", "atlas")),
        ("b", Task("micro", "atlas")),
        ("a", Task("other", "atlas")),
        ("a", Task("micro", "big")),
    ]
    assert [record.seed for record in rows[0].records] == [0, 1]


def test_figures_that_were_not_asked_for_are_none():
    (entry,) = entries([replace(RECORD, generation=scores(50.0) | {"generalization": None})])
    assert entry.estimate("generation", "generalization") is None
    assert entry.estimate("probability", "efficacy") is None
    assert entry.estimate("probability", MEAN) is None
    assert entry.estimate("generation", MEAN) == Estimate(50.0)


def test_setup_is_spread_over_the_edits():
    (entry,) = entries([run("a", seconds, setup_seconds=8.0 * seconds, edit_seconds=0.5) for seconds in (1, 2)])
    assert entry.seconds(setup=False) == 0.5
    assert entry.seconds(setup=True) == pytest.approx(0.5 + 12.0 / 40)


def test_time_in_units_of_the_floor_is_the_same_on_a_slower_machine():
    (entry,) = entries(
        [
            run("a", 0, setup_seconds=80.0, edit_seconds=0.5, floor_ratio=2.0),
            run("a", 1, setup_seconds=800.0, edit_seconds=5.0, floor_ratio=2.0),
        ]
    )
    assert entry.floors(setup=False) == 2
    assert entry.floors(setup=True) == pytest.approx(2 + 80 / 40 / 0.25)


def test_normalised_by_hand():
    leaderboard = board(run("no-edit", 0, 10.0), run("joint-fine-tune", 0, 90.0), run("a", 0, 50.0), run("a", 1, 70.0))
    assert leaderboard.normalized(row(leaderboard, "a")).value == pytest.approx((0.5 + 0.75) / 2)
    assert leaderboard.normalized(row(leaderboard, "a")).interval == pytest.approx((0.5, 0.75))
    assert leaderboard.normalized(row(leaderboard, "no-edit")).value == 0
    assert leaderboard.normalized(row(leaderboard, "joint-fine-tune")).value == 1


def test_nothing_is_normalised_by_another_model_or_suite():
    own = run("joint-fine-tune@base", 0, 50.0), run("joint-fine-tune@base", 1, 90.0)  # another folder's settings
    leaderboard = board(run("no-edit", 0, 10.0), run("no-edit", 1, 10.0), *own, run("a", 0, 30.0), run("a", 1, 50.0))
    assert leaderboard.normalized(row(leaderboard, "a")).value == pytest.approx(0.5)
    leaderboard = board(run("no-edit", 0, 10.0), run("joint-fine-tune", 0, 60.0), own[0], run("a", 0, 30.0))
    assert leaderboard.normalized(row(leaderboard, "a")).value == pytest.approx(0.4)  # the higher one is the reference
    leaderboard = board(run("no-edit", suite="other"), run("joint-fine-tune", model="big", value=90.0), run("a"))
    assert leaderboard.normalized(row(leaderboard, "a")) is None
    assert leaderboard.referenced() == []
    assert leaderboard.overall() == {}


def test_overall_is_over_the_suites_with_references_and_a_dash_for_who_misses_one():
    both = [
        run(agent, 0, value, suite)
        for suite in ("s", "t")
        for agent, value in (("no-edit", 0.0), ("joint-fine-tune", 100.0))
    ]
    leaderboard = board(
        *both, run("a", 0, 20.0, "s"), run("a", 0, 60.0, "t"), run("a", 0, 99.0, "u"), run("b", 0, 50.0, "s")
    )
    assert leaderboard.referenced() == [Task("s", "atlas"), Task("t", "atlas")]
    assert leaderboard.overall()["a"].value == pytest.approx(0.4), "suite u has no references"
    assert leaderboard.overall()["b"] is None
    assert leaderboard.overall()["joint-fine-tune"].value == 1


def test_every_task_counts_the_same_however_many_seeds_it_has():
    both = [
        run(agent, seed, value, suite)
        for suite in ("s", "t")
        for seed in range(4)
        for agent, value in (("no-edit", 0.0), ("joint-fine-tune", 100.0))
    ]
    few = [run("few", 0, 20.0, "s"), run("few", 0, 80.0, "t")]
    many = [run("many", seed, 20.0, "s") for seed in range(4)] + [run("many", 0, 80.0, "t")]
    overall = board(*both, *few, *many).overall()
    assert overall["few"].value == overall["many"].value == pytest.approx(0.5)


def test_suites_that_are_the_same_stream_are_one_and_lend_each_other_their_references():
    short = {"configuration": {"suite": {"dataset": "atlas", "batches": 20, "edits_per_step": 100}}}
    long = {"configuration": {"suite": {"dataset": "atlas", "batches": 50, "edits_per_step": 100}}}
    leaderboard = board(
        run("no-edit", 0, 0.0, "time", **short),
        run("joint-fine-tune", 0, 100.0, "time", **short),
        run("a", 0, 40.0, "time", **short),
        run("a", 0, 40.0, "ablations", **short),
        run("b", 0, 50.0, "ablations", **short),
        run("a", 0, 40.0, "long", **long),
    )
    assert leaderboard.normalized(row(leaderboard, "b", "ablations")).value == pytest.approx(0.5)
    assert leaderboard.improvements()["b", "a"].value == 1, "one pair"
    assert len(leaderboard.scores("a")) == 2
    assert leaderboard.streams_in_common("a", "b") == 1
    assert leaderboard.compared() == [Task("time", "atlas")]
    assert leaderboard.overall() == {}, "it is one task"


def test_one_suite_has_no_overall():
    assert board(run("no-edit", 0, 0.0), run("joint-fine-tune", 0, 100.0), run("a")).overall() == {}


def test_improvements_pair_streams_of_the_same_suite_and_seed():
    improvements = board(
        run("a", 0, 60.0), run("a", 1, 10.0), run("b", 0, 50.0), run("b", 1, 20.0), run("c", 7, 50.0)
    ).improvements()
    assert improvements["a", "b"].value == improvements["b", "a"].value == 0.5
    assert ("a", "c") not in improvements
    assert ("a", "a") not in improvements


def test_both_directions_of_an_improvement_are_the_bootstrap_of_their_own_pairs():
    first = [run("a", seed, value) for seed, value in enumerate((60.0, 10.0, 30.0, 80.0))]
    second = [run("b", seed, value) for seed, value in enumerate((50.0, 20.0, 20.0, 70.0))]
    leaderboard = board(*first, *second)
    for a, b in (("a", "b"), ("b", "a")):
        alone = probability_of_improvement(leaderboard.scores(a), leaderboard.scores(b))
        assert leaderboard.improvements()[a, b].value == pytest.approx(alone.value)
        assert leaderboard.improvements()[a, b].interval == pytest.approx(alone.interval)


def test_the_front_by_hand():
    leaderboard = board(
        run("fast", value=20.0, edit_seconds=0.001, setup_seconds=100.0),
        run("slow", value=60.0, edit_seconds=0.01),
        run("beaten", value=50.0, edit_seconds=0.02),
        run("no-edit", value=1.0, edit_seconds=0.0001),
        run("joint-fine-tune", value=99.0, edit_seconds=0.0001),
        run("joint-fine-tune@base", value=99.0, edit_seconds=0.0001),
    )
    task = leaderboard.tasks[0]
    assert leaderboard.front(task, setup=False) == {"fast", "slow"}, "the references take no part"
    assert leaderboard.front(task, setup=True) == {"slow"}


def test_curves_are_of_the_counts_that_all_seeds_have():
    points = [{"edits": 20.0, **scores(80.0)}, {"edits": 40.0, **scores(40.0) | {"generalization": None}}]
    more = [{"edits": 20.0, **scores(60.0)}, {"edits": 30.0, **scores(1.0)}, {"edits": 40.0, **scores(50.0)}]
    (entry,) = entries([run("a", 0, retention=points), run("a", 1, retention=more)])
    points_of_curve = curve(entry)
    assert [point["edits"] for point in points_of_curve] == [20.0, 40.0]
    assert points_of_curve[0]["efficacy"] == (70.0, 60.0, 80.0)
    assert points_of_curve[1]["generalization"] == (50.0, 50.0, 50.0)
    (entry,) = entries([run("a", 0, retention=points)])
    assert curve(entry)[1]["generalization"] is None


def test_several_folders_and_files_make_one_leaderboard(tmp_path):
    append(tmp_path / "one" / "results.jsonl", run("a"))
    append(tmp_path / "two" / "results.jsonl", run("a", 1))
    append(tmp_path / "three.jsonl", run("a", model="big"))
    records = read([tmp_path / "one", tmp_path / "two", tmp_path / "three.jsonl"])
    assert [(record.seed, record.model) for record in records] == [(0, "atlas"), (1, "atlas"), (0, "big")]


def test_a_run_twice_is_refused_naming_both_files(tmp_path):
    for folder in ("one", "two"):
        append(tmp_path / folder / "results.jsonl", run("a"))
    with pytest.raises(ValueError) as refusal:
        read([tmp_path / "one", tmp_path / "two"])
    for part in ("micro, atlas, a, seed 0", str(tmp_path / "one"), str(tmp_path / "two")):
        assert part in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"edits": 7}, "edits"),
        ({"dataset": "other/test"}, "dataset"),
        ({"configuration": {"suite": {"modules": ["layers.0"]}, "fingerprints": {}}}, "suite.modules"),
        ({"configuration": {"suite": {"dtype": "bfloat16"}, "fingerprints": {}}}, "suite.dtype"),
        ({"configuration": {"suite": {}, "fingerprints": {"model": "bb"}}}, "fingerprints.model"),
        ({"configuration": {"settings": {"config": {"rank": 8}}}}, "settings.config.rank"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path, change, named):
    configuration = {"suite": {"modules": ["layers.3"], "dtype": "float32"}, "fingerprints": {"model": "aa"}}
    configuration["settings"] = {"config": {"rank": 4, "later": 1}}
    append(tmp_path / "one" / "results.jsonl", run("a", configuration=configuration))
    append(tmp_path / "one" / "results.jsonl", run("b"))  # an older record, that does not know
    append(tmp_path / "two" / "results.jsonl", run("a", 1, **change))
    assert len(read([tmp_path / "one"])) == 2
    with pytest.raises(ValueError) as refusal:
        read([tmp_path / "one", tmp_path / "two"])
    for part in (named, str(tmp_path / "one"), str(tmp_path / "two"), "a, seed 1"):
        assert part in str(refusal.value)
    append(tmp_path / "three" / "results.jsonl", run("a", 1, **({"model": "big"} | change)))
    read([tmp_path / "one", tmp_path / "three"])  # another task
    told_less = {"suite": {}, "fingerprints": {"model": None}, "settings": {"config": {"rank": 4}}}
    append(tmp_path / "four" / "results.jsonl", run("a", 1, configuration=told_less))
    read([tmp_path / "one", tmp_path / "four"])  # a model of the hub has no fingerprint, an older record fewer settings


def test_an_agent_whose_scores_cannot_be_normalised_on_a_suite_has_a_dash():
    """The upper reference is above the lower on one of two seeds of suite t, and the agent has run the other one alone."""
    leaderboard = board(
        *(run(agent, 0, value, "s") for agent, value in (("no-edit", 0.0), ("joint-fine-tune", 100.0), ("a", 75.0))),
        *(run("no-edit", seed, value, "t") for seed, value in ((0, 0.0), (1, 90.0))),
        *(run("joint-fine-tune", seed, value, "t") for seed, value in ((0, 100.0), (1, 50.0))),
        *(run("b", 0, 60.0, suite) for suite in ("s", "t")),
        run("a", 1, 60.0, "t"),
    )
    assert leaderboard.overall()["b"].value == pytest.approx(0.6)
    assert leaderboard.overall()["a"] is None


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"results\.jsonl"):
        read([tmp_path])
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(ValueError, match="no records"):
        read([tmp_path])


def test_failed_cells_are_read(tmp_path):
    path = tmp_path / "cells" / "micro-v1" / "a-seed3.failed.json"
    path.parent.mkdir(parents=True)
    path.write_text(
        json.dumps({"suite": "micro-v1", "agent": "a", "seed": 3, "error": "boom", "traceback": "", "commit": None})
    )
    assert read_failures([tmp_path]) == [FailedCell("micro-v1", "a", 3, "boom")]
    assert read_failures([tmp_path / "results.jsonl"]) == read_failures([tmp_path])
    assert read_failures([tmp_path / "elsewhere" / "results.jsonl"]) == []
    assert read_failures([tmp_path], {("micro-v1", "a", 3)}) == []


def test_overall_leaves_a_quarter_out_at_either_end():
    references = [
        run(agent, 0, value, suite)
        for suite in ("s", "t")
        for agent, value in (("no-edit", 0.0), ("joint-fine-tune", 100.0))
    ]
    lucky = [run("a", seed, 20.0 if seed else 100.0, suite) for seed in range(4) for suite in ("s", "t")]
    assert board(*references, *lucky).overall()["a"].value == pytest.approx(0.2)


def test_the_front_is_of_interquartile_means():
    slow = [run("slow", seed, 60.0 if seed else 0.0, edit_seconds=0.02) for seed in range(4)]
    leaderboard = board(*slow, *(run("fast", seed, 50.0, edit_seconds=0.01) for seed in range(4)))
    assert leaderboard.front(leaderboard.tasks[0], setup=False) == {"slow", "fast"}
