import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from test_records import RECORD

from agents.registry import make_agent, settings_of
from benchmarks import run as command
from benchmarks.results.records import read
from benchmarks.run import Args, main, parse_agents, parse_seeds
from benchmarks.running import cells
from benchmarks.running.cells import TAIL_BYTES, Cell, Failure, cell_files, cell_path, collect
from benchmarks.suites import find
from editenv.atomic_files import atomic_write_text

PRINTS = {"model": None, "edits": None, "training": None}


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0", [0]), ("0-2", [0, 1, 2]), ("0,3,5", [0, 3, 5]), ("7,1-2,4-4", [7, 1, 2, 4]), ("0-2,1", [0, 1, 2])],
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1,", "1-b", "1-2-3", "-1", "1.5", "3-1"])
def test_what_is_no_seeds_is_refused(text):
    with pytest.raises(ValueError, match="seeds"):
        parse_seeds(text)


@pytest.mark.parametrize("words", [("a,b", "c"), ("a", "b", "c"), ("a,b,c",), ("a,b", "b,c")])
def test_agents_with_commas_or_spaces(words):
    assert parse_agents(words) == ["a", "b", "c"]


def test_modules_are_those_that_were_named_or_a_presets(tmp_path, instead):
    assert command.modules_of(("layers.0.mlp.up_proj",), None) == ("layers.0.mlp.up_proj",)
    assert command.modules_of((), "mistral-7b/zsre") == ("layers.17.mlp.down_proj", "layers.18.mlp.down_proj")
    with pytest.raises(SystemExit, match="give --modules or --preset"):
        main(Args(suite="smoke", out=tmp_path, modules=("layers.0.mlp.up_proj",), preset="mistral-7b/zsre"))
    with pytest.raises(SystemExit, match="unknown preset 'mistral'; there are llama-3-8b/zsre"):
        main(Args(suite="smoke", out=tmp_path, preset="mistral"))


def test_the_tokens_that_agents_see_are_recorded_where_they_are_not_the_usual_ones(tmp_path, instead):
    for out, observed in (("usual", None), ("answers", "answers"), ("all", "all")):
        assert main(Args("smoke", out=tmp_path / out, agents=("no-edit",), observed_tokens=observed)) == 0
    usual, answers, every = (
        json.loads((tmp_path / out / "results.jsonl").read_text())["configuration"]["suite"]
        for out in ("usual", "answers", "all")
    )
    assert usual == answers  # and both are what records from before the choice have
    assert "observed_tokens" not in usual
    assert every == usual | {"observed_tokens": "all"}
    with pytest.raises(SystemExit, match=r"was made with another suite\.observed_tokens"):
        main(Args("smoke", out=tmp_path / "all", agents=("no-edit",)))


@pytest.fixture
def instead(monkeypatch):
    """Cells are not run but become what the test says; returns those that were asked for."""
    outcomes, run = {}, []

    def run_here(todo, report):
        for cell in todo:
            run.append((cell.agent, cell.seed))
            outcome = outcomes.get((cell.agent, cell.seed), RECORD)
            if not isinstance(outcome, Failure):
                configuration = cell.configuration() | {"settings": settings_of(cell.agent, make_agent(cell.agent))}
                outcome = replace(
                    outcome, suite=cell.suite.label, agent=cell.agent, seed=cell.seed, configuration=configuration
                )
            yield cell, outcome

    monkeypatch.setattr(command, "run_here", run_here)
    return outcomes, run


def test_only_what_is_missing_is_run(tmp_path, capsys, instead):
    _, run = instead
    assert main(Args(suite="smoke", agents=("no-edit",), out=tmp_path, seeds="0-1")) == 0
    before = (tmp_path / "results.jsonl").read_bytes()
    assert main(Args(suite="smoke", agents=("no-edit", "fine-tune"), out=tmp_path, seeds="0-2")) == 0
    assert run == [
        ("no-edit", 0),
        ("no-edit", 1),
        ("fine-tune", 0),
        ("fine-tune", 1),
        ("no-edit", 2),
        ("fine-tune", 2),
    ]
    assert capsys.readouterr().out.count("already there") == 2
    assert (tmp_path / "results.jsonl").read_bytes().startswith(before)
    cell_path(tmp_path, "smoke-v1", "no-edit", 1).unlink()
    run.clear()
    assert main(Args(suite="smoke", agents=("no-edit",), out=tmp_path, seeds="0-2")) == 0
    assert run == [("no-edit", 1)]
    assert len(read(tmp_path / "results.jsonl")) == 6


