import json
from dataclasses import asdict, replace

import pytest

from benchmarks.results.records import Record, append, read, versions

SCORES = {"efficacy": 90.0, "generalization": 45.5, "specificity": 100.0}
RECORD = Record(
    suite="micro",
    agent="no-edit",
    seed=0,
    model="atlas",
    dataset="atlas/test",
    edits=40,
    teacher_forced=SCORES,
    generation=SCORES,
    immediate=SCORES,
    retention=[{"edits": 20.0, **SCORES}, {"edits": 40.0, **SCORES}],
    setup_seconds=0.0,
    edit_seconds=0.001,
    floor_ratio=1.5,
    peak_memory_bytes=10**9,
    versions={"python": "3"},
    failures=0,
)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("teacher_forced", SCORES | {"efficacy": 100.1}, "teacher_forced.efficacy"),
        ("generation", SCORES | {"specificity": -1.0}, "generation.specificity"),
        ("immediate", SCORES | {"generalization": float("nan")}, "immediate.generalization"),
        ("teacher_forced", {"efficacy": 1.0}, "teacher_forced"),
        ("generation", SCORES | {"locality": 1.0}, "generation"),
        ("immediate", SCORES | {"efficacy": "90"}, "immediate.efficacy"),
        ("immediate", None, "immediate"),
        ("retention", [{"edits": 1.0, **SCORES}, {"edits": 2.0, **SCORES, "efficacy": 101.0}], "retention[1].efficacy"),
        ("retention", [SCORES], "retention[0]"),
        ("retention", 5, "retention"),
        ("retention", [5], "retention[0]"),
        ("wild", SCORES | {"efficacy": 100.1}, "wild.efficacy"),
        ("portability", {"yes": {"right": 101.0, "questions": 5}}, "portability.yes.right"),
        ("portability", {"yes": {"right": 10.0, "questions": 0}}, "portability.yes.questions"),
        ("portability", {"yes": {"right": 10.0}}, "portability.yes"),
        ("portability", {"yes": 10.0}, "portability.yes"),
        ("edits", -1, "edits"),
        ("failures", float("inf"), "failures"),
        ("edit_seconds", float("nan"), "edit_seconds"),
        ("floor_ratio", None, "floor_ratio"),
        ("peak_memory_bytes", "1", "peak_memory_bytes"),
        ("setup_seconds", -0.1, "setup_seconds"),
        ("seed", "0", "seed"),
        ("seed", 0.5, "seed"),
        ("edits", 0, "edits"),
        ("edit_seconds", 0, "edit_seconds"),
        ("teacher_forced", dict.fromkeys(SCORES), "teacher_forced has none"),
        ("retention", [{"edits": 0, **SCORES}], "retention[0]"),
        ("modules", {}, "modules"),
        ("modules", {"layers.0": [1]}, "modules"),
        ("modules", {"layers.0": [1, 0]}, "modules"),
        ("modules", ["layers.0"], "modules"),
        ("retention", [{"edits": float("nan"), **SCORES}], "retention[0]"),
        ("retention", [{"edits": "many", **SCORES}], "retention[0]"),
        ("versions", None, "versions"),
        ("suite", 5, "suite"),
        ("dataset", None, "dataset"),
        ("agent", ["a"], "agent"),
        ("agent", "\ud800", "agent"),
        ("configuration", {"suite": "smoke"}, "configuration.suite"),
        ("configuration", {"fingerprints": 5}, "configuration.fingerprints"),
    ],
)
def test_a_wrong_field_is_named(field, value, named):
    with pytest.raises(ValueError) as refusal:
        replace(RECORD, **{field: value})
    assert named in str(refusal.value)


def test_a_record_survives_the_file_and_is_one_line(tmp_path):
    path = tmp_path / "deep" / "results.jsonl"
    portability = {"two_hop": {"right": 12.5, "questions": 8}}
    second = replace(RECORD, agent='with , " and { in it', seed=1, wild=SCORES, portability=portability)
    append(path, RECORD)
    first_line = path.read_text()
    append(path, second)
    assert path.read_text().startswith(first_line)
    assert len(path.read_text().splitlines()) == 2
    assert read(path) == [RECORD, second]
    assert [file.name for file in path.parent.iterdir()] == ["results.jsonl"]


def test_appending_keeps_the_old_lines_to_the_letter(tmp_path):
    """Also those written by hand, without a line end."""
    path = tmp_path / "results.jsonl"
    old = json.dumps(asdict(RECORD), sort_keys=True, separators=(",", ":"))
    path.write_text(old)
    append(path, replace(RECORD, seed=1))
    assert path.read_text().splitlines()[0] == old
    assert [record.seed for record in read(path)] == [0, 1]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    append(path, RECORD)
    before = path.read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("benchmarks.results.records.os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        append(path, replace(RECORD, seed=1))
    assert path.read_bytes() == before


def broken(change):
    row = asdict(RECORD)
    change(row)
    return json.dumps(row)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{not json", ""),
        ("[1, 2]", "a record is an object, not a list"),
        (broken(lambda row: row.pop("floor_ratio")), "floor_ratio"),
        (broken(lambda row: row.update(colour="red")), "colour"),
        (broken(lambda row: row["generation"].update(efficacy=200)), "generation.efficacy"),
        (broken(lambda row: row.update(retention=7)), "retention"),
        ("", ""),
    ],
)
def test_reading_names_file_line_and_field(tmp_path, line, named):
    path = tmp_path / "results.jsonl"
    good = json.dumps(asdict(RECORD))
    path.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(ValueError) as refusal:
        read(path)
    assert f"{path}, line 2" in str(refusal.value)
    assert named in str(refusal.value)


def test_versions_say_what_the_figures_were_made_with():
    import platform

    import torch

    by_package = versions()
    assert by_package["python"] == platform.python_version()
    assert by_package["torch"] == torch.__version__.split("+")[0] or by_package["torch"] == torch.__version__
    assert all(isinstance(value, str) and value for value in by_package.values())
