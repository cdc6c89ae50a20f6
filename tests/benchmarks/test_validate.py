"""A submission that holds, and each way in which one does not."""

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from agents.registry import make_agent, settings_of
from benchmarks import suites, validate
from benchmarks.results import claims, verdicts
from benchmarks.results.leaderboard import entries
from benchmarks.results.records import read
from benchmarks.running import cells, rerunning
from benchmarks.running.cells import Cell, cell_path, collect, deltas_path
from benchmarks.running.recording import Replay, digest
from benchmarks.suites import Suite
from benchmarks.validate import Args, differences, main

AGENT = """
import torch
from agents.base import Agent
from editenv.deltas import LowRank
class Pusher(Agent):
    actions_per_batch = 2
    scale = 0.3
    def begin(self, env):
        self.random = torch.Generator().manual_seed(1)
    def act(self, observation, info):
        left = self.scale * torch.randn(64, 2, generator=self.random)
        if (info["batch"], info["attempt"]) == (1, 0):
            return {"model.layers.2.mlp.down_proj": torch.full((64, 32), float("nan"))}
        if info["batch"] == 2:
            return {"model.layers.2.mlp.down_proj": (left @ torch.randn(2, 32, generator=self.random)).numpy()}
        return {"model.layers.2.mlp.down_proj": LowRank(left, torch.randn(2, 32, generator=self.random))}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Thirty edits, of which twelve are the test split."""
    folder = tmp_path_factory.mktemp("data")
    cities = ("Rome", "Oslo", "Peru", "Bonn", "Lima", "Quito")
    rows = [
        {
            "prompt": f"The home of number {i} is",
            "target": cities[i % 6],
            "subject": f"number {i}",
            "rephrases": [f"People find number {i} in"],
            "locality": [{"prompt": f"Who saw item {i}?", "answer": cities[(i + 1) % 6]}],
            "portability": [
                {"kind": "reversed", "prompt": f"Who is found in {cities[i % 6]}?", "answer": f"number {i}"},
                {"kind": "locality", "prompt": f"Who saw item {i} first?"},
            ],
        }
        for i in range(30)
    ]
    (folder / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def whole_suite(model_folder, data):
    """Three batches of two edits, on the tiny model and on no other, with every figure."""
    micro = Suite("micro", 3, 2, model=model_folder, dataset="own:{data}/edits.jsonl", data=data)
    protocols = ("teacher_forced", "generation", "wild", "drift", "portability")
    micro = replace(micro, modules=("layers.2.mlp.down_proj",), protocols=protocols)
    return replace(micro, model_fingerprint=suites.model_fingerprint(model_folder))


@pytest.fixture(scope="module")
def suite(whole_suite):
    """The same with the two figures that a record must have: a replay takes a third of the time."""
    return replace(whole_suite, protocols=("teacher_forced", "generation"))


def make(suite, out):
    """Two cells with their deltas."""
    (out / "agent.py").write_text(AGENT)
    for seed in (0, 1):
        cell = Cell(suite, suite.check_fingerprints(), f"{out / 'agent.py'}:Pusher", seed, out, keep_deltas=True)
        cell.write(cell.run(lambda *_: None))
    collect(out)
    return out


@pytest.fixture(scope="module")
def made(suite, tmp_path_factory):
    return make(suite, tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def made_whole(whole_suite, tmp_path_factory):
    return make(whole_suite, tmp_path_factory.mktemp("made-whole"))


@pytest.fixture
def submission(made, suite, tmp_path, monkeypatch):
    """A copy to spoil, and the suite as the packaged ones are found."""
    monkeypatch.setattr(suites, "all_suites", lambda: [replace(suite, model=None)])
    shutil.copytree(made, tmp_path / "submission")
    return tmp_path / "submission"


@pytest.fixture
def whole_submission(made_whole, whole_suite, tmp_path, monkeypatch):
    """The same with every figure."""
    monkeypatch.setattr(suites, "all_suites", lambda: [replace(whole_suite, model=None)])
    shutil.copytree(made_whole, tmp_path / "submission")
    return tmp_path / "submission"


@pytest.fixture
def check(data):
    return lambda submission, model, **arguments: main(Args(submission, model=model, data=data, **arguments))


def place(submission, seed=0):
    agent = read(submission / "results.jsonl")[0].agent
    return cell_path(submission, "micro-v1", agent, seed), deltas_path(submission, "micro-v1", agent, seed)


def rewrite(submission, seed=0, **change):
    """A record changed by someone who leaves no other trace."""
    path, _ = place(submission, seed)
    (record,) = read(path)
    path.write_text(json.dumps(asdict(replace(record, **change))) + "\n")
    collect(submission)
    return record


def test_an_honest_submission_holds_to_the_bit(check, whole_submission, model_folder, capsys):
    assert check(whole_submission, model_folder, tolerance=0, relative=0) == 0
    assert "2 cells, all hold" in capsys.readouterr().out
    record = read(place(whole_submission)[0])[0]
    assert record.failures == 2  # the refused action's batch
    assert record.actions_per_batch == 2
    assert record.mean_reward < 0
    source = hashlib.sha256(AGENT.encode()).hexdigest()
    assert record.configuration["settings"] == {"actions_per_batch": 2, "source": source}


def test_low_rank_deltas_are_kept_low_rank_and_give_the_edited_model(submission, model_folder):
    replay = Replay(place(submission)[1], 2)
    shapes = [type(delta).__name__ for action in replay.actions for delta in action.values()]
    assert shapes == ["LowRank", "LowRank", "Tensor", "LowRank", "Tensor", "Tensor"]


@pytest.mark.parametrize(
    "fields",
    [
        ("teacher_forced", "generation", "wild", "portability", "immediate", "drift", "mean_reward", "retention"),
        ("edits",),
        ("modules",),
    ],
    ids=", ".join,
)
def test_tampered_results_are_found(check, whole_submission, model_folder, capsys, fields):
    """Each one that was changed is named."""
    (record,) = read(place(whole_submission)[0])
    changes = {field: tampered(field, getattr(record, field)) for field in fields}
    rewrite(whole_submission, **changes)
    assert check(whole_submission, model_folder) == 1
    printed = capsys.readouterr().out
    named = {
        line.split()[0].partition(".")[0].partition("[")[0] for line in printed.splitlines() if line.startswith("    ")
    }
    assert named == set(fields)
    assert "in the replay" in printed
    assert "2 cells, 1 wrong" in printed


def tampered(field, value):
    """Another value that a reader would not doubt."""
    if field == "retention":
        return [*value[:-1], value[-1] | {"specificity": 100 - value[-1]["specificity"]}]
    if field == "edits":
        return value + 1
    if field == "mean_reward":
        return value * 0.98
    if field == "modules":
        return {name: [2 * d_in, d_out] for name, (d_in, d_out) in value.items()}
    if field == "portability":
        assert {kind: figure["questions"] for kind, figure in value.items()} == {"reversed": 6, "locality": 6}
        return value | {"reversed": value["reversed"] | {"right": 99.0}}
    if field == "drift":
        return value | {"kl": value["kl"] * 0.9}
    return value | {"efficacy": 99.0}


def test_a_record_from_before_modules_were_told_holds(check, submission, model_folder, capsys):
    rewrite(submission, modules=None)
    check(submission, model_folder)
    printed = capsys.readouterr().out
    assert "does not hold" not in printed
    assert "not verified: the shapes of its modules" in printed


def tamper(path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    tensors["0/model.layers.2.mlp.down_proj/left"] *= 3
    save_file(tensors, path, metadata)


def test_tampered_deltas_are_found(check, submission, model_folder, capsys):
    tamper(place(submission)[1])
    assert check(submission, model_folder) == 1
    assert "does not hold the deltas that the record names" in capsys.readouterr().out


def test_tampered_deltas_are_found_even_if_the_record_names_them(check, submission, model_folder, capsys):
    deltas = place(submission)[1]
    tamper(deltas)
    rewrite(submission, deltas=digest(deltas))
    assert check(submission, model_folder) == 1
    assert "in the replay" in capsys.readouterr().out


def test_a_curve_that_was_cut_is_found(check, submission, model_folder, capsys, monkeypatch):
    """An agent of one's own may have none; what a row of ours has is known."""
    (record,) = read(place(submission)[0])
    rewrite(submission, retention=record.retention[-1:])
    capsys.readouterr()
    assert check(submission, model_folder) == 0
    assert "has no curve along the stream" in capsys.readouterr().out, (
        "it can act by where the stream ends: a reader is told"
    )
    agent = make_agent(record.agent)
    monkeypatch.setitem(validate.ROWS, record.agent, None)
    for module in (validate, claims):
        monkeypatch.setattr(module, "make_agent", lambda name: agent)
    assert check(submission, model_folder) == 1
    assert "retention" in capsys.readouterr().out


def test_what_agents_learned_from_is_what_this_version_gives_them(check, submission, model_folder, capsys):
    (record,) = read(place(submission)[0])
    prints = record.configuration["fingerprints"]
    assert len(prints["training"]) == 64
    rewrite(submission, configuration=record.configuration | {"fingerprints": prints | {"training": "0" * 64}})
    assert check(submission, model_folder) == 1
    assert "fingerprints: training is '000" in capsys.readouterr().out
    rewrite(submission, configuration=record.configuration | {"fingerprints": prints | {"training": None}})
    assert check(submission, model_folder) == 0, "older records do not say"
    assert "not verified: what it learned from" in capsys.readouterr().out


def test_what_is_missing_is_said(check, submission, model_folder, capsys):
    path, deltas = place(submission)
    (record,) = read(path)
    shutil.move(deltas, deltas_path(submission, "micro-v1", record.agent, 3))
    cell_path(submission, "micro-v1", record.agent, 3).write_text(json.dumps(asdict(replace(record, seed=3))) + "\n")
    path.unlink()
    row = {"suite": "micro-v1", "agent": "lost", "seed": 4, "error": "ValueError: boom"}
    (path.parent / "lost-seed4.failed.json").write_text(json.dumps(row))
    collect(submission)
    assert check(submission, model_folder) == 1, "seed 0's deltas are not those of seed 3"
    printed = capsys.readouterr().out
    assert f"micro, {record.agent}: seeds 0, 2 are not there" in printed
    assert "micro-v1, lost, seed 4: failed (ValueError: boom)" in printed


def test_another_name_for_the_suite_is_found(check, submission, model_folder, capsys):
    rewrite(submission, suite="micro-v1")
    assert check(submission, model_folder) == 1
    assert "calls its suite 'micro-v1', which is 'micro'" in capsys.readouterr().out


def test_whatever_a_cell_ends_in_the_others_are_checked(check, submission, model_folder, capsys, monkeypatch):
    class StrangeError(Exception):
        pass

    replayed, replay = [], validate.replay

    def fails_once(*arguments):
        replayed.append(arguments)
        if len(replayed) == 1:
            raise StrangeError("of another kind")
        return replay(*arguments)

    monkeypatch.setattr(validate, "replay", fails_once)
    assert check(submission, model_folder) == 1
    assert "StrangeError: of another kind" in capsys.readouterr().out
    assert len(replayed) == 2


def test_missing_deltas_are_found(check, submission, model_folder, capsys):
    place(submission)[1].unlink()
    rewrite(submission, seed=1, deltas=None)
    assert check(submission, model_folder) == 1
    printed = capsys.readouterr().out
    assert "its deltas are missing" in printed
    assert "without --keep-deltas" in printed


@pytest.fixture
def other_model(model_folder, tmp_path):
    """The same model with one edited weight moved."""
    from safetensors.torch import load_file

    shutil.copytree(model_folder, tmp_path / "other")
    path = tmp_path / "other" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.2.mlp.down_proj.weight"][0, 0] += 0.01
    save_file(tensors, path, {"format": "pt"})
    return str(tmp_path / "other")


def test_another_base_model_is_found(check, submission, other_model, capsys):
    assert check(submission, other_model) == 1
    assert "is about model with fingerprint" in capsys.readouterr().out


def test_another_base_model_is_found_where_the_suite_leaves_it_open(
    check, submission, other_model, suite, capsys, monkeypatch
):
    """By the record's own fingerprint; and if that was changed as well, by that of the edited modules."""
    monkeypatch.setattr(suites, "all_suites", lambda: [replace(suite, model=None, model_fingerprint=None)])
    for seed in (0, 1):
        (record,) = read(place(submission, seed)[0])
        setting = record.configuration["suite"] | {"model_fingerprint": None, "model": Path(other_model).name}
        rewrite(submission, seed, model=Path(other_model).name, configuration=record.configuration | {"suite": setting})
    assert check(submission, other_model) == 1
    assert "fingerprints: model is" in capsys.readouterr().out
    for seed in (0, 1):
        (record,) = read(place(submission, seed)[0])
        prints = record.configuration["fingerprints"] | {"model": suites.model_fingerprint(other_model)}
        rewrite(submission, seed, configuration=record.configuration | {"fingerprints": prints})
    assert check(submission, other_model) == 1
    assert "another base model" in capsys.readouterr().out


def test_another_stream_is_found(check, submission, model_folder, capsys):
    """The results of one seed cannot be passed off as those of another."""
    (first, deltas), (second, other_deltas) = place(submission, 0), place(submission, 1)
    shutil.copy(deltas, other_deltas)
    (record,) = read(first)
    second.write_text(json.dumps(asdict(replace(record, seed=1))) + "\n")
    collect(submission)
    assert check(submission, model_folder) == 1
    printed = capsys.readouterr().out
    assert "2 cells, 1 wrong" in printed
    assert "in the replay" in printed


def test_other_edits_and_another_length_are_found(check, submission, model_folder, suite, capsys, monkeypatch):
    (record,) = read(place(submission)[0])
    changed = record.configuration["suite"] | {"order": "as-is"}
    rewrite(submission, configuration=record.configuration | {"suite": changed})
    assert check(submission, model_folder) == 1
    assert "order is 'as-is' in the record and 'shuffled' here" in capsys.readouterr().out
    monkeypatch.setattr(suites, "all_suites", lambda: [replace(suite, model=None, split="all")])
    assert check(submission, model_folder) == 1
    assert "split is 'test' in the record" in capsys.readouterr().out


def test_a_record_in_another_cells_place_is_found(check, submission, model_folder, capsys):
    (first, _), (second, _) = place(submission, 0), place(submission, 1)
    shutil.copy(first, second)
    collect(submission)
    assert check(submission, model_folder) == 1
    assert "is of another cell" in capsys.readouterr().out


def test_results_that_are_not_the_cells_are_found(check, submission, model_folder, capsys):
    results = submission / "results.jsonl"
    results.write_text(results.read_text().splitlines()[0] + "\n")
    assert check(submission, model_folder) == 1
    assert "is not what the cells say" in capsys.readouterr().out


def test_results_that_are_missing_are_found(check, submission, model_folder, capsys):
    (submission / "results.jsonl").unlink()
    assert check(submission, model_folder) == 1
    assert "results.jsonl is missing" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "[]\n", "{}\n", '{"configuration": {"suite": null}}\n', None])
def test_a_cell_of_another_form_does_not_hold_and_the_others_are_checked(
    check, submission, model_folder, capsys, content
):
    path = place(submission)[0]
    if content is None:
        row = json.loads(path.read_text())
        row["configuration"] = {"suite": None}
        content = json.dumps(row) + "\n"
    path.write_text(content)
    assert check(submission, model_folder) == 1
    printed = capsys.readouterr().out
    assert "does not hold" in printed
    assert ": holds" in printed
    assert "2 cells, 1 wrong" in printed


def test_deltas_without_a_factor_do_not_hold(check, submission, model_folder, capsys):
    deltas = place(submission)[1]
    with safe_open(deltas, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    gone = next(key for key in tensors if key.endswith("/right"))
    save_file({key: value for key, value in tensors.items() if key != gone}, deltas, metadata)
    assert check(submission, model_folder) == 1
    assert f"without {gone}" in capsys.readouterr().out


def test_a_file_that_is_not_there_ends_the_check_and_is_named(submission, monkeypatch):
    def missing(*_):
        raise FileNotFoundError("there is no file edits.jsonl")

    monkeypatch.setattr(validate, "replay", missing)
    with pytest.raises(SystemExit, match=r"no file edits\.jsonl"):
        main(Args(submission))


def test_a_folder_without_cells_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no finished cell"):
        main(Args(tmp_path))


@pytest.mark.parametrize(
    ("name", "in_record", "in_replay", "differs"),
    [
        ("teacher_forced", {"efficacy": 50.4}, {"efficacy": 50.0}, []),
        ("teacher_forced", {"efficacy": 50.6}, {"efficacy": 50.0}, ["teacher_forced.efficacy"]),
        ("teacher_forced", {"efficacy": None}, {"efficacy": 0.0}, ["teacher_forced.efficacy"]),
        (
            "retention",
            [{"efficacy": 1.0}, {"efficacy": 9.0}],
            [{"efficacy": 1.0}, {"efficacy": 1.0}],
            ["retention[1].efficacy"],
        ),
        ("retention", [{"efficacy": 1.0}], [], ["retention"]),
        ("retention", [{"edits": 20}], [{"edits": 21}], ["retention[0].edits"]),
        ("probes", {"one_hop_questions": 30.0}, {"one_hop_questions": 31.0}, ["probes.one_hop_questions"]),
        ("portability", {"yes": {"right": 50.4}}, {"yes": {"right": 50.0}}, []),
        ("portability", {"yes": {"right": 50.6}}, {"yes": {"right": 50.0}}, ["portability.yes.right"]),
        ("portability", {"yes": {"questions": 60}}, {"yes": {"questions": 61}}, ["portability.yes.questions"]),
        ("portability", {"yes": {}}, {"no": {}}, ["portability"]),
        ("wild", {"efficacy": 50.6}, {"efficacy": 50.0}, ["wild.efficacy"]),
        ("drift", {"perplexity": 10.09}, {"perplexity": 10.0}, []),
        ("drift", {"perplexity": 10.2}, {"perplexity": 10.0}, ["drift.perplexity"]),
        ("drift", {"kl": 0.00005}, {"kl": 0.0}, []),
        ("drift", {"kl": 0.0002}, {"kl": 0.0}, ["drift.kl"]),
        ("drift", {"kl": float("nan")}, {"kl": 0.1}, ["drift.kl"]),
        ("mean_reward", -2.0, -2.03, ["mean_reward"]),
        ("mean_reward", None, None, []),
        ("failures", 0, 20, ["failures"]),
        ("probability", None, {"efficacy": 1.0}, ["probability"]),
        ("probes", {"negation": "many"}, {"negation": 1.0}, ["probes.negation"]),
    ],
)
def test_what_counts_as_a_difference(tmp_path, name, in_record, in_replay, differs):
    assert [at for at, _, _ in differences(name, in_record, in_replay, Args(tmp_path))] == differs


def test_every_figure_is_recomputed_or_cannot_be():
    unchecked = {
        "suite",
        "agent",
        "seed",
        "setup_seconds",
        "edit_seconds",
        "floor_ratio",
        "peak_memory_bytes",
        "versions",
    }
    unchecked |= {"configuration", "commit", "hardware", "deltas"}
    assert set(validate.RECOMPUTED) | unchecked == set(cells.Record.__dataclass_fields__)
    assert not set(validate.RECOMPUTED) & unchecked


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        ({"commit": "f" * 40}, "the commit (the repository here does not have it)"),
        ({"commit": None}, "the commit (the record does not say it)"),
        ({"commit": "0" * 40 + "-dirty"}, "the code (files differed from the commit)"),
        ({"versions": {"torch": "99"}}, "versions, which are not those here"),
        ({"hardware": {"processor": "a supercomputer"}}, "seconds, memory and hardware"),
        ({"configuration": {"settings": {"steps": 10**6}}}, "its settings and source"),
        ({"configuration": {"settings": None}}, "its settings (the record does not say them)"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_not_checked_is_said(check, submission, model_folder, capsys, change, claim):
    (record,) = read(place(submission)[0])
    if "configuration" in change:
        change = {"configuration": record.configuration | change["configuration"]}
    rewrite(submission, **change)
    assert check(submission, model_folder, out=submission / "verdicts") == 0
    assert f"not verified: {claim}" in capsys.readouterr().out
    (changed,) = read(place(submission)[0])
    verdict = verdicts.read([submission / "verdicts"])[verdicts.digest_of(changed)]
    assert verdict.holds
    assert verdict.rerun is None
    assert any(claim in text for text in verdict.unverified)


def named(record, agent, **settings):
    return replace(record, agent=agent, configuration={"settings": settings})


def test_a_rows_settings_are_those_of_this_version(made):
    (record, _) = read(made / "results.jsonl")
    settings = settings_of("fine-tune", make_agent("fine-tune"))
    assert claims.wrong(named(record, "fine-tune", **settings)) == []
    for other in (settings | {"steps": 10**6}, settings | {"luck": 1}, {"steps": settings["steps"]}):
        (error,) = claims.wrong(named(record, "fine-tune", **other))
        assert "are not those of fine-tune in this version" in error


@pytest.mark.parametrize(
    ("agent", "error"),
    [
        ("rl\u0435dit", "agent rl\\u0435dit mixes alphabets"),
        ("\u0440ledit.py:A", "agent \\u0440ledit.py:A mixes alphabets"),
        ("rledit2", "'rledit2' is no row of `editenv methods`"),
        ("no-edit@./mine", "is no row"),
        ("memit@./mine", None),
        ("mine.py:A", None),
    ],
)
def test_a_name_is_what_makes_an_agent_and_what_it_looks_like(made, agent, error):
    (record, _) = read(made / "results.jsonl")
    errors = claims.wrong(named(record, agent))
    assert (error in errors[0]) if error else not errors


def test_a_verdict_says_nothing_about_a_record_that_was_changed(check, submission, model_folder, tmp_path):
    check(submission, model_folder, out=tmp_path / "verdicts")
    known = verdicts.read([tmp_path / "verdicts"])
    rows = entries(cells.records_of(submission))
    assert [verdicts.status_of(row, known) for row in rows] == ["replayed"]
    rewrite(submission, setup_seconds=10**-6)
    assert [verdicts.status_of(row, known) for row in entries(cells.records_of(submission))] == ["not verified"]
    (tmp_path / "verdicts").write_text('{"record": 1}\n')
    with pytest.raises(ValueError, match="verdicts, line 1: a verdict has record, holds"):
        verdicts.read([tmp_path / "verdicts"])


@pytest.fixture
def run_in_this_process(monkeypatch):
    """The re-run's cells, without processes of their own."""

    def run_here(todo, progress):
        for cell in todo:
            yield cell, cell.run(progress)

    monkeypatch.setattr(rerunning, "run_here", run_here)


def test_a_rerun_does_as_well_if_the_source_did_it(
    check, submission, model_folder, tmp_path, capsys, run_in_this_process
):
    assert check(submission, model_folder, rerun=2, out=tmp_path / "verdicts") == 0
    assert "verified by re-running on 2 new streams" in capsys.readouterr().out
    known = verdicts.read([tmp_path / "verdicts"])
    (row,) = entries(cells.records_of(submission))
    assert verdicts.status_of(row, known) == "verified by re-running"


def test_a_rerun_finds_figures_that_the_source_does_not_reach(
    check, submission, model_folder, tmp_path, capsys, monkeypatch
):
    """Deltas and figures agree, but the agent is not what made them."""

    def run_here(todo, progress):
        for cell in todo:
            record = cell.run(progress)
            perfect = dict.fromkeys(record.generation, 100.0)
            yield cell, replace(record, generation=perfect)

    monkeypatch.setattr(rerunning, "run_here", run_here)
    monkeypatch.setattr(rerunning, "STANDARD_ERRORS", 0.5)  # six edits tell little
    assert check(submission, model_folder, rerun=1, out=tmp_path / "verdicts") == 1
    printed = capsys.readouterr().out
    assert "not verified by re-running on 1 new stream\n" in printed
    assert "generation.efficacy is 0.0 in the records and 100.0 on the new streams" in printed
    (row,) = entries(cells.records_of(submission))
    assert verdicts.status_of(row, verdicts.read([tmp_path / "verdicts"])) == "does not hold"


def test_a_rerun_finds_another_source(check, submission, model_folder, made, capsys, run_in_this_process):
    source = made / "agent.py"
    content = source.read_text()
    try:
        source.write_text(content + "# changed\n")
        assert check(submission, model_folder, rerun=1) == 1
    finally:
        source.write_text(content)
    assert "settings: source are not those of the source here" in capsys.readouterr().out


@pytest.mark.slow  # a process that imports torch
def test_a_rerun_without_the_source_is_not_verified(check, submission, model_folder, made, capsys):
    source = made / "agent.py"
    content = source.read_text()
    source.unlink()
    try:
        assert check(submission, model_folder, rerun=1) == 1
    finally:
        source.write_text(content)
    assert "it could not be run: ValueError: agent" in capsys.readouterr().out


def test_how_far_runs_of_one_agent_may_be_apart():
    """By hand: single runs have the variance of a share of independent edits; three standard errors of a difference."""
    assert rerunning.allowed_difference([50.0], [50.0], 100) == pytest.approx(3 * (25.0 + 25.0) ** 0.5)
    # Pooled: squares 2 * 10**2 and 0, degrees of freedom 4 - 2; means of two runs each.
    assert rerunning.allowed_difference([40.0, 60.0], [50.0, 50.0], 10**6) == pytest.approx(
        3 * (100.0 * (1 / 2 + 1 / 2)) ** 0.5, rel=1e-3
    )
    assert rerunning.allowed_difference([0.0], [0.0], 1) > 0


def test_chance_alone_is_seldom_taken_for_a_difference():
    """A simulation: runs of 1,000 edits of one agent, with a spread of seeds besides."""
    random = np.random.default_rng(0)
    far = 0
    for _ in range(500):
        shares = np.clip(random.normal(0.6, 0.02, 6), 0, 1)
        values = (100 * random.binomial(1000, shares) / 1000).tolist()
        first, second = values[:3], values[3:]
        far += abs(np.mean(first) - np.mean(second)) > rerunning.allowed_difference(first, second, 1000)
    assert far / 500 < 0.05
