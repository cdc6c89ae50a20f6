"""LoRA-Merge of WikiBigEdit (Thede et al. 2025, ICML): an adapter a batch, averaged with the weights that hold all
earlier ones.
"""

import math
import random
from typing import Any

import torch

from agents.base import Observation
from agents.baselines.lora import LoRA, fresh_adapter
from agents.baselines.target_loss import negative_log_likelihood
from agents.baselines.weight_training import encode_targets, latest_targets
from editenv.arguments import PositiveFloat, PositiveInt, PositiveShare
from editenv.env import Action


def learning_rate_factors(epochs: int) -> list[float]:
    """The factor of each epoch's learning rate: a linear rise over the first tenth, then half a cosine down."""
    rise = (epochs + 1) // 10
    first = min(rise, 1)  # a rise would begin with an epoch of rate zero
    factors = []
    for epoch in range(first, epochs + first):
        progress = (epoch - rise) / (epochs + first - rise)
        factors.append(epoch / rise if epoch < rise else 0.5 * (1 + math.cos(math.pi * progress)))
    return factors


class LoRAMerge(LoRA):
    """An adapter of its own for each batch, of which a share is merged into the weights (after the public code).

    The adapted weights and those from before the batch are interpolated,

        theta_t = (1 - share) theta_{t-1} + share (theta_{t-1} + A^T B^T alpha / rank)

    so that along a stream the weights are a moving average of the adapted ones. Adam takes several epochs of shuffled
    mini-batches; its rate rises and falls (:func:`learning_rate_factors`). With a share of 1 the adapter is merged
    whole.

    Precomputes nothing and needs nothing but the edits. Defaults are the public code's for Llama-2-7B and batches of
    128 edits; of its ten epochs the first has a rate of zero, and is left out here.

    Args:
        rank: r.
        alpha: The adapter's scale is ``alpha / rank``.
        epochs: Over the batch.
        mini_batch: Edits in a step.
        learning_rate: Adam's, at its highest.
        share: Of the adapter in the merged weights.
        actions_per_batch: K.

    Raises:
        ImportError: From :meth:`prepare`, if PEFT is not installed: ``pip install lifelongedit[lora]``.
    """

    def __init__(
        self,
        rank: PositiveInt = 4,
        alpha: PositiveInt = 8,
        epochs: PositiveInt = 9,
        mini_batch: PositiveInt = 32,
        learning_rate: PositiveFloat = 6.25e-4,
        share: PositiveShare = 0.25,
        actions_per_batch: PositiveInt = 1,
    ) -> None:
        super().__init__(rank, alpha, epochs, learning_rate, actions_per_batch)
        self.epochs, self.mini_batch, self.share = epochs, mini_batch, share

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        lm = self._env.language_model
        targets = list(latest_targets(self._env.batch).items())
        seed = self._draws_seed(info)
        draws = random.Random(seed)
        with fresh_adapter(lm, self.rank, self.alpha, seed) as adapter:
            optimizer = torch.optim.Adam(adapter.parameters)
            for factor in learning_rate_factors(self.epochs):
                optimizer.param_groups[0]["lr"] = factor * self.learning_rate
                draws.shuffle(targets)
                for start in range(0, len(targets), self.mini_batch):
                    chosen = targets[start : start + self.mini_batch]
                    prompts = encode_targets(lm, chosen, self._env.train_eos)
                    optimizer.zero_grad()
                    negative_log_likelihood(prompts, len(chosen))(lm.logits(prompts)).backward()
                    optimizer.step()
        return adapter.deltas(self.share)
