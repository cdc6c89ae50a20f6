"""Where records come from: what of it they lack is known, and no more of it is published."""

from dataclasses import replace
from pathlib import Path

import pytest
from test_records import RECORD

from benchmarks.provenance import Args, gaps, main
from benchmarks.results.provenance import lacking
from benchmarks.results.records import append, read

RESULTS = Path(__file__).parents[2] / "docs" / "results"

LACKING = {
    "atlas-400x20.jsonl": 11,
    "atlas-50x20-ends.jsonl": 2,
    "atlas-50x20.jsonl": 9,
    "base-400x20.jsonl": 15,
    "capacity.jsonl": 13,
    "methods-50x20.jsonl": 7,
}
"""Published records of each file that lack something; all others say where they come from. Numbers may only fall."""

WHOLE = replace(RECORD, commit="a" * 40, hardware={"processor": "one"})


def test_no_other_published_record_lacks_its_provenance():
    counted = {}
    for path in sorted(RESULTS.glob("*.jsonl")):
        if path.name not in (
            "rl.jsonl",
            "rl-choice.jsonl",
            "returns.jsonl",
            "learning_curves.jsonl",
        ):  # no records of edited streams
            counted[path.name] = sum(map(len, gaps(read(path)).values()))
    assert {name: count for name, count in counted.items() if count} == LACKING


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({}, []),
        ({"commit": None}, ["commit"]),
        ({"hardware": None}, ["hardware"]),
        ({"versions": {}}, ["versions"]),
        ({"commit": "a" * 40 + "-dirty"}, ["commit of its very files (-dirty)"]),
    ],
)
def test_what_a_record_lacks(change, what):
    assert lacking(replace(WHOLE, **change)) == what


def test_the_command_lists_them_and_counts(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    for seed in (0, 1):
        append(path, replace(WHOLE, seed=seed, commit=None))
    append(path, replace(WHOLE, agent="rledit"))
    other = tmp_path / "rl.jsonl"
    other.write_text('{"algorithm": "ppo"}\n')
    assert main(Args((path, other))) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: micro, no-edit, seeds 0, 1: no commit",
        f"{other}: holds no records",
        "2 of 3 records lack something",
    ]
    path.write_text("")
    append(path, WHOLE)
    assert main(Args((path,))) == 0
    with pytest.raises(SystemExit, match=r"nothing\.jsonl"):
        main(Args((tmp_path / "nothing.jsonl",)))
