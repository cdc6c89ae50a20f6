"""The noise on the hypernetwork's output (RLEdit, Li et al. 2025, appendix E) as an action for any RL library."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from agents.hypernetwork.agent import HypernetworkAgent
from agents.hypernetwork.networks import MalmenPolicy
from agents.progress import silent
from editenv.arguments import PositiveFloat, checked_arguments
from editenv.deltas import LowRank
from editenv.env import LifelongEditEnv, lifelong_edit
from editenv.wrappers.actions import numbers_of


class HypernetworkNoise(gym.ActionWrapper[Any, np.ndarray, Any], RecordConstructorArgs):
    """A trained hypernetwork edits; the action is added to its output, so that zeros are the hypernetwork itself.

    The output for a batch of r tokens is V ``(r, d_out)``, the change asked of a module's output at each token,
    which ridge regression turns into the delta. Row i of a module's share of the action belongs to token i; rows of
    tokens that the batch does not have are not used. A Gaussian policy over this Box, which all policy gradient
    libraries have, is the paper's stochastic policy.

    Args:
        env: A LifelongEdit environment.
        policy: Folder of a policy trained by ``python -m agents.rledit``.
        noise: What an action of 1 adds to an entry of V, in units of a typical entry of the module's output.

    Raises:
        FileNotFoundError: If the folder holds no policy.
        ValueError: If the policy edits other modules, or is of a form without the paper's ridge regression.
    """

    @checked_arguments
    def __init__(self, env: gym.Env[Any, Any], policy: str | Path, noise: PositiveFloat = 0.1) -> None:
        RecordConstructorArgs.__init__(self, policy=policy, noise=noise)
        gym.ActionWrapper.__init__(self, env)
        self._editing = lifelong_edit(env)
        self.noise = noise
        self._agent = HypernetworkAgent(policy=Path(policy))
        if not isinstance(self._agent.policy, MalmenPolicy):
            raise ValueError(
                f"policy: {policy} holds no network with a ridge regression, whose V the noise is added to"
            )
        self._policy = self._agent.policy
        # The preconditioner's statistics come from text of the training split.
        training = LifelongEditEnv(**self._editing.model_arguments, split="train") if self._agent.reads_text else None
        self._agent.prepare(training or self._editing, 0, silent)
        widths = [d_out for _, d_out in self._agent.policy.shapes.values()]
        self.action_space = spaces.Box(-1.0, 1.0, (self._editing.max_tokens * sum(widths),), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._agent.begin(self._editing)
        return observation, info

    @torch.no_grad()
    def action(self, action: np.ndarray) -> dict[str, LowRank]:
        """The hypernetwork's deltas for the batch at hand with the action as noise on V.

        Args:
            action: ``(sum over modules of max_tokens d_out,)``, module after module, token after token.

        Raises:
            ValueError: If it has another shape, or entries that are no real numbers.
            RefusedActionError: If it is not finite.
        """
        action = numbers_of(action, self.action_space)
        policy, gradients = self._policy, self._editing.gradients
        deltas, start = {}, 0
        for name, delta in self._agent.act(gradients, {"attempt": self._editing.attempt}).items():
            assert isinstance(delta, LowRank)
            keys, d_out = gradients[name].keys, policy.shapes[name][1]
            end = start + self._editing.max_tokens * d_out
            rows = torch.as_tensor(np.reshape(action[start:end], (-1, d_out)), dtype=keys.dtype, device=keys.device)
            scale = self.noise * (policy.value_scale[policy.names.index(name)] / d_out).sqrt()
            ridge = policy.ridge(name, self._agent.config.preconditioner)
            gram = keys @ delta.left + ridge * torch.eye(len(keys), dtype=keys.dtype, device=keys.device)
            deltas[name] = LowRank(delta.left, delta.right + torch.linalg.solve(gram, scale * rows[: len(keys)]))
            start = end
        return deltas