def test_results_are_the_cells_in_one_order_whatever_order_they_finish_in(tmp_path, instead):
    for name, agents in (("a", ("fine-tune,no-edit",)), ("b", ("no-edit", "fine-tune")), ("c", ("no-edit",))):
        main(Args(suite="smoke", agents=agents, out=tmp_path / name, seeds="0-1"))
    main(Args(suite="smoke", agents=("fine-tune",), out=tmp_path / "c", seeds="1,0"))
    results = [(tmp_path / name / "results.jsonl").read_bytes() for name in "abc"]
    assert results[0] == results[1] == results[2]
    assert [(r.agent, r.seed) for r in read(tmp_path / "a" / "results.jsonl")] == [
        ("no-edit", 0),
        ("no-edit", 1),
        ("fine-tune", 0),
        ("fine-tune", 1),
    ]


def test_the_suites_own_agents_are_the_default(tmp_path, instead):
    main(Args(suite="smoke", out=tmp_path))
    assert instead[1] == [("no-edit", 0), ("fine-tune", 0)]


def test_a_failed_cell_is_written_down_tried_again_and_forgotten_once_it_works(tmp_path, capsys, instead):
    outcomes, run = instead
    outcomes["no-edit", 0] = Failure("ValueError: of its own", "Traceback ...")
    arguments = Args(suite="smoke", agents=("no-edit", "fine-tune"), out=tmp_path)
    assert main(arguments) == 1
    assert "failed: smoke, no-edit, seed 0: ValueError: of its own" in capsys.readouterr().err
    failure = cell_path(tmp_path, "smoke-v1", "no-edit", 0).with_suffix(".failed.json")
    row = json.loads(failure.read_text())
    assert (row["agent"], row["seed"], row["traceback"]) == ("no-edit", 0, "Traceback ...")
    assert [r.agent for r in read(tmp_path / "results.jsonl")] == ["fine-tune"]
    outcomes.clear()
    assert main(arguments) == 0
    assert run == [("no-edit", 0), ("fine-tune", 0), ("no-edit", 0)]
    assert not failure.exists()
    assert [r.agent for r in read(tmp_path / "results.jsonl")] == ["no-edit", "fine-tune"]


def test_results_are_what_the_cells_say_though_a_cell_was_removed(tmp_path, instead):
    arguments = Args(suite="smoke", agents=("no-edit",), out=tmp_path)
    assert main(arguments) == 0
    cell_path(tmp_path, "smoke-v1", "no-edit", 0).unlink()
    assert collect(tmp_path) == []
    assert (tmp_path / "results.jsonl").read_text() == ""
    assert main(arguments) == 0
    assert instead[1] == [("no-edit", 0)] * 2
    assert len(read(tmp_path / "results.jsonl")) == 1


def test_a_command_that_looked_before_another_had_its_cell_does_not_write_it_away(tmp_path, monkeypatch):
    def cell(name):
        atomic_write_text(
            cell_path(tmp_path, "micro-v1", name, 0), json.dumps(asdict(replace(RECORD, agent=name))) + "\n"
        )

    def meanwhile(path, text):
        monkeypatch.setattr(cells, "atomic_write_text", atomic_write_text)
        cell("b")
        collect(tmp_path)  # the other command ends first
        atomic_write_text(path, text)

    cell("a")
    monkeypatch.setattr(cells, "atomic_write_text", meanwhile)
    assert [r.agent for r in collect(tmp_path)] == ["a", "b"]
    assert [r.agent for r in read(tmp_path / "results.jsonl")] == ["a", "b"]


