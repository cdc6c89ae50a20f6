from dataclasses import asdict

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from agents.hypernetwork.config import PolicyConfig, TrainConfig
from agents.hypernetwork.networks import save_policy
from agents.hypernetwork.training import make_preconditioner, training_environment
from agents.rl.noise import HypernetworkNoise
from agents.rledit.agent import RLEdit
from agents.rledit.trainer import RLEditTrainer
from editenv.env import LifelongEditEnv
from editenv.wrappers import GradientStatistics

MODULES = ["model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"]


@pytest.fixture(params=[False, True], ids=["plain", "preconditioned"])
def folder(request, make_env, tenth_of_atlas, tmp_path):
    config = TrainConfig(
        horizon=2, edits_per_step=3, warm_up_batches=2, preconditioner=request.param, covariance_texts=30,
        policy=PolicyConfig(blocks=1, rank=3),
    )  # fmt: skip
    env = make_env(split="train")
    statistics = make_preconditioner(env, config) if request.param else None
    trainer = RLEditTrainer(training_environment(env, config), config, 0, statistics)
    save_policy(trainer.policy, tmp_path, {"train": asdict(config)})
    return str(tmp_path)


def test_no_noise_is_the_hypernetwork_itself(make_env, folder):
    env, plain = HypernetworkNoise(make_env(), folder), make_env()
    agent = RLEdit(policy=folder)
    agent.prepare(make_env(split="train"), 0, lambda *_: None)
    env.reset(seed=1)
    _, info = plain.reset(seed=1)
    agent.begin(plain)
    done = False
    while not done:
        expected = plain.step(agent.act(plain.gradients, info))
        found = env.step(np.zeros(env.action_space.shape, np.float32))
        assert found[1] == pytest.approx(expected[1], rel=1e-5)
        _, _, terminated, truncated, info = expected
        done = terminated or truncated


@pytest.mark.parametrize("folder", [False], ids=["plain"], indirect=True)
def test_noise_is_added_to_the_values_of_the_regression(make_env, folder):
    """The difference of two deltas solves the regression of the noise, by the normal equations of the dense problem."""
    env = HypernetworkNoise(make_env(), folder, noise=0.3)
    agent = env._agent
    env.reset(seed=0)
    action = np.random.default_rng(0).uniform(-1, 1, env.action_space.shape).astype(np.float32)
    noisy, quiet = env.action(action), env.action(np.zeros_like(action))
    for i, (name, rows) in enumerate(zip(MODULES, action.reshape(2, -1, 32), strict=True)):
        keys = env.unwrapped.gradients[name].keys
        noise = 0.3 * float(agent.policy.value_scale[i] / 32) ** 0.5 * torch.from_numpy(rows[: len(keys)])
        ridge = float(agent.policy.ridge(name, False).detach())
        expected = torch.linalg.solve(keys.T @ keys + ridge * torch.eye(64), keys.T @ noise)
        torch.testing.assert_close(noisy[name].dense() - quiet[name].dense(), expected, rtol=1e-3, atol=1e-4)


def test_checkers_and_spec(model_folder, folder):
    arguments = {"model": model_folder, "modules": MODULES, "split": "validation", "edits_per_step": 3}
    env = GradientStatistics(HypernetworkNoise(gym.make("editenv:LifelongEdit-v0", **arguments), folder))
    check_env(env, skip_render_check=True)
    checker = pytest.importorskip("stable_baselines3.common.env_checker", reason="the sb3 extra is not installed")
    checker.check_env(env)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.action_space == env.action_space


def test_bad_input_is_refused(make_env, folder, tmp_path):
    env = HypernetworkNoise(make_env(), folder)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="shape"):
        env.step(np.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        env.step(np.full(env.action_space.shape, np.nan))
    with pytest.raises(FileNotFoundError, match=r"policy\.json"):
        HypernetworkNoise(LifelongEditEnv(**make_env().model_arguments, split="train"), str(tmp_path / "none"))
