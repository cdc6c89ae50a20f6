"""A policy of one's own in thirty lines: a closed-form direction, and two numbers learned by random search.

python -m benchmarks.run --suite smoke --agents examples/my_policy.py:MyPolicy --out runs/mine
"""

import numpy as np
import torch

from agents import Agent, TrainConfig, training_environment
from editenv import ridge_regression


class MyPolicy(Agent):
    """Moves each token's output down its gradient by ridge regression; learns how far, and how strong the ridge is."""

    learns = True  # prepare() is given an environment on the training split
    looks_at_model = True  # begin() keeps the environment: act() looks at the weights
    candidates = 6  # pairs of numbers that are tried
    training = TrainConfig(horizon=3, edits_per_step=20)

    def prepare(self, env, seed, progress):
        """Keeps the best of a few random (step, ridge) by the return of one short episode each."""
        rng = np.random.default_rng(seed)
        practice = training_environment(env, self.training)
        returns, tried = [], 10.0 ** rng.uniform([-0.5, -2.0], [1.0, 0.0], (self.candidates, 2))
        for i, (self.step, self.ridge) in enumerate(tried):
            _, info = practice.reset(seed=seed, options={"keep_cache": True})
            self.begin(practice)
            total, done = 0.0, False
            while not done:
                _, reward, terminated, truncated, info = practice.step(self.act(practice.gradients, info))
                total, done = total + reward, terminated or truncated
            returns.append(total)
            progress("random search", i + 1, self.candidates)
        self.step, self.ridge = tried[int(np.argmax(returns))]

    def begin(self, env):
        self.lm = env.language_model

    def act(self, observation, info):
        deltas = {}
        for module, gradient in observation.items():  # keys (tokens, d_in), value_grads (tokens, d_out)
            # Of the unedited weight: a share of the edited one's output would grow with every step.
            length = (gradient.keys @ self.lm.initial_weight(module).float()).norm(dim=1, keepdim=True)
            values = -self.step * length * torch.nn.functional.normalize(gradient.value_grads)
            ridge = self.ridge * float(gradient.keys.square().sum(1).mean())
            deltas[module] = ridge_regression(gradient.keys, values, ridge)
        return deltas
