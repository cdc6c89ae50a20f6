"""LoRA (Hu et al. 2022): each batch is fine-tuned in a low-rank adapter of its own, which then becomes part of the
weights.
"""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from agents.base import Agent, Observation, ProgressCallback
from agents.baselines.target_loss import edit_prompts, negative_log_likelihood
from agents.baselines.weight_training import draws_seed
from editenv.arguments import PositiveFloat, PositiveInt
from editenv.deltas import Delta, LowRank
from editenv.env import Action, LifelongEditEnv
from editenv.language_model.editable_lm import EditableLM


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
            raise ImportError("methods lora and lora-merge need PEFT: pip install lifelongedit[lora]") from error
        self._seed = seed

    def begin(self, env: LifelongEditEnv) -> None:
        self._env = env

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        lm = self._env.language_model
        prompts = edit_prompts(self._env.training_targets)
        loss = negative_log_likelihood(prompts, len(self._env.batch))
        with fresh_adapter(lm, self.rank, self.alpha, self._draws_seed(info)) as adapter:
            optimizer = torch.optim.Adam(adapter.parameters, lr=self.learning_rate)
            for _ in range(self.steps):
                optimizer.zero_grad()
                loss(lm.logits(prompts)).backward()
                optimizer.step()
        return adapter.deltas()

    def _draws_seed(self, info: dict[str, Any]) -> str:
        return draws_seed(self._seed, info["attempt"], self._env.batch)


class Adapter:
    """A LoRA adapter of the edited modules, by PEFT.

    Attributes:
        parameters: A and B of each module, to be trained.
        layers: By module PEFT's layer.
    """

    def __init__(self, adapted: Any, names: Iterable[str]) -> None:
        self.parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        self.layers: dict[str, Any] = {name: adapted.get_base_model().get_submodule(name) for name in names}

    def deltas(self, share: float = 1.0) -> dict[str, Delta]:
        """By module ``share A^T B^T scale``."""
        return {
            name: LowRank(
                layer.lora_A["default"].weight.detach().T,
                share * layer.scaling["default"] * layer.lora_B["default"].weight.detach().T,
            )
            for name, layer in self.layers.items()
        }


@contextmanager
def fresh_adapter(lm: EditableLM, rank: int, alpha: int, seed: str) -> Iterator[Adapter]:
    """Within the context the model has an adapter that changes nothing yet (B = 0), and gradients are taken.

    Args:
        lm: The model.
        rank: r.
        alpha: The adapter's scale is ``alpha / rank``.
        seed: A is drawn from it.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(lm.modules), lora_dropout=0.0)
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(random.Random(seed).getrandbits(63))
        adapted = get_peft_model(lm.model, config)
        try:
            yield Adapter(adapted, lm.modules)
        finally:
            adapted.unload()
