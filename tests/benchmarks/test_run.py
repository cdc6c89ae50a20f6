from dataclasses import replace

import pytest
from test_records import RECORD

from benchmarks.records import append
from benchmarks.run import Args, main, parse_seeds
from benchmarks.suites import SUITES


@pytest.mark.parametrize(
    ("text", "seeds"), [("0", [0]), ("0-2", [0, 1, 2]), ("0,3,5", [0, 3, 5]), ("7,1-2,4-4", [7, 1, 2, 4])]
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1,", "1-b", "1-2-3", "-1", "1.5", "3-1"])
def test_what_is_no_seeds_is_refused(text):
    with pytest.raises(ValueError, match="seeds"):
        parse_seeds(text)


def test_what_is_there_is_not_run_again(tmp_path, capsys):
    results = tmp_path / "results.jsonl"
    for seed in (0, 1):
        append(results, replace(RECORD, suite="smoke", agent="no-edit", seed=seed))
    append(results, replace(RECORD, suite="atlas-50x20", agent="someone-else", seed=0))
    before = results.read_bytes()
    assert main(Args(suite="smoke", agents=("no-edit",), out=tmp_path, seeds="0-1")) == 0
    assert results.read_bytes() == before
    shown = capsys.readouterr().out
    assert shown.count("already there") == 2
    assert "someone-else" not in shown


def test_a_cell_that_fails_is_reported_and_the_rest_still_runs(tmp_path, capsys):
    """Also if it dies without a word, like a process that the system kills."""
    fatal = tmp_path / "fatal.py"
    fatal.write_text("import os\ndef Fatal():\n    os._exit(9)\n")
    results = tmp_path / "results.jsonl"
    append(results, replace(RECORD, suite="smoke", agent="no-edit", seed=0))
    before = results.read_bytes()
    arguments = Args(suite="smoke", agents=("no-such-agent", f"{fatal}:Fatal", "no-edit"), out=tmp_path)
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert "unknown agent 'no-such-agent'" in captured.err
    assert "failed: [1/3] smoke, no-such-agent, seed 0" in captured.err
    assert "failed: [2/3] smoke" in captured.err
    assert "[3/3] smoke, no-edit, seed 0: already there" in captured.out
    assert results.read_bytes() == before


@pytest.mark.parametrize(("change", "named"), [({"suite": "smok"}, "smoke"), ({"seeds": "x"}, "'x'")])
def test_wrong_arguments_end_the_command(tmp_path, change, named):
    arguments = replace(Args(suite="smoke", agents=("no-edit",), out=tmp_path), **change)
    with pytest.raises(SystemExit, match=named):
        main(arguments)
    assert not list(tmp_path.iterdir())


def test_suites_fit_their_splits():
    sizes = {"test": 8000, "validation": 1000}
    for name, suite in SUITES.items():
        assert suite.name == name
        if suite.dataset == "atlas":
            assert suite.batches * suite.edits_per_step <= sizes[suite.split]


def test_suites_on_real_data_say_what_they_need(tmp_path):
    suite = SUITES["counterfact-100x20"]
    with pytest.raises(ValueError, match="--data"):
        suite.at("some/model", None)
    with pytest.raises(ValueError, match="--model"):
        suite.at(None, tmp_path)
    told = suite.at("some/model", tmp_path)
    assert told.environment()["dataset"] == f"counterfact:{tmp_path}/counterfact"
    assert told.environment(training=True)["split"] == "train"
    assert SUITES["zsre-50x20"].at("some/model", tmp_path).environment(training=True)["dataset"] == "atlas"
