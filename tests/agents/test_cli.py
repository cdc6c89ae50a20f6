"""The commands that list what there is."""

import json

import pytest

from agents import cli
from agents.registry import make_agent
from editenv.models.modules import PRESETS

# The rows of the paper's tables, UltraEdit and StableEdit, and the controls: names that others' scripts rely on.
ROWS = [
    "fine-tune",
    "ft-l",
    "lora",
    "mend",
    "mend-retrained",
    "mend-rledit",
    "malmen",
    "malmen-retrained",
    "malmen-rledit",
    "dafnet",
    "rome",
    "memit",
    "prune",
    "rect",
    "alphaedit",
    "ultraedit",
    "stableedit",
    "rledit",
    "untrained",
    "no-edit",
]


@pytest.fixture
def said(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr("sys.argv", ["editenv", *words])
        cli.main()
        return capsys.readouterr().out

    return run


def test_methods_are_listed_with_what_they_need(said):
    found = json.loads(said("methods", "--json"))
    assert set(ROWS) <= set(found)
    assert all(set(row) == {"about", "needs"} and row["about"] for row in found.values())
    assert {
        name: found[name]["needs"] for name in ("no-edit", "ultraedit", "fine-tune", "rledit", "rledit-p", "memit")
    } == {
        "no-edit": [],
        "ultraedit": ["model"],
        "fine-tune": ["model"],
        "rledit": ["edits"],
        "rledit-p": ["edits", "text"],
        "memit": ["model", "text"],  # on the embedded model it looks at the prompt's last token, and needs no subject
    }
    for name, row in found.items():
        assert list(make_agent(name).needs) == row["needs"]
    lines = said("methods").splitlines()
    assert [line.split()[0] for line in lines] == list(found)
    assert all(row["about"] in line for row, line in zip(found.values(), lines, strict=True))


def test_models_are_listed_with_the_papers_presets(said):
    found = json.loads(said("models", "--json"))
    assert {"atlas", "real"} < set(found)
    assert found["mistral-7b/zsre"] == {
        "modules": ["layers.17.mlp.down_proj", "layers.18.mlp.down_proj"],
        "rank": 1024,
        "locality": 0.8,
    }
    assert set(PRESETS) < set(found)
    assert "mistral-7b/zsre" in said("models")


def test_modules_and_a_preset_are_not_both_taken(monkeypatch, capsys, tmp_path):
    (tmp_path / "edits.jsonl").write_text('{"prompt": "The home of Ada is", "target": "Rome"}\n')
    words = ["edit", "--edits", str(tmp_path / "edits.jsonl"), "--output", str(tmp_path / "out")]
    words += ["--preset", "mistral-7b/zsre", "--modules", "layers.3.mlp.down_proj"]
    monkeypatch.setattr("sys.argv", ["editenv", *words])
    with pytest.raises(SystemExit):
        cli.main()
    assert "give --modules or --preset" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
