import copy

import pytest
import torch
from plain import answer_factors, answer_logits
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, BertConfig, Gemma2Config, PhiConfig

from editenv.language_model.cut import Cut, CutModel, Probe, cut_model
from editenv.language_model.editable_lm import EditableLM

SHAPE = {"model.layers.2.mlp.down_proj": (64, 32)}
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}


@pytest.mark.parametrize("cut", Cut)
def test_every_cut_of_a_llama_is_exact(base, cut):
    candidate = CutModel(base, SHAPE, cut)
    assert candidate.is_allowed()
    assert candidate.is_exact()


def test_the_cut_that_freezes_most_is_taken(base):
    assert cut_model(base, SHAPE).cut is max(Cut)
    assert cut_model(base, {"model.layers.1.mlp.down_proj": (64, 32)}).cut is Cut.ATTENTION
    assert cut_model(base, {"model.layers.2.self_attn.o_proj": (32, 32)}).cut is Cut.LAYERS


def test_behind_the_keys_the_last_norm_and_the_head_give_the_same_bits_as_the_model_s_forward(base, tokenizer):
    lm = EditableLM(base, tokenizer, ["layers.2.mlp.down_proj"])
    prompts = lm.encode(["Who owns Tumblr?", "Hi", "So, Ada"], ["Automattic", "New South Wales", "Oslo"])
    lm.apply({name: 0.3 * torch.randn(lm.shape(name)) for name in lm.modules})
    assert lm.cut_model._last_norm is lm.model.model.norm

    def outcome():
        _, gradients = lm.gradients(prompts, lambda logits: cross_entropy(logits, prompts.labels))
        (gradient,) = gradients.values()
        return lm.logits(prompts), gradient.keys, gradient.value_grads

    short = outcome()
    lm.cut_model._last_norm = None
    assert all(torch.equal(*pair) for pair in zip(short, outcome(), strict=True))
    lm.restore()


def test_hooks_of_the_edited_layer_are_called_behind_the_keys_as_well(base, tokenizer):
    lm = EditableLM(base, tokenizer, ["layers.2.mlp.down_proj"])
    prompts = lm.encode(["Who owns Tumblr?", "Hi"], ["Automattic", "Oslo"])
    plain, layer = lm.logits(prompts), lm.layer_of("model.layers.2.mlp.down_proj")
    handle = layer.register_forward_hook(lambda module, args, output: output.flip(-1))
    flipped = lm.logits(prompts)
    handle.remove()
    assert torch.equal(lm.logits(prompts), plain)
    assert not torch.allclose(flipped, plain)


def test_where_more_is_left_behind_the_keys_the_model_s_forward_is_run(tokenizer):
    """Gemma 2 norms what its MLP puts out, and caps its logits."""
    config = Gemma2Config(**SIZES, head_dim=8, num_key_value_heads=4, vocab_size=len(tokenizer), pad_token_id=2)
    gemma = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    cut = CutModel(gemma, SHAPE, Cut.KEYS)
    cut.take_short_cut(Probe.of(gemma))
    assert cut._last_norm is None


def test_too_little_memory_is_no_answer_to_whether_there_is_a_short_cut(base, monkeypatch):
    model = copy.deepcopy(base)
    cut = CutModel(model, SHAPE, Cut.KEYS)
    probe = Probe.of(model)
    cut.take_short_cut(probe)
    assert cut._last_norm is model.model.norm
    run = type(cut).logits

    def logits(model, prompts):
        if model._last_norm is not None:
            raise torch.OutOfMemoryError("no memory is left")
        return run(model, prompts)

    cut._last_norm = None
    monkeypatch.setattr(CutModel, "logits", logits)
    with pytest.raises(torch.OutOfMemoryError):
        cut.take_short_cut(probe)
    assert cut._last_norm is None


def test_where_attention_and_mlp_read_the_same_input_the_check_finds_out(tokenizer):
    torch.manual_seed(1)
    config = PhiConfig(**SIZES, initializer_range=0.2, vocab_size=len(tokenizer), pad_token_id=2)
    phi = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    shapes = {"model.layers.2.mlp.fc2": (64, 32)}
    for cut in (Cut.ATTENTION, Cut.KEYS):
        assert CutModel(phi, shapes, cut).is_allowed()
        assert not CutModel(phi, shapes, cut).is_exact()
    assert cut_model(phi, shapes).cut is Cut.LAYERS


