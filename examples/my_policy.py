"""A policy of one's own in thirty lines: a closed-form direction, and two numbers learned by random search.

python -m benchmarks.run --suite smoke --agents examples/my_policy.py:MyPolicy --out runs/mine
"""

import numpy as np
import torch

from agents.base import Agent
from agents.hypernetwork.training import TrainConfig, training_environment
from editenv.deltas import ridge_regression


class MyPolicy(Agent):
    """Moves each token's output down its gradient by ridge regression; learns how far, and how strong the ridge is."""

    learns = True  # prepare() is given an environment on the training split
    candidates = 6  # pairs of numbers that are tried
    training = TrainConfig(horizon=3, edits_per_step=20)

    def prepare(self, env, seed, progress):
        """Keeps the best of a few random (step, ridge) by the return of one short episode each."""
        rng = np.random.default_rng(seed)
        practice = training_environment(env, self.training)
        returns, tried = [], 10.0 ** rng.uniform([-0.5, -2.0], [1.0, 0.0], (self.candidates, 2))
        for i, (self.step, self.ridge) in enumerate(tried):
            observation, info = practice.reset(seed=seed, options={"keep_cache": True})
            self.begin(practice)
            total, done = 0.0, False
            while not done:
                observation, reward, terminated, truncated, info = practice.step(self.act(observation, info))
                total, done = total + reward, terminated or truncated
            returns.append(total)
            progress("random search", i + 1, self.candidates)
        self.step, self.ridge = tried[int(np.argmax(returns))]

    def begin(self, env):
        self.env = env

    def act(self, observation, info):
        deltas = {}
        for name, gradient in self.env.gradients.items():  # the observation's factors, as tensors
            length = (gradient.keys @ self.env.language_model.weight(name)).norm(dim=1, keepdim=True)
            values = -self.step * length * torch.nn.functional.normalize(gradient.value_grads)
            deltas[name] = ridge_regression(
                gradient.keys, values, self.ridge * float(gradient.keys.square().sum(1).mean())
            )
        return deltas
