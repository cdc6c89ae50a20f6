import re
from dataclasses import replace

import pytest
import torch
from plain import answer_factors, answer_logits, edited_weights, random_deltas
from torch.nn.functional import cross_entropy

from agents.baselines.dafnet import DAFNet, DAFNetConfig
from agents.baselines.dafnet.network import DAFNetwork, FusionLayer, shares
from agents.baselines.dafnet.training import gradients_of, judge
from editenv.deltas import LowRank
from editenv.evaluation.batch import encode_evaluation
from editenv.language_model.editable_lm import Gradient

LAST = "model.layers.2.mlp.down_proj"
SHAPES = {"a.down": (12, 8), "b.down": (12, 8), "c.up": (8, 12)}
CONFIG = DAFNetConfig(
    layers=2, token_width=5, attention_width=4, score_width=3, heads=2, feed_forward=6, step_size=2.0,
    learning_rate=1e-2, steps=6, judged=3, longest=8, warm_up_edits=6,
)  # fmt: skip
LENGTHS = torch.tensor([2, 1, 3, 2])


def random_gradients(tokens=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Gradient(torch.randn(tokens, d_in, generator=generator), torch.randn(tokens, d_out, generator=generator))
        for name, (d_in, d_out) in SHAPES.items()
    }


def make_network(config=CONFIG):
    torch.manual_seed(0)
    network = DAFNetwork(SHAPES, config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    for normalizer in network.normalizers.values():
        normalizer.observe(torch.randn(30, 20) + 0.3)
    return network


def sliced(gradients, tokens):
    return {name: Gradient(g.keys[tokens], g.value_grads[tokens]) for name, g in gradients.items()}


def test_shares_are_a_running_mixture():
    scores, updates = torch.rand(5, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    total = before = torch.randn(3, dtype=torch.float64)
    for score, update in zip(scores, updates, strict=True):
        total = (1 - score) * total + score * update
    own, kept = shares(scores)
    torch.testing.assert_close(kept * before + own @ updates, total)
    assert float(own.sum() + kept) == pytest.approx(1)


def test_a_layer_is_its_formulas_one_edit_at_a_time():
    torch.manual_seed(0)
    layer = FusionLayer(20, 2, CONFIG)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    x, past = torch.randn(8, 20), torch.randn(3, 20)
    owner = torch.repeat_interleave(torch.arange(4), LENGTHS)
    output, facts, scores = layer(x, owner, past, 1)
    known = list(past)
    for i in range(4):
        tokens = x[owner == i]
        values = layer.value(tokens)
        weights = layer.weight(values)[:, 0].softmax(0)
        fact = weights @ values
        torch.testing.assert_close(facts[i], fact)
        known.append(fact)
        seen = torch.stack(known)
        heads, own = [], []
        for head in range(2):
            part, narrow = slice(4 * head, 4 * head + 4), slice(3 * head, 3 * head + 3)
            attention = (layer.key(seen)[:, part] @ layer.query(fact)[part] / 2).softmax(0)
            heads.append(attention @ layer.fact_value(seen)[:, part])
            own.append((layer.score_key(seen)[:, narrow] @ layer.score_query(fact)[narrow] / 3**0.5).softmax(0)[-1])
        torch.testing.assert_close(scores[i], sum(own) / 2)
        tokens = layer.norms[0](tokens + weights[:, None] * values)
        tokens = layer.norms[1](tokens + layer.output(torch.cat(heads)))
        tokens = layer.norms[2](tokens + layer.feed_forward(tokens))
        expected = tokens + torch.relu(layer.scale[1] * tokens + layer.shift[1])
        torch.testing.assert_close(output[owner == i], expected)


def test_an_edit_sees_earlier_ones_and_no_later_one():
    network, gradients = make_network(), random_gradients()
    _, _, facts = network(gradients, LENGTHS, network.nothing_past())
    _, _, fewer = network(sliced(gradients, slice(0, 3)), LENGTHS[:2], network.nothing_past())
    for name, layers in facts.items():
        for one, other in zip(layers, fewer[name], strict=True):
            torch.testing.assert_close(one[:2], other)
    deltas, _, _ = network(sliced(gradients, slice(3, 8)), LENGTHS[2:], fewer)
    alone, _, _ = network(sliced(gradients, slice(3, 8)), LENGTHS[2:], network.nothing_past())
    assert not torch.allclose(deltas["c.up"].dense(), alone["c.up"].dense(), rtol=0.1)


def test_a_sequence_in_two_parts_is_the_sequence():
    """Exactly so with one layer; with several, the layers' shares are averaged before they are multiplied."""
    network, gradients = make_network(replace(CONFIG, layers=1)), random_gradients()
    whole, kept, _ = network(gradients, LENGTHS, network.nothing_past())
    first, kept_first, facts = network(sliced(gradients, slice(0, 3)), LENGTHS[:2], network.nothing_past())
    second, keep, _ = network(sliced(gradients, slice(3, 8)), LENGTHS[2:], facts)
    for name in SHAPES:
        total = keep[name] * first[name].dense() + second[name].dense()
        torch.testing.assert_close(total, whole[name].dense(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(kept_first[name] * keep[name], kept[name])
        assert whole[name].dense().abs().max() > 1e-3


def test_the_update_is_a_sum_of_outer_products_with_the_edits_shares():
    network, gradients = make_network(replace(CONFIG, layers=1)), random_gradients()
    deltas, _, _ = network(gradients, LENGTHS, network.nothing_past())
    owner = torch.repeat_interleave(torch.arange(4), LENGTHS)
    for i, (name, module) in enumerate({"a.down": 0, "b.down": 1, "c.up": 0}.items()):
        key = "x".join(map(str, SHAPES[name]))
        z = network.normalizers[key](torch.cat([gradients[name].keys, gradients[name].value_grads], 1))
        x, _, scores = network.layers[key][0](z, owner, torch.zeros(0, 20), module)
        own, _ = shares(scores)
        u, d = x.split(SHAPES[name], 1)
        expected = sum(own[owner[t]] / LENGTHS[owner[t]] * torch.outer(u[t], d[t]) for t in range(8))
        torch.testing.assert_close(deltas[name].dense(), -network.log_step_size[i].exp() * expected)


def test_every_parameter_learns_the_weighing_attention_too():
    network, gradients = make_network(), random_gradients()
    deltas, _, _ = network(gradients, LENGTHS, network.nothing_past())
    sum((delta.dense() * torch.randn(delta.shape)).sum() for delta in deltas.values()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        if not name.endswith("key.bias"):  # a softmax does not see what is added to all of its inputs
            assert parameter.grad.abs().max() > 0, name


def test_gradients_are_the_unedited_models(make_lm, base, tokenizer, small_world):
    lm = make_lm()
    prompts = lm.encode([e.prompt for e in small_world], [e.target for e in small_world])
    lm.apply(random_deltas(lm))
    edited = lm.snapshot()
    gradient = gradients_of(lm, prompts)[LAST]
    keys, grads = answer_factors(base, tokenizer, [(e.prompt, e.target) for e in small_world])[LAST]
    torch.testing.assert_close(gradient.keys, keys, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(gradient.value_grads, grads, rtol=1e-3, atol=1e-4)
    assert torch.equal(lm.snapshot()[LAST], edited[LAST])


def plain_loss(base, tokenizer, edits, weights, config):
    nll = {"prompt": [], "rephrase": []}
    kl = []
    for edit in edits:
        for kind, texts in (("prompt", [edit.prompt]), ("rephrase", edit.rephrases)):
            for text in texts:
                logits, labels = answer_logits(base, tokenizer, text, edit.target, weights)
                nll[kind].append(cross_entropy(logits, labels, reduction="none"))
        for item in edit.locality:
            before, _ = answer_logits(base, tokenizer, item.prompt, item.answer)
            after, _ = answer_logits(base, tokenizer, item.prompt, item.answer, weights)
            before = before.detach().log_softmax(-1)
            kl.append((before.exp() * (before - after.log_softmax(-1))).sum(-1))
    parts = (torch.cat(nll["prompt"]), torch.cat(nll["rephrase"]), torch.cat(kl))
    return sum(
        w * p.mean() for w, p in zip((config.reliability, config.generality, config.locality), parts, strict=True)
    )


def test_the_loss_and_its_gradient_are_the_plain_models(make_lm, base, tokenizer, small_world):
    lm = make_lm()
    generator = torch.Generator().manual_seed(0)
    delta = LowRank(0.3 * torch.randn(64, 4, generator=generator), 0.3 * torch.randn(4, 32, generator=generator))
    lm.apply(random_deltas(lm))  # where the model stands must not matter
    loss, gradients = judge(lm, encode_evaluation(lm, small_world[:6]), {LAST: delta}, CONFIG)
    D = delta.dense().requires_grad_()
    expected = plain_loss(base, tokenizer, small_world[:6], edited_weights(base, {LAST: D}), CONFIG)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    assert (gradients[LAST].dense() - D.grad).norm() < 1e-3 * D.grad.norm()
    assert torch.equal(lm.snapshot()[LAST], base.get_submodule(LAST).weight)


# -- the agent --------------------------------------------------------------------------------------------------------


def begun(env, agent, seed=0, log=None):
    agent.prepare(env, seed, lambda what, done, total: log.append((what, done, total)) if log is not None else None)
    observation, info = env.reset(seed=1)
    agent.begin(env)
    return observation, info


def test_batch_after_batch_the_total_is_mixed_with_the_update(make_env, small_world):
    env = make_env(modules=[LAST], horizon=3)
    agent = DAFNet(CONFIG)
    _, info = begun(env, agent)
    lm, network = env.language_model, agent.network
    past, total = network.nothing_past(), torch.zeros(64, 32)
    for _ in range(3):
        prompts = lm.encode([e.prompt for e in env.batch], [e.target for e in env.batch])
        with torch.no_grad():
            update, keep, facts = network(gradients_of(lm, prompts), prompts.lengths, past)
        past = {LAST: [torch.cat(pair) for pair in zip(past[LAST], facts[LAST], strict=True)]}
        total = keep[LAST] * total + update[LAST].dense()
        *_, info = env.step(agent.act(env.gradients, info))
        torch.testing.assert_close(lm.weight(LAST) - lm.initial_weight(LAST), total, rtol=1e-3, atol=1e-5)
    assert past[LAST][0].shape == (9, 96)


def test_training_starts_short_and_goes_to_the_longest_sequence(make_env, small_world):
    env = make_env(modules=[LAST])
    before = env.language_model.snapshot()
    log = []
    agent = DAFNet(replace(CONFIG, steps=12, patience=1))
    agent.prepare(env, 0, lambda *what: log.append(what))
    assert all(torch.equal(value, before[name]) for name, value in env.language_model.snapshot().items())
    assert [entry[1:] for entry in log] == [(i + 1, 12) for i in range(12)]
    lengths = [int(re.search(r"up to (\d+)", what)[1]) for what, _, _ in log]
    assert lengths[0] == 1
    assert lengths == sorted(lengths)
    assert lengths[-1] == 8


def test_no_sequence_is_shorter_than_the_shortest(make_env, small_world, monkeypatch):
    env = make_env(modules=[LAST])
    seen = []
    forward = DAFNetwork.forward
    monkeypatch.setattr(
        DAFNetwork,
        "forward",
        lambda self, g, lengths, past: seen.append(len(lengths)) or forward(self, g, lengths, past),
    )
    begun(env, DAFNet(replace(CONFIG, steps=12, shortest=5, patience=1)))
    assert seen[0] == min(seen) == 5
    assert 5 < max(seen) <= 8
    with pytest.raises(ValueError, match="shortest must be from 1 to longest, not 9"):
        replace(CONFIG, shortest=9)


def test_training_lowers_the_loss_and_the_seed_decides_everything(make_env, small_world):
    env = make_env(modules=[LAST])
    losses = []
    networks = []
    for seed, steps in ((3, 40), (3, 40), (4, 40)):
        log = []
        agent = DAFNet(replace(CONFIG, steps=steps, longest=1))
        begun(env, agent, seed, log)
        losses.append([float(re.search(r"loss ([\d.]+)", what)[1]) for what, _, _ in log])
        networks.append(agent.network.state_dict())
        torch.randn(5)
    assert sum(losses[0][-10:]) < 0.9 * sum(losses[0][:10])
    assert all(torch.equal(value, networks[1][name]) for name, value in networks[0].items())
    assert not all(torch.equal(value, networks[2][name]) for name, value in networks[0].items())


def test_a_trained_network_is_kept_and_taken_again(make_env, small_world, monkeypatch, tmp_path):
    env = make_env(modules=[LAST])
    agent = DAFNet(CONFIG)
    agent.workspace = tmp_path
    begun(env, agent)
    again = DAFNet(CONFIG)
    again.workspace = tmp_path
    with monkeypatch.context() as patch:
        patch.setattr("agents.baselines.dafnet.agent.train", lambda *arguments: pytest.fail("trained again"))
        begun(env, again)
    kept = again.network.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in agent.network.state_dict().items())
    assert again.kept_seconds > 0
    other = DAFNet(replace(CONFIG, steps=2))
    other.workspace = tmp_path
    log = []
    begun(env, other, log=log)
    assert len(log) == 2


def test_an_interrupted_run_goes_on_the_same(make_env, small_world):
    env = make_env(modules=[LAST])
    first, second = DAFNet(CONFIG), DAFNet(CONFIG)
    begun(env, second)
    _, info = begun(env, first)
    for _ in range(2):
        *_, info = env.step(first.act(env.gradients, info))
        second.load_batch_state(first.batch_state())
    assert torch.equal(first.act(env.gradients, info)[LAST], second.act(env.gradients, info)[LAST])
