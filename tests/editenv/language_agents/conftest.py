"""One episode, in a language agent's words and through the Gymnasium wrappers."""

import gymnasium as gym
import numpy as np
import pytest

import editenv  # noqa: F401
from editenv.wrappers import GradientStatistics, LayerStatistics, StepSizeAction

MODULES = ["layers.1.mlp.down_proj", "layers.2.mlp.down_proj"]
ACTIONS = np.array([[0.0, 0.25, -0.5, 0.75], [-1.0, 1.0, 0.0, -0.25], [0.5, -0.5, 0.5, -0.5]])


@pytest.fixture
def arguments(model_folder, small_world):
    return {"model": model_folder, "modules": MODULES, "split": "validation", "edits_per_step": 3, "horizon": 3}


@pytest.fixture
def choices():
    """ACTIONS in a language agent's words."""
    return [
        {
            module: {"step": 10.0 ** float(step), "ridge": 0.1 * 10.0 ** float(ridge)}
            for module, step, ridge in zip(MODULES, action[:2], action[2:], strict=True)
        }
        for action in ACTIONS
    ]


@pytest.fixture
def by_gymnasium(arguments):
    """Rewards, last flags and observations of ACTIONS through the wrappers."""
    inner = gym.make("LifelongEdit-v1", disable_env_checker=True, **arguments)
    env = LayerStatistics(GradientStatistics(StepSizeAction(inner)))
    observation, _ = env.reset(seed=5)
    observations, rewards = [observation], []
    for action in ACTIONS:
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
    assert terminated or truncated
    return observations, rewards
