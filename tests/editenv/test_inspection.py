import json
import subprocess
import sys
from pathlib import Path

import pytest

from editenv.data import atlas
from editenv.inspection import inspect

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder))


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_counts_and_traps(tmp_path):
    known = [f for f in atlas.facts() if f.relation == "capital" and f.role.endswith("locality")][:4]
    prompt = atlas.phrasings()["capital"].prompts[0]
    rows = [
        {
            "prompt": prompt.format(f.subject),
            "target": target,
            "old_answer": old,
            "subject": f.subject,
            "rephrases": ["Well"],
        }
        for f, target, old in zip(
            known, ("Paris", "Rome", known[2].object, "Oslo"), (known[0].object, "x", "y", "z"), strict=True
        )
    ]
    rows[0]["locality"] = [{"prompt": rows[1]["prompt"], "answer": "x"}]
    rows[1]["rephrases"] = [rows[1]["prompt"]]
    rows[3]["subject"] = "somebody else"
    rows += [rows[0], rows[1] | {"target": "Bonn"}, {"prompt": "word " * 400, "target": "x"}]
    train = write(tmp_path / "train.jsonl", [rows[0] | {"target": "Bern"}, rows[1]])
    inspection = inspect(str(write(tmp_path / "edits.jsonl", rows)), train, sample=10)
    assert (inspection.format, inspection.records, inspection.edits) == ("own", 7, 4)
    assert inspection.left_out == {"duplicate": 1, "conflict": 1, "length": 1}
    assert (inspection.subjects, inspection.rephrases, inspection.locality_prompts) == (4, 4, 1)
    assert inspection.asked == 4
    assert inspection.already_believed == 25  # the third asks for what is the case
    assert inspection.old_answer_known == 25  # the first's old answer is the true one
    assert inspection.overlap == {"prompts": 2, "contradicting": 1, "subjects": 2}
    notes = "\n".join(inspection.notes)
    assert "1 of 1 locality prompts are edited" in notes
    assert "1 rephrases are the prompt itself" in notes
    assert "1 edits (record 4) name a subject that does not occur" in notes
    assert "2 edits are about subjects of the training file" in notes


def test_what_stands_between_prompt_and_target_is_shown(tmp_path):
    rows = [
        {"prompt": "The boss of Ada is", "target": "Bo"},
        {"prompt": "Question: who leads Ada?\nAnswer:\n", "target": "Bo"},
        {"prompt": "Ada costs $", "target": "5"},
        {"prompt": "Ada speaks", "target": " Latin"},
    ]
    inspection = inspect(str(write(tmp_path / "edits.jsonl", rows)), sample=0)
    assert {name: count for name, (count, _) in inspection.borders.items()} == {
        "a space": 2, "'\\n', as written,": 1, "nothing": 1,
    }  # fmt: skip
    assert inspection.borders["nothing"][1] == "record 3: 'Ada costs $' '5'"


def test_when_every_record_is_bad_all_reasons_are_given(tmp_path, command_line):
    path = tmp_path / "edits.csv"
    path.write_text("prompt,target,old_answer\nA is,B,B\nC is,,\nD is,E,E\nF is,G,G\nH is,I,I\n", encoding="utf-8")
    inspection = inspect(str(path), sample=0)
    assert (inspection.records, inspection.edits, inspection.left_out) == (5, 0, {"unchanged": 4, "field": 1})
    words = "\n".join(inspection.reasons)
    assert "4 unchanged:" in words
    assert "record 1 (line 2), field 'target': equals the old answer" in words
    assert "and 1 more" in words
    assert "record 2 (line 3), field 'target': is empty" in words
    shown, _, _ = command_line("inspect", path, "--sample", "0")
    assert "record 2 (line 3), field 'target': is empty" in shown


def test_subjects_that_are_missing_from_their_prompts_are_named(tmp_path):
    rows = [{"prompt": f"Number {i} is", "target": "x", "subject": "somebody"} for i in range(5)]
    notes = "\n".join(inspect(str(write(tmp_path / "edits.jsonl", rows)), sample=0).notes)
    assert "5 edits (record 1, record 2, record 3, ...) name a subject that does not occur" in notes


def test_what_would_control_the_terminal_is_spelled_out(tmp_path, command_line):
    rows = [{"prompt": "The boss of \x1b[31mAda is", "target": "B\x00"}, {"prompt": "A\x1b[2J", "target": 3}]
    (tmp_path / "an\x1b[1mswer").mkdir()
    file = write(tmp_path / "an\x1b[1mswer" / "e\x1b[5mdits.jsonl", rows)
    shown, said, code = command_line("inspect", file, "--sample", "0")
    assert code == 0, said
    assert "\\x1b[5m" in shown
    assert not {"\x1b", "\x00"} & set(shown + said)


def test_the_command(tmp_path, command_line):
    path = write(tmp_path / "edits.jsonl", [{"prompt": "The boss of Ada is", "target": "Bo"}])
    words = [sys.executable, "-m", "agents", "inspect", str(path), "--sample", "0", "--json"]
    printed = json.loads(subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120).stdout)
    assert (printed["records"], printed["edits"], printed["already_believed"]) == (1, 1, None)
    shown, _, code = command_line("inspect", path, "--sample", "0")
    assert code == 0
    assert "usable edits" in shown
    assert "no edit has a rephrase: generalization cannot be measured" in shown


@pytest.mark.parametrize("content", ["[{", None])
def test_errors_are_one_line(tmp_path, command_line, content):
    path = tmp_path / "edits.json"
    if content is not None:
        path.write_text(content)
    shown, said, code = command_line("inspect", path)
    assert code == 1
    assert shown == ""
    assert said.startswith("editenv: ")
    assert "edits.json" in said
    assert len(said.splitlines()) == 1
