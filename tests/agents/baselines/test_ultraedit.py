import numpy as np
import pytest
import torch

from agents.base import zero_action
from agents.baselines.ultraedit import UltraEdit

LAST = "model.layers.2.mlp.down_proj"


@pytest.mark.parametrize("attempts", [1, 2])
def test_the_update_is_the_dense_normal_equation(make_env, attempts):
    env = make_env(modules=[LAST], actions_per_batch=attempts)
    agent = UltraEdit(step_size=2.0, ridge=0.1, actions_per_batch=attempts)
    _, info = env.reset(seed=0)
    agent.begin(env)
    initial = env.language_model.weight(LAST).double().numpy().copy()  # the step's unit is of the unedited model
    seen_keys, seen_grads, outputs = [], [], []
    for _ in range(3 * attempts):
        gradient = env.gradients[LAST]
        U, G = gradient.keys.double().numpy(), gradient.value_grads.double().numpy()
        if info["attempt"] == 0:
            seen_keys.append(U)
            seen_grads.append(G)
            outputs.append(U @ initial)
        everything = np.concatenate([np.concatenate(seen_keys), np.concatenate(seen_grads)], 1)
        normal = (np.concatenate([U, G], 1) - everything.mean(0)) / everything.std(0, ddof=1)
        energy = (np.concatenate(seen_keys) ** 2).sum() / len(everything)
        length = np.sqrt((np.concatenate(outputs) ** 2).mean())
        gate = (normal[:, :64] ** 2).mean(1, keepdims=True)
        V = -2.0 * length * gate * normal[:, 64:]
        expected = np.linalg.solve(U.T @ U + 0.1 * energy * np.eye(64), U.T @ V)
        action = agent.act(env.gradients, info)
        np.testing.assert_allclose(
            action[LAST].dense().numpy(), expected, rtol=2e-3, atol=1e-4 * np.abs(expected).max()
        )
        *_, info = env.step(action)


def test_an_agent_that_is_told_what_had_been_goes_on_the_same(make_env):
    env = make_env(modules=[LAST])
    first, second = UltraEdit(), UltraEdit()
    _, info = env.reset(seed=0)
    first.begin(env)
    second.begin(env)
    for _ in range(2):
        *_, info = env.step(first.act(env.gradients, info))
        second.load_batch_state(first.batch_state())
    one, two = first.act(env.gradients, info)[LAST], second.act(env.gradients, info)[LAST]
    assert torch.equal(one.left, two.left)
    assert torch.equal(one.right, two.right)


def test_the_unit_of_the_step_is_the_unedited_models_however_far_the_weights_have_gone(make_env):
    # Of outputs at the edited weights, larger steps would make a larger unit, and that larger steps.
    still, edited = make_env(modules=[LAST], horizon=4), make_env(modules=[LAST], horizon=4)
    agents = UltraEdit(step_size=50.0), UltraEdit(step_size=50.0)
    initial, moved = edited.language_model.weight(LAST).clone(), []
    for env, agent in zip((still, edited), agents, strict=True):
        _, info = env.reset(seed=0)
        agent.begin(env)
        keys = []
        for _ in range(4):
            keys.append(env.gradients[LAST].keys)
            action = agent.act(env.gradients, info)
            *_, info = env.step(action if env is edited else zero_action(env.language_model))
            outputs = torch.cat(keys) @ initial
            assert agent.output_length(LAST) == pytest.approx(float(outputs.square().mean().sqrt()), rel=1e-5)
        moved.append(float((env.language_model.weight(LAST) - initial).norm() / initial.norm()))
    assert moved[0] == 0
    assert moved[1] > 1
    assert agents[0].output_length(LAST) == pytest.approx(agents[1].output_length(LAST), rel=1e-6)


def test_a_journal_of_an_earlier_version_is_gone_on_with_in_the_unit_of_now(make_env):
    env = make_env(modules=[LAST])
    first, second = UltraEdit(), UltraEdit()
    _, info = env.reset(seed=0)
    first.begin(env)
    second.begin(env)
    *_, info = env.step(first.act(env.gradients, info))
    state = first.batch_state()
    earlier = {name: value for name, value in state.items() if name != f"{LAST}/initial_energy"}
    second.load_batch_state(earlier | {f"{LAST}/energy": torch.tensor(1e9)})  # of the edited weight's outputs
    assert second.output_length(LAST) == pytest.approx(first.output_length(LAST), rel=1e-6)
    torch.testing.assert_close(
        second.act(env.gradients, info)[LAST].right, first.act(env.gradients, info)[LAST].right, rtol=1e-5, atol=1e-7
    )
