from dataclasses import replace

import pytest
from test_rl import RUN

from benchmarks.results.records import append
from benchmarks.rl_report import Args, as_markdown, figure_at, main, over_seeds


def point(steps, seconds, value):
    return {"steps": steps, "seconds": seconds, "episode_return": -value} | dict.fromkeys(
        ("efficacy", "generalization", "specificity"), value
    )


def run(seed, values, algorithm="rledit"):
    points = [point(0.0, 3.0, 10.0)] + [point(100.0 * i, 25.0 * i, value) for i, value in enumerate(values, start=1)]
    return replace(RUN, algorithm=algorithm, seed=seed, steps=300, seconds=60.0, points=points)


@pytest.mark.parametrize(
    ("unit", "place", "value"),
    [("steps", 0, 10.0), ("steps", 99, 10.0), ("steps", 100, 20.0), ("steps", 300, 40.0), ("seconds", 1, 10.0),
     ("seconds", 60, 30.0), ("seconds", 1000, 40.0)],
)  # fmt: skip
def test_a_figure_is_that_of_the_last_policy_by_then(unit, place, value):
    assert figure_at(run(0, [20.0, 30.0, 40.0]), unit, place, "efficacy") == value
    assert figure_at(run(0, [20.0, 30.0, 40.0]), unit, place, "episode_return") == -value


def test_over_five_seeds_the_best_and_the_worst_are_left_out():
    runs = [run(seed, [0, 0, value]) for seed, value in enumerate((5.0, 90.0, 20.0, 0.0, 35.0))]
    found = over_seeds(runs, "steps", 300, "efficacy")
    assert found.value == pytest.approx((5 + 20 + 35) / 3)
    assert 0 <= found.interval[0] <= found.value <= found.interval[1] <= 90
    assert over_seeds(runs[:1], "steps", 300, "efficacy").interval is None


def test_tables_by_hand():
    runs = [run(0, [20.0, 30.0, 40.0]), run(0, [50.0, 60.0, 70.0], "ppo"), run(1, [20.0, 30.0, 44.0])]
    lines = as_markdown(runs, "steps").splitlines()
    assert lines[0].startswith("| after 300 steps | seeds | return | efficacy |")
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| rledit", "| ppo"]
    assert "| 2 | -42.0 [-44.0, -40.0] | 42.0 [40.0, 44.0] |" in lines[2]
    assert lines[3] == "| ppo | 1 | -70.0 | 70.0 | 70.0 | 70.0 | 75 |"
    # After 60 seconds the update of second 50 was the last.
    assert as_markdown(runs, "seconds").splitlines()[3] == "| ppo | 1 | -60.0 | 60.0 | 60.0 | 60.0 | 200 |"


def test_the_command_prints_both_tables_and_draws(tmp_path, capsys):
    for seed in range(3):
        append(tmp_path / "rl.jsonl", run(seed, [20.0, 30.0, 40.0 + seed]))
    main(Args(tmp_path))
    shown = capsys.readouterr().out
    assert "after 300 steps" in shown
    assert "after 60 seconds" in shown
    assert (tmp_path / "rl.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"rl.jsonl", "rl.png"}


def test_a_folder_without_runs_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"rl\.jsonl does not exist"):
        main(Args(tmp_path))
