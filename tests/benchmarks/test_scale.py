import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import scale

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 6400,
}


@pytest.mark.parametrize("shape", scale.SHAPES)
def test_parameters_are_those_of_the_model(shape):
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**scale.SHAPES[shape], tie_word_embeddings=False))
    assert scale.parameters(scale.Args(shape)) == sum(p.numel() for p in model.parameters())


def test_everything_is_measured_on_a_model_that_is_gone_afterwards(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(scale.SHAPES, "llama-1b", TINY)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    args = scale.Args(
        "llama-1b",
        modules=("layers.1.mlp.gate_proj", "layers.2.mlp.gate_proj"),
        rank=4,
        edits_per_step=3,
        steps=2,
        horizon=3,
        journaled=2,
        device="cpu",
        out=tmp_path / "scale.json",
    )
    scale.main(args)
    results = json.loads(args.out.read_text())
    assert results["modules"] == {f"model.layers.{i}.mlp.gate_proj": [64, 96] for i in (1, 2)}
    assert results["parameters"] == scale.parameters(args)
    assert results["training"]["horizon"] == 3
    for name in ("ultraedit", "rledit"):
        row = results[name]
        assert 0 < row["act_seconds"] < row["step_seconds"]
        assert min(row["floor_seconds"], row["ratio"]) > 0
    assert results["journaled"]["batch_seconds"] > 0
    assert not any((tmp_path / "temporary").iterdir())
    printed = capsys.readouterr().out
    assert "edit step of 3" in printed
    assert "a trajectory of 3 x 3" in printed
    assert "with guard and journal" in printed


def test_a_model_of_a_folder_stays_and_is_used_again(monkeypatch, tmp_path):
    monkeypatch.setitem(scale.SHAPES, "llama-1b", TINY)
    args = scale.Args(
        "llama-1b", modules=("layers.2.mlp.down_proj",), edits_per_step=2, steps=1, horizon=0, journaled=0
    )
    args.device, args.folder, args.dtype = "cpu", tmp_path / "models", "float32"
    first = scale.measure(args)
    (model,) = args.folder.iterdir()
    written = (model / "config.json").stat().st_mtime_ns
    assert scale.measure(args)["modules"] == first["modules"]
    assert (model / "config.json").stat().st_mtime_ns == written
    assert "training" not in first
    assert "journaled" not in first


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": 0}, "steps must be 1"),
        ({"modules": ("layers.9.mlp.down_proj",)}, "layers.9"),
        ({"preset": "x"}, "'x'"),
        ({"device": "moon"}, "'moon'"),
    ],
)
def test_wrong_arguments_end_before_a_model_is_written(monkeypatch, tmp_path, change, named):
    monkeypatch.setitem(scale.SHAPES, "llama-1b", TINY)
    arguments = {"shape": "llama-1b", "device": "cpu", "folder": tmp_path / "models", "out": tmp_path / "out.json"}
    with pytest.raises(SystemExit, match=named):
        scale.main(scale.Args(**arguments | change))
    assert not list(tmp_path.iterdir())
