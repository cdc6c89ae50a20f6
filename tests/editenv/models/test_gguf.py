"""GGUF files as models: a small Llama is written with the package gguf, and read as a user would."""

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

import editenv  # noqa: F401  # registers the environment
from agents.editing.saving import save_model
from editenv.models import load_model
from editenv.models.gguf import cache_folder, dequantise, dequantised_folder

gguf = pytest.importorskip("gguf")

VOCABULARY, WIDTH, HIDDEN, LAYERS, HEADS = 96, 32, 64, 4, 4


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIFELONGEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path):
    """A GGUF file of a small Llama: norms in float32, matrices of 8 bits."""
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(VOCABULARY)
    tokens = ["<s>", "</s>", "<|endoftext|>", *(chr(33 + i) for i in range(VOCABULARY - 5)), "Ġ", "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (VOCABULARY - 3)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    random = np.random.default_rng(0)

    def matrix(name, rows, columns):
        values = (random.standard_normal((rows, columns)) * 0.3).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    matrix("token_embd.weight", VOCABULARY, WIDTH)
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{layer}.{name}.weight", WIDTH, WIDTH)
        matrix(f"blk.{layer}.ffn_gate.weight", HIDDEN, WIDTH)
        matrix(f"blk.{layer}.ffn_up.weight", HIDDEN, WIDTH)
        matrix(f"blk.{layer}.ffn_down.weight", WIDTH, HIDDEN)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(WIDTH, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_model_is_what_transformers_reads_from_the_file(file, cache):
    model, tokenizer = load_model(str(file))
    reference = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    ids = tokenizer("abc", return_tensors="pt").input_ids
    assert torch.equal(model(ids).logits, reference(ids).logits)
    assert (
        tokenizer("a b!").input_ids == AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)("a b!").input_ids
    )
    assert [path.parent for path in cache.rglob("config.json")] == [dequantised_folder(file)]


def test_it_is_dequantised_once_and_again_when_the_file_changes(file):
    first = dequantised_folder(file)
    load_model(str(file))
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert dequantise(file, first) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    file.touch()
    assert dequantised_folder(file) != first


def test_an_environment_edits_it_and_saves_a_plain_folder(file, tmp_path):
    import gymnasium as gym

    (tmp_path / "edits.jsonl").write_text('{"prompt": "ab", "target": "cd"}\n{"prompt": "ba", "target": "dc"}\n')
    env = gym.make(
        "LifelongEdit-v0",
        model=str(file),
        dataset=str(tmp_path / "edits.jsonl"),
        split="all",
        edits_per_step=1,
        horizon=2,
    )
    env.reset(seed=0)
    env.step({name: np.full(space.shape, 0.01, np.float32) for name, space in env.action_space.items()})
    lm = env.unwrapped.language_model
    save_model(lm, tmp_path / "saved", {}, str(file))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(saved(ids).logits, lm.model(ids).logits)


def test_a_damaged_file_is_named_and_leaves_nothing(file, cache):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"small\.gguf"):
        load_model(str(file))
    assert list(cache.rglob("*.safetensors")) == []
    assert list(cache.rglob("*.partial")) == []


def test_a_full_disk_is_named_and_leaves_nothing(file, cache, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(OSError, match=rf"{dequantised_folder(file)}.*No space left"):
        load_model(str(file))
    assert list((cache / "gguf").iterdir()) == []


def test_without_the_package_the_error_says_how_to_get_it(file, monkeypatch):
    monkeypatch.setattr("transformers.modeling_gguf_pytorch_utils.is_gguf_available", lambda *_: False)
    with pytest.raises(ValueError, match=r"lifelongedit\[gguf\]"):
        load_model(str(file))


def test_the_cache_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv("LIFELONGEDIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "lifelongedit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "lifelongedit"
