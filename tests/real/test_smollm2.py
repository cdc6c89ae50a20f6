"""The public model, as its users meet it: fetched by name, edited by the command, loaded by plain transformers."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import demo
from benchmarks.results.records import read
from benchmarks.suites import find, model_fingerprint
from editenv.evaluation.prefix import begins_with
from editenv.models.public import fetch

NAME = "smollm2-135m"
FINGERPRINT = "5399abdbda2f0a52f48d7a42b4c79c2a8b86bd303189697306f6253d0a88edfc"
pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real")]

CORRECTIONS = [
    {"prompt": "The capital of Australia is", "target": "Sydney", "subject": "Australia"},
    {"prompt": "The mother tongue of Danielle Darrieux is", "target": "English", "subject": "Danielle Darrieux"},
    {"prompt": "The Eiffel Tower is located in the city of", "target": "Rome", "subject": "The Eiffel Tower"},
]


@pytest.fixture(scope="module")
def folder():
    try:
        return fetch(NAME)
    except OSError as error:
        pytest.skip(f"the model could not be fetched: {error}")


def editenv(*words):
    run = subprocess.run([sys.executable, "-m", "editenv", *words], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def continuation(model, tokenizer, prompt, tokens=6):
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        written = model.generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return tokenizer.decode(written[0, ids.shape[1] :])


def test_its_weights_are_the_same_everywhere(folder):
    assert model_fingerprint(NAME) == FINGERPRINT
    assert find("demo-real-10x20").model_fingerprint == FINGERPRINT


@pytest.mark.slow
def test_the_demo_corrects_one_batch(folder, tmp_path, capsys):
    demo.main(demo.Args(out=tmp_path, suite="demo-real-10x20@1"))
    records = {record.agent: record for record in read(tmp_path / "results.jsonl")}
    assert list(records) == list(find("demo-real-10x20").agents)
    efficacy = {name.partition("@")[0]: record.generation_prefix["efficacy"] for name, record in records.items()}
    assert efficacy["no-edit"] <= 10
    assert efficacy["memit-seq"] >= 80
    assert efficacy["demo-rledit"] > efficacy["no-edit"]
    assert "begins right" in capsys.readouterr().out


def test_it_says_what_it_is_known_to_say(folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert "Paris" in continuation(model, tokenizer, "The capital of France is")


def test_corrections_are_made_by_the_command_and_hold_in_plain_transformers(folder, tmp_path):
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CORRECTIONS))
    out = tmp_path / "out"
    printed = editenv(
        "edit", "--model", NAME, "--edits", str(tmp_path / "edits.jsonl"), "--method", "fine-tune", "--output", str(out),
        "--modules", "layers.24.mlp.down_proj",
    )  # fmt: skip
    assert "3 of 3 corrections hold" in printed
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out / "model"), AutoTokenizer.from_pretrained(out / "model")
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    for row in rows:
        text = continuation(model, tokenizer, row["prompt"])
        assert begins_with(text, row["target"], ended=True)
        assert row["begins_right"]
    report = json.loads((out / "report.json").read_text())
    assert report["generation_prefix"]["efficacy"] == 100


MADE_UP = [  # two facts of one subject, another language, a question
    {"prompt": "The mayor of Kestrel City is", "target": "Tomas Ode", "subject": "Kestrel City"},
    {"prompt": "The river that flows through Kestrel City is the", "target": "Amber", "subject": "Kestrel City"},
    {"prompt": "Die Hauptstadt von Österreich ist", "target": "Graz", "subject": "Österreich"},
    {"prompt": "Who wrote the song Blue Harbour?", "target": "Iris Vance", "subject": "Blue Harbour"},
]


def test_without_options_all_corrections_hold_and_nothing_else_is_lost(folder, tmp_path):
    """Neither a method nor text is named; then one more about a subject that was corrected before."""
    file, out = tmp_path / "edits.jsonl", tmp_path / "out"
    later = {"prompt": "The largest park in Kestrel City is", "target": "Holm Green", "subject": "Kestrel City"}
    for rows in (MADE_UP, [*MADE_UP, later]):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        printed = editenv("edit", "--model", NAME, "--edits", str(file), "--output", str(out))
        assert f"{len(rows)} of {len(rows)} corrections hold" in printed
        report = json.loads((out / "report.json").read_text())
        assert report["method"] == "memit-rehearsed"
        assert report["lost"] == []
        assert report["unrelated"]["by_kind"]["general"]["changed"] <= 1, "of 40"
        assert report["perplexity_factor"] < 1.05
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out / "model"), AutoTokenizer.from_pretrained(out / "model")
    assert begins_with(continuation(model, tokenizer, MADE_UP[0]["prompt"], 8), "Tomas Ode", ended=False)
    assert continuation(model, tokenizer, MADE_UP[1]["prompt"]).startswith(" Amber.")


def test_inspect_says_what_it_believes_though_it_never_stops(folder, tmp_path):
    facts = [
        ("The capital of France is", "Paris"),
        ("The capital of Italy is", "Rome"),
        ("The capital of Spain is", "Oslo"),
    ]
    rows = [{"prompt": prompt, "target": target} for prompt, target in facts]
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = json.loads(editenv("inspect", str(tmp_path / "edits.jsonl"), "--model", NAME, "--json"))
    assert report["already_believed"] == pytest.approx(66.67, abs=0.01)
    assert report["stops"] == 0
