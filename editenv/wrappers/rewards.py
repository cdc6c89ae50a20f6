"""The reward measured against a reference editor."""

from typing import Any, SupportsFloat

import gymnasium as gym
import torch
from gymnasium.utils import RecordConstructorArgs

from editenv.arguments import PositiveFloat, checked_arguments
from editenv.deltas import LowRank
from editenv.env import lifelong_edit
from editenv.wrappers.actions import gradient_step


class RelativeReward(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """0 for a step that does as well as no editing at all, 1 for one that does as well as a reference editor.

    ``(r - r_none) / max(|r_reference - r_none|, smallest)`` with the rewards of eq. 10, whichever reward the
    environment has; at least ``lowest``. Both are taken along the same stream on trajectories
    of their own, so that they depend on nothing the agent does, and better actions stay better. ``r_none`` is the
    reward at theta_0. The reference is a plain gradient step on every batch; it has no model of its own, but a copy
    of the edited weights that is put in the model's place to ask for its gradient and its reward, at the cost of
    about one reward a step.

    ``info["reward"]`` keeps the reward of eq. 10, ``info["reference_reward"]`` and ``info["no_edit_reward"]``
    the others.

    Args:
        env: A LifelongEdit environment, wrapped or not. Its locality must be measured against theta_0: against the
            model before the batch (``reference="previous"``) both would depend on what the agent has done.
        step: The reference's output change, relative to a token's output at theta_0.
        ridge: The reference's ridge, relative to the mean squared length of a key.
        smallest: Least difference that is divided by, in nats.
        lowest: What a step counts at least: a broken model's loss has no bound, and nothing is learned beside it.
            Where the environment's reward is ``"improvement"`` and ends the episode, its penalty if that is lower.
    """

    @checked_arguments
    def __init__(
        self,
        env: gym.Env[Any, Any],
        step: PositiveFloat = 1.0,
        ridge: PositiveFloat = 0.1,
        smallest: PositiveFloat = 0.1,
        lowest: float = -10.0,
    ) -> None:
        if lifelong_edit(env).reward_config.reference != "initial":
            raise ValueError("RelativeReward needs an environment with reference='initial'")
        RecordConstructorArgs.__init__(self, step=step, ridge=ridge, smallest=smallest, lowest=lowest)
        gym.Wrapper.__init__(self, env)
        self._editing = lifelong_edit(env)
        self.reference_step, self.reference_ridge, self.smallest = step, ridge, smallest
        self.lowest = lowest
        self._reference_weights: dict[str, torch.Tensor] | None = None  # of the episode's first step on

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._reference_weights = self._editing.language_model.snapshot()
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """One step of the environment, its reward rescaled.

        Raises:
            RuntimeError: Before the first reset.
            Exception: What else the environment raises; the reference has then not moved.
        """
        if self._reference_weights is None:
            raise RuntimeError("step: the episode never began; call reset() first")
        no_edit, reference, reference_weights = self._references()
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._reference_weights = reference_weights
        loss = info["reward_terms"]["reward"]
        relative = (loss - no_edit) / max(abs(reference - no_edit), self.smallest)
        relative = relative if relative > self.lowest else self.lowest  # also where it is not a number
        if info.get("broken"):
            relative = min(self.lowest, float(reward))
        info = info | {"reward": loss, "no_edit_reward": no_edit, "reference_reward": reference}
        return observation, relative, terminated, truncated, info

    def _references(self) -> tuple[float, float, dict[str, Any]]:
        """The rewards of no edit and of the reference for the batch at hand, and the reference's weights after it."""
        env, lm = self._editing, self._editing.language_model
        with lm.at_initial_weights():
            no_edit = env.judge({}).reward
        current = lm.snapshot()
        try:
            lm.restore(self._reference_weights)
            deltas: dict[str, LowRank] = {
                name: gradient_step(lm, name, gradient, self.reference_step, self.reference_ridge)
                for name, gradient in env.fine_tuning_gradient().items()
            }
            lm.apply(deltas)
            reference, reference_weights = env.judge(deltas).reward, lm.snapshot()
        finally:
            lm.restore(current)
        return no_edit, reference, reference_weights
