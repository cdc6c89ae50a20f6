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
    """Squared Frobenius norm, a scalar; ``O((d_in + d_out) r^2)`` for a low-rank delta; carries gradient."""
    if isinstance(delta, LowRank):
        return ((delta.left.T @ delta.left) * (delta.right @ delta.right.T)).sum()
    return delta.square().sum()


def inner(matrix: torch.Tensor, delta: Delta) -> torch.Tensor:
    """Frobenius inner product, a scalar, of a dense ``(d_in, d_out)`` matrix with a delta; carries gradient."""
    if isinstance(delta, LowRank):
        return ((matrix.T @ delta.left).T * delta.right).sum()
    return (matrix * delta).sum()


def inner_gradient(matrix: Delta, delta: LowRank) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of ``inner(matrix, delta)`` with respect to the delta's factors.

    Args:
        matrix: ``(d_in, d_out)``.
        delta: Of rank r.

    Returns:
        ``matrix right^T``, ``(d_in, r)``, and ``left^T matrix``, ``(r, d_out)``.
    """
    if isinstance(matrix, LowRank):
        return matrix.left @ (matrix.right @ delta.right.T), (delta.left.T @ matrix.left) @ matrix.right
    return matrix @ delta.right.T, delta.left.T @ matrix


def ridge_regression(
    keys: torch.Tensor, values: torch.Tensor, ridge: torch.Tensor | float, projected: torch.Tensor | None = None
) -> LowRank:
    """The delta that moves a module's output at ``keys`` by ``values``, as far as the ridge lets it; carries gradient.

    ``P U^T (U P U^T + ridge I)^-1 V`` is the minimiser of ``||U D - V||^2 + ridge tr(D^T P^-1 D)``; it is solved in
    token space (r x r) and stays in factors. With P the identity it is the update of MALMEN (Tan et al. 2024),
    which RLEdit takes over.

    Args:
        keys: U, ``(r, d_in)``.
        values: V, ``(r, d_out)``.
        ridge: Positive.
        projected: ``P U^T``, ``(d_in, r)``; without it P is the identity.

    Returns:
        The delta, ``(d_in, d_out)`` of rank r.
    """
    left = keys.T if projected is None else projected
    gram = keys @ left + ridge * torch.eye(len(keys), dtype=keys.dtype, device=keys.device)
    return LowRank(left, torch.linalg.solve(gram, values))
