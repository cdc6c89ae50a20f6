"""A few numbers in place of the matrices."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from editenv.arguments import NonNegativeFloat, PositiveFloat, PositiveInt, checked_arguments
from editenv.deltas import LowRank, ridge_regression
from editenv.env import RefusedActionError, lifelong_edit
from editenv.language_model.editable_lm import EditableLM, Gradient


def gradient_step(lm: EditableLM, name: str, gradient: Gradient, step: "float | torch.Tensor", ridge: float) -> LowRank:
    """The ridge regression that moves a module's outputs down the gradient.

    Every token is asked to move by the same share of its output: gradients differ in length by orders of magnitude.
    The output is that of theta_0's weight: a share of the edited weight's would grow with every step.

    Args:
        lm: The model whose outputs are moved.
        name: The module.
        gradient: Its factors, ``r`` tokens.
        step: Relative to the length of theta_0's output at each token; a number, or ``(r, 1)``.
        ridge: Relative to the mean squared length of a key.

    Returns:
        The delta, ``(d_in, d_out)`` of rank ``r``.
    """
    output_lengths = (gradient.keys @ lm.initial_weight(name).float()).norm(dim=1, keepdim=True)
    grad_lengths = gradient.value_grads.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    values = -step * output_lengths * gradient.value_grads / grad_lengths
    return ridge_regression(gradient.keys, values, ridge * float(gradient.keys.square().sum(1).mean()))


class StepSizeAction(gym.ActionWrapper[Any, np.ndarray, Any], RecordConstructorArgs):
    """Two numbers a module instead of a matrix: how large a gradient step, and how strong a ridge.

    The delta is the ridge regression, on the keys, of a step against ``value_grads`` whose length is a share of the
    unedited output's. An action of 0 is a step that moves the module's output at its own key by ``typical_step`` of
    that length; -1 and 1 are ``decades`` powers of ten less and more, likewise for the ridge around
    ``typical_ridge`` of a key's squared length. A random action is at most a factor of ten off by default; with two
    decades it mostly breaks the embedded model within ten batches (docs/reference/environment.md has returns).

    Args:
        env: A LifelongEdit environment.
        typical_step: Relative output change at action 0.
        typical_ridge: Relative ridge at action 0.
        decades: Reach of the action.
    """

    @checked_arguments
    def __init__(
        self,
        env: gym.Env[Any, Any],
        typical_step: PositiveFloat = 1.0,
        typical_ridge: PositiveFloat = 0.1,
        decades: NonNegativeFloat = 1.0,
    ) -> None:
        RecordConstructorArgs.__init__(self, typical_step=typical_step, typical_ridge=typical_ridge, decades=decades)
        gym.ActionWrapper.__init__(self, env)
        self._editing = lifelong_edit(env)
        self.typical_step, self.typical_ridge, self.decades = typical_step, typical_ridge, decades
        modules = len(self._editing.language_model.modules)
        self.action_space = spaces.Box(-1.0, 1.0, (2 * modules,), np.float32)

    def action(self, action: np.ndarray) -> dict[str, Any]:
        """The inner environment's action.

        Args:
            action: ``(2 m,)`` in [-1, 1]: step sizes of the m modules, then their ridges.

        Raises:
            ValueError: For another shape, or what are no real numbers.
            RefusedActionError: For numbers that are not finite, or whose powers of ten are not.
        """
        with np.errstate(over="ignore"):
            factors = 10.0 ** (self.decades * numbers_of(action, self.action_space))
        if not np.isfinite(factors).all():
            raise RefusedActionError("action: its powers of ten are not finite; give numbers from -1 to 1")
        steps, ridges = np.split(factors, 2)
        return {
            name: gradient_step(
                self._editing.language_model,
                name,
                gradient,
                self.typical_step * float(step),
                self.typical_ridge * float(ridge),
            )
            for (name, gradient), step, ridge in zip(self._editing.gradients.items(), steps, ridges, strict=True)
        }


class SketchedAction(gym.ActionWrapper[Any, np.ndarray, Any], RecordConstructorArgs):
    """A few numbers a module, linear in the delta: coefficients of a fixed random sketch of the batch's tokens.

    A delta drawn in a random subspace of all ``(d_in, d_out)`` matrices does next to nothing at the keys that
    matter, so the sketch lies in the span of the observation. Coefficient ``j`` of a module is how far the tokens
    are moved down their gradients in proportion to feature ``j`` of each token. Feature 0 is 1 for every token, so
    that the first coefficient alone is a plain gradient step; the others are fixed Gaussian projections of the
    token's key, centred over the batch, with unit variance. All zeros is no edit, and doubling an action doubles
    its delta.

    Args:
        env: A LifelongEdit environment.
        features: Coefficients a module.
        largest_step: Output change relative to the unedited output's length where the first coefficient is -1 or 1.
            Twice as much reaches further, but random actions then break the embedded model.
        ridge: Relative to the mean squared length of a key.
        seed: Of the projections.
    """

    @checked_arguments
    def __init__(
        self,
        env: gym.Env[Any, Any],
        features: PositiveInt = 4,
        largest_step: PositiveFloat = 1.0,
        ridge: PositiveFloat = 0.1,
        seed: int = 0,
    ) -> None:
        RecordConstructorArgs.__init__(self, features=features, largest_step=largest_step, ridge=ridge, seed=seed)
        gym.ActionWrapper.__init__(self, env)
        self._editing = lifelong_edit(env)
        self.features, self.largest_step, self.ridge = features, largest_step, ridge
        lm = self._editing.language_model
        generator = torch.Generator().manual_seed(seed)
        self._projections = {
            name: torch.randn(lm.shape(name)[0], features - 1, generator=generator).to(lm.device) for name in lm.modules
        }
        self.action_space = spaces.Box(-1.0, 1.0, (len(lm.modules) * features,), np.float32)

    def action(self, action: np.ndarray) -> dict[str, Any]:
        """The inner environment's action.

        Args:
            action: ``(m features,)`` in [-1, 1]: the coefficients of the first module, then those of the next.

        Raises:
            ValueError: For another shape.
        """
        lm, deltas = self._editing.language_model, {}
        numbers = numbers_of(action, self.action_space).reshape(-1, self.features)
        rows = torch.as_tensor(numbers, dtype=torch.float32, device=lm.device)
        for (name, gradient), coefficients in zip(self._editing.gradients.items(), rows, strict=True):
            centred = torch.nn.functional.normalize(gradient.keys - gradient.keys.mean(0))
            features = torch.cat([torch.ones_like(centred[:, :1]), centred @ self._projections[name]], 1)
            step = self.largest_step * features @ coefficients[:, None]  # (r, 1)
            deltas[name] = gradient_step(lm, name, gradient, step, self.ridge)
        return deltas


def numbers_of(action: Any, space: spaces.Space[Any]) -> np.ndarray:
    """An action of a flat box as float64, of any strides and byte order.

    Raises:
        ValueError: If it has another shape (which would be split among the modules all the same), or entries that are
            no real numbers.
        RefusedActionError: If they are not finite.
    """
    values = np.asarray(action)
    if values.dtype.kind not in "fiu":
        raise ValueError(f"action expects numbers of shape {space.shape}, was given entries of type {values.dtype}")
    if values.shape != space.shape:
        raise ValueError(f"action expects shape {space.shape}, was given {values.shape}")
    numbers = np.ascontiguousarray(values, np.float64)
    if not np.isfinite(numbers).all():
        raise RefusedActionError("action: expects finite numbers, was given NaN or infinity")
    return numbers
