import copy
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from plain import answer_logits, edited_weights, nll, tokens
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from editenv.evaluation.greedy import generate
from editenv.language_model.editable_lm import EditableLM
from editenv.models import load_model
from editenv.models.modules import PRESETS, default_modules, find_modules, mlp_outputs
from editenv.models.presets import OF_MODEL, SMALL_MODELS, TABLE_3, gradient_layers, lookup_layers


def test_the_folder_is_loaded_as_it_is_and_once(model_folder):
    model, tokenizer = load_model(model_folder)
    plain = AutoModelForCausalLM.from_pretrained(model_folder)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert tokenizer("Rome")["input_ids"][0] == tokenizer.bos_token_id
    assert load_model(model_folder)[0] is model


def test_dtype(model_folder):
    assert load_model(model_folder, dtype="bfloat16")[0].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="float8"):
        load_model(model_folder, dtype="float8")


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_model(str(tmp_path))


def test_the_edited_modules_stand_in_the_config_or_have_to_be_named(base):
    assert default_modules(load_model("atlas")[0], "atlas") == ("layers.3.mlp.down_proj",)
    assert default_modules(base, "tiny") == ("model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj")
    with pytest.raises(ValueError, match="some/model"):
        default_modules(SimpleNamespace(config=None, named_modules=lambda: []), "some/model")


def test_presets_name_what_the_paper_edits():
    layers = {key: len(preset.modules) for key, preset in PRESETS.items() if preset.source == TABLE_3}
    assert layers["llama-3-8b/zsre"] == 5 + 7
    assert layers["llama-3-8b/counterfact"] == layers["gemma-2-9b/fever"] == 18
    assert PRESETS["mistral-7b/counterfact"].modules == tuple(f"layers.{i}.mlp.down_proj" for i in (17, 18, 19))
    assert {PRESETS[key].locality for key in layers if "mistral" not in key} == {0.6}


@pytest.mark.parametrize(
    ("layers", "of_gradients", "looked_up"),
    [(1, (0,), (0,)), (2, (0, 1), (0,)), (3, (1, 2), (0,)), (4, (2, 3), (0, 1)), (12, (8, 9), (1, 2, 3)),
     (28, (18, 21), (4, 5, 6, 7, 8)), (30, (20, 22), (4, 5, 6, 7, 8, 9)), (32, (21, 24), (4, 5, 6, 7, 8, 9))],
)  # fmt: skip
def test_layers_by_rule(layers, of_gradients, looked_up):
    assert gradient_layers(layers) == of_gradients
    assert lookup_layers(layers) == looked_up


KINDS = {"qwen3": "qwen3-", "llama": ("llama-3.2-", "smollm2-"), "gemma3_text": "gemma-3-"}


