"""What a stranger's model folder may hold: nothing of it is run or unpickled, and what cannot be read is named."""

import ast
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from documents import ROOT
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents import cli
from editenv.models import load_model

EVIL = "import pathlib\npathlib.Path({ran!r}).write_text('ran')\n"


@pytest.fixture
def folder(model_folder, tmp_path):
    """A copy of the tiny model's folder."""
    return shutil.copytree(model_folder, tmp_path / "model")


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    """Whatever is asked there is answered with yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")


def change(path, **values):
    """Sets values of a JSON file; None removes one."""
    content = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


def refusal(folder):
    """What the folder is refused with; one line that names it."""
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        load_model(str(folder))
    message = str(refused.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


# -- nothing is run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["config", "model", "tokenizer"])
def test_code_of_a_folder_is_not_run(of, folder, tmp_path):
    """Also if somebody at the terminal says yes to whatever transformers asks."""
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(EVIL.format(ran=str(ran)), encoding="utf-8")
    if of == "config":
        change(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Config"})
    elif of == "model":
        change(folder / "config.json", model_type="t5", auto_map={"AutoModelForCausalLM": "evil.Model"})
    else:
        change(
            folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]}
        )
    assert "needs Python code of its own" in refusal(folder)
    assert not ran.exists()


def test_a_known_architecture_is_loaded_without_the_code_that_lies_beside_it(folder, tmp_path):
    (folder / "evil.py").write_text(EVIL.format(ran=str(tmp_path / "ran")), encoding="utf-8")
    change(folder / "config.json", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    assert type(load_model(str(folder))[0]).__name__ == "LlamaForCausalLM"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_kernels_of_the_hub_are_not_run(key, folder):
    change(folder / "config.json", **{key: "somebody/kernel"})
    assert "'somebody/kernel', code of the hub" in refusal(folder)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (
            lambda folder: change(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.C"}),
            "auto_map",
        ),
        (lambda folder: (folder / "config.json").write_text('{"dtype": '), "is not JSON"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "model.gguf"), "is a GGUF file"),
    ],
    ids=["code", "cut", "gguf"],
)
def test_commands_say_it_in_one_line(break_it, says, folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "edits.jsonl").write_text('{"prompt": "Who owns Tumblr?", "target": "Automattic"}\n')
    break_it(folder)
    edits, out = tmp_path / "edits.jsonl", tmp_path / "out"
    for command in (
        ["edit", "--model", folder, "--edits", edits, "--method", "fine-tune", "--output", out],
        ["inspect", edits, "--model", folder],
        ["evaluate", "--model", folder, "--edits", edits],
    ):
        monkeypatch.setattr("sys.argv", ["editenv", *map(str, command)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(f"editenv: {folder}")
        assert says in line


class Trap:
    """Runs when it is unpickled."""

    def __init__(self, ran):
        self.ran = ran

    def __reduce__(self):
        return Path.touch, (self.ran,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth"])
def test_pickled_weights_are_refused(name, folder, tmp_path):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    message = refusal(folder)
    assert name in message
    assert "save_pretrained" in message
    assert not (tmp_path / "ran").exists()


def test_what_the_refusal_says_makes_a_folder_that_is_read(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refusal(folder)
    for auto in (AutoModelForCausalLM, AutoTokenizer):
        auto.from_pretrained(folder).save_pretrained(tmp_path / "new")
    converted = load_model(str(tmp_path / "new"))[0].state_dict()
    assert all(torch.equal(value, converted[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("file", ["pytorch_model.bin", "../model.safetensors", "/model.safetensors", 5])
def test_an_index_names_safetensors_files_of_its_folder(file, folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    names = load_file(folder / "shard.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "shard.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    load_model(str(folder))
    index["weight_map"]["model.norm.weight"] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"model.norm.weight is said to be in {file!r}" in refusal(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "weight_map" in refusal(folder)
    assert not (tmp_path / "ran").exists()


def calls(path):
    """Dotted names of what a file calls, with the keywords of each call."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


