"""LoRA (Hu et al. 2022): each batch is fine-tuned in a low-rank adapter of its own, which then becomes part of the
weights.
"""

import random
from typing import Any

import torch

from agents.base import Agent, Observation, ProgressCallback
from agents.baselines.target_loss import edit_prompts, negative_log_likelihood
from editenv.arguments import PositiveFloat, PositiveInt
from editenv.deltas import LowRank
from editenv.env import Action, LifelongEditEnv


class LoRA(Agent):
    """Adam on an adapter ``x A^T B^T scale`` of the edited modules (PEFT's), from ``B = 0`` anew for each batch.

    The delta is ``A^T B^T scale`` (eq. 3, in our layout), of the adapter's rank; the adapter is gone when
    :meth:`act` returns, and the weights are as they were. Precomputes nothing and needs nothing but the edits. Rank
    8 is PEFT's default, and so is ``alpha / rank = 1``; steps and learning rate depend on the model.

    Args:
        rank: r.
        alpha: The adapter's scale is ``alpha / rank``.
        steps: Adam steps on each batch.
        learning_rate: Adam's.
        actions_per_batch: K.

    Raises:
        ImportError: From :meth:`prepare`, if PEFT is not installed: ``pip install lifelongedit[lora]``.
    """

    looks_at_model = True

    def __init__(
        self,
        rank: PositiveInt = 8,
        alpha: PositiveInt = 8,
        steps: PositiveInt = 20,
        learning_rate: PositiveFloat = 1e-2,
        actions_per_batch: PositiveInt = 1,
    ) -> None:
        self.rank, self.alpha, self.steps, self.learning_rate = rank, alpha, steps, learning_rate
        self.actions_per_batch = actions_per_batch

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        try:
            import peft  # noqa: F401
        except ImportError as error:
            raise ImportError("method lora needs PEFT: pip install lifelongedit[lora]") from error
        self._seed = seed

    def begin(self, env: LifelongEditEnv) -> None:
        self._env = env

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        from peft import LoraConfig, get_peft_model

        env, lm = self._env, self._env.language_model
        prompts = edit_prompts(env.training_targets)
        loss = negative_log_likelihood(prompts, len(env.batch))
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=list(lm.modules), lora_dropout=0.0)
        # A's start is drawn from the batch, not from how many came before: an interrupted run goes on the same.
        drawn_from = f"{self._seed}/{info['attempt']}/" + "/".join(f"{e.prompt} {e.target}" for e in env.batch)
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(random.Random(drawn_from).getrandbits(63))
            adapted = get_peft_model(lm.model, config)
            try:
                layers: dict[str, Any] = {name: adapted.get_base_model().get_submodule(name) for name in lm.modules}
                optimizer = torch.optim.Adam(
                    [p for p in adapted.parameters() if p.requires_grad], lr=self.learning_rate
                )
                for _ in range(self.steps):
                    optimizer.zero_grad()
                    loss(lm.logits(prompts)).backward()
                    optimizer.step()
            finally:
                adapted.unload()
        return {
            name: LowRank(
                layer.lora_A["default"].weight.detach().T,
                layer.scaling["default"] * layer.lora_B["default"].weight.detach().T,
            )
            for name, layer in layers.items()
        }
