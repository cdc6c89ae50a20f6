import json
from dataclasses import asdict, replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks import causal_trace
from benchmarks.causal_trace import (
    NOISE,
    STATES,
    TOKENS,
    Restored,
    Tracer,
    embedding_deviation,
    known_facts,
    parts_of_layers,
    subject_tokens,
    trace_known_facts,
)
from editenv.language_model.editable_lm import EditableLM

LAYERS = 3


@pytest.fixture(scope="module")
def facts(edits):
    """Edits whose targets count as true."""
    return [replace(edit, old_answer=edit.target) for edit in edits]


def tracer(lm, **options):
    return Tracer(lm, **{"deviation": 0.5, "draws": 2, "window": 2} | options)


# ---- by hand: one row, layer after layer, each half of a layer written out


def by_hand(model, ids, noise, restore=None, clean=None):
    """Hidden states, MLPs' and attentions' outputs of each layer, and probabilities of the next token.

    Args:
        noise: By column what is added to the embedding.
        restore: A state, layers and a column; what ``clean`` has there takes its place.
    """
    llama = model.model
    hidden = llama.embed_tokens(torch.tensor([ids])).clone()
    for column, vector in noise.items():
        hidden[0, column] += vector
    positions = llama.rotary_emb(hidden, torch.arange(len(ids))[None])
    seen = {state: [] for state in STATES}

    def kept(state, layer, value):
        if restore is not None and state == restore[0] and layer in restore[1]:
            value = value.clone()
            value[0, restore[2]] = clean[state][layer][0, restore[2]]
        seen[state].append(value)
        return value

    for number, layer in enumerate(llama.layers):
        attention, _ = layer.self_attn(layer.input_layernorm(hidden), positions, attention_mask=None)
        hidden = hidden + kept("attention", number, attention)
        hidden = hidden + kept("MLP", number, layer.mlp(layer.post_attention_layernorm(hidden)))
        hidden = kept("hidden state", number, hidden)
    return seen, model.lm_head(llama.norm(hidden))[0, -1].softmax(-1)


@torch.no_grad()
def test_a_trace_is_what_three_runs_by_hand_give(base, make_lm, facts):
    lm, fact = make_lm(), facts[3]  # "The home of the Long River is Ecuador"
    ids = lm.tokenizer(fact.prompt)["input_ids"]
    answer = lm.tokenizer(" Ecuador", add_special_tokens=False)["input_ids"][0]
    subject = subject_tokens(lm, fact)
    assert lm.tokenizer.decode([ids[column] for column in subject]) == " the Long River"
    tracing = tracer(lm)
    noises = [dict(zip(subject, draw, strict=True)) for draw in tracing._noise(fact, len(subject))]
    clean, probabilities = by_hand(base, ids, {})
    result = tracing.trace(fact)
    assert result.clean == pytest.approx(float(probabilities[answer]), rel=1e-4)
    corrupted = [float(by_hand(base, ids, noise)[1][answer]) for noise in noises]
    assert result.corrupted == pytest.approx(sum(corrupted) / 2, rel=1e-4)
    windows = {0: (0,), 1: (0, 1), 2: (1, 2)}  # of two layers, around each
    for state in STATES:
        for token, column in zip(TOKENS, (subject[-1], len(ids) - 1), strict=True):
            for layer in range(LAYERS):
                layers = (layer,) if state == "hidden state" else windows[layer]
                runs = [by_hand(base, ids, noise, (state, layers, column), clean)[1][answer] for noise in noises]
                expected = float(sum(runs)) / 2
                assert result.restored[state][token][layer] == pytest.approx(expected, rel=1e-4), (state, token, layer)


def test_restoring_everything_gives_the_clean_probability_and_nothing_the_corrupted(make_lm, facts):
    lm, fact = make_lm(), facts[0]
    tracing = tracer(lm)
    (ids, answer), subject = tracing._tokens(fact), subject_tokens(lm, fact)
    everywhere, last = tuple(range(len(ids))), (len(ids) - 1,)
    runs = [
        Restored("MLP", range(0), last),
        Restored("MLP", range(LAYERS), ()),
        Restored("hidden state", range(1), everywhere),
        Restored("hidden state", range(LAYERS - 1, LAYERS), last),  # which decides what comes next
        Restored("hidden state", range(1), last),
    ]
    noise = tracing._noise(fact, len(subject))
    clean, corrupted, (no_layer, no_token, everything, last_state, some) = tracing.probabilities(
        ids, subject, answer, noise, runs
    )
    assert torch.equal(no_layer, corrupted)
    assert torch.equal(no_token, corrupted)
    assert everything.tolist() == pytest.approx([clean, clean], rel=1e-5)
    assert last_state.tolist() == pytest.approx([clean, clean], rel=1e-5)
    for other in (corrupted, some):
        assert (other - clean).abs().min() > 1e-4 * clean
    assert (some - corrupted).abs().min() > 1e-4 * clean


def test_the_noise_is_of_the_seed_and_the_fact_alone(make_lm, facts):
    lm = make_lm()
    first, again = (tracer(lm).trace(facts[1]) for _ in range(2))
    assert first == again
    other = tracer(lm)
    other.trace(facts[0])
    assert other.trace(facts[1]) == first
    assert tracer(lm, seed=1).trace(facts[1]).corrupted != first.corrupted
    noise = tracer(lm, draws=400)._noise(facts[0], 3)
    assert noise.shape == (400, 3, 32)
    assert float(noise.std()) == pytest.approx(0.5, rel=0.02)
    assert not torch.equal(noise, tracer(lm, draws=400)._noise(facts[1], 3))


