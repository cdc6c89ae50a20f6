"""The commands that list what there is."""

import json
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest

from agents import cli, rows
from agents.hypernetwork.arguments import Args, with_preset
from agents.hypernetwork.config import PolicyConfig, TrainConfig
from agents.registry import make_agent
from agents.settings import read_environment, read_settings, settings_path
from editenv.models.modules import PRESETS

SEARCHED = read_settings("rledit-p", "smollm2-135m")["config"]

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
    assert all(set(row) == {"about", "needs", "changes"} and row["about"] for row in found.values())
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


def test_a_terminal_of_eighty_characters_breaks_no_word_of_the_list_of_rows(said, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    lines = said("methods").splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(rows.ROWS)
    words = " ".join(lines).split()
    assert words == " ".join(f"{name} {row.about}" for name, row in rows.ROWS.items()).split()


def test_models_are_listed_with_the_papers_presets(said):
    found = json.loads(said("models", "--json"))
    assert {"atlas", "real"} < set(found)
    assert found["mistral-7b/zsre"] == {
        "modules": ["layers.17.mlp.down_proj", "layers.18.mlp.down_proj"],
        "rank": 1024,
        "locality": 0.8,
        "methods": "gradients",
        "source": "RLEdit, Table 3",
    }
    assert set(PRESETS) < set(found)
    shown = said("models")
    assert shown.index("RLEdit, Table 3") < shown.index("mistral-7b/zsre")
    assert shown.index("by rule, not run here") < shown.index("qwen3-0.6b/gradients")


def test_a_preset_of_methods_that_look_up_is_not_trained_with(tmp_path):
    args = Args(output=tmp_path, preset="qwen3-0.6b/look-up")
    with pytest.raises(ValueError, match=r"preset: qwen3-0\.6b/look-up is for methods .* take qwen3-0\.6b/gradients"):
        with_preset(args)
    assert with_preset(replace(args, preset="qwen3-0.6b/gradients")).train.policy.rank == 512


def test_the_searched_preset_is_the_settings_of_the_row(tmp_path):
    args = with_preset(Args(output=tmp_path, preset="smollm2-135m/counterfact"))
    config = TrainConfig(**{name: value for name, value in SEARCHED.items() if name != "policy"})
    for name in ("locality", "preconditioner", "epsilon", "learning_rate", "scalar_learning_rate"):
        assert getattr(args.train, name) == getattr(config, name)
    assert args.train.policy == replace(PolicyConfig(), **SEARCHED["policy"])
    place = read_environment("rledit-p", "smollm2-135m")
    assert (list(args.modules), args.observed_tokens) == (place["modules"], place["observed_tokens"])
    plain = with_preset(Args(output=tmp_path, preset="mistral-7b/zsre"))
    assert plain.train == replace(TrainConfig(), locality=0.8, policy=PolicyConfig(rank=1024)), (
        "and no more than Table 3"
    )


def test_modules_and_a_preset_are_not_both_taken(monkeypatch, capsys, tmp_path):
    (tmp_path / "edits.jsonl").write_text('{"prompt": "The home of Ada is", "target": "Rome"}\n')
    words = ["edit", "--edits", str(tmp_path / "edits.jsonl"), "--output", str(tmp_path / "out")]
    words += ["--preset", "mistral-7b/zsre", "--modules", "layers.3.mlp.down_proj"]
    monkeypatch.setattr("sys.argv", ["editenv", *words])
    with pytest.raises(SystemExit):
        cli.main()
    assert "give --modules or --preset" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_row_is_explained(said):
    shown = said("methods", "memit-seq")
    assert "Meng et al. 2023" in shown
    assert "agents.baselines.memit:MEMIT" in shown
    assert "subject" not in shown.split("hyperparameter")[0].split("needs")[1].splitlines()[0]  # it looks at "last"
    lines = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.strip()}
    assert lines["cache_keys"] == ["True", "row"]
    assert lines["value.token"] == ["last", "settings"]
    assert lines["value.kl"][1] in ("default", "settings")
    found = json.loads(said("methods", "memit-seq", "--json"))
    for row in found["hyperparameters"]:
        assert lines[row["name"]] == [str(row["value"]), row["source"]]
    assert found["needs"] == ["model", "text"]


@pytest.mark.parametrize("where", ["smollm2-135m", "{tmp_path}/mine"])
def test_a_row_with_the_settings_of_a_folder_is_explained(said, tmp_path, where):
    content = json.loads(settings_path("fine-tune", "smollm2-135m").read_text())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "fine-tune.json").write_text(json.dumps(content))
    folder = where.format(tmp_path=tmp_path)
    shown = said("methods", f"fine-tune@{folder}")
    assert f"{folder}/fine-tune.json: {content['chosen']}" in shown
    assert ("agents/settings" in shown) == (folder == "smollm2-135m")
    lines = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.strip()}
    assert lines["steps"] == [str(content["settings"]["steps"]), "settings"]
    assert lines["environment.modules"] == [str(content["environment"]["modules"]), "settings"]
    assert "embedded" not in shown
    found = json.loads(said("methods", f"fine-tune@{folder}", "--json"))
    assert found["settings"] == f"{folder}/fine-tune"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mimit", "unknown row 'mimit'; is it memit"),
        ("xyzzy", "unknown row 'xyzzy'; `editenv methods` lists all of them"),
        ("mimit@smollm2-135m", "unknown row 'mimit'; is it memit"),
        ("no-edit@smollm2-135m", "no-edit takes no settings"),
        ("kn@nowhere", "no settings of 'kn' in 'nowhere'"),
    ],
)
def test_a_row_that_is_not_there_is_named(monkeypatch, capsys, name, words):
    monkeypatch.setattr("sys.argv", ["editenv", "methods", name])
    with pytest.raises(SystemExit):
        cli.main()
    assert words in capsys.readouterr().err


def test_help_and_usage_errors_come_without_importing_torch():
    """One after the other in one fresh interpreter."""
    script = """
import contextlib
import io
import sys
from editenv.__main__ import main
for words, expected in [
    (["--help"], 0), (["edit", "--help"], 0), (["train", "--help"], 0), (["inspect", "--help"], 0),
    (["methods"], 0), (["models"], 0), ([], 2), (["edit"], 2), (["edit", "--no-such-option"], 2),
    (["train", "--output", "x", "--train.horizon", "many"], 2), (["reverse"], 2),
]:
    sys.argv = ["editenv", *words]
    said = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    assert code == expected, (words, code)
    assert said.getvalue(), words
    heavy = {"torch", "transformers", "datasets", "pyarrow"} & sys.modules.keys()
    assert not heavy, (words, heavy)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr


def test_old_options_of_the_command_line_are_taken_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["editenv", "edit", "--edits", str(tmp_path / "none.jsonl"), "--output", "out",
                                     "--end-of-answer"])  # fmt: skip
    with pytest.raises(SystemExit):
        cli.main()
    error = capsys.readouterr().err
    assert "--end-of-answer is now called --train-eos" in error
    assert "none.jsonl" in error


def test_a_warning_is_a_line_for_people(monkeypatch, capsys):
    """Not the path and the code of the line that warned."""

    def warn(args):
        warnings.warn("the layers cannot be run from the middle \x1b[31m", stacklevel=2)

    monkeypatch.setitem(cli.COMMANDS, cli.ModelsArgs, warn)
    monkeypatch.setattr(sys, "argv", ["editenv", "models"])
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        cli.main()
    assert capsys.readouterr().err == "editenv: the layers cannot be run from the middle \\x1b[31m\n"
