import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, PhiConfig

from editenv.language_model.cut import Cut, CutModel, cut_model

SHAPE = {"model.layers.2.mlp.down_proj": (64, 32)}


@pytest.mark.parametrize("cut", Cut)
def test_every_cut_of_a_llama_is_exact(base, cut):
    candidate = CutModel(base, SHAPE, cut)
    assert candidate.is_allowed()
    assert candidate.is_exact()


def test_the_cut_that_freezes_most_is_taken(base):
    assert cut_model(base, SHAPE).cut is max(Cut)
    assert cut_model(base, {"model.layers.1.mlp.down_proj": (64, 32)}).cut is Cut.ATTENTION
    assert cut_model(base, {"model.layers.2.self_attn.o_proj": (32, 32)}).cut is Cut.LAYERS


def test_where_attention_and_mlp_read_the_same_input_the_check_finds_out(tokenizer):
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = PhiConfig(**sizes, initializer_range=0.2, vocab_size=len(tokenizer), pad_token_id=2)
    phi = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    shapes = {"model.layers.2.mlp.fc2": (64, 32)}
    for cut in (Cut.ATTENTION, Cut.KEYS):
        assert CutModel(phi, shapes, cut).is_allowed()
        assert not CutModel(phi, shapes, cut).is_exact()
    assert cut_model(phi, shapes).cut is Cut.LAYERS


def test_a_model_that_no_cut_fits_is_refused(base):
    """Its first layer's output depends on how often it was called, so that no frozen output is right later."""
    strange = copy.deepcopy(base)
    calls = []

    def shift(module, args, output):
        calls.append(1)
        return output.roll(len(calls), -1)

    strange.get_submodule("model.layers.0").register_forward_hook(shift)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM: the layers of model\.layers cannot be run"):
        cut_model(strange, SHAPE)
