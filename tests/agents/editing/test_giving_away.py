"""A model given away: a GGUF file by somebody's converter, and a repository on a hub that is played here."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError
from huggingface_hub.utils import filter_repo_objects

from agents.editing.arguments import EditArgs
from agents.editing.edit_command import edit as run_edit
from agents.editing.giving_away import convert_to_gguf, push_to_hub
from agents.editing.guard import Guard

CONVERTER = """
import pathlib, sys
folder, out, file, kind, dtype = sys.argv[1:]
assert (out, kind) == ("--outfile", "--outtype")
assert pathlib.Path(folder, "model.safetensors").exists()
pathlib.Path(file).write_bytes(b"GGUF" + dtype.encode())
"""


@pytest.fixture
def edit(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "my-model")
    (tmp_path / "edits.jsonl").write_text(json.dumps({"prompt": "The home of Ada is", "target": "Rome"}) + "\n")
    (tmp_path / "convert.py").write_text(CONVERTER)

    def run(**options):
        arguments = {"edits": str(tmp_path / "edits.jsonl"), "output": tmp_path / "out"}
        arguments |= {"model": str(tmp_path / "my-model"), "method": "fine-tune"}
        arguments |= {"modules": ("layers.2.mlp.down_proj",), "guard": Guard(1e9, 1e9, None, None, retry=False)}
        run_edit(EditArgs(**arguments | options))

    return run


@pytest.fixture
def hub(monkeypatch):
    """What the hub is asked, and what lies in the folder at that moment."""
    asked = SimpleNamespace(made=[], uploaded=[], lying=set(), whoami=lambda self: {"name": "me"})

    def create_repo(self, repo_id, private, exist_ok):
        asked.made.append((repo_id, private, exist_ok))
        name = f"me/{repo_id.rpartition('/')[2]}"

        class Repository(str):
            repo_id = name

        return Repository(f"https://hub.example/{name}")

    def upload_folder(self, repo_id, folder_path, commit_message, delete_patterns):
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        asked.uploaded.append((repo_id, files))
        asked.lying = asked.lying - set(filter_repo_objects(asked.lying, allow_patterns=delete_patterns)) | files.keys()

    monkeypatch.setattr(HfApi, "whoami", lambda self: asked.whoami(self))
    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return asked


def test_the_converter_writes_a_file_in_the_models_precision(edit, tmp_path, capsys):
    edit(gguf=tmp_path / "convert.py", dtype="bfloat16")
    assert (tmp_path / "out/model.gguf").read_bytes() == b"GGUFbf16"
    assert "report.json, model.gguf" in capsys.readouterr().out
    edit(dtype="bfloat16")  # saved anew, without one
    assert not (tmp_path / "out/model.gguf").exists()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import sys; sys.exit('Model TinyForCausalLM is not supported\\n')", "Model TinyForCausalLM is not supported"),
        ("", "it wrote no GGUF file"),
        (CONVERTER.replace("GGUF", "no "), "it wrote no GGUF file"),
    ],
)
def test_a_converter_that_fails_costs_nothing_else(edit, tmp_path, capsys, script, reason):
    (tmp_path / "convert.py").write_text(script)
    with pytest.raises(ValueError, match=f"model is saved, but .*could not convert it: {reason}"):
        edit(gguf=tmp_path / "convert.py")
    assert "Saved in" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/report.json").read_text())["edits"] == 1
    assert [path.name for path in (tmp_path / "out").iterdir() if "gguf" in path.name] == []
    (tmp_path / "convert.py").write_text(CONVERTER)
    edit(gguf=tmp_path / "convert.py")
    assert (tmp_path / "out/model.gguf").read_bytes() == b"GGUFf32"
    (tmp_path / "convert.py").write_text(script)
    with pytest.raises(ValueError, match=reason):  # an earlier file stays
        convert_to_gguf(tmp_path / "out/model", tmp_path / "out/model.gguf", tmp_path / "convert.py", "float32")
    assert (tmp_path / "out/model.gguf").read_bytes() == b"GGUFf32"


def test_the_saved_model_is_uploaded_with_its_card(edit, hub, tmp_path, capsys):
    edit(push_to_hub="my-model")
    assert hub.made == [("my-model", True, True)]
    ((name, files),) = hub.uploaded
    assert name == "me/my-model"
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "out/model").iterdir()}
    assert b"| corrections said |" in files["README.md"]
    assert "https://hub.example/me/my-model" in capsys.readouterr().out


@pytest.mark.parametrize("new", ["model.safetensors", "model-00001-of-00001.safetensors", "memory.safetensors"])
def test_of_a_model_that_lay_there_no_weights_stay(hub, tmp_path, new):
    """transformers takes model.safetensors before shards, and load_model a memory before both."""
    of_the_model = {
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model.bin.index.json",
        "memory.safetensors",
        "context.json",
        "base.json",
        "weights/config.json",
    }
    others = {".gitattributes", "LICENSE", "model-q4.gguf", "adapters/mine.safetensors", "model-card.png"}
    hub.lying = of_the_model | others
    (tmp_path / new).write_bytes(b"new")
    push_to_hub(tmp_path, "me/mine")
    assert hub.lying == others | {new}


def test_of_a_memory_no_path_of_this_machine_is_uploaded(edit, hub, tmp_path):
    edit(method="grace", push_to_hub="me/mine")
    saved = tmp_path / "out/model"
    here = json.loads((saved / "base.json").read_text())
    assert here["model"] == str(tmp_path / "my-model"), "with which it is loaded here"
    ((_, files),) = hub.uploaded
    assert json.loads(files["base.json"]) == here | {"model": "my-model"}
    assert {"base.json", "memory.safetensors", "README.md"} <= files.keys() == {path.name for path in saved.iterdir()}
    assert not any(str(tmp_path).encode() in of_file for of_file in files.values())


def test_a_memory_is_not_converted_and_that_is_said_first(edit, tmp_path):
    with pytest.raises(ValueError, match=r"--gguf.*'grace' puts a memory beside"):
        edit(method="grace", gguf=tmp_path / "convert.py")
    assert not (tmp_path / "out").exists()


def test_what_would_fail_afterwards_is_refused_before(edit, hub, tmp_path):
    def nobody(self):
        raise LocalTokenNotFoundError("Token is required")

    hub.whoami = nobody
    for options, problem in (
        ({"push_to_hub": "me/my-model"}, "nobody is logged in .*hf auth login.*: Token is required"),
        ({"push_to_hub": "my model"}, "'my model' is no name of a repository"),
        ({"push_to_hub": "me/my-model", "save_model": False}, "leave --no-save-model out"),
        ({"gguf": tmp_path / "nowhere.py"}, r"nowhere\.py is not there; name the convert_hf_to_gguf\.py"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=problem):
            edit(**options)
    assert not (tmp_path / "out").exists()
    assert hub.made == []


def test_a_hub_that_refuses_leaves_the_model(edit, hub, tmp_path, monkeypatch, capsys):
    def full(self, **_):
        raise OSError("403 Forbidden\nStorage limit reached")

    monkeypatch.setattr(HfApi, "upload_folder", full)
    with pytest.raises(ValueError, match=r"model is saved, but could not be put on the hub as me/x.*: 403 Forbidden$"):
        edit(push_to_hub="me/x")
    assert (tmp_path / "out/model/README.md").exists()
    assert "Saved in" in capsys.readouterr().out