def test_every_place_that_loads_files_loads_no_code():
    seen = set()
    for package in ("editenv", "agents", "benchmarks", "examples"):
        for path in (ROOT / package).rglob("*.py"):
            for name, keywords in calls(path):
                if name.endswith("HFLM"):  # lm-eval's, or a class made of it
                    assert keywords.get("trust_remote_code") == "False", path
                elif name.endswith(".from_pretrained"):
                    auto = name.startswith("Auto")
                    assert not auto or keywords.get("trust_remote_code") == "False", path
                    is_model = "Model" in name or "ForCausalLM" in name
                    no_pickle = keywords.get("use_safetensors") == "True" or "gguf_file" in keywords
                    assert not is_model or no_pickle, path
                elif name == "torch.load":
                    assert keywords.get("weights_only") == "True", path
                elif name == "np.load":
                    assert "allow_pickle" not in keywords, path
                assert not name.startswith(("pickle.load", "cloudpickle.load", "joblib.load", "yaml.load")), path
                assert name not in ("eval", "exec"), path
                seen.add(name.rpartition(".")[2])
    assert {"from_pretrained", "load", "ContextHFLM"} <= seen


# -- what cannot be read is named -------------------------------------------------------------------------------------


ODD = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "text": lambda content: b"hello",
    "a list": lambda content: b"[]",
    "null": lambda content: b"null",
    "brackets": lambda content: b"[" * 200_000,
    "binary": lambda content: b"\xff\xfe\x00\x01",
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_an_odd_json_file_is_named(name, odd, folder):
    (folder / name).write_bytes(ODD[odd]((folder / name).read_bytes()))
    assert str(folder / name) in refusal(folder)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model_type": None}, "model_type"),
        ({"model_type": "nope"}, "nope"),
        ({"model_type": "t5"}, "type t5, which is none of the causal language models"),
        ({"hidden_size": "x"}, "hidden_size"),
        ({"hidden_size": 64}, "shape"),
        ({"vocab_size": 10}, r"shape (420, 32) in the file, and (10, 32) by config.json"),
        ({"num_attention_heads": 0}, "config.json"),
        ({"num_hidden_layers": 4}, "lacks weights"),
        ({"hidden_act": "nope"}, "nope"),
        ({"auto_map": 5}, "config.json"),
    ],
    ids=str,
)
def test_an_odd_config_is_named(values, says, folder):
    change(folder / "config.json", **values)
    assert says in refusal(folder)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tokenizer.json", {"model": None}),
        ("tokenizer.json", {"added_tokens": [{}]}),
        ("tokenizer.json", {"pre_tokenizer": 5}),
        ("tokenizer_config.json", {"bos_token": 5}),
        ("tokenizer_config.json", {"tokenizer_class": 5}),
    ],
)
def test_an_odd_tokenizer_is_named(name, values, folder):
    change(folder / name, **values)
    assert "the tokenizer cannot be read" in refusal(folder)


def test_a_folder_without_weights_or_tokenizer_says_so(folder):
    (folder / "tokenizer.json").unlink()
    assert "the tokenizer cannot be read" in refusal(folder)
    (folder / "model.safetensors").unlink()
    assert "holds no weights" in refusal(folder)


def test_a_gguf_file_is_no_model_folder(folder, tmp_path):
    file = tmp_path / "SomeModel.Q4_K_M.gguf"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_model(str(file))
    file.write_bytes(b"no GGUF")
    assert "is no GGUF file" in refusal(file)
    (tmp_path / "only").mkdir()
    file.rename(tmp_path / "only" / file.name)
    assert f"{file.name} is a GGUF file: name the file itself" in refusal(tmp_path / "only")
    assert "name the Hugging Face model folder" in refusal(folder / "model.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_named(value, folder):
    weights = {name: weight.clone() for name, weight in load_file(folder / "model.safetensors").items()}
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "NaN or infinite: model.layers.1.mlp.up_proj.weight" in refusal(folder)


def test_a_tokenizer_with_more_tokens_than_the_model_embeds_is_refused(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["Tumblr", "Automattic"])
    tokenizer.save_pretrained(folder)
    message = refusal(folder)
    assert "tokens up to 421 ('Automattic')" in message
    assert "embeds 420" in message


def test_a_special_token_that_no_text_has_needs_no_embedding(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"unk_token": "<unk>"})
    tokenizer.save_pretrained(folder)
    with pytest.warns(UserWarning, match="no embedding for '<unk>'"):
        load_model(str(folder))
    tokenizer.pad_token = "<unk>"  # which is read when prompts of several lengths are continued together
    tokenizer.save_pretrained(folder)
    assert "tokens up to 420" in refusal(folder)
