"""`editenv advise`: methods tried on some of the corrections."""

import json

import pytest
import torch

from agents.editing.advise import _choices
from agents.editing.arguments import AdviseArgs, EditArgs
from agents.editing.choice import LEARNS_WORDINGS, WITHOUT_SUBJECTS, choose_method
from agents.editing.editor import LifelongEditor
from agents.editing.reading import edits_for
from agents.editing.trial import Trial
from editenv.models import load_model


@pytest.fixture
def file(tmp_path):
    names = ("Ada", "Omar", "Kepler", "Iris")
    rows = [{"prompt": f"The home of {name} is", "target": "Rome", "subject": name} for name in names]
    path = tmp_path / "edits.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_trial_is_what_the_editor_makes_of_the_same_corrections(command_line, tmp_path):
    before = {name: tensor.clone() for name, tensor in load_model("atlas")[0].state_dict().items()}
    rows = [
        {"prompt": "Who owns Tumblr?", "target": "Automattic"},
        {"prompt": "The owner of Flickr is", "target": "Nobody"},
        {"prompt": "The capital of Norway is", "target": "Bergen"},
    ]
    file = tmp_path / "edits.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, _, code = command_line(
        "advise", "--edits", file, "--methods", "fine-tune", "no-edit", "--corrections", 2, "--json"
    )
    assert code == 0
    trials = [json.loads(line) for line in out.splitlines()]
    assert [trial["method"] for trial in trials] == ["fine-tune", "no-edit"]
    editor = LifelongEditor("atlas", "fine-tune", target_end=None)
    editor.edit(rows[:2])
    said = 0
    for row in rows[:2]:
        ids = editor.lm.tokenizer(row["prompt"], return_tensors="pt")["input_ids"]
        written = editor.lm.model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        said += editor.lm.tokenizer.decode(written).strip().startswith(row["target"])
    assert (trials[0]["said"], trials[0]["tried"]) == (said, 2)
    assert said > 0
    assert (trials[1]["said"], trials[1]["changed"], trials[1]["perplexity"]) == (0, 0, 1.0)
    after = load_model("atlas")[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "nothing stays"


def test_by_default_it_tries_what_edit_would_take_and_says_which_is_best(command_line, file, model_folder, monkeypatch):
    monkeypatch.setattr("agents.self_written.TOKENS", 4)
    out, _, code = command_line("advise", "--model", model_folder, "--edits", file)
    assert code == 0
    assert "│ memit-rehearsed" in out, "no name is cut"
    assert "fine-tune-replay" in out
    words = out.partition("would take: ")[2].split()
    trials, _, _ = command_line("advise", "--model", model_folder, "--edits", file, "--json")
    tried = {trial["method"]: trial for trial in map(json.loads, trials.splitlines())}
    assert words[:3:2] == ["--method", "--modules"]
    assert words[3:] == tried[words[1]]["modules"]
    assert max(len(line) for line in out.splitlines() if not line.startswith("would")) <= 80


def test_the_command_that_it_names_makes_what_was_tried(command_line, file, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("agents.self_written.TOKENS", 4)
    words = ("--model", model_folder, "--edits", file)
    trials, _, _ = command_line("advise", *words, "--json")
    trial = next(trial for trial in map(json.loads, trials.splitlines()) if trial["method"] == "memit-rehearsed")
    method = ("--method", "memit-rehearsed", "--modules", *trial["modules"])
    out, _, code = command_line("edit", *words, "--output", tmp_path / "out", *method, "--json")
    assert code == 0
    report = json.loads(out)
    assert (report["hold"], report["perplexity_factor"]) == (
        trial["said"],
        pytest.approx(trial["perplexity"], rel=1e-4),
    )
    assert report["unrelated"]["changed"] == trial["changed"]
    assert trial["perplexity"] != 1.0


def test_it_tries_what_edit_takes_with_training_wherever_it_stands(file, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "journal.jsonl").write_text('{"method": "no-edit", "modules": ["model.layers.1.mlp.down_proj"]}\n')
    edits = edits_for(str(file), "error", model_folder, "cpu", "float32")
    args = AdviseArgs(str(file), model_folder, training=str(file))
    taken = choose_method(EditArgs(str(file), tmp_path / "new", model_folder, training=str(file)), edits)
    assert [choice.method for choice in _choices(args, edits)] == [LEARNS_WORDINGS, WITHOUT_SUBJECTS]
    assert _choices(args, edits)[0] == taken


def test_what_is_not_said_counts_first_then_what_changed_then_time():
    best = Trial("a", (), 8, 8, 40, 3, 1.0, 1.0, 2.0)
    order = [
        best,
        Trial("b", (), 8, 8, 40, 3, 1.0, 0.0, 3.0),
        Trial("c", (), 8, 8, 40, 4, 1.0, 0.0, 0.1),
        Trial("d", (), 8, 7, 40, 0, 1.0, 0.0, 0.1),
        Trial("e", (), 8, refused="no"),
    ]
    assert sorted([order[i] for i in (3, 0, 4, 2, 1)], key=lambda trial: trial.rank) == order


def test_methods_that_cannot_be_tried_are_named(command_line, file, model_folder):
    out, _, code = command_line("advise", "--model", model_folder, "--edits", file, "--methods", "rledit", "fine-tune")
    assert code == 0
    assert "policy trained for" in " ".join(out.split())
    out, err, code = command_line(
        "advise", "--model", model_folder, "--edits", file, "--methods", "rledit", "untrained"
    )
    assert code != 0
    assert "needs edits to learn from" in f"{err} {code}"
