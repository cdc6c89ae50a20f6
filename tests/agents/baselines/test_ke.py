"""KnowledgeEditor: its deltas edit by edit in dense matrices, its training by autograd through the plain model."""

import math
import random
from dataclasses import replace

import pytest
import torch
from plain import answer_logits, edited_weights, kl, tokens
from torch.nn.functional import cross_entropy

from agents.baselines.ke import KE, KEConfig
from agents.baselines.ke.network import KENetwork
from agents.baselines.ke.training import Constraint, deltas_of, encode_targets, train
from editenv.language_model.editable_lm import EditableLM

LAST = "model.layers.2.mlp.down_proj"
CONFIG = KEConfig(
    lstm_width=4, condition_width=6, hidden_width=5, steps=2, edits_per_step=3, warm_up_edits=6, gradient_clip=math.inf
)


def make_network(config=CONFIG, moved=0.3):
    torch.manual_seed(0)
    network = KENetwork({LAST: (64, 32)}, 32, config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += moved * torch.randn_like(parameter)
    return network


def token_losses(base, tokenizer, prompt, answer, weights=None):
    logits, labels = answer_logits(base, tokenizer, prompt, answer, weights)
    return cross_entropy(logits, labels, reduction="none")


def gradient_of(base, tokenizer, edit):
    """``(d_in, d_out)`` of the token mean of -log p, by autograd."""
    weight = base.get_submodule(LAST).weight.detach().clone().requires_grad_()
    loss = token_losses(base, tokenizer, edit.prompt, edit.target, {f"{LAST}.weight": weight}).mean()
    return torch.autograd.grad(loss, weight)[0].T


def delta_by_hand(network, base, tokenizer, edit):
    """Of one edit: the paper's formulas, with the mask and the offset as whole matrices."""
    ids = torch.tensor(tokenizer(f"{edit.old_answer} >> {edit.target} || {edit.prompt}")["input_ids"])
    outputs, _ = network.encoder.lstm(base.get_input_embeddings().weight[ids][None])
    width = network.config.lstm_width
    last = torch.cat([outputs[0, -1, :width], outputs[0, 0, width:]])  # forward's at the end, backward's at the start
    h = (network.encoder.linear.weight @ last + network.encoder.linear.bias).tanh()
    (mask,) = network.masks
    hidden = (mask.hidden.weight @ h + mask.hidden.bias).tanh()
    alpha, gamma, beta, delta, eta = (mask.output.weight @ hidden + mask.output.bias).split([64, 32, 64, 32, 1])
    gamma = gamma - 2 * network.config.step_size
    masked = 64 * torch.outer(alpha.softmax(0), gamma) * gradient_of(base, tokenizer, edit) * network.gradient_units
    offset = 64 * torch.outer(beta.softmax(0), delta) * network.offset_units
    return eta.sigmoid() * (masked + offset)


@pytest.fixture
def lm(base, tokenizer):
    return EditableLM(base, tokenizer, [LAST])


def test_a_batchs_delta_is_the_sum_of_its_edits_own(lm, base, tokenizer, edits):
    network = make_network()
    network.gradient_units.fill_(0.7)
    network.offset_units.fill_(0.2)
    batch = [
        replace(edit, old_answer=old)
        for edit, old in zip(edits, ("Paris", "a painter of houses", "Rome"), strict=False)
    ]
    deltas = deltas_of(network, lm, batch, encode_targets(lm, batch, append_eos=False))
    expected = sum(delta_by_hand(network, base, tokenizer, edit) for edit in batch)
    assert expected.norm() > 0.1
    torch.testing.assert_close(deltas[LAST].dense(), expected, rtol=1e-3, atol=1e-4)
    other = [replace(batch[0], old_answer="Oslo"), *batch[1:]]
    moved = deltas_of(network, lm, other, encode_targets(lm, other, append_eos=False))[LAST].dense() - expected
    assert moved.norm() > 1e-3, "the old answer is read"


def test_a_fresh_network_steps_down_the_gradient_by_a_typical_output(lm, base, tokenizer, edits):
    network = make_network(moved=0.0)
    alone = [replace(edits[0], target="a")]
    assert len(tokens(tokenizer, alone[0].prompt, "a")[1]) == 1
    prompts = encode_targets(lm, alone, append_eos=False)
    _, factors = lm.gradients(prompts, lambda logits: cross_entropy(logits, prompts.labels), "answers")
    network.observe(factors, lm)
    delta = deltas_of(network, lm, alone, prompts)[LAST].dense().detach()
    gradient = gradient_of(base, tokenizer, alone[0])
    cosine = float((delta * gradient).sum() / delta.norm() / gradient.norm())
    assert cosine == pytest.approx(-1, abs=1e-4)
    key = factors[LAST].keys[0]
    assert float((key @ delta).norm()) == pytest.approx(float((key @ lm.weight(LAST)).norm()), rel=1e-3)
    other = deltas_of(network, lm, [replace(alone[0], old_answer="Oslo")], prompts)[LAST].dense()
    assert torch.equal(other, delta), "whatever the edit: nothing has been learned yet"


def test_the_gradient_of_a_training_step_is_autograd_through_the_model(make_env, small_world, base, tokenizer):
    """Of the target's loss on prompts and rephrases, and the multiplier times the divergence, at one go."""
    config = replace(CONFIG, steps=1, rephrases=0.5, learning_rate=0.0)
    network = make_network(config)
    env = make_env(modules=[LAST])
    logs = []
    train(network, env, 3, lambda *log: logs.append(log))
    found = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}

    batch = [env.stream[i] for i in random.Random(3).sample(range(len(env.stream)), 3)]
    network.zero_grad()
    total = sum(delta_by_hand(network, base, tokenizer, edit) for edit in batch)
    weights = edited_weights(base, {LAST: total})
    prompts = torch.cat([token_losses(base, tokenizer, e.prompt, e.target, weights) for e in batch])
    rephrases = torch.cat([token_losses(base, tokenizer, r, e.target, weights) for e in batch for r in e.rephrases])
    asked = [(x, len(tokens(tokenizer, x.prompt, x.answer)[1])) for e in batch for x in e.locality]
    divergences = sum(n * kl(base, tokenizer, x.prompt, x.answer, weights) for x, n in asked)
    loss = prompts.mean() + 0.5 * rephrases.mean() + divergences / sum(n for _, n in asked)
    loss.backward()
    norm = sum(float(parameter.grad.square().sum()) for parameter in network.parameters()) ** 0.5
    assert norm > 1e-2
    for name, parameter in network.named_parameters():
        assert (found[name] - parameter.grad).norm() < 5e-3 * parameter.grad.norm() + 1e-4 * norm, name
    assert logs[0][0].startswith(f"loss {float(loss):.3f}")


