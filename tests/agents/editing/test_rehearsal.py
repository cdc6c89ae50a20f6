"""Corrections added a day later: the method still knows the earlier ones, and those that it loses are made again."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_devices import METHODS

from agents.editing.arguments import EditArgs
from agents.editing.edit_command import edit as run_edit
from agents.editing.guard import Guard
from agents.registry import make_method

MODULES = ("layers.1.mlp.down_proj", "layers.2.mlp.down_proj")
UNBOUNDED = Guard(1e9, 1e9, None, None, retry=False)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def edit(tmp_path, monkeypatch):
    """The command on these rows, in a folder of its own."""
    monkeypatch.setattr("agents.editing.unrelated.GENERAL", ("The capital of France is",))

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
    training.write_text("".join(json.dumps(row) + "\n" for row in rows_of(edits[7:])))
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
