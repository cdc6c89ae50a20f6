"""Folders of results with whatever a stranger may put there: a line for each, and the others go on."""

import contextlib
import copy
import io
import json
import os
import re
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_records import RECORD

from benchmarks import report, validate
from benchmarks.results import charts, files, leaderboard, texts, verdicts
from benchmarks.results.files import DEEPEST, parse, read_text
from benchmarks.results.records import read_lines
from benchmarks.results.texts import imitates, is_name, printable
from benchmarks.results.verdicts import Verdict

HASH = "0" * 64
FULL = replace(
    RECORD,
    agent="fine-tune",
    suite="smoke",
    drift={"perplexity_before": 9.0, "perplexity": 10.0, "kl": 0.1},
    mean_reward=-1.0,
    actions_per_batch=1,
    configuration={"suite": {"batches": 2}, "fingerprints": {"model": None, "edits": HASH}, "settings": {"steps": 20}},
    commit="a" * 40,
    hardware={"processor": "a", "cores": 2},
    deltas=HASH,
    modules={"layers.3.mlp.down_proj": [4, 2]},
)
GOOD = json.loads(json.dumps(asdict(FULL)))
OTHER = json.loads(json.dumps(asdict(replace(FULL, agent="no-edit"))))

ODD = [
    None, True, -1, 0, 10**10, 10**400, 1e308, -1e308, 5e-324, float("nan"), float("inf"), "", "\0", "\x1b[31mred",
    "a" * 10**4, "rl\u0435dit", "a\u200bb", "\u202eabc", "\ud800", "$\\frac", "../../x", [], {}, [[]], {"a": None},
]  # fmt: skip
VALUES = st.one_of(st.sampled_from(ODD), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
))  # fmt: skip


def places(value, at=()):
    """All parts of a JSON value by their keys."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from places(part, (*at, key))


@st.composite
def mutated(draw):
    """A good record of which up to three parts are changed, left out or added."""
    row = copy.deepcopy(GOOD)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from(sorted(places(row), key=repr)[:200]))
        value = copy.deepcopy(draw(VALUES))
        if not at:
            if draw(st.booleans()):
                return value
            continue
        parent = row
        for key in at[:-1]:
            parent = parent[key]
        change = draw(st.sampled_from(["replace", "remove", "add"]))
        if change == "replace":
            parent[at[-1]] = value
        elif change == "remove":
            del parent[at[-1]]
        elif isinstance(parent, dict):
            parent[draw(st.text(max_size=5))] = value
        if not isinstance(row, dict):
            break
    return row


def line_of(value):
    return json.dumps(value) + "\n"


def submission(folder, rows, failed=()):
    """A folder as benchmarks.run leaves it, with these values in the place of records and failures."""
    cells = Path(folder) / "cells" / "smoke-v1"
    cells.mkdir(parents=True)
    for number, row in enumerate(rows):
        name = f"{row['agent']}-seed0" if any(row is good for good in (GOOD, OTHER)) else f"odd{number}-seed0"
        (cells / f"{name}.json").write_text(line_of(row))
    for number, row in enumerate(failed):
        (cells / f"odd{number}-seed0.failed.json").write_text(line_of(row))
    (Path(folder) / "results.jsonl").write_text("".join(map(line_of, rows)))
    return Path(folder)


def printed(call):
    """What a command prints, its message included if it ends with one; no other end will do."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            call()
        except SystemExit as end:
            out.write(str(end.code))
    return out.getvalue()


def check_shown(text):
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e]", text), "nothing but text"
    text.encode()


def light_save(chart, path):
    """All of a figure but its picture, which takes most of the time."""
    charts.digest(chart)
    for label in {series.agent for panel in chart.panels for series in panel.series}:
        check_shown(charts.short_name(printable(label)))


FEW = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))


@FEW
@given(row=mutated(), failed=mutated() | VALUES)
def test_the_report_never_raises(row, failed):
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(report, "save", light_save):
        submission(folder, [GOOD, row, OTHER], [failed])
        text = printed(lambda: report.main(report.Args((Path(folder),))))
        check_shown(text)
        assert re.match(r"\d+ rows from [23] runs", text), "the good ones are there"
        check_shown((Path(folder) / "LEADERBOARD.md").read_text())
        json.loads((Path(folder) / "index.html").read_text().partition('id="data">')[2].partition("</script>")[0])


