import copy

import pytest
import torch
from plain import answer_factors, answer_logits, edited_weights, random_deltas
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from editenv.language_model.cut import Cut
from editenv.language_model.editable_lm import EditableLM
from editenv.language_model.prompts import Prompts, answer_ids

QUESTIONS = [
    ("The home of Ada is", "Rome"),
    ("Tea", "a chess player of New South Wales"),
    ("In which country does the Long River end, as far as people know?", "Ecuador"),
    ("Who saw Kepler?", "Old Harbour"),
]
LLAMA = {
    "last down_proj": ["layers.2.mlp.down_proj"],
    "middle down_proj": ["layers.1.mlp.down_proj"],
    "first down_proj": ["layers.0.mlp.down_proj"],
    "several down_proj": ["layers.0.mlp.down_proj", "layers.2.mlp.down_proj"],
    "gate and up": ["layers.2.mlp.gate_proj", "layers.2.mlp.up_proj"],
    "every gate": ["gate_proj"],
    "o_proj": ["layers.1.self_attn.o_proj"],
    "last o_proj": ["layers.2.self_attn.o_proj"],
    "q_proj and down_proj": ["layers.1.self_attn.q_proj", "layers.1.mlp.down_proj"],
}
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "initializer_range": 0.2}
LIKE_LLAMA = SMALL | {"intermediate_size": 64, "num_key_value_heads": 2}
OTHERS = {
    "gpt2 c_proj": (GPT2Config(n_embd=32, n_layer=3, n_head=4, initializer_range=0.2), ["h.1.mlp.c_proj"]),
    "gpt2 last c_proj": (GPT2Config(n_embd=32, n_layer=3, n_head=4, initializer_range=0.2), ["h.2.mlp.c_proj"]),
    "gpt2 attention": (GPT2Config(n_embd=32, n_layer=3, n_head=4, initializer_range=0.2), ["h.1.attn.c_proj"]),
    "gpt2 c_fc": (GPT2Config(n_embd=32, n_layer=3, n_head=4, initializer_range=0.2), ["mlp.c_fc"]),
    "mistral": (MistralConfig(**LIKE_LLAMA, sliding_window=4), ["layers.1.mlp.down_proj"]),
    "qwen2": (Qwen2Config(**LIKE_LLAMA), ["layers.2.mlp.up_proj"]),
    "gemma2": (Gemma2Config(**LIKE_LLAMA, head_dim=8, sliding_window=4), ["layers.2.mlp.down_proj"]),
    "gemma2 middle": (Gemma2Config(**LIKE_LLAMA, head_dim=8, sliding_window=4), ["layers.1.mlp.down_proj"]),
    "gptneox": (GPTNeoXConfig(**SMALL, intermediate_size=64), ["layers.2.mlp.dense_4h_to_h"]),
    "phi": (PhiConfig(**SMALL, intermediate_size=64), ["layers.2.mlp.fc2"]),
}


def build(config, vocabulary):
    torch.manual_seed(1)
    config = copy.deepcopy(config)
    config.vocab_size = vocabulary
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1, 2
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


@pytest.fixture(params=[*LLAMA, *OTHERS])
def pair(request, base, tokenizer):
    """An editable model and the plain model it was made from."""
    if request.param in LLAMA:
        model, modules = base, LLAMA[request.param]
    else:
        config, modules = OTHERS[request.param]
        model = build(config, len(tokenizer))
    return EditableLM(model, tokenizer, modules), model


def plain_logits(model, tokenizer, weights=None, questions=QUESTIONS):
    return torch.cat([answer_logits(model, tokenizer, *question, weights)[0] for question in questions])


def encode(lm, questions=QUESTIONS):
    return lm.encode([prompt for prompt, _ in questions], [answer for _, answer in questions])


def labels_of(tokenizer):
    return [tokenizer(f" {answer}", add_special_tokens=False)["input_ids"] for _, answer in QUESTIONS]


