import itertools
from dataclasses import replace

import numpy as np
import pytest
from test_records import RECORD

from benchmarks.table import HEADINGS, as_markdown, draw_retention, harmonic_mean, interval, one_line, rows, show


def scores(efficacy, generalization, specificity):
    return {"efficacy": efficacy, "generalization": generalization, "specificity": specificity}


def test_harmonic_mean_by_hand():
    assert harmonic_mean(scores(100.0, 50.0, 25.0)) == pytest.approx(3 / (1 / 100 + 1 / 50 + 1 / 25))
    assert harmonic_mean(scores(80.0, 80.0, 80.0)) == pytest.approx(80)
    assert harmonic_mean(scores(100.0, 0.0, 100.0)) == 0


def test_interval_of_two_values_is_the_two():
    """A resample's mean is an end with probability 1/4 each, far above 2.5%."""
    assert interval([3.0, 5.0]) == (3.0, 5.0)


def test_interval_is_that_of_all_resamples():
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    means = np.sort([np.mean(resample) for resample in itertools.product(values, repeat=5)])
    low, high = interval(values, resamples=20_000)
    for found, share in ((low, 0.025), (high, 0.975)):
        assert np.quantile(means, share - 0.005) <= found <= np.quantile(means, share + 0.005)


def test_interval_of_one_value_or_equal_ones_is_a_point():
    assert interval([7.0]) == (7.0, 7.0)
    assert interval([7.0, 7.0, 7.0]) == (7.0, 7.0)


def test_rows_are_means_over_seeds():
    first = replace(RECORD, teacher_forced=scores(100.0, 50.0, 25.0), failures=1, edit_seconds=0.001)
    second = replace(RECORD, seed=1, teacher_forced=scores(50.0, 50.0, 75.0), failures=2, edit_seconds=0.003)
    other = replace(RECORD, agent="fine-tune", generation=scores(0.0, 10.0, 20.0))
    table = rows([first, other, second])
    assert [row[:2] for row in table] == [["no-edit", "2"], ["fine-tune", "1"]]
    cells = dict(zip(HEADINGS, table[0], strict=True))
    assert cells["teacher-forced Eff / Gen / Spe"] == "75.0 / 50.0 / 50.0"
    low, high = 3 / (1 / 100 + 1 / 50 + 1 / 25), 3 / (1 / 50 + 1 / 50 + 1 / 75)
    assert cells["mean"] == f"{(low + high) / 2:.1f} [{low:.1f}, {high:.1f}]"
    assert cells["ms/edit"] == "2.00"
    assert cells["failed"] == "3"
    assert dict(zip(HEADINGS, table[1], strict=True))["mean "] == "0.0 [0.0, 0.0]"


def test_markdown_has_a_line_for_each_agent():
    lines = as_markdown([RECORD, replace(RECORD, agent="fine-tune")]).splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {len(HEADINGS) + 1}
    assert lines[2].startswith("| no-edit |")
    assert lines[3].startswith("| fine-tune |")


def test_one_line_and_show_hold_the_figures(capsys):
    text = one_line(replace(RECORD, generation=scores(12.3, 4.5, 67.8)))
    assert "90.0/45.5/100.0" in text
    assert "12.3/4.5/67.8" in text
    assert "1.00 ms/edit" in text
    show([RECORD])
    shown = capsys.readouterr().out
    assert "no-edit" in shown
    assert "90.0/45.5/100.0" in " ".join(shown.split())
    show([])
    assert capsys.readouterr().out == ""


def test_the_picture_shows_each_agents_curve(tmp_path):
    from matplotlib import image

    path = tmp_path / "retention.png"
    draw_retention([RECORD, replace(RECORD, seed=1)], path)
    alone = image.imread(path)
    low = [{"edits": point["edits"], **scores(5.0, 5.0, 5.0)} for point in RECORD.retention]
    draw_retention([RECORD, replace(RECORD, seed=1), replace(RECORD, agent="worse", retention=low)], path)
    both = image.imread(path)
    assert alone.shape[:2] == both.shape[:2]
    assert min(alone.shape[:2]) > 200
    assert (alone != both).any(-1).sum() > 500
    assert [file.name for file in tmp_path.iterdir()] == ["retention.png"]
