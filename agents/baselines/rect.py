"""RECT (Gu et al. 2024, EMNLP): of each update only the entries that change a weight most, relative to it."""

from typing import Any

import torch

from agents.base import Observation
from agents.baselines.memit import MEMIT
from agents.baselines.values import LayerValueConfig, ValueConfig
from editenv.arguments import NonNegativeFloat, PositiveFloat, PositiveInt, PositiveShare
from editenv.deltas import dense
from editenv.env import Action


def keep_largest_relative(delta: torch.Tensor, weight: torch.Tensor, keep: float) -> torch.Tensor:
    """The delta with all but the share ``keep`` of its entries set to zero: those largest in |D_ij / W_ij| stay.

    Args:
        delta: D.
        weight: W before it, of the same shape.
        keep: From 0 to 1; an entry whose weight is zero counts as infinitely changed.
    """
    relative = (delta / weight).abs().nan_to_num(nan=0.0, posinf=torch.inf)
    chosen = relative.flatten().topk(round(keep * delta.numel())).indices
    kept = torch.zeros_like(delta).flatten()
    kept[chosen] = delta.flatten()[chosen]
    return kept.view_as(delta)


class RECT(MEMIT):
    """MEMIT, batch by batch, with each layer's update thinned out.

    Needs and precomputes what MEMIT does.

    Args:
        value, weight, samples, epsilon: As MEMIT has them.
        keep: Share of an update's entries that stay: 40 per cent in AlphaEdit's public code (the default), 20 in
            RECT's.
    """

    def __init__(
        self,
        value: LayerValueConfig | ValueConfig | None = None,
        weight: PositiveFloat = 15_000.0,
        samples: PositiveInt = 100_000,
        epsilon: NonNegativeFloat = 1e-4,
        keep: PositiveShare = 0.4,
    ) -> None:
        super().__init__(value, weight, samples, epsilon)
        self.keep = keep

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        lm = self._env.language_model
        deltas = self._write(self._env.batch)
        return {name: keep_largest_relative(dense(d), lm.weight(name), self.keep) for name, d in deltas.items()}
