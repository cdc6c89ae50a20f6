"""RLSEdit (Wang et al. 2026, arXiv 2601.15686): recursive least squares over all edits, held by anchors."""

from collections.abc import Sequence
from typing import Literal

import torch

from agents.baselines.lookup import Lookup
from agents.baselines.memit import MEMIT
from agents.baselines.values import LayerValueConfig, ValueConfig
from agents.preconditioner import Preconditioner, inverted, regularised
from editenv.arguments import NonNegativeFloat, PositiveFloat, PositiveInt
from editenv.data import Edit
from editenv.deltas import LowRank


class RLSEdit(MEMIT):
    """MEMIT's values and spread over layers; each layer's weight is the least-squares solution for all edits so far.

    With K_i (n, d_in) the keys of batch i, V_i (n, d_out) its wanted outputs, and anchors K_0 whose outputs are to stay
    those of W_0,

        W = argmin_W  sum_i |K_i W - V_i|^2 + deviation^2 |W - W_0|^2 + |K_0 (W - W_0)|^2

    which the public code ("section 4.4") solves batch after batch, by Woodbury's identity:

        C_0 = (deviation^2 I + K_0^T K_0)^{-1}
        C_t = C_{t-1} - C_{t-1} K_t^T (I + K_t C_{t-1} K_t^T)^{-1} K_t C_{t-1}
        W_t = W_{t-1} + C_t K_t^T (V_t - K_t W_{t-1})

    The anchors are text: ``K_0^T K_0 = weight C``, with C its key covariance. ``V_t - K_t W_{t-1}`` is MEMIT's R, what
    is missing behind the last edited layer divided by the layers left. Without ``deviation`` it is `memit-seq`, but for
    the keys that are kept of a batch: those it was solved with here, those of the edited model there.

    Needs and precomputes what MEMIT does.

    Args:
        value, samples, epsilon: As MEMIT has them.
        weight: Of the anchors, the public code's ``mu_reg^2 mom2_update_weight``: 15,000 there for Llama-3-8B.
        deviation: lambda, how firmly W is held to W_0; its square is in units of a squared key. 0 in the public code.
        outputs: ``"added"`` adds R to a module's outputs. ``"replaced"`` puts R in their place, as the public code
            does, whose V_t is R alone and from which it subtracts ``K_t W_{t-1}``.
    """

    def __init__(
        self,
        value: LayerValueConfig | ValueConfig | None = None,
        weight: PositiveFloat = 15_000.0,
        samples: PositiveInt = 100_000,
        epsilon: NonNegativeFloat = 1e-4,
        deviation: NonNegativeFloat = 0.0,
        outputs: Literal["added", "replaced"] = "added",
    ) -> None:
        super().__init__(value, weight, samples, epsilon)
        self.deviation, self.outputs = deviation, outputs

    def _precondition(self, covariance: dict[str, torch.Tensor]) -> Preconditioner:
        start = {}
        for name, C in covariance.items():
            anchored = self.weight * regularised(C, self.epsilon)
            anchored.diagonal().add_(self.deviation**2)
            start[name] = inverted(anchored)
        return Preconditioner(start, recursive=True)

    def _write(self, edits: Sequence[Edit]) -> dict[str, LowRank]:
        self._solved: dict[str, torch.Tensor] = {}
        deltas = super()._write(edits)
        self._finished = self._solved
        return deltas

    def _solve(self, name: str, keys: torch.Tensor, missing: torch.Tensor, lookup: Lookup) -> LowRank:
        self._solved[name] = keys
        if self.outputs == "replaced":
            layers_left = len(self._env.language_model.modules) - len(self._solved) + 1
            missing = missing - keys @ self._env.language_model.weight(name) / layers_left
        return super()._solve(name, keys, missing, lookup)