def test_cells_of_another_model_are_not_mixed_in(tmp_path, instead, monkeypatch):
    arguments = Args(suite="smoke", agents=("no-edit",), out=tmp_path)
    assert main(arguments) == 0
    with pytest.raises(SystemExit, match=r"made with another suite\.modules"):
        main(replace(arguments, modules=("layers.2.mlp.down_proj",)))
    monkeypatch.setattr(type(find("smoke")), "check_fingerprints", lambda suite: {"model": "other", "edits": None})
    with pytest.raises(SystemExit, match=r"made with another fingerprints\.edits, fingerprints\.model"):
        main(arguments)
    assert len(instead[1]) == 1


@pytest.mark.parametrize("where", ["settings", "model", "dataset"])
def test_cells_of_other_settings_or_from_elsewhere_are_not_mixed_in(tmp_path, instead, where):
    """An older record does not say its configuration, but its model and data set it does."""
    arguments = Args(suite="smoke", agents=("ultraedit",), out=tmp_path)
    assert main(arguments) == 0
    (path,) = cell_files(tmp_path)
    row = json.loads(path.read_text())
    if where == "settings":
        row["configuration"] = {"settings": {"step_size": 7.0}}
    else:
        row |= {where: "another", "configuration": None}
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(SystemExit, match=f"made with another {where}"):
        main(arguments)
    assert len(instead[1]) == 1


def test_deltas_asked_for_later_are_not_silently_missing(tmp_path, instead):
    arguments = Args(suite="smoke", agents=("no-edit",), out=tmp_path)
    assert main(arguments) == 0
    with pytest.raises(SystemExit, match="without keeping its deltas"):
        main(replace(arguments, keep_deltas=True))


def test_names_that_differ_only_in_what_files_cannot_hold_have_files_of_their_own(tmp_path):
    names = ["a/b.py:C", "a_b.py:C", "a_b.py_C", "../C", "C", "C" * 300, "C" * 299 + "/"]
    names += ["é" * 130, "é" * 131]
    paths = {cell_path(tmp_path, "smoke-v1", name, 0) for name in names}
    assert len(paths) == len(names)
    assert all(path.parent == tmp_path / "cells" / "smoke-v1" for path in paths)
    hidden = cell_path(tmp_path, "smoke-v1", "C" * 200 + "." + "c" * (TAIL_BYTES - 1), 0)
    assert not hidden.name.startswith(".")
    for path in paths:
        atomic_write_text(path.with_suffix(".failed.json"), "{}")  # a file system holds all of them


LEARNER = """
from agents.baselines.no_edit import NoEdit

class Learner(NoEdit):
    def prepare(self, env, seed, progress):
        self.workspace.mkdir(parents=True)
"""


def test_two_suites_of_one_folder_keep_what_an_agent_has_learned_from_each(tmp_path):
    (tmp_path / "learner.py").write_text(LEARNER)
    agent = f"{tmp_path}/learner.py:Learner"
    smoke = replace(find("smoke").first(1), protocols=("teacher_forced", "generation"))
    for training in ("a" * 64, "b" * 64, None):
        Cell(smoke, PRINTS | {"training": training}, agent, 0, tmp_path).run(lambda *_: None)
    assert len(list((tmp_path / "policies").iterdir())) == 3


def test_a_broken_cell_file_is_named(tmp_path):
    path = cell_path(tmp_path, "smoke-v1", "no-edit", 0)
    path.parent.mkdir(parents=True)
    path.write_text("{}\n")
    with pytest.raises(ValueError, match=str(path)):
        collect(tmp_path)


def test_a_cell_that_raises_or_dies_costs_only_itself(tmp_path):
    """Also if it dies without a word, like a process that the system kills."""
    fatal = tmp_path / "fatal.py"
    fatal.write_text("import os\ndef Fatal():\n    os._exit(9)\n")
    cells = [Cell(find("smoke"), PRINTS, name, 0, tmp_path) for name in ("no-such-agent", f"{fatal}:Fatal")]
    outcomes = [outcome for _, outcome in command.run_here(cells, lambda *_: None)]
    assert outcomes[0].error.startswith("ValueError: unknown agent 'no-such-agent'")
    assert "Traceback" in outcomes[0].traceback
    assert outcomes[1] == Failure("the cell's process died (exit code 9)")


