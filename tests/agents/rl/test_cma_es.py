"""CMA-ES on a linear policy: candidates, returns and the mean against the package's own strategy, played by hand."""

import math
import random

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("cmaes", reason="the cma extra is not installed")
from cmaes import CMA

from agents.hypernetwork.config import TrainConfig
from agents.hypernetwork.training import training_environment
from agents.rl.cma_es import CMAES, CMAESAgent, LinearPolicy
from agents.rl.sb3 import wrapped

LAST = "layers.2.mlp.down_proj"
CONFIG = TrainConfig(horizon=2, edits_per_step=2, discount=0.9)


class Seen(gym.Env):
    observation_space = gym.spaces.Dict({"a": gym.spaces.Box(-9, 9, (1,)), "b": gym.spaces.Box(-9, 9, (2,))})
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)


def test_an_action_is_linear_in_the_statistics_and_within_bounds():
    policy = LinearPolicy(Seen())
    seen = {"a": np.array([2.0]), "b": np.array([-1.0, 0.5])}
    assert policy(seen).tolist() == [0, 0], "it begins in the middle"
    policy.parameters = np.array([0.1, 0.2, 0.4, -0.05, 1.0, 0.0, 0.0, 3.0])
    expected = [0.1 * 2 - 0.2 + 0.4 * 0.5 - 0.05, 1.0]  # the second would be 5
    assert policy(seen).tolist() == pytest.approx(expected)


def test_a_generation_is_the_strategy_told_what_its_candidates_earn_on_one_stream(make_env, small_world):
    search = CMAES(training_environment(make_env(modules=[LAST]), CONFIG), CONFIG, seed=5, deviation=0.3)
    size = len(search.policy.parameters)
    strategy = CMA(mean=np.zeros(size), sigma=0.3, seed=5)
    env = wrapped(training_environment(make_env(modules=[LAST]), CONFIG))
    inputs = gym.spaces.flatdim(env.observation_space)
    solutions = []
    for _ in range(strategy.population_size):
        candidate = strategy.ask()
        observation, _ = env.reset(seed=random.Random("5/0").getrandbits(31))
        rewards = []
        for _ in range(2):
            x = gym.spaces.flatten(env.observation_space, observation)
            rows = candidate.reshape(-1, inputs + 1)
            action = np.clip(rows[:, :-1] @ x + rows[:, -1], -1, 1).astype(np.float32)
            observation, reward, *_ = env.step(action)
            rewards.append(reward)
        solutions.append((candidate, -(rewards[0] + 0.9 * rewards[1])))
    strategy.tell(solutions)
    search.generation()
    np.testing.assert_allclose(search.policy.parameters, strategy.mean, rtol=1e-6, atol=1e-9)
    assert np.abs(strategy.mean).max() > 0
    assert search.steps == 2 * strategy.population_size


def test_a_candidate_that_breaks_the_model_is_the_last(make_env, small_world, monkeypatch):
    means = []
    for broken in (math.nan, -math.inf, -1e30):
        search = CMAES(training_environment(make_env(modules=[LAST]), CONFIG), CONFIG, seed=0)
        returns = iter([broken, *range(search.strategy.population_size - 1)])
        monkeypatch.setattr(search, "_play", lambda stream, again, returns=returns: float(next(returns)))
        search.generation()
        means.append(search.policy.parameters)
    np.testing.assert_array_equal(means[0], means[1])
    np.testing.assert_array_equal(means[0], means[2])


def test_an_agent_plays_the_mean(make_env, small_world):
    search = CMAES(training_environment(make_env(modules=[LAST]), CONFIG), CONFIG, seed=0)
    search.policy.parameters = np.random.default_rng(0).normal(0, 0.1, len(search.policy.parameters))
    agent, plain, around = CMAESAgent(search), make_env(modules=[LAST]), wrapped(make_env(modules=[LAST]))
    _, info = plain.reset(seed=5)
    seen, _ = around.reset(seed=5)
    agent.begin(plain)
    done = False
    while not done:
        _, reward, terminated, truncated, info = plain.step(agent.act(plain.gradients, info))
        seen, expected, *_ = around.step(search.policy(seen))
        assert reward == expected
        done = terminated or truncated
