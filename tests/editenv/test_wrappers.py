import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from editenv.wrappers import GradientStatistics, StepSizeAction

MODULES = ["model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"]


@pytest.fixture
def small(make_env):
    return lambda **arguments: GradientStatistics(StepSizeAction(make_env(**arguments)))


def test_gymnasium_finds_nothing_wrong(small):
    check_env(small(), skip_render_check=True)


def test_spaces_are_small_and_flat(small):
    env = small()
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
    assert all(isinstance(space, gym.spaces.Box) for space in env.observation_space.values())


@pytest.mark.parametrize("action", [[0, 0, 0, 0], [0.5, -0.25, 0.1, -1.0]])
def test_an_action_is_the_ridge_regression_of_scaled_gradients(make_env, base, action):
    env = StepSizeAction(make_env(), typical_step=0.4, typical_ridge=0.2, decades=1.0)
    env.reset(seed=0)
    action = np.array(action, np.float32)
    deltas = env.action(action)
    assert list(deltas) == MODULES
    for i, name in enumerate(MODULES):
        gradient = env.unwrapped.gradients[name]
        U = gradient.keys.double()
        weight = base.get_submodule(name).weight.double()
        V = [
            -0.4 * 10.0 ** float(action[i]) * (weight @ key).norm() * grad / grad.norm()
            for key, grad in zip(U, gradient.value_grads.double(), strict=True)
        ]
        ridge = 0.2 * 10.0 ** float(action[2 + i]) * (U * U).sum() / len(U)
        D = torch.linalg.solve(U.T @ U + ridge * torch.eye(64), U.T @ torch.stack(V))
        torch.testing.assert_close(deltas[name].dense().double(), D, rtol=1e-3, atol=1e-5)


def test_a_step_is_the_steps_of_the_environment_inside(make_env, small):
    outer, inner = small(), make_env()
    outer.reset(seed=2)
    inner.reset(seed=2)
    action = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    expected = inner.step(StepSizeAction.action(outer.env, action))
    _, reward, terminated, truncated, info = outer.step(action)
    assert (reward, terminated, truncated, info) == expected[1:]


def test_observations_are_statistics_of_the_factors(make_env, small):
    outer, inner = small(actions_per_batch=2, horizon=2), make_env(actions_per_batch=2, horizon=2)
    observation, _ = outer.reset(seed=1)
    factors, _ = inner.reset(seed=1)
    zero = {name: np.zeros((64, 32), np.float32) for name in MODULES}
    for step in range(4):
        for i, name in enumerate(MODULES):
            keys, grads = inner.gradients[name].keys, inner.gradients[name].value_grads
            lengths = [torch.linalg.vector_norm(x, dim=1) for x in (keys, grads)]
            expected = [float(torch.log10(x)) for v in lengths for x in (v.mean(), v.max())]
            cosines = [
                float(torch.cosine_similarity(keys[a], keys[b], dim=0))
                for a in range(len(keys))
                for b in range(len(keys))
                if a != b
            ]
            expected.append(sum(cosines) / len(cosines))
            np.testing.assert_allclose(observation["gradient"][i], expected, rtol=1e-3, atol=1e-4)
        expected = [(step // 2) / (len(inner.stream) // 3), (step % 2) / 2]
        np.testing.assert_allclose(observation["progress"], expected, atol=1e-6)
        assert observation in outer.observation_space
        observation, *_ = outer.env.env.step(zero)
        observation = outer.observation(observation)
        inner.step(zero)
    assert observation in outer.observation_space
    assert not observation["gradient"].any()
    assert factors.keys() == set(MODULES)


def test_wrong_actions_are_refused(small):
    env = small()
    env.reset(seed=0)
    for wrong in (np.zeros(3), np.zeros((2, 2))):
        with pytest.raises(ValueError, match=r"\(4,\)"):
            env.step(wrong)
    before = env.unwrapped.language_model.snapshot()
    with pytest.raises(ValueError, match="NaN"):
        env.step(np.full(4, np.nan))
    assert all(torch.equal(value, before[name]) for name, value in env.unwrapped.language_model.snapshot().items())


def test_no_step_after_the_end(small):
    env = small(horizon=1)
    env.reset(seed=0)
    env.step(np.zeros(4, np.float32))
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros(4, np.float32))


def test_other_environments_are_refused():
    for wrapper in (StepSizeAction, GradientStatistics):
        with pytest.raises(TypeError, match="CartPole"):
            wrapper(gym.make("CartPole-v1"))


def test_the_spec_remembers_the_wrappers(model_folder):
    arguments = {"model": model_folder, "modules": MODULES, "split": "validation"}
    env = GradientStatistics(StepSizeAction(gym.make("editenv:LifelongEdit-v0", **arguments), typical_step=0.5))
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    first, second = env.reset(seed=0)[0], again.reset(seed=0)[0]
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key])
    action = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    assert env.step(action)[1] == again.step(action)[1]


def test_a_general_agent_takes_it(small):
    sb3 = pytest.importorskip("stable_baselines3", reason="the sb3 extra is not installed")
    model = sb3.PPO("MultiInputPolicy", small(), n_steps=4, batch_size=4, n_epochs=1, seed=0, device="cpu")
    model.learn(8)
    assert model.num_timesteps == 8
    action, _ = model.predict(small().reset(seed=0)[0], deterministic=True)
    assert action in model.action_space