def test_many_runs_are_what_they_are_in_one_forward(make_lm, facts, monkeypatch):
    lm = make_lm()
    together = tracer(lm).trace(facts[2])
    monkeypatch.setattr(causal_trace, "ROWS_TOGETHER", 5)
    apart = tracer(lm).trace(facts[2])
    for state in STATES:
        for token in TOKENS:
            assert apart.restored[state][token] == pytest.approx(together.restored[state][token], rel=1e-4)
    assert apart.corrupted == pytest.approx(together.corrupted, rel=1e-4)


def test_a_window_is_a_fifth_of_the_layers_and_ends_with_them(make_lm):
    lm = make_lm()
    assert tracer(lm, window=None).window == 1
    tracing = tracer(lm, window=10)
    tracing.layers = 48
    # As in the public code: from layer - 5 to layer + 4.
    assert [tracing._layers_around(layer) for layer in (0, 20, 47)] == [range(0, 5), range(15, 25), range(42, 48)]


def test_the_parts_of_a_layer_are_found(make_lm, base):
    parts = parts_of_layers(make_lm())
    for number, layer in enumerate(base.model.layers):
        layer_, mlp, attention = (parts[state][number] for state in STATES)
        assert (type(layer_), type(mlp), type(attention)) == (type(layer), type(layer.mlp), type(layer.self_attn))


def test_the_deviation_is_that_of_the_subjects_embeddings(make_lm, base, facts):
    lm = make_lm()
    ids = [token for fact in facts for token in lm.tokenizer(fact.subject, add_special_tokens=False)["input_ids"]]
    rows = base.model.embed_tokens.weight[ids].flatten()
    assert embedding_deviation(lm, facts) == pytest.approx(float(((rows - rows.mean()) ** 2).mean() ** 0.5), rel=1e-3)


@pytest.fixture(scope="module")
def knowing(taught, tokenizer):
    """A model that was taught the first five edits."""
    for parameter in taught.parameters():
        parameter.requires_grad_(False)
    return EditableLM(taught, tokenizer, ["layers.2.mlp.down_proj"])


def test_facts_are_those_that_the_continuation_begins_with(knowing, taught, tokenizer, facts):
    def writes(fact):
        ids = torch.tensor([tokenizer(fact.prompt)["input_ids"]])
        written = taught.generate(
            input_ids=ids, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(ids)
        )
        return tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip()

    expected = [(number, fact) for number, fact in enumerate(facts) if writes(fact).startswith(fact.old_answer)]
    assert len(expected) >= 5
    assert list(known_facts(knowing, facts)) == expected
    assert list(known_facts(knowing, facts, 2)) == expected[2:]
    untraceable = [replace(facts[0], old_answer=None), replace(facts[1], subject=None), replace(facts[2], subject="No")]
    assert list(known_facts(knowing, untraceable)) == []


def test_a_trace_that_was_killed_goes_on(knowing, facts, tmp_path):
    def kill(what, done, total):
        if done == 2:
            raise KeyboardInterrupt

    about = {"model": "tiny"}
    trace_known_facts(knowing, facts, 4, tmp_path / "whole.json", about, draws=1)
    whole = json.loads((tmp_path / "whole.json").read_text())
    assert [fact["fact"] for fact in whole["facts"]] == [f"small/{i}" for i in range(4)]
    path = tmp_path / "trace.json"
    with pytest.raises(KeyboardInterrupt):
        trace_known_facts(knowing, facts, 4, path, about, draws=1, progress=kill)
    assert json.loads(path.read_text())["facts"] == whole["facts"][:2]
    trace_known_facts(knowing, facts, 4, path, about, draws=1)
    assert json.loads(path.read_text()) == whole
    assert whole["about"]["noise"] == pytest.approx(NOISE * embedding_deviation(knowing, facts), rel=1e-4)
    expected = Tracer(knowing, whole["about"]["noise"], 1).trace(facts[1])
    assert whole["facts"][1]["clean"] == pytest.approx(asdict(expected)["clean"])
    with pytest.raises(ValueError, match=r"trace\.json was made with .*'draws': 1.*choose another --out"):
        trace_known_facts(knowing, facts, 4, path, about, draws=2)


def test_all_facts_there_are_are_traced_once(knowing, facts, tmp_path):
    path = tmp_path / "trace.json"
    for _ in range(2):
        trace_known_facts(knowing, facts[:3], 10, path, {}, draws=1)
        content = json.loads(path.read_text())
        assert (content["examined"], len(content["facts"])) == (3, 3)
    with pytest.raises(ValueError, match="nothing to trace"):
        trace_known_facts(knowing, [replace(facts[0], subject=None)], 1, tmp_path / "none.json", {})


def test_a_model_without_such_layers_is_refused(tokenizer, tmp_path):
    from transformers import GPTNeoXConfig, MambaConfig

    model = AutoModelForCausalLM.from_config(
        MambaConfig(vocab_size=len(tokenizer), hidden_size=16, state_size=4, num_hidden_layers=2)
    )
    lm = EditableLM(model, tokenizer, ["layers.1.mixer.out_proj"])
    with pytest.raises(ValueError, match="cannot be traced"):
        Tracer(lm, 0.1)
    neox = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    lm = EditableLM(AutoModelForCausalLM.from_config(neox), tokenizer, ["layers.1.mlp.dense_4h_to_h"])
    assert len(parts_of_layers(lm)["MLP"]) == 2