@FEW
@given(row=mutated(), failed=mutated() | VALUES)
def test_the_validation_never_raises(row, failed):
    def fake_run(_suite, name, _agent, seed, _progress):
        return replace(FULL, agent=name, seed=seed)

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("benchmarks.running.rollout.run", fake_run),
        mock.patch("benchmarks.running.recording.digest", return_value=HASH),
        mock.patch("benchmarks.running.recording.Replay"),
        mock.patch.object(validate, "_suite", lambda record, _: validate.find(validate.id_of(record.suite))),
        mock.patch("benchmarks.results.claims.wrong", return_value=[]),
    ):
        submission(folder, [GOOD, row], [failed])
        deltas = Path(folder) / "deltas" / "smoke-v1"
        deltas.mkdir(parents=True)
        (deltas / "fine-tune-seed0.safetensors").touch()
        text = printed(lambda: validate.main(validate.Args(Path(folder), out=Path(folder) / "verdicts")))
        check_shown(text)
        assert "smoke-v1/fine-tune-seed0: holds" in text
        assert re.search(r"^2 cells, (all hold|\d wrong)$", text, re.MULTILINE)


def odd_files(cells):
    """What no record is, and no text; each with a part of the line that names it."""
    os.mkfifo(cells / "fifo-seed0.json")
    os.mkfifo(cells / "fifo-seed0.failed.json")
    (cells / "folder-seed0.json").mkdir()
    (cells / "dangling-seed0.json").symlink_to(cells / "nowhere")
    (cells / "brackets-seed0.json").write_text("[" * 200_000)
    (cells / "brackets-seed0.failed.json").write_text("[" * 200_000)
    (cells / "bytes-seed0.json").write_bytes(b"\xff\xfe\x00")
    (cells / "empty-seed0.json").touch()
    (cells / "digits-seed0.json").write_text("9" * 10_000)
    (cells / "device-seed0.json").symlink_to("/dev/zero")
    return ["fifo", "folder", "dangling", "brackets", "bytes", "empty", "digits", "device"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_files_that_are_no_records_are_named_and_the_others_go_on(tmp_path, capsys):
    submission(tmp_path, [], [{}, [], {"suite": "s", "agent": "a", "seed": 10**30, "error": 1}])
    names = odd_files(tmp_path / "cells" / "smoke-v1")
    assert validate.main(validate.Args(tmp_path)) == 1
    lines = capsys.readouterr().out.splitlines()
    for name in names:
        (at,) = [i for i, line in enumerate(lines) if line == f"smoke-v1/{name}-seed0: does not hold"]
        assert name in lines[at + 1], lines[at + 1]
    for name in ("odd0", "odd1", "odd2", "fifo", "brackets"):
        (line,) = [line for line in lines if f"{name}-seed0.failed.json" in line]
        assert line.startswith("left out: ")
    assert lines[-1] == "8 cells, 8 wrong"


CHANGES = [
    ({"seed": 10**10}, None),
    ({"seed": 10**16}, "seed must be a whole number"),
    ({"floor_ratio": 0}, "floor_ratio must be a number above 0"),
    ({"floor_ratio": 1e308}, "floor_ratio"),
    ({"edit_seconds": 1e308}, "edit_seconds"),
    ({"setup_seconds": 1e308}, "setup_seconds"),
    ({"edit_seconds": 5e-324}, "edit_seconds"),
    ({"peak_memory_bytes": 10**400}, "peak_memory_bytes"),
    ({"agent": "rl\u200bedit"}, "agent must be a text of 1 to 300 characters, all of which are visible"),
    ({"agent": "\u202etide"}, "agent"),
    ({"agent": "a\x1b[2J"}, "agent"),
    ({"model": "a\0"}, "model"),
    ({"commit": "whatever"}, "commit must be a commit of git"),
    ({"versions": {"torch": "\x1b]0;"}}, "versions"),
]


@pytest.mark.parametrize(
    ("change", "named"), CHANGES, ids=lambda value: str(value)[:30].encode("unicode_escape").decode()
)
def test_a_report_leaves_out_what_is_no_record_and_says_why(tmp_path, change, named):
    with mock.patch.object(report, "save", light_save):
        submission(tmp_path, [GOOD, OTHER, GOOD | {"suite": "atlas-50x20"} | change])
        text = printed(lambda: report.main(report.Args((tmp_path,))))
    check_shown(text)
    left_out = [line for line in text.splitlines() if line.startswith("left out")]
    if named is None:
        assert not left_out
        return
    (line,) = left_out
    assert f"{tmp_path / 'results.jsonl'}, line 3: {named}" in line
    assert texts.message(named).split(",")[0].replace(">", "&gt;") in (tmp_path / "LEADERBOARD.md").read_text()
    assert json.dumps(line)[1:40] in (tmp_path / "index.html").read_text()


def test_a_seed_of_ten_digits_is_a_range_and_no_list(tmp_path, capsys):
    assert validate._ranges_left_out({0, 2, 10**10}) == "1, 3-9999999999"
    assert validate._ranges_left_out({0, 1}) == ""
    assert validate._ranges_left_out({3}) == "0-2"


@pytest.mark.parametrize("name", ["a", "rledit-p@./mine", "mon modèle.py:Политика", "日本語v2.py:A", "x" * 300])
def test_names_that_are_as_they_look(name):
    assert is_name(name)
    assert not imitates(name)
    assert printable(name) == name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("rl\u0435dit", "rl\\u0435dit"),  # a Cyrillic e
        ("\u03bfrledit", "\\u03bfrledit"),  # a Greek o
        ("\uff52ledit", "\\uff52ledit"),  # full width
        ("\U0001d42bledit", "\\U0001d42bledit"),  # mathematical
    ],
)
def test_letters_that_imitate_others_are_shown_by_number(name, shown):
    assert is_name(name)
    assert imitates(name)
    assert printable(name) == shown


