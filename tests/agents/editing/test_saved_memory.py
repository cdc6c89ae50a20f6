"""A run of a method that puts a memory beside the weights: saved, loaded for use, asked, gone on with, taken back."""

import contextlib
import io
import json
import os
import shutil
import signal

import pytest
import torch
from transformers import AutoModelForCausalLM

import editenv
from agents.cli import main
from agents.editing.editor import LifelongEditor
from editenv.evaluation.greedy import generate
from editenv.identity import frozen_fingerprint
from editenv.language_model.editable_lm import EditableLM
from editenv.memories import load_memories

LAST = "layers.2.mlp.down_proj"


def editenv_command(*words):
    """Runs a command of ``editenv``; gives what it printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr("sys.argv", ["editenv", *map(str, words)])
        main()
    return printed.getvalue()


def words(folder, model, out):
    """An edit of the folder's corrections."""
    bounds = ["--guard.max-perplexity", "inf", "--guard.max-drift", "inf"]
    options = ["--settings", folder / "settings.json", "--modules", LAST, "--edits-per-step", "2", *bounds]
    return ["edit", "--method", "grace", "--edits", folder / "edits.jsonl", "--model", model, "--output", out, *options]


@pytest.fixture(scope="module")
def corrections(tmp_path_factory, edits):
    """A folder with the first four edits as a file, and settings."""
    folder = tmp_path_factory.mktemp("corrections")
    rows = [{"prompt": edit.prompt, "target": edit.target, "subject": edit.subject} for edit in edits[:4]]
    (folder / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "settings.json").write_text(json.dumps({"radius": 0.1, "steps": 30, "learning_rate": 0.5}))
    return folder


@pytest.fixture(scope="module")
def run(corrections, model_folder, tmp_path_factory):
    """A run over four corrections, and what the command said."""
    out = tmp_path_factory.mktemp("run") / "out"
    return out, editenv_command(*words(corrections, model_folder, out))


def same(one, other):
    """Whether two folders have the same memories, to the bit."""
    first, second = (load_memories(folder / "memory.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    return all(
        torch.equal(part, second[name].parts()[of]) for name, m in first.items() for of, part in m.parts().items()
    )


def said_by(folder, prompts):
    return generate(*editenv.load_model(str(folder)), prompts, 12, unfinished=True)


def test_base_and_memory_are_loaded_by_one_call_and_say_the_corrections(run, edits, base, model_folder):
    out, printed = run
    folder = out / "model"
    assert {path.name for path in folder.iterdir()} == {
        "base.json",
        "memory.safetensors",
        "lifelongedit.json",
        "README.md",
    }
    assert f"{folder} is a memory beside {model_folder}, no plain transformers folder" in printed
    assert json.loads((out / "report.json").read_text())["changes"] == ["side memory"]
    assert "No weight was changed: the corrections are in a memory" in (out / "report.html").read_text()
    with pytest.raises((OSError, ValueError), match=r"config\.json"):
        AutoModelForCausalLM.from_pretrained(folder)
    prompts = [edit.prompt for edit in edits]
    said = said_by(folder, prompts)
    assert all(text.startswith(edit.target) for text, edit in zip(said[:4], edits, strict=False))
    assert said[4:] == said_by(model_folder, prompts)[4:]
    model, tokenizer = editenv.load_model(str(folder))
    plain, _ = editenv.load_model(model_folder)
    assert plain is base, "the base model itself is as it was"
    assert said_by(model_folder, prompts[:4]) != said[:4]
    texts = tokenizer(prompts[:1], return_tensors="pt")
    with torch.no_grad():
        assert not torch.equal(model(**texts).logits, plain(**texts).logits)


def test_every_command_takes_it_as_a_model(run, corrections, edits, model_folder):
    out, _ = run
    (row,) = map(json.loads, editenv_command("ask", out, edits[0].prompt, "--json").splitlines())
    assert row["now"].startswith(edits[0].target)
    assert row["before"] != row["now"]
    file = corrections / "edits.jsonl"
    report = json.loads(
        editenv_command("evaluate", "--model", out / "model", "--edits", file, "--base", model_folder, "--json")
    )
    assert report["teacher_forced"]["efficacy"] == 100


def test_a_run_that_was_killed_ends_in_the_same_bits(run, corrections, model_folder, tmp_path, monkeypatch):
    straight, _ = run
    out = tmp_path / "killed"
    child = os.fork()
    if not child:  # killed when its first batch is in the journal, before the second
        edit = LifelongEditor.edit

        def edit_once(editor, *batch, **options):
            if editor.batches:
                os.kill(os.getpid(), signal.SIGKILL)
            return edit(editor, *batch, **options)

        monkeypatch.setattr(LifelongEditor, "edit", edit_once)
        try:
            editenv_command(*words(corrections, model_folder, out))
        finally:
            os._exit(1)  # never back into the test run
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (out / "model").exists()
    editenv_command(*words(corrections, model_folder, out))
    assert same(out / "model", straight / "model")


def test_deltas_make_it_again_and_take_it_away(run, model_folder, tmp_path):
    out, _ = run
    again, back = tmp_path / "again", tmp_path / "back"
    deltas = out / "deltas.safetensors"
    assert "bit for bit" in editenv_command("apply", "--model", model_folder, "--deltas", deltas, "--output", again)
    assert same(again, out / "model")
    assert "bit for bit" in editenv_command("revert", "--model", again, "--deltas", deltas, "--output", back)
    reverted, original = editenv.load_model(str(back))[0], editenv.load_model(model_folder)[0]
    for (name, weight), other in zip(reverted.named_parameters(), original.parameters(), strict=True):
        assert torch.equal(weight, other), name


def test_what_would_lose_the_memory_is_refused(run, corrections, model_folder, tmp_path, capsys):
    out, _ = run
    folder = shutil.copytree(out / "model", tmp_path / "model")
    with pytest.raises(SystemExit):
        editenv_command(*words(corrections, folder, tmp_path / "twice"))
    assert (
        "has a memory beside model.layers.2.mlp.down_proj, which editing it further would lose"
        in capsys.readouterr().err
    )
    about = json.loads((folder / "base.json").read_text())
    (folder / "base.json").write_text(json.dumps(about | {"weights": "0" * 64}))
    with pytest.raises(ValueError, match=f"{model_folder} is not the model that this memory was made for"):
        editenv.load_model(str(folder))
    (folder / "base.json").write_text(json.dumps(about | {"model": "/nowhere/model"}))
    with pytest.raises(FileNotFoundError, match=r"/nowhere/model.* write where into .*base\.json"):
        editenv.load_model(str(folder))
    (folder / "base.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has a memory or a context and no base\.json"):
        editenv.load_model(str(folder))


def test_a_model_with_a_memory_is_another_model(run, model_folder):
    """Whichever of its modules is edited: a memory beside an edited one is part of theta_0, beside another it is frozen."""
    out, _ = run
    edited, tokenizer = editenv.load_model(str(out / "model"))
    plain = editenv.load_model(model_folder)[0]
    lm = EditableLM(edited, tokenizer, [LAST])
    assert list(lm.memories) == list(lm.modules)
    lm.apply({name: torch.ones(lm.shape(name)) for name in lm.modules})
    lm.restore()
    assert list(lm.memories) == list(lm.modules)
    earlier = "layers.1.mlp.down_proj"
    frozen = [frozen_fingerprint(EditableLM(model, tokenizer, [earlier])) for model in (edited, plain)]
    assert frozen[0] != frozen[1]
    assert not EditableLM(edited, tokenizer, [earlier]).memories
