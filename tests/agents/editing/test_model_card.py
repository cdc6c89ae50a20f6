"""What a saved model says of itself: a card that the hub reads, and nothing of the machine it was made on."""

import json
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard

from agents import cli
from agents.editing.arguments import EditArgs
from agents.editing.edit_command import edit as run_edit
from agents.editing.guard import Guard
from agents.editing.model_card import public_method, public_name, text

LAST = ("model.layers.2.mlp.down_proj",)
ABOUT = {"base": "someone/some-model", "method": "memit-seq", "edits": 12, "batches": 1, "modules": ["layers.5.mlp"]}


@pytest.fixture
def run(model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder, tmp_path / "my-model")
    rows = [{"prompt": f"The home of number {i} is", "target": "Rome", "subject": f"number {i}"} for i in range(3)]
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def edit(**options):
        arguments = {"edits": "edits.jsonl", "output": tmp_path / "out", "model": str(tmp_path / "my-model")}
        arguments |= {"method": "fine-tune", "modules": LAST, "guard": Guard(1e9, 1e9, None, None, retry=False)}
        run_edit(EditArgs(**arguments | options))
        return json.loads((tmp_path / "out/report.json").read_text())

    return edit


def files_that_name(folder, words):
    return [path.name for path in folder.rglob("*") if path.is_file() and words.encode() in path.read_bytes()]


def test_the_card_has_what_the_report_has(run, tmp_path):
    report = run()
    card = ModelCard.load(tmp_path / "out/model/README.md")
    assert card.data.library_name == "transformers"
    assert "my-model" in card.text
    for row in (
        "| method | fine-tune |",
        "| corrections made | 3 |",
        "| edited modules | model.layers.2.mlp.down_proj |",
        f"| corrections said | {report['hold']} of 3 |",
        f"| unrelated answers changed | {report['unrelated']['changed']} of {report['unrelated']['asked']} |",
        f"{report['drift']['perplexity_before']:.4g} before, {report['drift']['perplexity']:.4g} after",
    ):
        assert row in card.text
    assert "editenv revert --model THIS_FOLDER" in card.text
    assert files_that_name(tmp_path / "out/model", str(tmp_path)) == []
    # A second run replaces the folder, card and all.
    run()
    assert (tmp_path / "out/model/README.md").exists()


def test_a_card_of_a_broken_model_says_so():
    report = {"hold": 11, "asked": 12, "unrelated": {"asked": 40, "changed": 8, "by_kind": {}}, "lost": ["a"]}
    report |= {"perplexity_factor": 1.8, "drift": {"perplexity_before": 71.0, "perplexity": 129.0}}
    card = text(ABOUT, report)
    assert "| corrections said | 11 of 12 |" in card
    assert "**8 of 40 unrelated answers changed" in card
    assert "perplexity +80%.**" in card
    assert "1 earlier corrections do not hold any more" in card
    assert "report.html" not in card
    forms = {"plain": {"asked": 6, "hold": 6}, "chat": {"asked": 6, "hold": 5}}
    assert "| corrections said, in a chat | 5 of 6 |" in text(ABOUT, report | {"forms": forms})


def test_the_hub_reads_the_base_model_where_it_has_one():
    def metadata(base):
        return yaml.safe_load(text(ABOUT | {"base": base}).split("---")[1])

    assert metadata("someone/some-model")["base_model"] == "someone/some-model"
    assert "base_model" not in metadata("my-model")
    assert "the model was saved, and not asked" in text(ABOUT)


def test_names_without_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/mine").mkdir(parents=True)
    for path in (str(tmp_path / "models/mine"), "models/mine", "./models/mine", "models/mine/", "~/models/mine"):
        assert public_name(path) == "mine"
    assert public_name("/nowhere/mine") == "mine"
    assert public_name("someone/mine") == "someone/mine"
    assert public_method(f"{tmp_path}/own.py:Own") == "own.py:Own"
    assert public_method("memit-seq") == "memit-seq"
    assert public_method(f"{tmp_path}/a@b/own.py:Own") == "own.py:Own"
    assert public_method(f"memit@{tmp_path}/mine") == "memit@mine"
    assert public_method(f"{tmp_path}/own.py:Own@{tmp_path}/mine") == "own.py:Own@mine"


def test_applied_and_reverted_models_have_cards_too(run, tmp_path, monkeypatch):
    run(save_model=False)
    assert not (tmp_path / "out/model").exists()
    deltas = str(tmp_path / "out/deltas.safetensors")
    for command, model, output in (
        ("apply", "my-model", "again"),
        ("revert", "again", "back"),
    ):
        words = ["editenv", command, "--model", str(tmp_path / model), "--deltas", deltas, "--output", output]
        monkeypatch.setattr("sys.argv", words)
        cli.main()
    assert "# my-model, corrected" in (tmp_path / "again/README.md").read_text()
    assert "| deltas | deltas.safetensors |" in (tmp_path / "again/README.md").read_text()
    assert "# again, with its corrections taken away" in (tmp_path / "back/README.md").read_text()
    assert files_that_name(tmp_path / "again", str(tmp_path)) + files_that_name(tmp_path / "back", str(tmp_path)) == []