def test_the_multiplier_and_the_margin():
    config = replace(CONFIG, margin=0.1, least_margin=0.07, shrinkage=0.8, period=2, enough=0.9, multiplier_rate=2.0)
    constraint = Constraint(make_network(config))
    assert (constraint.multiplier, constraint.margin) == (1.0, 0.1)
    constraint.update(0.6, 1.0)
    assert constraint.multiplier == pytest.approx(1.0 + 2 * 0.5)
    constraint.update(0.0, 0.85)
    assert (constraint.multiplier, constraint.margin) == (pytest.approx(2.0 - 0.2), pytest.approx(0.08)), "0.925 said"
    for said in (0.9, 0.9):
        constraint.update(0.08, said)
    assert constraint.margin == pytest.approx(0.08), "0.9 is not above enough"
    for _ in range(2):
        constraint.update(-50.0, 1.0)
    assert (constraint.multiplier, constraint.margin) == (0.0, 0.07)
    with pytest.raises(ValueError, match=r"least_margin must be at most margin, 0\.1, not 1"):
        KEConfig(least_margin=1.0)


def test_the_agent_edits_with_the_gradient_of_now_and_names_what_it_lacks(make_env, small_world, tmp_path):
    env = make_env(modules=[LAST])
    first_agent, agent = KE(CONFIG), KE(CONFIG)
    assert agent.needs == ("model", "edits", "old_answers")
    for one in (first_agent, agent):
        one.workspace = tmp_path
        one.prepare(env, 0, lambda *_: None)
    assert first_agent.kept_seconds == 0 < agent.kept_seconds, "what was trained is kept"
    learned = first_agent.network.state_dict()
    assert all(torch.equal(value, learned[name]) for name, value in agent.network.state_dict().items())
    _, info = env.reset(seed=1)
    agent.begin(env)
    first = agent.act(env.gradients, info)
    env.step(first)
    batch = list(env.batch)
    second = agent.act(env.gradients, info)
    expected = deltas_of(
        agent.network, env.language_model, batch, encode_targets(env.language_model, batch, append_eos=False)
    )
    torch.testing.assert_close(second[LAST].dense(), expected[LAST].dense().detach())
    env.batch[0] = replace(batch[0], old_answer=None)
    with pytest.raises(ValueError, match=f"{batch[0].id} has no old_answer"):
        agent.act(env.gradients, info)
