"""Parameter deltas: what an action adds to the weights of an edited module.

A delta is written ``(d_in, d_out)``, like the weight gradient ``keys^T value_grads``, whatever way round the module
stores its weight. It is a dense tensor or a :class:`LowRank` pair of factors.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LowRank:
    """The delta ``left @ right``, kept in factors.

    Attributes:
        left: ``(d_in, r)``.
        right: ``(r, d_out)``.
    """

    left: torch.Tensor
    right: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return (self.left.shape[0], self.right.shape[1])

    def dense(self) -> torch.Tensor:
        """The ``(d_in, d_out)`` matrix."""
        return self.left @ self.right


Delta = torch.Tensor | LowRank


def dense(delta: Delta) -> torch.Tensor:
    """The ``(d_in, d_out)`` matrix of any delta."""
    return delta.dense() if isinstance(delta, LowRank) else delta


def squared_norm(delta: Delta) -> torch.Tensor:
    """Squared Frobenius norm, ``O((d_in + d_out) r^2)`` for a low-rank delta; carries gradient."""
    if isinstance(delta, LowRank):
        return ((delta.left.T @ delta.left) * (delta.right @ delta.right.T)).sum()
    return delta.square().sum()


def inner(matrix: torch.Tensor, delta: Delta) -> torch.Tensor:
    """Frobenius inner product of a dense ``(d_in, d_out)`` matrix with a delta; carries gradient."""
    if isinstance(delta, LowRank):
        return ((matrix.T @ delta.left).T * delta.right).sum()
    return (matrix * delta).sum()