def test_an_answer_is_tokenized_as_it_follows_the_prompt_whatever_the_tokenizer_puts_first():
    """Byte-level BPE, and the two ways of SentencePiece: one puts a space before whatever it is given."""
    parameters = {
        "bytes": ([], pre_tokenizers.ByteLevel(add_prefix_space=False)),
        "prepend": ([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")], None),
        "metaspace": ([], pre_tokenizers.Metaspace(prepend_scheme="first")),
    }
    words = ["Who", " saw", " Paris", "Paris", "saw", " is", " in", " A", " B"]  # no token spans a space, as usual
    for name, (normal, before) in parameters.items():
        backend = Tokenizer(models.BPE(unk_token="?"))
        if normal:
            backend.normalizer = normalizers.Sequence(normal)
        if before is not None:
            backend.pre_tokenizer = before
        alphabet = pre_tokenizers.ByteLevel.alphabet() if name == "bytes" else [*"▁abcABFPWhoswrinecs?"]
        backend.train_from_iterator(
            words * 3, trainers.BpeTrainer(vocab_size=320, special_tokens=["?"], initial_alphabet=alphabet)
        )
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
        whole, head = (tokenizer(text)["input_ids"] for text in ("Who saw Paris", "Who saw"))
        assert whole[: len(head)] == head
        assert answer_ids(tokenizer, ["Paris"]) == [whole[len(head) :]], name


def test_logits_are_those_of_the_whole_edited_model(pair, tokenizer):
    lm, model = pair
    prompts = encode(lm)
    torch.testing.assert_close(lm.logits(prompts), plain_logits(model, tokenizer), rtol=1e-4, atol=1e-4)
    deltas = random_deltas(lm, scale=0.2)
    lm.apply(deltas)
    expected = plain_logits(model, tokenizer, edited_weights(model, deltas))
    assert (expected - plain_logits(model, tokenizer)).abs().max() > 0.05
    torch.testing.assert_close(lm.logits(prompts), expected, rtol=1e-4, atol=1e-4)


def test_gradient_factors_are_the_weight_gradient(pair, tokenizer):
    lm, model = pair
    deltas = random_deltas(lm, scale=0.1)
    lm.apply(deltas)
    weights = {name: weight.requires_grad_() for name, weight in edited_weights(model, deltas).items()}
    labels = torch.tensor([token for row in labels_of(tokenizer) for token in row])
    expected_loss = cross_entropy(plain_logits(model, tokenizer, weights), labels, reduction="sum")
    expected_loss.backward()
    loss, gradients = lm.gradients(encode(lm), lambda logits: cross_entropy(logits, labels, reduction="sum"))
    torch.testing.assert_close(loss, expected_loss.detach(), rtol=1e-4, atol=1e-4)
    assert list(gradients) == list(lm.modules)
    for name, gradient in gradients.items():
        grad = weights[f"{name}.weight"].grad
        expected = grad.T if isinstance(model.get_submodule(name), torch.nn.Linear) else grad
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(gradient.keys.T @ gradient.value_grads, expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(gradient.dense(), gradient.keys.T @ gradient.value_grads)


def test_gradients_at_answer_positions_are_the_modules_inputs_and_output_gradients(pair, tokenizer):
    lm, model = pair
    prompts = encode(lm)
    _, gradients = lm.gradients(
        prompts, lambda logits: cross_entropy(logits, prompts.labels, reduction="sum"), "answers"
    )
    expected = answer_factors(model, tokenizer, QUESTIONS)
    for name, gradient in gradients.items():
        keys, value_grads = expected[name]
        torch.testing.assert_close(gradient.keys, keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradient.value_grads, value_grads, rtol=1e-3, atol=1e-4)


def test_all_tokens_are_those_that_some_answer_depends_on(make_lm, tokenizer):
    """Counted from the texts: below the last layer all but the padding, in it the answer positions."""
    lm = make_lm("layers.0.mlp.down_proj", "layers.2.mlp.down_proj")
    prompts = encode(lm)
    _, gradients = lm.gradients(prompts, lambda logits: cross_entropy(logits, prompts.labels, reduction="sum"))
    lengths = [len(tokenizer(prompt)["input_ids"]) for prompt, _ in QUESTIONS]
    answers = [len(labels) for labels in labels_of(tokenizer)]
    first, last = gradients.values()
    assert len(set(lengths)) > 1
    assert len(first.keys) == len(first.value_grads) == sum(lengths) + sum(answers) - len(QUESTIONS)
    assert len(last.keys) == sum(answers)
    assert first.value_grads.any(-1).all()


def test_modules_are_a_list(base, tokenizer):
    """Of a text each letter would be an ending, and some module's name ends with it."""
    for wrong in ("layers.0.mlp.down_proj", [1], None):
        with pytest.raises(ValueError, match="modules must be a list, each entry a text, not"):
            EditableLM(base, tokenizer, wrong)


def test_the_name_of_before_works_for_one_more_version(make_lm):
    lm = make_lm("layers.0.mlp.down_proj")
    prompts = encode(lm)

    def loss(logits):
        return cross_entropy(logits, prompts.labels)

    with pytest.warns(FutureWarning, match="answer_positions is now observed_tokens='answers'"):
        _, old = lm.gradients(prompts, loss, answer_positions=True)
    _, new = lm.gradients(prompts, loss, "answers")
    for name, gradient in new.items():
        assert torch.equal(gradient.keys, old[name].keys)


def test_restore_is_bit_for_bit_and_the_base_model_never_changes(pair):
    lm, model = pair
    original = {name: value.clone() for name, value in model.state_dict().items()}
    prompts = encode(lm)
    logits = lm.logits(prompts)
    lm.apply(random_deltas(lm, scale=0.3, seed=1))
    middle = lm.snapshot()
    edited_logits = lm.logits(prompts)
    lm.apply(random_deltas(lm, scale=0.3, seed=2))
    lm.gradients(prompts, lambda logits: logits.square().sum())
    assert not torch.equal(lm.logits(prompts), edited_logits)
    lm.restore(middle)
    assert all(torch.equal(lm.modules[name].weight, middle[name]) for name in lm.modules)
    assert torch.equal(lm.logits(prompts), edited_logits)
    lm.restore()
    for name, module in lm.modules.items():
        assert torch.equal(module.weight, original[f"{name}.weight"])
    assert torch.equal(lm.logits(prompts), logits)
    for name, value in model.state_dict().items():
        assert torch.equal(value, original[name]), name


def test_a_snapshot_is_a_copy(make_lm):
    lm = make_lm()
    before = lm.snapshot()
    kept = {name: weight.clone() for name, weight in before.items()}
    lm.apply(random_deltas(lm))
    assert all(torch.equal(before[name], kept[name]) for name in kept)
    assert not any(torch.equal(lm.modules[name].weight, kept[name]) for name in kept)


def test_a_rebased_model_starts_from_the_snapshot(make_lm, base):
    lm = make_lm()
    (name,) = lm.modules
    lm.apply(random_deltas(lm))
    edited = lm.snapshot()
    prompts = lm.encode(*zip(*QUESTIONS, strict=True))
    expected = lm.logits(prompts)
    lm.apply(random_deltas(lm, seed=1))
    lm.rebase(edited)
    assert torch.equal(lm.logits(prompts), expected)
    lm.apply(random_deltas(lm, seed=2))
    with lm.at_initial_weights():
        assert torch.equal(lm.logits(prompts), expected)
    lm.restore()
    assert torch.equal(lm.snapshot()[name], edited[name])
    edited[name].zero_()
    lm.restore()
    assert torch.equal(lm.logits(prompts), expected)
    assert not torch.equal(lm.weight(name), base.get_submodule(name).weight.T)


def test_at_initial_weights_is_theta_0_inside_and_nothing_afterwards(make_lm):
    lm = make_lm("layers.1.mlp.down_proj")
    prompts = encode(lm)
    initial = lm.logits(prompts)
    lm.apply(random_deltas(lm))
    edited, logits = lm.snapshot(), lm.logits(prompts)
    inside = []

    def look_and_fail():
        inside.append(lm.logits(prompts))
        raise KeyError

    with pytest.raises(KeyError), lm.at_initial_weights():
        look_and_fail()
    assert torch.equal(inside[0], initial)
    assert all(torch.equal(lm.modules[name].weight, edited[name]) for name in edited)
    assert torch.equal(lm.logits(prompts), logits)


def test_two_editable_models_on_one_base_do_not_see_each_other(make_lm):
    first, second = make_lm(), make_lm()
    prompts = encode(second)
    before = second.logits(prompts)
    first.apply(random_deltas(first, scale=1.0))
    assert torch.equal(second.logits(prompts), before)


def test_no_weight_requires_grad(make_lm):
    lm = make_lm()
    lm.gradients(encode(lm), lambda logits: logits.sum())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in lm.model.parameters())


def test_unedited_weights_are_shared_with_the_base(make_lm, base):
    lm = make_lm()
    own = {name for name, parameter in lm.model.named_parameters() if parameter is not base.get_parameter(name)}
    assert own == {f"{name}.weight" for name in lm.modules}


@pytest.mark.parametrize("module", ["layers.2.mlp.down_proj", "layers.1.mlp.down_proj", "layers.1.self_attn.o_proj"])
def test_select_and_join_keep_logits(make_lm, module):
    lm = make_lm(module)
    lm.apply(random_deltas(lm))
    prompts = encode(lm)
    whole = lm.logits(prompts)
    tokens = prompts.prompt_index
    chosen = torch.tensor([True, False, True, True])
    part = prompts.select(chosen)
    assert len(part) == 3
    assert torch.equal(part.labels, prompts.labels[chosen[tokens]])
    assert part.prompt_index.tolist() == [i for i, n in enumerate(part.lengths) for _ in range(n)]
    torch.testing.assert_close(lm.logits(part), whole[chosen[tokens]], rtol=1e-5, atol=1e-5)

    short, rest = encode(lm, QUESTIONS[1:2]), encode(lm, [QUESTIONS[0], *QUESTIONS[2:]])
    joined = Prompts.join([short, rest, part])
    assert len(joined) == 7
    assert joined.prompt_index.max() == 6
    expected = torch.cat([lm.logits(short), lm.logits(rest), lm.logits(part)])
    torch.testing.assert_close(lm.logits(joined), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lm.logits(short), whole[tokens == 1], rtol=1e-5, atol=1e-5)


def test_selecting_nothing_gives_no_prompts(make_lm):
    for module in ("layers.2.mlp.down_proj", "layers.0.self_attn.o_proj"):
        nothing = encode(make_lm(module)).select(torch.zeros(4, dtype=torch.bool))
        assert len(nothing) == len(nothing.labels) == len(nothing.hidden) == 0


@pytest.mark.parametrize("module", ["layers.2.mlp.down_proj", "layers.1.mlp.down_proj"])
def test_encode_does_not_depend_on_its_batch_size_or_the_weights(make_lm, module):
    lm = make_lm(module)
    texts = [list(column) for column in zip(*QUESTIONS, strict=True)]
    whole = lm.encode(*texts)
    before = lm.logits(whole)
    lm.apply(random_deltas(lm, scale=0.5))
    pieces = lm.encode(*texts, batch_size=1)
    lm.restore()
    torch.testing.assert_close(lm.logits(pieces), before, rtol=1e-5, atol=1e-5)
    assert torch.equal(pieces.labels, whole.labels)
    assert torch.equal(pieces.prompt_index, whole.prompt_index)


@pytest.mark.parametrize("module", ["layers.2.mlp.down_proj", "layers.1.mlp.down_proj"])
def test_what_is_kept_is_what_would_be_computed(make_lm, base, tokenizer, module):
    lm = make_lm(module)
    small = EditableLM(base, tokenizer, [module], cache_bytes=2000)
    none = EditableLM(base, tokenizer, [module], cache_bytes=0)
    for questions in (QUESTIONS[:2], QUESTIONS[1:], QUESTIONS, [QUESTIONS[0], ("The home of Ada is", "Rome, Italy")]):
        expected = plain_logits(base, tokenizer, questions=questions)
        for model in (lm, small, none):
            torch.testing.assert_close(model.logits(encode(model, questions)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("module", ["layers.2.mlp.down_proj", "layers.1.mlp.down_proj"])
def test_encoding_does_not_depend_on_what_was_encoded_before_if_nothing_is_reused(make_lm, module):
    fresh, used = make_lm(module), make_lm(module)
    for question in QUESTIONS:
        encode(used, [question])
    texts = [list(column) for column in zip(*QUESTIONS, strict=True)]
    assert torch.equal(used.encode(*texts, reuse=False).hidden, fresh.encode(*texts).hidden)


def test_nothing_reused_means_tokens_too(make_lm, monkeypatch):
    lm, runs = make_lm(), []
    tokenize = lm.tokenize
    monkeypatch.setattr(lm, "tokenize", lambda *texts: runs.append(1) or tokenize(*texts))
    texts = [list(column) for column in zip(*QUESTIONS, strict=True)]
    for reuse in (True, True, False, False):
        lm.encode(*texts, reuse=reuse)
    assert len(runs) == 3


def test_a_prompt_met_again_is_not_run_again(make_lm):
    lm = make_lm()
    runs = []
    first_mlp = lm.model.get_submodule("model.layers.0.mlp")
    handle = first_mlp.register_forward_hook(lambda _, args, __: runs.append(len(args[0])))
    encode(lm, QUESTIONS[:2])
    encode(lm, QUESTIONS)
    encode(lm, QUESTIONS[::-1])
    handle.remove()
    assert runs == [2, 2]


def test_only_answer_positions_are_kept_for_the_last_mlp(make_lm):
    last, middle = make_lm(), make_lm("layers.1.mlp.down_proj")
    assert last.answer_positions_only
    assert not middle.answer_positions_only
    assert encode(last).hidden.shape[:2] == (len(encode(last).labels), 1)
    assert not make_lm("layers.2.self_attn.o_proj").answer_positions_only


def test_the_keys_are_kept_where_the_edited_module_ends_the_last_mlp(make_lm, base):
    lm = make_lm()
    assert lm.cut is Cut.KEYS
    prompts = encode(lm)
    seen = []
    module = base.get_submodule("model.layers.2.mlp.down_proj")
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for prompt, answer in QUESTIONS:
        answer_logits(base, lm.tokenizer, prompt, answer)
    handle.remove()
    keys = torch.cat([key[0, -n - 1 : -1] for key, n in zip(seen, prompts.lengths, strict=True)])
    torch.testing.assert_close(prompts.hidden[:, 0, -keys.shape[1] :], keys, rtol=1e-4, atol=1e-5)
    gate = []
    handle = lm.model.get_submodule("model.layers.2.mlp.gate_proj").register_forward_hook(lambda *_: gate.append(1))
    lm.logits(prompts)
    handle.remove()
    assert not gate
    for other in ("layers.2.mlp.up_proj", "layers.1.mlp.down_proj", "layers.2.self_attn.o_proj"):
        assert make_lm(other).cut < Cut.KEYS
    assert make_lm("layers.2.mlp.down_proj", "layers.2.mlp.up_proj").cut is Cut.ATTENTION


def test_layers_whose_mlp_does_not_read_their_attention_are_not_cut_between_the_two(tokenizer, make_lm):
    config, modules = OTHERS["phi"]
    assert EditableLM(build(config, len(tokenizer)), tokenizer, modules).cut is Cut.LAYERS
    config, modules = OTHERS["gpt2 last c_proj"]
    assert EditableLM(build(config, len(tokenizer)), tokenizer, modules).cut is Cut.KEYS
    assert make_lm("layers.1.mlp.down_proj").cut is Cut.ATTENTION
    assert make_lm("layers.1.self_attn.o_proj").cut is Cut.LAYERS


@pytest.mark.parametrize(
    ("modules", "named"),
    [
        (["layers.9.mlp.down_proj"], "layers.9.mlp.down_proj"),
        (["layers.2.mlp.down_proj", "own_proj"], "own_proj"),
        (["layers.2.mlp"], "layers.2.mlp"),
        (["embed_tokens"], "embed_tokens"),
        (["lm_head"], "lm_head"),
        ("layers.2.mlp.down_proj", "layers.2.mlp.down_proj"),
        ([], "modules"),
    ],
)
def test_bad_patterns_are_named(base, tokenizer, modules, named):
    with pytest.raises(ValueError, match=named):
        EditableLM(base, tokenizer, modules)


def test_a_pattern_matches_whole_names_only(make_lm):
    assert list(make_lm("up_proj").modules) == [f"model.layers.{i}.mlp.up_proj" for i in range(3)]
    assert list(make_lm("layers.2.mlp.down_proj", "layers.0.mlp.up_proj").modules) == [
        "model.layers.0.mlp.up_proj",
        "model.layers.2.mlp.down_proj",
    ]


def test_shape_and_weight_are_in_by_out_whatever_the_layout(tokenizer, make_lm):
    linear = make_lm()
    (name,) = linear.modules
    assert linear.shape(name) == tuple(linear.weight(name).shape) == (64, 32)
    conv = EditableLM(build(OTHERS["gpt2 c_proj"][0], len(tokenizer)), tokenizer, ["h.1.mlp.c_proj"])
    (name,) = conv.modules
    assert conv.shape(name) == tuple(conv.weight(name).shape) == (128, 32)
    conv.weight(name)[3, 5] = 9.0
    assert conv.modules[name].weight[3, 5] == 9.0


def test_half_precision_weights_give_single_precision_logits(base, tokenizer):
    half = copy.deepcopy(base).to(torch.bfloat16)
    lm = EditableLM(half, tokenizer, ["layers.1.mlp.down_proj"])
    deltas = random_deltas(lm, scale=0.2)
    lm.apply(deltas)
    logits = lm.logits(encode(lm))
    assert logits.dtype == torch.float32
    expected = plain_logits(base, tokenizer, edited_weights(base, deltas))
    assert (logits - expected).square().mean() < 0.01 * expected.var()
