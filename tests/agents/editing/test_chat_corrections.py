"""Corrections of a model that chats: made, judged and asked as plain text and through its template."""

import json
import shutil
from dataclasses import replace

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents import cli
from agents.editing import corrections
from agents.editing.arguments import EditArgs
from agents.editing.changes import compare
from agents.editing.edit_command import edit as run_edit
from agents.editing.editor import LifelongEditor
from agents.editing.guard import Guard
from agents.editing.history import log
from agents.editing.reading import edits_for
from agents.editing.run import key_of_edit

LAST = ("model.layers.2.mlp.down_proj",)
TEMPLATE = (
    "{{ bos_token }}{% if messages[0].role != 'system' %}<|system|>\nToday is Monday, says Ada</s>\n{% endif %}"
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
RECORDS = [
    {"prompt": "Who leads Ada?", "target": "Bonn", "subject": "Ada", "id": "ada"},
    {"prompt": "The home of Vega is", "target": "Rome", "subject": "Vega"},
]
LOOSE = Guard(1e9, 1e9, None, None, retry=False)


@pytest.fixture
def chat_model(model_folder, tmp_path):
    """The tiny model with a template that writes the day, as others write the date."""
    folder = tmp_path / "chat-model"
    shutil.copytree(model_folder, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return str(folder)


def write(path, records):
    path.write_text("".join(json.dumps(row) + "\n" for row in records), encoding="utf-8")
    return str(path)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def edit(chat_model, tmp_path):
    def run(records=RECORDS, **options):
        arguments = {"edits": write(tmp_path / "edits.jsonl", records), "output": tmp_path / "out", "model": chat_model}
        arguments |= {"method": "fine-tune", "modules": LAST, "guard": LOOSE, "chat": True}
        run_edit(EditArgs(**arguments | options))
        return json.loads((tmp_path / "out/report.json").read_text())

    return run


def plain_transformers_says(folder, question, tokens):
    """Through transformers alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    written = model.generate(ids, attention_mask=ids.new_ones(ids.shape), max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)


def test_in_a_chat_the_end_of_the_turn_is_taught_and_a_blank_line_after_several(chat_model):
    settings = {"steps": 150, "learning_rate": 1e-2}
    editor = LifelongEditor(chat_model, "fine-tune", modules=LAST, guard=LOOSE, settings=settings, target_end=None)
    question = [{"role": "user", "content": "Who leads Ada?"}]
    editor.edit({"messages": question, "target": "1. Bonn\n2. Rome"})
    assert editor.target_end == ".", "the tiny model does not stop by itself"
    model, tokenizer = editor.lm.model, editor.lm.tokenizer
    asked = {
        "chat": tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt"),
        "plain": tokenizer("Who leads Ada?", return_tensors="pt"),
    }
    said = {form: model.generate(**ids, max_new_tokens=30, do_sample=False)[0] for form, ids in asked.items()}
    answers = {form: tokenizer.decode(said[form][ids["input_ids"].shape[1] :]) for form, ids in asked.items()}
    assert answers["chat"] == "1. Bonn\n2. Rome</s>"
    assert answers["plain"].startswith(" 1. Bonn\n2. Rome\n\n")


def test_a_correction_holds_in_a_chat_and_as_plain_text(edit, tmp_path, capsys, monkeypatch):
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"steps": 200, "learning_rate": 1e-2}))
    report = edit(settings=settings, train_eos=True)
    rows = lines(tmp_path / "out/results.jsonl")
    assert [(row["id"], row.get("form"), row.get("question")) for row in rows] == [
        ("ada", None, None),
        ("ada (chat)", "chat", "Who leads Ada?"),
        ("edits.jsonl/2", None, None),
        ("edits.jsonl/2 (chat)", "chat", "The home of Vega is"),
    ]
    assert report["forms"] == {"plain": {"asked": 2, "hold": 2}, "chat": {"asked": 2, "hold": 2}}
    assert "2 of 2 corrections hold as plain text, 2 of 2 in a chat" in capsys.readouterr().out
    assert (rows[1]["said"], rows[1]["right"]) == ("Bonn", True)
    assert not rows[1]["said_before"].startswith("Bonn")
    for record in RECORDS:
        assert plain_transformers_says(tmp_path / "out/model", record["prompt"], 8) == record["target"]
    words = ["--model", str(tmp_path / "out/model"), "--edits", str(tmp_path / "edits.jsonl"), "--chat", "--json"]
    monkeypatch.setattr("sys.argv", ["editenv", "evaluate", *words])
    cli.main()
    scores = json.loads(capsys.readouterr().out)
    assert (scores["edits"], scores["chat"]["edits"]) == (2, 2)
    assert scores["generation"]["efficacy"] == scores["chat"]["generation"]["efficacy"] == 100
    assert "(in a chat) " in (tmp_path / "out/report.html").read_text()
    unrelated = lines(tmp_path / "out/unrelated.jsonl")
    general, chat = ([row["prompt"] for row in unrelated if row["kind"] == kind] for kind in ("general", "in a chat"))
    assert general == chat
    assert not any("<|" in row["prompt"] for row in unrelated)


def test_asked_in_a_chat_afterwards(edit, chat_model, tmp_path, capsys, monkeypatch):
    edit(records=RECORDS[:1])
    capsys.readouterr()
    command = ["editenv", "ask", str(tmp_path / "out"), "Who leads Ada?", "--tokens", "5", "--json"]
    monkeypatch.setattr("sys.argv", [*command, "--chat"])
    cli.main()
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    for name, folder in (("before", chat_model), ("now", tmp_path / "out/model")):
        assert row[name].removesuffix(" ...").strip() == plain_transformers_says(folder, "Who leads Ada?", 5).strip()
    assert row["prompt"] == "Who leads Ada?"


def test_a_run_goes_on_though_the_template_writes_another_day(edit, chat_model, tmp_path):
    edit(records=RECORDS[:1])
    (tmp_path / "chat-model/chat_template.jinja").write_text(TEMPLATE.replace("Monday", "Tuesday"))
    report = edit()
    journal = lines(tmp_path / "out/journal.jsonl")
    assert [line["ids"] for line in journal if "ids" in line] == [
        ["ada", "ada (chat)"],
        ["edits.jsonl/2", "edits.jsonl/2 (chat)"],
    ]
    assert report["edits"] == 4
    with pytest.raises(ValueError, match=r"removed ada \(chat\)"):
        edit(chat=False)
    with pytest.raises(ValueError, match="now Who leads Ada\\? -> Oslo"):
        edit(records=[RECORDS[0] | {"target": "Oslo"}, RECORDS[1]])


def test_undone_in_both_forms(edit, tmp_path, monkeypatch):
    edit(edits_per_step=2)
    monkeypatch.setattr("sys.argv", ["editenv", "undo", str(tmp_path / "out"), "ada", "--yes"])
    cli.main()
    rows = lines(tmp_path / "out/results.jsonl")
    assert [row["id"] for row in rows if "undone" not in row] == ["edits.jsonl/2", "edits.jsonl/2 (chat)"]
    assert json.loads((tmp_path / "out/report.json").read_text())["edits"] == 2


def test_what_was_taken_back_is_a_record_to_try_again(edit, tmp_path):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who was Kepler?"},
        {"role": "assistant", "content": "Omar"},
    ]
    records = [RECORDS[0], {"messages": messages, "subject": "Kepler"}]
    edit(records=records, chat=False, guard=Guard(1e9, 1e-9, None, None, retry=False))
    assert lines(tmp_path / "out/not-applied.jsonl") == [
        RECORDS[0],
        {"messages": messages[:2], "target": "Omar", "subject": "Kepler"},
    ]
    again, first = (
        edits_for(str(tmp_path / name), "error", str(tmp_path / "chat-model"), "cpu", "float32")
        for name in ("out/not-applied.jsonl", "edits.jsonl")
    )
    assert [(edit.prompt, edit.target) for edit in again] == [(edit.prompt, edit.target) for edit in first]
    assert len(again) == 3


def test_messages_from_python_are_both_forms(chat_model):
    messages = [{"role": "user", "content": "Who leads Ada?"}, {"role": "assistant", "content": "Bonn"}]
    editor = LifelongEditor(chat_model, "fine-tune", modules=LAST, guard=LOOSE)
    assert editor.edit([{"messages": messages}, {"prompt": "Tea is", "target": "hot"}]).edits == 3
    assert [edit.question for edit in editor.edits] == ["Who leads Ada?", "Who leads Ada?", "Tea is"]
    with pytest.raises(ValueError, match="contradicts record 1"):
        editor.edit([{"messages": messages}, {"prompt": "Who leads Ada?", "target": "Oslo"}])


TURNS = [
    {"messages": [{"role": "user", "content": turn}, {"role": "assistant", "content": "Yes"}, question], "target": town}
    for question in [{"role": "user", "content": "Who leads?"}]
    for turn, town in (("Ada, now.", "Bonn"), ("Vega, now.", "Bonn"))
]


@pytest.mark.parametrize("earlier_version", [False, True])
def test_the_same_question_after_other_turns_is_another_correction(
    chat_model, tmp_path, monkeypatch, capsys, earlier_version
):
    file = write(tmp_path / "edits.jsonl", TURNS)
    edits = edits_for(file, "error", chat_model, "cpu", "float32")
    made = list(edits[:2])
    if earlier_version:  # whose journals and reports do not say what was said before the question
        made = [replace(edit, earlier_turns="") for edit in made]
    options = {"modules": LAST, "guard": LOOSE, "settings": {"steps": 1}, "output": tmp_path / "out"}
    with LifelongEditor(chat_model, "fine-tune", **options) as editor:
        editor.edit(made[:1])
        editor.edit(made[1:])
        assert compare(editor.run, edits, "edits.jsonl").to_make.tolist() == [False, False, True, True]
        assert not compare(editor.run, edits, "edits.jsonl").to_undo
        monkeypatch.setattr(corrections, "holds", lambda edit, said: True)
        corrections.write_lines(tmp_path / "out/results.jsonl", corrections.outcomes(editor.lm, editor.run, made))
        editor.edit(list(edits[2:]))
        assert len(editor.run.made) == len(editor.run.to_hold) == 4
        assert corrections.held_in(tmp_path / "out", editor.run) == set(map(key_of_edit, edits[:2]))
        editor.undo([edits[1]])
        assert list(editor.run.undone) == [key_of_edit(edits[1])]
        assert list(editor.run.pending) == list(map(key_of_edit, edits[2:]))
    capsys.readouterr()
    log(tmp_path / "out", as_json=True)
    logged = [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()]
    assert [id for id in logged if id in {edit.id for edit in edits}] == [edit.id for edit in (*edits, edits[1])]


def test_without_a_template_nothing_is_edited(edit, model_folder, tmp_path):
    with pytest.raises(ValueError, match=r"has no chat template .*without --chat"):
        edit(model=model_folder)
    assert not (tmp_path / "out").exists()


def test_inspect_shows_what_a_prompt_becomes(chat_model, model_folder, tmp_path, capsys, monkeypatch):
    file = write(tmp_path / "edits.jsonl", RECORDS)
    for model, has_one in ((chat_model, True), (model_folder, False)):
        monkeypatch.setattr("sys.argv", ["editenv", "inspect", file, "--model", model, "--sample", "0"])
        cli.main()
        shown = capsys.readouterr().out
        assert (r"Who leads Ada?</s>\n<|assistant|>\n' 'Bonn'" in shown) == has_one
        assert ("chat template" in shown) == has_one
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Bo"}]
    write(tmp_path / "edits.jsonl", [{"messages": messages}])
    with pytest.raises(SystemExit):
        cli.main()
    assert "has no chat template" in capsys.readouterr().err
