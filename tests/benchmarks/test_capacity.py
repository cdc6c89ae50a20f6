import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from test_records import RECORD

from benchmarks import capacity
from benchmarks.capacity import Args, as_markdown, breaking_point, cells_of, curves, main
from benchmarks.results.leaderboard import UPPER_REFERENCE
from benchmarks.suites import find
from editenv.models import load_model

LEVEL = {"efficacy": 80.0, "generalization": 80.0, "specificity": 80.0}


def level(value):
    return dict.fromkeys(LEVEL, value)


@pytest.mark.parametrize(
    ("points", "edits"),
    [
        ([(10, 80.0), (100, 80.0), (1000, 64.0)], 10 ** (2 + 8 / 16)),  # 72 lies half way down, on the logarithm
        ([(10, 80.0), (100, 72.0), (1000, 72.0)], None),  # at 90%, not below
        ([(10, 80.0), (100, 64.0), (1000, 80.0)], 10 ** (1 + 8 / 16)),  # the first time counts
        ([(10, 80.0), (20, 100.0), (40, 40.0)], 20 * 2 ** (28 / 60)),
        ([(10, 80.0)], None),
        ([(10, 0.0), (100, 0.0)], None),
        ([(10, 2.0), (100, 1.0)], None),  # it never worked
    ],
)
def test_where_a_curve_falls_below_nine_tenths_of_its_start(points, edits):
    breaks_at = breaking_point(points)
    assert breaks_at == edits if edits is None else math.isclose(breaks_at, edits)


def test_runs_are_one_stream_for_a_method_and_one_each_for_joint_fine_tuning(tmp_path):
    arguments = Args(tmp_path, agents=("untrained", UPPER_REFERENCE), ceiling=(20, 40, 200, 8000))
    cells = cells_of(find("capacity-1-layer@10"), arguments, [0, 1])
    expected = [(name, agent, seed) for seed in (0, 1) for name, agent in [("capacity-1-layer@10", "untrained")]]
    expected += [(f"capacity-1-layer@{n}", UPPER_REFERENCE, seed) for n in (1, 2, 10) for seed in (0, 1)]
    assert [(cell.suite.name, cell.agent, cell.seed) for cell in cells] == expected
    assert all(find(cell.suite.id) == cell.suite for cell in cells)


def test_joint_fine_tuning_may_have_settings_of_its_own(tmp_path):
    row = f"{UPPER_REFERENCE}@atlas"
    arguments = Args(tmp_path, agents=("untrained", row), ceiling=(20,))
    cells = cells_of(find("capacity-1-layer@10"), arguments, [0])
    assert [(cell.suite.name, cell.agent) for cell in cells] == [
        ("capacity-1-layer@10", "untrained"),
        ("capacity-1-layer@1", row),
    ]
    renamed = [replace(record, agent=row) for record in records() if record.agent == UPPER_REFERENCE]
    assert [curve.points for curve in curves(renamed)] == [
        curve.points for curve in curves(records()) if curve.agent == UPPER_REFERENCE
    ]


def test_a_suite_about_any_model_has_the_width_of_the_model_that_was_edited(tmp_path):
    suite = find("capacity-wide@2")
    assert suite.model is None
    with pytest.raises(ValueError, match="needs a model"):
        cells_of(suite, Args(tmp_path, agents=("untrained",), ceiling=(20,)), [0])
    (cell, joint) = cells_of(suite, Args(tmp_path, agents=("untrained",), ceiling=(20,), model="atlas"), [0])
    assert (cell.suite.model, joint.suite.model) == ("atlas", "atlas")
    points = [{"edits": 20, **level(80.0)}, {"edits": 40, **level(60.0)}]
    record = replace(RECORD, suite="capacity-wide", agent="untrained", retention=points)
    with pytest.raises(ValueError, match="do not say which modules"):
        curves([record])
    shapes = {"model.layers.4.mlp.down_proj": [6144, 384], "model.layers.5.mlp.down_proj": [6144, 384]}
    (curve,) = curves([replace(record, modules=shapes)])
    assert (curve.modules, curve.inputs) == (tuple(shapes), 12288)
    assert "| 4.mlp.down_proj, 5.mlp.down_proj | 12,288 |" in as_markdown([curve])


def test_rows_that_edit_elsewhere_have_inputs_and_panels_of_their_own():
    points = [{"edits": 20, **level(80.0)}, {"edits": 40, **level(60.0)}]
    shapes = {"model.layers.4.mlp.down_proj": [6144, 384]}
    wider = shapes | {"model.layers.5.mlp.down_proj": [6144, 384]}
    one = replace(RECORD, suite="capacity-wide", agent="untrained", retention=points, modules=shapes)
    runs = [one, replace(one, agent="untrained@./wide", modules=wider), replace(one, agent="older", modules=None)]
    inputs = {curve.agent: curve.inputs for curve in curves(runs)}
    assert inputs["untrained"] == 6144
    assert inputs["untrained@./wide"] == 12288
    assert inputs["older"] in (6144, 12288)  # what another row's records of the suite say
    panels = capacity.chart(curves(runs[:2])).panels
    assert [[series.agent for series in panel.series] for panel in panels] == [["untrained"], ["untrained@./wide"]]


def test_observed_tokens_are_those_of_the_command_for_every_run(tmp_path):
    suite = find("capacity-1-layer@10")
    cells = cells_of(suite, Args(tmp_path, agents=("untrained",), ceiling=(20,), observed_tokens="all"), [0])
    assert [cell.suite.environment()["observed_tokens"] for cell in cells] == ["all", "all"]
    usual = cells_of(suite, Args(tmp_path, agents=("untrained",), ceiling=(20,)), [0])
    assert not any("observed_tokens" in cell.suite.environment() for cell in usual)


