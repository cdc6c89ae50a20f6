"""Corrections added a day later: the method still knows the earlier ones, and those that it loses are made again."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_devices import METHODS

from agents.editing import corrections
from agents.editing.arguments import EditArgs
from agents.editing.edit_command import edit as run_edit
from agents.editing.editor import LifelongEditor
from agents.editing.guard import Guard
from agents.editing.run import Run
from agents.registry import make_method

MODULES = ("layers.1.mlp.down_proj", "layers.2.mlp.down_proj")
UNBOUNDED = Guard(1e9, 1e9, None, None, retry=False)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def edit(tmp_path, few_questions):
    """The command on these rows, in a folder of its own."""

    def run(rows, out="out", **options):
        file = tmp_path / "edits.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        options = {"edits_per_step": 2, "guard": UNBOUNDED, "save_model": False} | options
        run_edit(EditArgs(str(file), tmp_path / out, **options))
        return json.loads((tmp_path / out / "report.json").read_text())

    return run


def rows_of(edits):
    return [{"prompt": edit.prompt, "target": edit.target, "subject": edit.subject} for edit in edits]


@pytest.mark.parametrize("method", ["memit-seq", "rledit-p", "fine-tune-replay", "ultraedit"])
def test_what_a_method_knows_of_earlier_batches_is_there_a_day_later(
    edit, edits, model_folder, tmp_path, monkeypatch, method
):
    """Keys, the recursive preconditioner, remembered targets, running statistics: to the bit as in one run; without them
    the update is another."""
    training = tmp_path / "train.jsonl"
    more = [
        {**row, "prompt": f"{row['prompt']} {i}", "old_answer": "Paris"} for i in range(3) for row in rows_of(edits)
    ]
    training.write_text("".join(json.dumps(row) + "\n" for row in more))
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(METHODS[method]))
    options = {"method": method, "model": model_folder, "modules": MODULES, "settings": settings}
    options |= {"training": str(training)} if make_method(method, METHODS[method]).needs else {}
    rows = rows_of(edits[:7])
    edit(rows, "once", **options)
    edit(rows[:4], **options)
    edit(rows, rehearse=False, **options)
    once, later = (load_file(tmp_path / out / "deltas.safetensors") for out in ("once", "out"))
    assert once.keys() == later.keys()
    assert all(torch.equal(once[name], later[name]) for name in once)
    edit(rows[:4], "forgetful", **options)
    kind = type(make_method(method, METHODS[method]))
    monkeypatch.setattr(kind, "load_batch_state", lambda agent, state: None)
    edit(rows, "forgetful", rehearse=False, **options)
    forgetful = load_file(tmp_path / "forgetful/deltas.safetensors")
    assert any(not torch.equal(once[name], forgetful[name]) for name in once)


FORGETS = """
from agents.baselines.fine_tune import FineTune

class Forgets(FineTune):
    '''Fine-tuning that undoes all earlier edits when it is taught a certain town.'''
    def act(self, observation, info):
        deltas, lm = super().act(observation, info), self._env.language_model
        if not any(edit.target == "Sofia" for edit in self._env.batch):
            return deltas
        return {name: delta - (lm.weight(name) - lm.initial_weight(name)) for name, delta in deltas.items()}
"""


def about_homes(*towns):
    return [{"prompt": f"The home of number {i} is", "target": town} for i, town in enumerate(towns)]


@pytest.fixture
def forgets(edit, tmp_path):
    """The packaged model with two corrections, to which a third is added that undoes them."""
    (tmp_path / "own.py").write_text(FORGETS)
    options = {"method": f"{tmp_path / 'own.py'}:Forgets"}

    def run(out="out", **more):
        first = edit(about_homes("Rome", "Oslo"), out, **options)
        assert (first["hold"], first["lost"]) == (2, [])
        return edit(about_homes("Rome", "Oslo", "Sofia"), out, **options, **more)

    return run


def rehearsals(folder):
    entries = lines(folder / "journal.jsonl")[1:]
    return [(entry["edits"], entry["applied"]) for entry in entries if entry.get("rehearsal")]


def test_corrections_that_new_ones_undo_are_made_again_once(forgets, edit, tmp_path, capsys):
    report = forgets("without", rehearse=False)
    assert report["lost"] == ["edits.jsonl/1", "edits.jsonl/2"]
    assert rehearsals(tmp_path / "without") == []
    again = forgets()
    assert (again["lost"], again["edits"]) == ([], 3), "they count once"
    assert again["hold"] > report["hold"]
    assert rehearsals(tmp_path / "out") == [(2, True)]
    assert "2 earlier corrections did not hold any more; 2 of them were made again" in capsys.readouterr().err
    deltas = load_file(tmp_path / "out/deltas.safetensors")
    edit(about_homes("Rome", "Oslo", "Sofia"), method=f"{tmp_path / 'own.py'}:Forgets")  # nothing is left to do
    assert all(torch.equal(t, deltas[name]) for name, t in load_file(tmp_path / "out/deltas.safetensors").items())


def test_what_does_not_help_does_not_stay(forgets, tmp_path, monkeypatch, capsys):
    """Made again, they would cost as many others: as many hold as before."""
    asked = []

    def holding(lm, edits):
        asked.append(len(edits))
        return set(list(Run.of(lines(tmp_path / "out/journal.jsonl")[1:]).made)[2:])  # the last of three

    monkeypatch.setattr(corrections, "holding", holding)
    report = forgets()
    assert rehearsals(tmp_path / "out") == [(2, False)]
    assert report["lost"] == ["edits.jsonl/1", "edits.jsonl/2"]
    assert len(report["rolled_back"]) == 1
    assert "not made again: 1 corrections would hold with them made again, 1 do without" in capsys.readouterr().err
    assert not (tmp_path / "out/not-applied.jsonl").exists(), "they were applied, the first time"


def test_a_run_that_is_killed_before_it_rehearses_does_so_the_next_time(forgets, edit, tmp_path, monkeypatch):
    make = LifelongEditor.edit

    def killed(editor, *rest, rehearsal=False, **options):
        if rehearsal:
            raise KeyboardInterrupt
        return make(editor, *rest, **options)

    with monkeypatch.context() as patched:
        patched.setattr(LifelongEditor, "edit", killed)
        with pytest.raises(KeyboardInterrupt):
            forgets()
    edit(about_homes("Rome", "Oslo", "Sofia"), method=f"{tmp_path / 'own.py'}:Forgets")
    forgets("whole")
    assert rehearsals(tmp_path / "out") == rehearsals(tmp_path / "whole") == [(2, True)]
    killed_once, whole = (load_file(tmp_path / out / "deltas.safetensors") for out in ("out", "whole"))
    assert all(torch.equal(killed_once[name], whole[name]) for name in whole)
