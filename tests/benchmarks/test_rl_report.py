from dataclasses import replace

import pytest
from test_rl import RUN

from benchmarks.results.records import append
from benchmarks.rl_report import FIRST, Args, as_markdown, at_mark, chart, choice_as_markdown, main


def run(seed, returns, algorithm="rledit", steps=300, at=(0, 100, 300), **changes):
    points = [
        {"steps": float(x), "seconds": x / 100, "episode_return": y, "efficacy": 10 * y, "generalization": 5.0}
        | {"specificity": 60.0 + seed}
        for x, y in zip(at, returns, strict=True)
    ]
    return replace(RUN, algorithm=algorithm, seed=seed, steps=steps, points=points, **changes)


def test_a_mark_is_the_first_policy_behind_it_and_none_behind_the_budget():
    one = run(0, [6.0, 7.0, 8.0], at=(0, 160, 320))
    assert [at_mark(one, mark) for mark in (0, 100, 300, 1000)] == [6.0, 7.0, 8.0, None]


def test_the_table_by_hand():
    runs = [
        run(0, [6.0, 7.0, 8.0]),
        run(1, [5.0, 7.0, 9.0]),
        run(0, [6.0, 6.5], "ppo", steps=100, at=(0, 100)),
        run(0, [1.0, 1.0], "rledit", steps=100, at=(0, 100)),  # a shorter run of what was run for longer
    ]
    heading, _, first, second = as_markdown(runs).splitlines()
    assert heading.startswith("| return after | seeds | 0 | 100 | 300 | last: lowest, highest |")
    assert first == "| rledit | 2 | 5.50 | 7.00 | 8.50 | 8.00, 9.00 | 85 / 5 / 60 | 10 |"
    assert second == "| ppo | 1 | 6.00 | 6.50 | - | 6.50, 6.50 | 65 / 5 / 60 | 10 |"


def test_of_learning_rates_the_smallest_that_is_as_good_as_the_best_is_chosen():
    runs = [run(0, [6.0, 7.0, value], rate_factor=factor) for factor, value in ((0.3, 7.5), (1.0, 8.25), (3.0, -10.0))]
    runs += [run(0, [6.0, 7.0, value], "ppo", rate_factor=factor) for factor, value in ((0.3, 7.65), (3.0, 7.7))]
    lines = choice_as_markdown(runs).splitlines()
    assert lines[0] == "| return; rates times | 0.3 | 1 | 3 | chosen |"
    assert lines[2] == "| rledit | 7.50 | 8.25 | -10.00 | 1 |"
    assert lines[3] == "| ppo | 7.65 | - | 7.70 | 0.3 |"


def test_the_figure_has_means_over_seeds_and_what_was_before_training_at_the_left():
    (panel,) = chart([run(0, [6.0, 7.0, 8.0]), run(1, [5.0, 7.0, 9.0], at=(0, 120, 300))]).panels
    (series,) = panel.series
    assert series.x == (FIRST, 110.0, 300.0)
    assert series.y == (5.5, 7.0, 8.5)
    assert series.spread == ((5.0, 6.0), (7.0, 7.0), (8.0, 9.0))


def test_the_command_prints_the_table_and_draws(tmp_path, capsys):
    for seed in range(3):
        append(tmp_path / "rl.jsonl", run(seed, [6.0, 7.0, 8.0 + seed]))
    main(Args(tmp_path))
    assert "| rledit | 3 |" in capsys.readouterr().out
    assert (tmp_path / "rl.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"rl.jsonl", "rl.png"}


def test_runs_with_several_rates_are_a_table_alone(tmp_path, capsys):
    for factor in (0.3, 1.0):
        append(tmp_path / "rl.jsonl", run(0, [6.0, 7.0, 8.0], rate_factor=factor))
    main(Args(tmp_path))
    assert "rates times" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["rl.jsonl"]


def test_a_folder_without_runs_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"rl\.jsonl does not exist"):
        main(Args(tmp_path))