def test_another_version_of_a_suite_has_a_curve_of_its_own(monkeypatch):
    second = replace(find("capacity-1-layer"), version=2)
    monkeypatch.setattr("benchmarks.capacity.find", lambda text: second if text.endswith("-v2") else find(text))
    suites = ("capacity-1-layer@4", "capacity-1-layer-v1", "capacity-1-layer@4-v2")
    points = [[{"edits": 20, **level(v)}, {"edits": 40, **level(v)}] for v in (80.0, 60.0, 10.0)]
    runs = [
        replace(RECORD, suite=s, seed=i, agent="untrained", retention=p)
        for i, (s, p) in enumerate(zip(suites, points, strict=True))
    ]
    assert {c.suite: (c.seeds, c.points[0][1]) for c in curves(runs)} == {
        "capacity-1-layer": (2, pytest.approx(70.0)),
        "capacity-1-layer-v2": (1, pytest.approx(10.0)),
    }


def records():
    """Two seeds of a method that breaks, one of them longer, joint fine-tuning at two lengths, and what is no curve."""
    suite = "capacity-1-layer"
    short = [{"edits": n, **level(v)} for n, v in ((20, 80.0), (40, 80.0), (80, 40.0))]
    long = [{"edits": n, **level(v)} for n, v in ((20, 60.0), (40, 60.0), (80, 60.0), (160, 1.0))]
    return [
        replace(RECORD, suite=f"{suite}@4", agent="untrained", seed=0, retention=short),
        replace(RECORD, suite=suite, agent="untrained", seed=1, retention=long),
        replace(RECORD, suite=f"{suite}@1", agent=UPPER_REFERENCE, edits=20, teacher_forced=level(90.0)),
        replace(RECORD, suite=f"{suite}@8", agent=UPPER_REFERENCE, edits=160, teacher_forced=level(85.0)),
        replace(RECORD, suite="capacity-narrow@1", agent=UPPER_REFERENCE, edits=20, teacher_forced=level(8.0)),
        replace(RECORD, suite="capacity-narrow@8", agent=UPPER_REFERENCE, edits=160, teacher_forced=level(5.0)),
        replace(RECORD, suite="capacity-narrow@8", agent="untrained", retention=long[-1:]),  # a point is no curve
    ]


def test_curves_are_over_what_all_seeds_have_and_know_the_width():
    narrow, method, joint = curves(records())
    config = load_model("atlas")[0].config
    assert narrow.inputs == config.num_attention_heads * config.head_dim
    assert method.inputs == joint.inputs == config.intermediate_size
    assert (method.agent, method.seeds) == ("untrained", 2)
    assert dict(method.points) == pytest.approx({20: 70.0, 40: 70.0, 80: 50.0})
    assert method.breaks_at == pytest.approx(40 * 2 ** (7 / 20))
    # The first falls from 80 to 40 between 40 and 80 edits, the second does not fall as far as both go.
    assert method.breaks_by_seed == (pytest.approx(40 * 2 ** (8 / 40)), None)
    assert dict(joint.points) == pytest.approx({20: 90.0, 160: 85.0})
    assert joint.breaks_at is None
    table = as_markdown([method, joint])
    assert "51 edits (46, -)" in table
    assert "not up to 160" in table
    (own,) = curves([replace(RECORD, suite="atlas-50x20", agent="untrained")])  # a suite that names no modules
    assert (own.modules, own.inputs) == (("model.layers.3.mlp.down_proj",), config.intermediate_size)
    nine = replace(own, modules=tuple(f"model.layers.{n}.mlp.down_proj" for n in range(9)))
    assert "| 9 modules |" in as_markdown([nine])
    assert "| 0.mlp.down_proj, 1.mlp.down_proj, " in as_markdown([replace(nine, modules=nine.modules[:8])])
    never = replace(method, points=((20, 2.0), (160, 1.0)), breaks_at=None)
    assert "never worked" in as_markdown([never])


@pytest.mark.parametrize(
    ("agents", "ceiling", "words"), [(("prune",), (0,), "prune acts by where"), (("no-edit",), (50,), "50 edits")]
)
def test_what_gives_no_curve_is_refused(tmp_path, agents, ceiling, words):
    with pytest.raises(ValueError, match=words):
        cells_of(find("capacity-1-layer@10"), Args(tmp_path, agents=agents, ceiling=ceiling), [0])


def test_table_and_figure_are_written_from_the_cells_and_failures_end_the_command(tmp_path, monkeypatch, capsys):
    def run_cells(requested, out, runner):
        for record in records():
            path = capacity.cells.cell_path(out, f"{record.suite}-v1", record.agent, record.seed)
            capacity.cells.atomic_write_text(path, json.dumps(capacity.asdict(record)) + "\n")
        return ["one of them"]

    monkeypatch.setattr(capacity, "run_cells", run_cells)
    assert main(Args(tmp_path, suites=("capacity-narrow@8",))) == 1
    assert "failed: one of them" in capsys.readouterr().err
    written = json.loads((tmp_path / "capacity.json").read_text())
    assert [curve["suite"] for curve in written] == ["capacity-narrow", "capacity-1-layer", "capacity-1-layer"]
    assert (tmp_path / "capacity.png").read_bytes().startswith(b"\x89PNG")
    assert not list(Path(tmp_path).glob("*.partial*"))
    with pytest.raises(SystemExit, match="unknown suite"):
        main(Args(tmp_path, suites=("capacity-none",)))
