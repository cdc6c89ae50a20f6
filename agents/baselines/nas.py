"""Norm-Anchor Scaling (Liu et al. 2026, arXiv 2602.02543): every solved value as long as the original model's are."""

import math
from collections.abc import Sequence

import torch

from agents.base import ProgressCallback
from agents.baselines.alphaedit import AlphaEdit
from agents.baselines.lookup import Lookup, look_up, read_token, read_values
from agents.baselines.memit import MEMIT
from agents.baselines.values import LayerValueConfig, ValueConfig, optimise_values
from editenv.arguments import NonNegativeFloat, PositiveFloat, PositiveInt, Share
from editenv.data import Edit
from editenv.env import LifelongEditEnv

TOO_LONG = 2.0
"""Times the anchor from which on a solved value is given up (the public code's)."""


def anchored(values: torch.Tensor, solved: torch.Tensor, anchor: float) -> torch.Tensor:
    """Solved values, scaled to the anchor's length; one of more than twice that length is given up.

    Args:
        values: ``(n, d)`` what the last edited module gives by itself.
        solved: ``(n, d)`` what it was found to have to give.
        anchor: Length.
    """
    lengths = solved.norm(dim=1, keepdim=True)
    return torch.where(lengths > TOO_LONG * anchor, values, solved * (anchor / lengths.clamp(min=1e-10)))


def trimmed_mean(lengths: torch.Tensor, trim: float) -> float:
    """The mean without the share ``trim`` of the largest."""
    kept = max(1, len(lengths) - math.floor(trim * len(lengths)))
    return float(lengths.sort().values[:kept].mean())


class NAS(MEMIT):
    """MEMIT with Norm-Anchor Scaling; with ``cache_keys`` it is the row.

    With h the hidden state behind the last edited layer, v what that layer's edited module adds to it, and delta the
    change that MEMIT finds for h, the solved value is ``v* = v + delta``. In the place of ``h + delta`` it writes

        h - v + c v* / |v*|

    where c, the anchor, is the mean length of solved values of training edits in the unedited model. Values cannot
    grow with the weights that they are written into.

    Needs: what MEMIT does, and training edits for the anchor. Precomputes: what MEMIT does, and the anchor.

    Args:
        value, weight, samples, epsilon, cache_keys: As MEMIT has them.
        anchors: Training edits that the anchor is taken from; 1,000 of CounterFact in the public code.
        trim: Share of the longest solved values that is left out of it; 0.05 in the public code.
    """

    learns = True

    def __init__(
        self,
        value: LayerValueConfig | ValueConfig | None = None,
        weight: PositiveFloat = 15_000.0,
        samples: PositiveInt = 100_000,
        epsilon: NonNegativeFloat = 1e-4,
        cache_keys: bool = False,
        anchors: PositiveInt = 1000,
        trim: Share = 0.05,
    ) -> None:
        MEMIT.__init__(self, value, weight, samples, epsilon, cache_keys)
        self.anchors, self.trim = anchors, trim

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        super().prepare(env, seed, progress)
        env.reset(seed=seed)
        edits = env.stream[: self.anchors]
        lengths = []
        for start in range(0, len(edits), env.edits_per_step):
            progress("anchor", start, len(edits))
            lengths.append(self._solved_lengths(env, edits[start : start + env.edits_per_step]))
        self.anchor = trimmed_mean(torch.cat(lengths), self.trim)

    def _solved_lengths(self, env: LifelongEditEnv, edits: Sequence[Edit]) -> torch.Tensor:
        """``(n,)`` |v*|, searched for without prefixes, as in the public code."""
        lm = env.language_model
        name = list(lm.modules)[-1]
        lookup = look_up(lm, edits, self.value.token)
        change = optimise_values(lm, lm.layer_of(name), edits, lookup, self.value)
        return (read_token(lm, lm.modules[name], lookup)[1] + change).norm(dim=1)

    def _target_output(self, edits: Sequence[Edit], lookup: Lookup) -> torch.Tensor:
        lm = self._env.language_model
        target = super()._target_output(edits, lookup)
        hidden = read_values(lm, self._where_values_are, lookup)
        values = read_values(lm, list(lm.modules.values())[-1], lookup)
        return hidden - values + anchored(values, values + target - hidden, self.anchor)


class AlphaEditNAS(NAS, AlphaEdit):
    """AlphaEdit with Norm-Anchor Scaling: what the public code runs under the name NAS.

    Args:
        value, threshold, ridge, samples: As AlphaEdit has them.
        anchors, trim: As :class:`NAS` has them.
    """

    def __init__(
        self,
        value: LayerValueConfig | ValueConfig | None = None,
        threshold: PositiveFloat = 1e-2,
        ridge: PositiveFloat = 1.0,
        samples: PositiveInt = 100_000,
        anchors: PositiveInt = 1000,
        trim: Share = 0.05,
    ) -> None:
        AlphaEdit.__init__(self, value, threshold, ridge, samples)
        self.anchors, self.trim = anchors, trim
