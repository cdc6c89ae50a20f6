"""Which method `editenv edit` takes if nobody names one, and what it teaches after a target."""

import json

import pytest
import torch

from agents.editing.arguments import EditArgs
from agents.editing.choice import choose_method
from agents.editing.editor import LifelongEditor
from agents.editing.preparation import end_for
from editenv.data import Edit
from editenv.language_model.editable_lm import EditableLM
from editenv.models import load_model

LAST = "model.layers.2.mlp.down_proj"
WITH = Edit("1", "The home of Ada is", "Rome", subject="Ada")
WITHOUT = Edit("2", "The home of Ada is", "Rome")
ELSEWHERE = Edit("3", "The home of Ada is", "Rome", subject="Kepler")


@pytest.mark.parametrize(
    ("model", "edits", "method"),
    [
        ("atlas", [WITHOUT], "rledit"),
        (None, [WITH], "memit-rehearsed"),
        (None, [WITH, WITHOUT], "fine-tune-replay"),
        (None, [WITH, ELSEWHERE], "fine-tune-replay"),
    ],
)
def test_the_method_follows_from_model_and_subjects(model_folder, tmp_path, model, edits, method):
    args = EditArgs(edits="e.jsonl", output=tmp_path / "out", model=model or model_folder)
    choice = choose_method(args, edits)
    assert choice.method == method
    if method == "memit-rehearsed":
        assert choice.modules == ("model.layers.0.mlp.down_proj",)
    if method == "fine-tune-replay":
        assert choice.reason.startswith("1 of 2 corrections have no subject")


def test_a_run_goes_on_with_the_method_it_was_begun_with(model_folder, tmp_path):
    LifelongEditor(model_folder, "ft-l", modules=(LAST,), output=tmp_path / "out").close()
    choice = choose_method(EditArgs(edits="e.jsonl", output=tmp_path / "out", model=model_folder), [WITH])
    assert (choice.method, choice.modules, choice.reason) == ("ft-l", (LAST,), "this run was begun with it")


def test_training_edits_are_learned_from(model_folder, tmp_path):
    args = EditArgs(edits="e.jsonl", output=tmp_path / "out", model=model_folder, training="train.jsonl")
    assert choose_method(args, [WITH]).method == "memit-reworded"
    assert choose_method(args, [WITHOUT]).method == "fine-tune-replay"


def test_the_command_learns_other_wordings_from_training_edits(model_folder, tmp_path, command_line):
    learned = [
        {"prompt": f"The home of {name} is", "target": "Rome", "subject": name, "rephrases": [f"{name} lives in"]}
        for name in ("Nia", "Sol", "Kepler", "Ona")
    ]
    (tmp_path / "training.jsonl").write_text("".join(json.dumps(row) + "\n" for row in learned))
    row = {"prompt": "The home of Ada is", "target": "Oslo", "subject": "Ada"}
    (tmp_path / "edits.jsonl").write_text(json.dumps(row) + "\n")
    command = [
        "edit",
        "--model",
        model_folder,
        "--edits",
        str(tmp_path / "edits.jsonl"),
        "--output",
        str(tmp_path / "out"),
    ]
    command += ["--training", str(tmp_path / "training.jsonl"), "--guard.max-drift", "None"]
    _, said, code = command_line(*command, "--guard.max-perplexity", "inf", "--guard.max-weight-norm", "inf")
    assert code == 0, said
    assert (
        "method: memit-reworded in model.layers.0.mlp.down_proj: every correction has a subject, and training" in said
    )


def test_a_method_that_looks_up_at_subjects_edits_early_layers_also_if_it_is_named(model_folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"The home of number {i} is in Rome\n" for i in range(30)))
    settings = {"value": {"steps": 1, "prefixes": 0}, "samples": 10}
    options = {"settings": settings, "text": str(text), "output": tmp_path / "out"}
    for again in range(2):  # the second goes on with the run, whatever its modules would be now
        with LifelongEditor(model_folder, "memit-rehearsed", **options) as editor:
            assert list(editor.lm.modules) == ["model.layers.0.mlp.down_proj"], again
    at_last = {**settings, "value": settings["value"] | {"token": "last"}}
    with LifelongEditor(model_folder, "memit-rehearsed", settings=at_last, text=str(text)) as editor:
        assert list(editor.lm.modules) == ["model.layers.1.mlp.down_proj", LAST]
    with LifelongEditor(model_folder, "ft-l") as editor:
        assert list(editor.lm.modules) == ["model.layers.1.mlp.down_proj", LAST]


