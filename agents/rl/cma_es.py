"""CMA-ES (Hansen and Ostermeier 2001) of the package cmaes, on a linear policy that sees statistics and not gradients.

The policy is as small as the strategy needs, which keeps a full covariance matrix: an action of Stable-Baselines3's
wrapped environment, two numbers a module in [-1, 1], is ``W x + b`` of the statistics x. It begins at zero, the middle
of the range. In each generation all candidates edit one common stream; their returns count by their order alone.
"""

import math
import random
from typing import Any

import gymnasium as gym
import numpy as np

from agents.base import Agent, Observation
from agents.hypernetwork.config import TrainConfig
from agents.rl.sb3 import wrapped
from editenv.env import Action, LifelongEditEnv
from editenv.wrappers.chain import inner_action, outer_observation


class LinearPolicy:
    """``W x + b``, cut to the bounds of the action space.

    Args:
        env: Wrapped, as :func:`agents.rl.sb3.wrapped` does.

    Attributes:
        parameters: W and b, a row for each number of the action: flat.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        assert isinstance(env.action_space, gym.spaces.Box)
        self._observations, self._actions = env.observation_space, env.action_space
        outputs, inputs = int(np.prod(self._actions.shape)), gym.spaces.flatdim(self._observations)
        self._shape = outputs, inputs + 1
        self.parameters = np.zeros(outputs * (inputs + 1))

    def __call__(self, observation: Any) -> np.ndarray:
        statistics = np.append(np.asarray(gym.spaces.flatten(self._observations, observation)), 1.0)
        action = (self.parameters.reshape(self._shape) @ statistics).reshape(self._actions.shape)
        return np.clip(action, self._actions.low, self._actions.high).astype(self._actions.dtype)


class CMAES:
    """The search: a generation at a time.

    Args:
        env: A :func:`agents.hypernetwork.training.training_environment`.
        config: What it was made from; the discount is read here.
        seed: Of candidates and streams.
        deviation: Standard deviation of the first candidates' parameters.

    Attributes:
        policy: At the mean of the candidates to come.
        steps: Environment steps so far.
    """

    def __init__(self, env: LifelongEditEnv, config: TrainConfig, seed: int, deviation: float = 0.1) -> None:
        from cmaes import CMA

        self.env, self.config, self.seed = wrapped(env), config, seed
        self.policy, self._candidate = LinearPolicy(self.env), LinearPolicy(self.env)
        self.strategy = CMA(mean=self.policy.parameters.copy(), sigma=deviation, seed=seed)
        self.steps = 0

    def generation(self) -> None:
        """All candidates edit the generation's stream from theta_0, and the mean moves."""
        stream = random.Random(f"{self.seed}/{self.strategy.generation}").getrandbits(31)
        solutions = []
        for number in range(self.strategy.population_size):
            self._candidate.parameters = self.strategy.ask()
            earned = self._play(stream, again=number > 0)
            # A model that broke is the last: the strategy sorts what it minimises.
            solutions.append((self._candidate.parameters, -earned if math.isfinite(earned) else math.inf))
        self.strategy.tell(solutions)
        self.policy.parameters = self.strategy.mean.copy()

    def _play(self, stream: int, again: bool) -> float:
        """The candidate's discounted return; what the frozen layers made of a stream that was just played is kept."""
        observation, _ = self.env.reset(seed=stream, options={"keep_cache": again})
        earned, weight, done = 0.0, 1.0, False
        while not done:
            observation, reward, terminated, truncated, _ = self.env.step(self._candidate(observation))
            earned += weight * float(reward)
            weight *= self.config.discount
            self.steps += 1
            done = terminated or truncated
        return earned


class CMAESAgent(Agent):
    """Plays the mean of a search; goes on changing with it, and needs no :meth:`prepare`.

    Args:
        search: Whose policy.
    """

    looks_at_model = True  # its observation has statistics of the edited layers, too

    def __init__(self, search: CMAES) -> None:
        self.search, self.actions_per_batch = search, search.config.actions_per_batch

    def begin(self, env: LifelongEditEnv) -> None:
        self._env, self._wrapped = env, wrapped(env)

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        statistics = outer_observation(self._wrapped, self._env.padded(observation))
        return inner_action(self._wrapped, self.search.policy(statistics))
