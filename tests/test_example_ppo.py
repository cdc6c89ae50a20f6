"""The PPO of the examples: its advantages by brute force, and that it learns what is easy."""

import importlib.util
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from editenv.wrappers import GradientStatistics, LayerStatistics, StepSizeAction

EXAMPLE = Path(__file__).parent.parent / "examples" / "ppo.py"


@pytest.fixture(scope="module")
def ppo():
    spec = importlib.util.spec_from_file_location("example_ppo", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_advantages_are_the_discounted_sums_of_the_papers_equation(ppo):
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 9, generator=generator)
    ends = [t in (3, 7) for t in range(9)]
    last, discount, trace = 0.7, 0.8, 0.6
    following = [*values[1:].tolist(), last]
    deltas = [float(rewards[t]) + (0 if ends[t] else discount * following[t]) - float(values[t]) for t in range(9)]
    expected = []
    for t in range(9):
        end = next((s for s in range(t, 9) if ends[s]), 8)
        expected.append(sum((discount * trace) ** (s - t) * deltas[s] for s in range(t, end + 1)))
    got = ppo.advantages_of(rewards, values, ends, torch.tensor(last), discount, trace)
    assert got.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


class Target(gym.Env):
    """One step an episode; the reward is how near the action comes to a number that depends on the observation."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seen = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.seen, {}

    def step(self, action):
        return self.seen, -float(abs(action[0] - 0.5 * self.seen[0] - 0.3)), True, False, {}


def test_it_learns_where_to_go(ppo):
    policy, returns = ppo.train(Target(), ppo.Args(steps=2000, rollout=100))
    assert np.mean(returns[-200:]) > np.mean(returns[:200]) + 0.1
    with torch.no_grad():
        means = policy.mean(torch.tensor([[-0.8], [0.8]])).flatten()
    assert means.tolist() == pytest.approx([-0.1, 0.7], abs=0.15)


def test_it_trains_on_the_environment(ppo, make_env, capsys):
    env = make_env(reward="improvement", horizon=2, edits_per_step=2)
    env = gym.wrappers.FlattenObservation(LayerStatistics(GradientStatistics(StepSizeAction(env))))
    policy, returns = ppo.train(env, ppo.Args(steps=8, rollout=4, minibatch=2, epochs=1))
    assert len(returns) == 4
    assert "step 8: mean return" in capsys.readouterr().out
    again, _ = ppo.train(env, ppo.Args(steps=8, rollout=4, minibatch=2, epochs=1))
    for one, other in zip(policy.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