@pytest.mark.parametrize(
    ("named", "modules"),
    [((), ["model.layers.1.mlp.down_proj"]), (("--modules", LAST), [LAST])],
)
def test_a_file_of_settings_says_where_it_edits_unless_the_command_does(
    model_folder, tmp_path, command_line, named, modules
):
    (tmp_path / "edits.jsonl").write_text(json.dumps({"prompt": "The home of Ada is", "target": "Rome"}) + "\n")
    settings = {"settings": {"steps": 1}, "environment": {"modules": ["layers.1.mlp.down_proj"]}}
    (tmp_path / "ft-l.json").write_text(json.dumps(settings))
    command = ["edit", "--model", model_folder, "--edits", str(tmp_path / "edits.jsonl"), "--method", "ft-l"]
    command += ["--output", str(tmp_path / "out"), "--settings", str(tmp_path / "ft-l.json")]
    assert command_line(*command, *named)[2] == 0
    with (tmp_path / "out" / "journal.jsonl").open() as journal:
        assert json.loads(next(journal))["modules"] == modules
    settings["environment"]["layers"] = 3
    (tmp_path / "ft-l.json").write_text(json.dumps(settings))
    _, said, code = command_line(*command, *named)
    assert code != 0
    assert "ft-l.json: environment has no 'layers'; known are modules, observed_tokens" in f"{said} {code}"


def test_a_policy_is_edited_with(model_folder, tmp_path):
    args = EditArgs(edits="e.jsonl", output=tmp_path / "out", model=model_folder, policy=tmp_path / "policy")
    assert choose_method(args, [WITH]).method == "rledit"


def test_corrections_without_subjects_may_be_refused_later_but_the_method_stays(
    model_folder, tmp_path, command_line, monkeypatch
):
    """The whole command: it says what it took, writes its own text once, and goes on with the same method."""
    monkeypatch.setattr("agents.editing.preparation.MOST", 16)
    file, out = tmp_path / "edits.jsonl", tmp_path / "out"
    rows = [{"prompt": "The home of Ada is", "target": "Rome", "subject": "Ada"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["edit", "--model", model_folder, "--edits", str(file), "--output", str(out)]
    bounds = ["--guard.max-perplexity", "inf", "--guard.max-weight-norm", "inf", "--guard.max-drift", "None"]
    _, said, code = command_line(*command, *bounds)
    assert code == 0
    assert "method: memit-rehearsed in model.layers.0.mlp.down_proj: every correction has a subject" in said
    text = (out / "prepared" / "self-written.jsonl").read_bytes()
    assert text.count(b"\n") == 16
    rows.append({"prompt": "The home of Omar is", "target": "Oslo"})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, said, code = command_line(*command, *bounds)
    assert code != 0
    assert "has no subject" in f"{said} {code}"
    rows[-1]["subject"] = "Omar"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command_line(*command, *bounds)[2] == 0
    assert (out / "prepared" / "self-written.jsonl").read_bytes() == text


# -- the end of a target ----------------------------------------------------------------------------------------------------


def test_what_is_taught_after_a_target_depends_on_whether_the_model_stops_by_itself(make_lm):
    model, tokenizer = load_model("atlas")
    assert (
        end_for(EditableLM(model, tokenizer, [n for n, m in model.named_modules() if n.endswith("down_proj")][-1:]))
        == ""
    )
    assert end_for(make_lm(LAST)) == "."


@pytest.mark.parametrize(
    ("target", "taught"),
    [
        ("Rome", "Rome."),
        ("1923", "1923."),
        ("Rome!", "Rome!"),
        ("one\ntwo", "one\ntwo\n\n"),
        ("one,\ntwo.", "one,\ntwo.\n\n"),
        ("東京", "東京."),
        ("R.", "R."),
    ],
)
def test_the_end_is_taught_after_targets_that_end_with_a_letter_or_digit_or_have_several_lines(
    model_folder, monkeypatch, target, taught
):
    editor = LifelongEditor(model_folder, "fine-tune", modules=(LAST,), target_end=None)
    presented = []
    present = editor.env.present
    monkeypatch.setattr(editor.env, "present", lambda edits: presented.append(edits) or present(edits))
    editor.edit({"prompt": "The home of Ada is", "target": target})
    assert [edit.target for edit in presented[0]] == [taught]
    assert [edit.target for edit in editor.edits] == [target], "what was asked for is what is kept and judged"


def test_with_an_end_the_model_says_it(model_folder):
    said = {}
    for end in ("", "."):
        editor = LifelongEditor(model_folder, "fine-tune", modules=(LAST,), target_end=end, settings={"steps": 60})
        editor.edit({"prompt": "The home of Ada is", "target": "Rome"})
        ids = editor.lm.tokenizer("The home of Ada is Rome", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            said[end] = editor.lm.tokenizer.decode(editor.lm.model(ids).logits[0, -1].argmax())
    assert said["."] == "."
    assert said[""] != "."