TELLER = """
import gc
from pathlib import Path
from agents.baselines.no_edit import NoEdit
from benchmarks.running.rollout import ACTIVATION_CACHE_BYTES
from editenv.language_model.activation_cache import ActivationCache

class Teller(NoEdit):
    def begin(self, env):
        super().begin(env)
        caches = [one for one in gc.get_objects() if isinstance(one, ActivationCache)]
        known = max(len(cache._outputs) for cache in caches if cache.limit == ACTIVATION_CACHE_BYTES)
        with Path({told!r}).open("a") as file:
            file.write(f"{{known}} ")
"""


@pytest.mark.slow
def test_cells_of_a_stream_share_what_its_prompts_become(tmp_path, capfd):
    """The second cell begins with what the first has kept, another seed's with nothing; no file is left, and a file
    that cannot be written costs time only.
    """
    counts = tmp_path / "counts"
    teller = tmp_path / "teller.py"
    teller.write_text(TELLER.format(told=str(counts)))
    suite = replace(find("smoke"), batches=1, protocols=("teacher_forced", "generation"))
    rows = [("no-edit", 0), (f"{teller}:Teller", 0), (f"{teller}:Teller", 1)]
    shared = [Cell(suite, PRINTS, name, seed, tmp_path / "a") for name, seed in rows]
    alone = [Cell(suite, PRINTS, name, seed, tmp_path / "b") for name, seed in rows[:2]]
    cache = shared[0].activation_cache_path
    killed = cache.with_name(f"{cache.name}.0123456789ab.partial")  # of a run that was, while it wrote
    killed.parent.mkdir(parents=True)
    killed.touch()
    figures = [outcome.teacher_forced for _, outcome in command.run_here(shared, lambda *_: None)]
    assert not (tmp_path / "a" / "frozen").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "frozen").touch()
    assert figures[:2] == [outcome.teacher_forced for _, outcome in command.run_here(alone, lambda *_: None)]
    first, *others = map(int, counts.read_text().split())
    assert (first > 100, others) == (True, [0, 0])
    assert "not kept" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("change", "named"),
    [({"suite": "smok"}, "smoke"), ({"seeds": "x"}, "'x'"), ({"agents": ("no-edit", "rl-edit")}, "'rl-edit'")],
)
def test_wrong_arguments_end_the_command(tmp_path, change, named):
    arguments = replace(Args(suite="smoke", agents=("no-edit",), out=tmp_path), **change)
    with pytest.raises(SystemExit, match=named):
        main(arguments)
    assert not list(tmp_path.iterdir())


SLOW = """
import os, time
from pathlib import Path
from agents.baselines.no_edit import NoEdit
class Slow(NoEdit):
    def begin(self, env):
        super().begin(env)
        Path({folder!r}, "child").write_text(str(os.getpid()))
        while not Path({folder!r}, "go-on").exists():
            time.sleep(0.05)
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(reached, seconds=120):
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes through /proc")
def test_kill_9_costs_the_running_cell_and_nothing_else(tmp_path):
    slow, out = tmp_path / "slow.py", tmp_path / "out"
    slow.write_text(SLOW.format(folder=str(tmp_path)))
    arguments = ["--suite", "smoke@1", "--agents", "no-edit", f"{slow}:Slow", "--out", str(out)]
    words = [sys.executable, "-m", "benchmarks.run", *arguments]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(words, cwd=root, stdout=subprocess.DEVNULL)
    try:
        until((tmp_path / "child").exists)
        until((tmp_path / "child").read_text)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    until(lambda: not alive(int((tmp_path / "child").read_text())))
    (first,) = read(out / "results.jsonl")
    (cell,) = cell_files(out)
    kept = cell.read_bytes()
    assert (first.agent, first.edits) == ("no-edit", 20)
    (tmp_path / "go-on").touch()
    done = subprocess.run(words, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "smoke@1, no-edit, seed 0: already there" in done.stdout
    assert cell.read_bytes() == kept
    slow_record = read(out / "results.jsonl")[1]
    assert slow_record.teacher_forced == first.teacher_forced
    assert not list(out.rglob("*.partial"))
    assert first.configuration["suite"]["name"] == "smoke@1"
    assert first.hardware["cores"] == os.cpu_count()
