"""A few numbers in place of the gradient's factors, or beside them."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from editenv.arguments import PositiveInt, checked_arguments
from editenv.env import lifelong_edit

LARGEST_LOG = 40.0
"""Bound on the power of ten of a length: float32 has no larger or smaller ones."""

SMALLEST_LENGTH = 1e-30
"""In place of zero under a logarithm or a division."""


class GradientStatistics(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """A few numbers a module instead of its factors, in a one-level Dict.

    ``gradient``: ``(m, 5)``: log10 of the mean and largest key length, log10 of the mean and largest gradient length,
    and the mean cosine between the keys of different tokens. ``progress``: share of the stream done, and of the
    attempts.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        self._editing = lifelong_edit(env)
        modules = len(self._editing.language_model.modules)
        self.observation_space = spaces.Dict(
            {
                "gradient": spaces.Box(-LARGEST_LOG, LARGEST_LOG, (modules, 5), np.float32),
                "progress": spaces.Box(0.0, 1.0, (2,), np.float32),
            }
        )

    def observation(self, observation: Any) -> dict[str, np.ndarray]:
        """From the observation's factors; all zeros where it has no tokens."""
        rows = [self._statistics(factors) for factors in observation.values()]
        batches = max(1, len(self._editing.stream) // self._editing.edits_per_step)
        progress = [self._editing.batches_done / batches, self._editing.attempt / self._editing.actions_per_batch]
        return {"gradient": np.array(rows, np.float32), "progress": np.array(progress, np.float32)}

    @staticmethod
    def _statistics(factors: dict[str, np.ndarray]) -> list[float]:
        """The five numbers of one module."""
        is_token = factors["token_mask"] > 0
        if not is_token.any():
            return [0.0] * 5
        keys, grads = factors["keys"][is_token], factors["value_grads"][is_token]
        key_lengths = np.linalg.norm(keys, axis=1) + SMALLEST_LENGTH
        grad_lengths = np.linalg.norm(grads, axis=1) + SMALLEST_LENGTH
        unit = keys / key_lengths[:, None]
        count = len(unit)
        # The squared length of the sum of unit vectors is the sum of all their cosines, each with itself included.
        cosine = (np.square(unit.sum(0)).sum() - count) / (count * (count - 1)) if count > 1 else 0.0
        logs = [math.log10(value) for v in (key_lengths, grad_lengths) for value in (v.mean(), v.max())]
        return [*logs, float(cosine)]


class GradientSketch(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Adds ``gradient_sketch`` to a Dict observation: where the batch's mean key and mean gradient point.

    ``(m, 2 (size + 1))``: of each module's mean key, then of its mean gradient, the direction under a fixed Gaussian
    projection to ``size`` numbers (which keeps lengths and angles about as they are, Johnson and Lindenstrauss
    1984) and the log10 of its length. All zeros where there are no tokens.

    Args:
        env: A LifelongEdit environment, wrapped or not.
        size: Numbers kept of a direction.
        seed: Of the projections.
    """

    @checked_arguments
    def __init__(self, env: gym.Env[Any, Any], size: PositiveInt = 16, seed: int = 0) -> None:
        RecordConstructorArgs.__init__(self, size=size, seed=seed)
        gym.ObservationWrapper.__init__(self, env)
        self._editing = lifelong_edit(env)
        lm = self._editing.language_model
        generator = torch.Generator().manual_seed(seed)
        self._projections = {
            name: [
                (torch.randn(length, size, generator=generator) / size**0.5).to(lm.device) for length in lm.shape(name)
            ]
            for name in lm.modules
        }
        space = spaces.Box(-LARGEST_LOG, LARGEST_LOG, (len(lm.modules), 2 * (size + 1)), np.float32)
        self.observation_space = _with_entry(env, "gradient_sketch", space)

    def observation(self, observation: Any) -> dict[str, Any]:
        rows = []
        for name, gradient in self._editing.gradients.items():
            for factor, projection in zip((gradient.keys, gradient.value_grads), self._projections[name], strict=True):
                if not len(factor):
                    rows.append(torch.zeros(projection.shape[1] + 1))
                    continue
                mean = factor.mean(0)
                length = mean.norm().clamp(min=SMALLEST_LENGTH)
                rows.append(torch.cat([(mean / length) @ projection, length.log10()[None]]).cpu())
        return {
            **observation,
            "gradient_sketch": torch.stack(rows).reshape(len(self._projections), -1).numpy().astype(np.float32),
        }


class LayerStatistics(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Adds ``layers`` to a Dict observation: the state of each edited module.

    ``(m, 5)``: log10 of the weight's Frobenius norm; its distance from theta_0, relative to theta_0's norm; log10
    of the mean length of the module's outputs at the batch's keys, and their standard deviation relative to that
    mean; how far these outputs are from theta_0's, relative to those. The last three are zero where there are no
    tokens.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        self._editing = lifelong_edit(env)
        lowest = np.array([-LARGEST_LOG, 0.0, -LARGEST_LOG, 0.0, 0.0], np.float32)
        highest = np.array([LARGEST_LOG, np.inf, LARGEST_LOG, np.inf, np.inf], np.float32)
        modules = len(self._editing.language_model.modules)
        space = spaces.Box(np.tile(lowest, (modules, 1)), np.tile(highest, (modules, 1)), dtype=np.float32)
        self.observation_space = _with_entry(env, "layers", space)

    def observation(self, observation: Any) -> dict[str, Any]:
        lm = self._editing.language_model
        rows = []
        for name, gradient in self._editing.gradients.items():
            weight, initial = lm.weight(name), lm.initial_weight(name).float()
            moved = float((weight - initial).norm() / initial.norm())
            row = [math.log10(float(weight.norm()) + SMALLEST_LENGTH), moved, 0.0, 0.0, 0.0]
            if len(gradient.keys):
                outputs, initial_outputs = gradient.keys @ weight, gradient.keys @ initial
                lengths = outputs.norm(dim=1)
                mean = float(lengths.mean()) + SMALLEST_LENGTH
                spread = float(lengths.std(correction=0)) / mean
                output_change = float((outputs - initial_outputs).norm() / initial_outputs.norm())
                row[2:] = [math.log10(mean), spread, output_change]
            rows.append(row)
        return {**observation, "layers": np.array(rows, np.float32)}


def _with_entry(env: gym.Env[Any, Any], name: str, space: spaces.Space[Any]) -> spaces.Dict:
    """An environment's Dict observation space with one entry more.

    Raises:
        TypeError: If it is no Dict.
    """
    inner = env.observation_space
    if not isinstance(inner, spaces.Dict):
        raise TypeError(f"{name} is added to a Dict observation, not to a {type(inner).__name__}")
    return spaces.Dict({**inner.spaces, name: space})