def test_a_model_whose_outputs_depend_on_how_often_it_is_called_is_refused(base):
    """No frozen output is right later."""
    strange = copy.deepcopy(base)
    calls = []

    def shift(module, args, output):
        calls.append(1)
        return output.roll(len(calls), -1)

    strange.get_submodule("model.layers.0").register_forward_hook(shift)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM is no causal language model: .* from call to call"):
        cut_model(strange, SHAPE)


def test_a_model_that_reads_what_follows_is_refused(tokenizer):
    """Padding to the right of a prompt would change what it says, and an answer what is said before it."""
    config = BertConfig(**SIZES, vocab_size=len(tokenizer), initializer_range=0.2)
    bert = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match="BertLMHeadModel is no causal language model"):
        EditableLM(bert, tokenizer, ["layer.1.output.dense"])
    bert = AutoModelForCausalLM.from_config(BertConfig(**config.to_diff_dict() | {"is_decoder": True})).eval()
    EditableLM(bert, tokenizer, ["layer.1.output.dense"])


def test_where_no_layer_can_be_left_out_the_whole_model_is_run(base, tokenizer):
    """Logits and gradients are the plain model's."""
    strange = copy.deepcopy(base)

    class Unusual(type(strange.model)):
        """Takes the tokens into account behind the edited layer, too, like Gemma-3n."""

        def forward(self, input_ids=None, **arguments):
            handle = self.layers[1].register_forward_hook(
                lambda module, args, output: output + 0.1 * self.embed_tokens(input_ids)
            )
            try:
                return super().forward(input_ids=input_ids, **arguments)
            finally:
                handle.remove()

    strange.model.__class__ = Unusual
    with pytest.warns(UserWarning, match=r"layers of model\.layers cannot be run from the middle; the whole model"):
        lm = EditableLM(strange, tokenizer, ["layers.1.mlp.down_proj"])
    assert lm.cut is Cut.WHOLE
    pairs = [("Who owns Tumblr?", "Automattic"), ("Hi", "New South Wales")]
    prompts = lm.encode(*zip(*pairs, strict=True))
    plain = torch.cat([answer_logits(strange, tokenizer, *pair)[0] for pair in pairs])
    torch.testing.assert_close(lm.logits(prompts), plain, rtol=1e-4, atol=1e-5)
    keys, value_grads = answer_factors(strange, tokenizer, pairs)["model.layers.1.mlp.down_proj"]
    _, gradients = lm.gradients(
        prompts, lambda logits: cross_entropy(logits, prompts.labels, reduction="sum"), observed_tokens="answers"
    )
    (gradient,) = gradients.values()
    torch.testing.assert_close(gradient.keys, keys, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(gradient.value_grads, value_grads, rtol=1e-3, atol=1e-6)


def test_logits_that_are_no_numbers_say_what_is_wrong(base, tokenizer):
    broken = copy.deepcopy(base)
    broken.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinite: model\.layers\.1\.mlp\.up_proj\.weight"):
        EditableLM(broken, tokenizer, ["layers.2.mlp.down_proj"])
    large = copy.deepcopy(base).half()
    large.model.norm.weight.data.fill_(6e4)
    with pytest.raises(ValueError, match=r"NaN or infinite in torch\.float16.*bfloat16"):
        EditableLM(large, tokenizer, ["layers.2.mlp.down_proj"])


def test_modules_that_are_not_given_every_token_once_are_refused(base, tokenizer):
    model = copy.deepcopy(base)
    model.model.layers[2].mlp.idle = torch.nn.Linear(32, 32)
    with pytest.raises(ValueError, match=r"layers\.2\.mlp\.idle is not used when LlamaForCausalLM reads text"):
        EditableLM(model, tokenizer, ["mlp.idle"])
    model = copy.deepcopy(base)
    model.model.layers[2].mlp.down_proj.weight = model.model.layers[1].mlp.down_proj.weight
    with pytest.raises(ValueError, match=r"weight of model\.layers\.2\.mlp\.down_proj is also model\.layers\.1"):
        EditableLM(model, tokenizer, ["layers.2.mlp.down_proj"])
    model = copy.deepcopy(base)
    layer = model.model.layers[1]
    once = layer.forward
    layer.forward = lambda hidden, **arguments: once(once(hidden, **arguments), **arguments)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.down_proj is called 2 times"):
        cut_model(model, {"model.layers.1.mlp.down_proj": (64, 32)})
    model = copy.deepcopy(base)
    mlp = model.model.layers[1].mlp
    forward = mlp.forward
    mlp.forward = lambda x: torch.cat([forward(x[:, :3]), x[:, 3:]], 1)  # an expert that the router gives some tokens
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj is given some of a text's tokens"):
        cut_model(model, {"model.layers.1.mlp.up_proj": (32, 64)})