@pytest.mark.parametrize(
    "text", ["", "a\0", "a\nb", "\x1b[31m", "a\u200db", "\u2066a", "\u2028", "\u3164", "a\ufe0f", "x" * 301, 1, None]
)
def test_what_cannot_be_a_name(text):
    assert not is_name(text)


def test_escape_sequences_are_shown_and_do_nothing():
    assert printable("\x1b[2J\x07 \u202e\x9b1m\nnext") == "\\x1b[2J\\x07 \\u202e\\x9b1m next"


def test_a_figure_with_any_text_is_well_formed(tmp_path):
    series = charts.Series("a\0\x1b\ufffe", (1.0, 2.0), (3.0, 4.0))
    panel = charts.Panel("t\0", "x\x0b", (series,), "y")
    charts.save(charts.Chart("title \x00", "note \x1b", (panel,), 1, highlighted=(series.agent,)), tmp_path / "a.svg")
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")


def test_deep_nesting_and_large_files_are_refused(tmp_path, monkeypatch):
    assert parse("[" * (DEEPEST - 1) + "]" * (DEEPEST - 1))
    for depth in (DEEPEST + 1, 900, 200_000):
        with pytest.raises(ValueError, match="nested deeper"):
            parse("[" * depth + "]" * depth)
    monkeypatch.setattr(files, "LARGEST_FILE", 3)
    (tmp_path / "large").write_text("1234")
    with pytest.raises(ValueError, match="large has 4 bytes"):
        read_text(tmp_path / "large")
    (line,) = read_lines(tmp_path / "large")
    assert isinstance(line, ValueError)


def test_a_run_that_cannot_stand_beside_the_others_is_left_out(tmp_path):
    other_edits = GOOD | {"agent": "ultraedit", "configuration": {"fingerprints": {"edits": "1" * 64}}}
    first, second = submission(tmp_path / "a", [GOOD, OTHER]), submission(tmp_path / "b", [GOOD, other_edits])
    left_out = []
    rows = leaderboard.read([first, second], left_out)
    assert [row.agent for row in rows] == ["fine-tune", "no-edit"]
    assert [line.startswith("left out: ") for line in left_out] == [True, True]
    assert f"fine-tune, seed 0 is there twice: in {first / 'results.jsonl'} and in {second}" in left_out[0]
    assert "their fingerprints.edits differ" in left_out[1]
    assert str(second / "results.jsonl") in left_out[1]
    with pytest.raises(ValueError, match="is there twice"):
        leaderboard.read([first, second])


def test_the_page_and_the_markdown_say_what_was_checked(tmp_path):
    """By the files that the reader names; a submission cannot speak for itself."""
    folder = submission(tmp_path / "a", [GOOD, OTHER])
    verdicts.write(tmp_path / "checked", [Verdict(verdicts.digest_of(FULL), True, True, ["seconds"])])
    verdicts.write(folder / "verdicts.jsonl", [Verdict(verdicts.digest_of(FULL), True, True, [])])
    with mock.patch.object(report, "save", light_save):
        report.main(report.Args((folder,)))
        assert "verified by re-running;" not in (folder / "LEADERBOARD.md").read_text()
        report.main(report.Args((folder,), checked=(tmp_path / "checked",)))
        text = (folder / "LEADERBOARD.md").read_text()
        assert "| smoke on atlas | fine-tune | verified by re-running; not verified: seconds |" in text
        assert "| smoke on atlas | no-edit | not verified |" in text
        page = (folder / "index.html").read_text()
        assert '["smoke on atlas","fine-tune","verified by re-running; not verified: seconds"]' in page
        (tmp_path / "checked").write_text("[]\n")
        with pytest.raises(SystemExit, match="checked, line 1: a verdict has record"):
            report.main(report.Args((folder,), checked=(tmp_path / "checked",)))
