"""Wrappers that make the environment small enough for general RL libraries.

    env = GradientStatistics(StepSizeAction(gym.make("LifelongEdit-v0")))

gives a one-level Dict observation and a flat Box action in [-1, 1], which Stable-Baselines3 takes as it is.
"""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from editenv.deltas import ridge_regression
from editenv.env import LifelongEditEnv


def _editing(env: gym.Env[Any, Any]) -> LifelongEditEnv:
    inner = env.unwrapped
    if not isinstance(inner, LifelongEditEnv):
        raise TypeError(f"this wrapper is for LifelongEdit environments, not {type(inner).__name__}")
    return inner


class StepSizeAction(gym.ActionWrapper[Any, np.ndarray, Any], RecordConstructorArgs):
    """Two numbers a module instead of a matrix: how large a gradient step, and how strong a ridge.

    The delta is the ridge regression of ``-step * value_grads`` on the keys. An action of 0 is a step that moves the
    module's output at its own key by ``typical_step`` of that output's length; -1 and 1 are ``decades`` powers of ten
    less and more, likewise for the ridge around ``typical_ridge`` of a key's squared length.

    Args:
        env: A LifelongEdit environment.
        typical_step: Relative output change at action 0.
        typical_ridge: Relative ridge at action 0.
        decades: Reach of the action.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        typical_step: float = 1.0,
        typical_ridge: float = 0.1,
        decades: float = 2.0,
    ) -> None:
        RecordConstructorArgs.__init__(self, typical_step=typical_step, typical_ridge=typical_ridge, decades=decades)
        gym.ActionWrapper.__init__(self, env)
        self._editing = _editing(env)
        self.typical_step, self.typical_ridge, self.decades = typical_step, typical_ridge, decades
        modules = len(self._editing.language_model.modules)
        self.action_space = spaces.Box(-1.0, 1.0, (2 * modules,), np.float32)

    def action(self, action: np.ndarray) -> dict[str, Any]:
        """``(2 m,)``: step sizes of the m modules, then their ridges."""
        lm = self._editing.language_model
        if np.shape(action) != self.action_space.shape:
            raise ValueError(f"action expects shape {self.action_space.shape}, was given {np.shape(action)}")
        steps, ridges = np.split(10.0 ** (self.decades * np.asarray(action, np.float64)), 2)
        deltas = {}
        for (name, gradient), step, ridge in zip(self._editing.gradients.items(), steps, ridges, strict=True):
            outputs = (gradient.keys @ lm.weight(name)).norm(dim=1, keepdim=True)
            lengths = gradient.value_grads.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
            # Every token is moved by the same share of its output: gradients differ in length by orders of magnitude.
            values = -self.typical_step * float(step) * outputs * gradient.value_grads / lengths
            strength = self.typical_ridge * float(ridge) * float(gradient.keys.square().sum(1).mean())
            deltas[name] = ridge_regression(gradient.keys, values, strength)
        return deltas


class GradientStatistics(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """A few numbers a module instead of its factors, in a one-level Dict.

    ``gradient``: ``(m, 5)``: log10 of the mean and largest key length, log10 of the mean and largest gradient length,
    and the mean cosine between the keys of different tokens. ``progress``: share of the stream done, and of the attempts.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        self._editing = _editing(env)
        modules = len(self._editing.language_model.modules)
        self.observation_space = spaces.Dict(
            {
                "gradient": spaces.Box(-40.0, 40.0, (modules, 5), np.float32),
                "progress": spaces.Box(0.0, 1.0, (2,), np.float32),
            }
        )

    def observation(self, observation: Any) -> dict[str, np.ndarray]:
        """From the observation's factors; all zeros where it has no tokens."""
        rows = [self._statistics(part) for part in observation.values()]
        batches = max(1, len(self._editing.stream) // self._editing.edits_per_step)
        progress = [self._editing.batches_done / batches, self._editing.attempt / self._editing.actions_per_batch]
        return {"gradient": np.array(rows, np.float32), "progress": np.array(progress, np.float32)}

    @staticmethod
    def _statistics(part: dict[str, np.ndarray]) -> list[float]:
        real = part["token_mask"] > 0
        if not real.any():
            return [0.0] * 5
        keys, grads = part["keys"][real], part["value_grads"][real]
        key_lengths = np.linalg.norm(keys, axis=1) + 1e-30
        grad_lengths = np.linalg.norm(grads, axis=1) + 1e-30
        unit = keys / key_lengths[:, None]
        count = len(unit)
        cosine = (np.square(unit.sum(0)).sum() - count) / (count * (count - 1)) if count > 1 else 0.0
        logs = [math.log10(value) for v in (key_lengths, grad_lengths) for value in (v.mean(), v.max())]
        return [*logs, float(cosine)]
