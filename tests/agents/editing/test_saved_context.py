"""A run of a method that puts text before questions: saved, loaded for use, asked, undone, gone on with, taken back."""

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
from agents.rows import ROWS
from editenv.contexts import load_context
from editenv.evaluation.greedy import generate


def editenv_command(*words):
    """Runs a command of ``editenv``; gives what it printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr("sys.argv", ["editenv", *map(str, words)])
        main()
    return printed.getvalue()


def words(folder, model, out):
    """An edit of the folder's corrections; random weights say anything after a text, so nothing is bounded."""
    bounds = ["--guard.max-perplexity", "inf", "--guard.max-drift", "inf", "--guard.max-lost", "inf"]
    options = ["--settings", folder / "settings.json", "--edits-per-step", "2", *bounds]
    return ["edit", "--method", "rag", "--edits", folder / "edits.jsonl", "--model", model, "--output", out, *options]


@pytest.fixture(scope="module")
def corrections(tmp_path_factory, edits):
    """A folder with the first four edits as a file, and settings."""
    folder = tmp_path_factory.mktemp("corrections")
    rows = [{"prompt": edit.prompt, "target": edit.target, "subject": edit.subject} for edit in edits[:4]]
    (folder / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "settings.json").write_text(json.dumps({"threshold": 0.9}))
    return folder


@pytest.fixture(scope="module")
def run(corrections, model_folder, tmp_path_factory):
    """A run over four corrections, and what the command said."""
    out = tmp_path_factory.mktemp("run") / "out"
    return out, editenv_command(*words(corrections, model_folder, out))


def said_by(folder, prompts):
    return generate(*editenv.load_model(str(folder)), prompts, 12, unfinished=True)


def test_base_and_context_are_loaded_by_one_call_and_asked_with_it(run, edits, model_folder):
    out, printed = run
    folder = out / "model"
    assert {path.name for path in folder.iterdir()} == {"base.json", "context.json", "lifelongedit.json", "README.md"}
    assert f"{folder} is a context beside {model_folder}, no plain transformers folder" in printed
    assert json.loads((out / "report.json").read_text())["changes"] == ["context"]
    assert "the corrections are in a context beside the model" in (out / "report.html").read_text()
    assert "put into a context that is put before questions" in (folder / "README.md").read_text()
    with pytest.raises((OSError, ValueError), match=r"config\.json"):
        AutoModelForCausalLM.from_pretrained(folder)
    context = load_context(folder / "context.json")
    assert list(context.entries) == [edit.prompt for edit in edits[:4]]
    assert context.entries[edits[0].prompt].startswith(f"It is a fact that:\n{edits[0].prompt} {edits[0].target}")
    prompts = [edit.prompt for edit in edits[:6]]
    said = said_by(folder, prompts)
    assert said == said_by(model_folder, [context.entries.get(prompt, "") + prompt for prompt in prompts])
    plain = said_by(model_folder, prompts)
    assert said[4:] == plain[4:]
    assert said[:4] != plain[:4], "the base model itself is as it was"
    model, tokenizer = editenv.load_model(str(folder))
    given = tokenizer(prompts[:1], return_tensors="pt")
    written = model.generate(**given, max_new_tokens=12, do_sample=False)
    assert said[0].startswith(
        tokenizer.decode(written[0, given["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    )


def test_every_command_takes_it_as_a_model(run, corrections, edits, model_folder):
    out, _ = run
    (row,) = map(json.loads, editenv_command("ask", out, edits[0].prompt, "--json").splitlines())
    assert row["now"] != row["before"]
    report = json.loads((out / "report.json").read_text())
    file = corrections / "edits.jsonl"
    again = json.loads(
        editenv_command("evaluate", "--model", out / "model", "--edits", file, "--base", model_folder, "--json")
    )
    for protocol in ("teacher_forced", "generation", "generation_prefix"):
        assert again[protocol]["efficacy"] == report[protocol]["efficacy"]


def test_a_run_that_was_killed_ends_in_the_same_context(run, corrections, model_folder, tmp_path, monkeypatch):
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
    editenv_command(*words(corrections, model_folder, out))
    assert (out / "model" / "context.json").read_text() == (straight / "model" / "context.json").read_text()


def test_one_correction_is_undone_and_the_others_stay(run, corrections, edits, model_folder, tmp_path):
    out = shutil.copytree(run[0], tmp_path / "out")
    rows = map(json.loads, (out / "results.jsonl").read_text().splitlines())
    (number,) = (row["id"] for row in rows if row["prompt"] == edits[1].prompt)
    editenv_command("undo", out, number, "--yes")
    kept = load_context(out / "model" / "context.json").entries
    assert sorted(kept) == sorted(edit.prompt for edit in (edits[0], *edits[2:4]))


def test_deltas_make_it_again_and_take_it_away(run, model_folder, tmp_path):
    out, _ = run
    again, back = tmp_path / "again", tmp_path / "back"
    deltas = out / "deltas.safetensors"
    assert "bit for bit" in editenv_command("apply", "--model", model_folder, "--deltas", deltas, "--output", again)
    assert (again / "context.json").read_text() == (out / "model" / "context.json").read_text()
    assert "bit for bit" in editenv_command("revert", "--model", again, "--deltas", deltas, "--output", back)
    reverted, original = editenv.load_model(str(back))[0], editenv.load_model(model_folder)[0]
    for (name, weight), other in zip(reverted.named_parameters(), original.parameters(), strict=True):
        assert torch.equal(weight, other), name


def test_what_would_lose_the_context_is_refused(run, corrections, model_folder, tmp_path, capsys):
    out, _ = run
    folder = shutil.copytree(out / "model", tmp_path / "model")
    with pytest.raises(SystemExit):
        editenv_command(*words(corrections, folder, tmp_path / "twice"))
    assert "has a context, which editing it further would lose" in capsys.readouterr().err
    (folder / "base.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"a context and no base\.json"):
        editenv.load_model(str(folder))


def test_the_row_says_what_it_changes():
    assert ROWS["rag"].changes == ("context",)
