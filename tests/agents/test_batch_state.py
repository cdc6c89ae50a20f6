"""What a batch leaves in an agent: read as often as one likes, reverted as often as one likes, and taken in in order."""

import copy

import pytest
import torch
from test_devices import LOWER, METHODS, UPPER

from agents.base import zero_action
from agents.registry import make_method


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def dense(action):
    return {name: delta.dense() if hasattr(delta, "dense") else delta for name, delta in action.items()}


@pytest.mark.parametrize("name", METHODS)
def test_what_a_batch_leaves_is_read_taken_in_and_reverted(make_env, name):
    agent = make_method(name, METHODS[name])
    modules = [UPPER] if name == "rome" else [LOWER, UPPER]
    agent.prepare(make_env(split="train", modules=modules), 0, lambda *_: None)
    other, unread = copy.deepcopy(agent), copy.deepcopy(agent)
    envs = [
        make_env(horizon=4, modules=modules, memory_batches=0, actions_per_batch=agent.actions_per_batch)
        for _ in range(3)
    ]
    for one, env in zip((agent, other, unread), envs, strict=True):
        _, info = env.reset(seed=0)
        one.begin(env)
    for _ in range(2):
        action = agent.act(envs[0].gradients, info)
        unread.act(envs[2].gradients, info)
        for env in envs:
            *_, info = env.step(action)
        state = {key: value.clone() for key, value in agent.batch_state().items()}
        assert same(state, agent.batch_state()), "reading it changes nothing"
        other.load_batch_state(agent.batch_state())
    expected = dense(unread.act(envs[2].gradients, info))
    for one, env in ((agent, envs[0]), (other, envs[1])):
        assert same(dense(one.act(env.gradients, info)), expected)

    agent.revert_batch()
    reverted = {key: value.clone() for key, value in agent.batch_state().items()}
    agent.revert_batch()
    assert same(reverted, agent.batch_state()), "a batch is reverted once"
    *_, info = envs[0].step(zero_action(envs[0].language_model))  # in the reverted batch's place
    assert all(value.isfinite().all() for value in dense(agent.act(envs[0].gradients, info)).values())
