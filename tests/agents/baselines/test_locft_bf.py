import random

import pytest
import torch
from plain import answer_logits, mean
from torch.nn.functional import cross_entropy

from agents.baselines.locft_bf import LocFTBF

LAST = "model.layers.2.mlp.down_proj"


def start(env, agent, seed=0):
    agent.prepare(env, seed, lambda *_: None)
    _, info = env.reset(seed=1)
    agent.begin(env)
    return info


def loss_of(base, tokenizer, edit, weight, end=True):
    logits, labels = answer_logits(base, tokenizer, edit.prompt, edit.target, {f"{LAST}.weight": weight}, end)
    return cross_entropy(logits, labels)


def plainly(base, tokenizer, todo, drawn_from, epochs, rate, least_loss=0.0, end=True):
    """The weight after the epochs, by autograd on the plain model, and the losses before each step or none."""
    draws = random.Random(drawn_from)
    weight = base.get_submodule(LAST).weight.clone().requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=rate)
    losses, steps = [], 0
    for _ in range(epochs):
        draws.shuffle(todo)
        total = 0.0
        for first in range(0, len(todo), 3):
            chosen = todo[first : first + 3]
            optimizer.zero_grad()
            loss = mean(loss_of(base, tokenizer, edit, weight, end) for edit in chosen)
            losses.append(float(loss.detach()))
            total += losses[-1] * len(chosen)
            if losses[-1] >= least_loss:
                loss.backward()
                optimizer.step()
                steps += 1
        if total / len(todo) < least_loss:
            break
    return weight.detach(), losses, steps


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("edits", ["stream", "batch"])
def test_it_is_adam_over_shuffled_mini_batches_epoch_after_epoch(make_env, base, tokenizer, edits, end):
    env = make_env(modules=[LAST], edits_per_step=5, horizon=2)
    agent = LocFTBF(epochs=3, mini_batch=3, learning_rate=0.01, end_of_answer=end, edits=edits)
    info = start(env, agent, seed=4)
    todo = list(env.stream if edits == "stream" else env.batch)
    drawn_from = "4/0/" + "/".join(f"{edit.prompt} {edit.target}" for edit in env.batch)
    began = base.get_submodule(LAST).weight
    expected = (plainly(base, tokenizer, todo, drawn_from, 3, 0.01, end=end)[0] - began).T
    found = agent.act(env.gradients, info)[LAST]
    assert (found - expected).norm() < 0.02 * expected.norm()
    assert torch.equal(env.language_model.weight(LAST), began.T)


def test_a_mini_batch_that_is_learned_is_left_out_and_the_epochs_end(make_env, base, tokenizer):
    env = make_env(modules=[LAST], edits_per_step=5, horizon=1)
    agent = LocFTBF(epochs=40, mini_batch=3, learning_rate=0.01, least_loss=4.0)
    info = start(env, agent, seed=4)
    drawn_from = "4/0/" + "/".join(f"{edit.prompt} {edit.target}" for edit in env.batch)
    weight, losses, steps = plainly(base, tokenizer, list(env.batch), drawn_from, 40, 0.01, 4.0)
    assert steps < len(losses) < 80, "some mini-batches are left out, and the epochs end early"
    expected = (weight - base.get_submodule(LAST).weight).T
    assert (agent.act(env.gradients, info)[LAST] - expected).norm() < 0.05 * expected.norm()


def test_the_stream_is_made_in_the_first_action_and_batches_as_they_come(make_env):
    env = make_env(modules=[LAST])
    agent = LocFTBF(epochs=1)
    assert agent.looks_ahead
    info = start(env, agent)
    *_, info = env.step(agent.act(env.gradients, info))
    assert not agent.act(env.gradients, info)[LAST].dense().any()
    by_batch = LocFTBF(epochs=1, edits="batch")
    assert not by_batch.looks_ahead
    by_batch.prepare(env, 0, lambda *_: None)
    by_batch.begin(env)
    assert by_batch.act(env.gradients, info)[LAST].any()


def test_without_a_stream_it_says_what_to_set(make_env):
    env = make_env(modules=[LAST], dataset=None)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="edits='batch'"):
        LocFTBF().begin(env)
    LocFTBF(edits="batch").begin(env)