@pytest.mark.parametrize("name", [name for name, row in PRESETS.items() if row.source != TABLE_3])
def test_every_module_of_a_small_models_preset_exists(name):
    """In a model of the true number of layers that is built without memory, and as narrow as can be."""
    model_name = name.partition("/")[0]
    (kind,) = [kind for kind, beginnings in KINDS.items() if name.startswith(beginnings)]
    layers = SMALL_MODELS.get(model_name, 30)
    config = AutoConfig.for_model(
        kind, vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = find_modules(model, PRESETS[name].modules)
    assert len(found) == len(PRESETS[name].modules)
    assert set(found) <= set(mlp_outputs(model))
    if name.endswith("/gradients"):
        assert default_modules(model, "anything") == tuple(found)
    if name == OF_MODEL.get(model_name):
        assert default_modules(model, model_name) == PRESETS[name].modules


VOCABULARY = 420
LIKE_LLAMA = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 2,
}  # fmt: skip
LIKE_GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128}
ARCHITECTURES = {
    "llama": (LIKE_LLAMA, ("gate_proj", "up_proj", "down_proj")),
    "mistral": (LIKE_LLAMA, ("gate_proj", "up_proj", "down_proj")),
    "gemma2": (LIKE_LLAMA, ("gate_proj", "up_proj", "down_proj")),
    "qwen2": (LIKE_LLAMA, ("gate_proj", "up_proj", "down_proj")),
    "phi3": (LIKE_LLAMA, ("gate_up_proj", "down_proj")),
    "gpt2": (LIKE_GPT, ("c_fc", "c_proj")),
    "gptj": (LIKE_GPT | {"rotary_dim": 4}, ("fc_in", "fc_out")),
    "opt": (
        {"vocab_size": VOCABULARY, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
         "max_position_embeddings": 128, "word_embed_proj_dim": 32},
        ("fc1", "fc2"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_any_architecture_is_edited_where_its_mlps_are(kind, tokenizer, edits):
    """Gradients, deltas and logits of the cut model agree with the plain one, for every kind of MLP projection."""
    settings, projections = ARCHITECTURES[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).eval().requires_grad_(False)
    chosen = default_modules(model, kind)
    outputs = mlp_outputs(model)
    assert len(outputs) == 4
    assert list(chosen) == outputs[2:4]
    where = outputs[2].rsplit(".", 1)[0]
    for projection in projections:
        name = f"{where}.{projection}"
        lm = EditableLM(model, tokenizer, [name])
        pairs = [(edit.prompt, edit.target) for edit in edits[:4]]
        prompts = lm.encode(*zip(*pairs, strict=True))
        weight = model.get_submodule(name).weight.requires_grad_()
        loss = sum(nll(model, tokenizer, *pair) * len(tokens(tokenizer, *pair)[1]) for pair in pairs)
        (expected,) = torch.autograd.grad(loss, weight)
        weight.requires_grad_(False)
        _, gradients = lm.gradients(
            prompts, lambda logits, prompts=prompts: cross_entropy(logits, prompts.labels, reduction="sum")
        )
        transposed = isinstance(model.get_submodule(name), torch.nn.Linear)
        dense = gradients[name].dense()
        torch.testing.assert_close(dense.T if transposed else dense, expected, rtol=1e-3, atol=1e-5)
        delta = 0.1 * torch.randn(lm.shape(name), generator=torch.Generator().manual_seed(1))
        lm.apply({name: delta})
        weights = edited_weights(model, {name: delta})
        plain = torch.cat([answer_logits(model, tokenizer, *pair, weights)[0] for pair in pairs])
        torch.testing.assert_close(lm.logits(prompts), plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_edits_add_up_in_half_precision(base, tokenizer, dtype):
    """A thousand deltas, each too small to change a bfloat16 weight, change it all the same."""
    half = copy.deepcopy(base).to(dtype)
    lm = EditableLM(half, tokenizer, ["layers.2.mlp.down_proj"])
    (name,) = lm.modules
    weight = lm.model.get_parameter(f"{name}.weight")
    assert weight.dtype == dtype
    before = weight.clone()
    step = 1e-4 * lm.weight(name)
    lm.apply({name: step})
    assert torch.equal(weight, before)
    for _ in range(999):
        lm.apply({name: step})
    torch.testing.assert_close(weight.float(), 1.1 * before.float(), rtol=1e-2, atol=1e-3)
    kept = lm.snapshot()
    assert kept[name].dtype == torch.float32
    lm.restore()
    assert torch.equal(weight, before)
    lm.restore(kept)
    torch.testing.assert_close(lm.snapshot()[name], kept[name], rtol=0, atol=0)


def test_what_cannot_be_edited_says_why(tmp_path, model_folder):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="PEFT adapter"):
        load_model(str(tmp_path / "adapter"))
    quantised = shutil.copytree(model_folder, tmp_path / "quantised")
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (quantised / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is quantised"):
        load_model(str(quantised))


def test_a_model_spread_over_devices_is_edited_like_a_whole_one(model_folder, base, tokenizer, edits, tmp_path):
    """Layers kept on disk stand for a second device: accelerate moves them in for each forward."""
    pytest.importorskip("accelerate")
    names = ["embed_tokens", "layers.0", "layers.1", "layers.2", "norm", "rotary_emb"]
    places = {f"model.{name}": "disk" if name in ("layers.0", "layers.1") else "cpu" for name in names} | {
        "lm_head": "cpu"
    }
    spread = AutoModelForCausalLM.from_pretrained(model_folder, device_map=places, offload_folder=tmp_path).eval()
    spread.requires_grad_(False)
    one, other = (EditableLM(model, tokenizer, ["layers.2.mlp.down_proj"]) for model in (spread, base))
    delta = {
        name: 0.1 * torch.randn(one.shape(name), generator=torch.Generator().manual_seed(0)) for name in one.modules
    }
    pairs = [edit.prompt for edit in edits], [edit.target for edit in edits]
    for _ in range(2):
        prompts, expected = one.encode(*pairs, reuse=False), other.encode(*pairs, reuse=False)
        torch.testing.assert_close(one.logits(prompts), other.logits(expected))
        ids = torch.tensor([[0, 7, 30]])
        torch.testing.assert_close(one.model(ids).logits, other.model(ids).logits)
        one.apply(delta)
        other.apply(delta)
    with pytest.raises(ValueError, match="moved out of memory"):
        EditableLM(spread, tokenizer, ["layers.1.mlp.down_proj"])


def test_a_folder_that_has_changed_is_loaded_again(model_folder, tmp_path):
    folder = str(shutil.copytree(model_folder, tmp_path / "model"))
    first = load_model(folder)[0]
    assert load_model(folder)[0] is first
    weights = load_file(tmp_path / "model/model.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, tmp_path / "model/new", {"format": "pt"})
    (tmp_path / "model/new").replace(tmp_path / "model/model.safetensors")
    second = load_model(folder)[0]
    name, weight = next(iter(first.named_parameters()))
    assert torch.equal(second.get_parameter(name), weight + 1)


def test_weights_that_are_missing_or_damaged_or_unknown_are_named(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    path = folder / "model.safetensors"
    weights = {name: weight.clone() for name, weight in load_file(path).items()}  # the file is written over below
    gone = "model.layers.0.mlp.up_proj.weight"
    save_file({name: weight for name, weight in weights.items() if name != gone}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"lacks weights .*{gone}"):
        load_model(str(folder))
    save_file(weights | {"mtp.weight": torch.zeros(2)}, path, {"format": "pt"})
    with pytest.warns(UserWarning, match=r"mtp\.weight"):
        load_model(str(folder))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        load_model(str(folder))


def test_devices_and_folders_that_are_not_there_are_named(model_folder, tmp_path):
    with pytest.raises(ValueError, match="device 'cdua'"):
        load_model(model_folder, device="cdua")
    for name in (str(tmp_path / "nowhere"), "./my-modle", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="there is no model folder"):
            load_model(name)


def test_a_model_without_end_or_padding_generates_up_to_its_context(tokenizer):
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", **LIKE_GPT | {"n_positions": 16})
    model = AutoModelForCausalLM.from_config(config).eval()
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = bare.eos_token = None
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    texts = ["Rome", "x" * 14, "Oslo is", "y" * 14]
    written = generate(model, bare, texts, limit=40, unfinished=True)
    assert written == [generate(model, bare, [text], limit=40, unfinished=True)[0] for text in texts]
    assert len(written[0]) > len(written[1])
    ids = [bare(text)["input_ids"] for text in texts]
    for row, text in zip(ids, written, strict=True):
        assert len(row) < 16
        first = model(torch.tensor([row])).logits[0, -1].argmax()
        assert text.startswith(bare.decode(first).strip())
    assert generate(model, bare, texts, limit=40) == [None] * 4
