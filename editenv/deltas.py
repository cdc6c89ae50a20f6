"""Parameter deltas: what an action adds to the weights of an edited module.

A delta is written ``(d_in, d_out)``, like the weight gradient ``keys^T value_grads``, whatever way round the module
stores its weight. It is a dense tensor or a :class:`LowRank` pair of factors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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


def low_rank_sum(parts: Sequence[LowRank], shape: tuple[int, int], device: torch.device) -> LowRank:
    """The sum of any number of deltas of a module, in factors; of none a delta of rank 0.

    Args:
        parts: Of shape ``(d_in, d_out)``.
        shape: ``(d_in, d_out)``.
        device: Of the sum of none.
    """
    if not parts:
        return LowRank(torch.zeros(shape[0], 0, device=device), torch.zeros(0, shape[1], device=device))
    return LowRank(torch.cat([part.left for part in parts], 1), torch.cat([part.right for part in parts]))


def real_matrix(values: Any, what: str, shape: tuple[int, int] | None = None) -> torch.Tensor:
    """An array or a tensor as a float32 matrix, detached; the very memory where nothing needs to change.

    Args:
        values: Of any real type, byte order and strides.
        what: It is, for messages.
        shape: It should have, for messages; any matrix will do without.

    Raises:
        ValueError: If it is neither, or has entries that are no real numbers (complex, bool, objects), or is not a
            dense matrix in memory.
    """
    expects = f"{what} expects an array or a tensor of numbers" + (f", of shape {shape}" if shape else "")
    if not isinstance(values, np.ndarray | torch.Tensor):
        raise ValueError(f"{expects}{' (or a LowRank)' if shape else ''}, was given a {type(values).__name__}")
    if values.ndim != 2:
        raise ValueError(f"{expects}, was given shape {tuple(values.shape)}")
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "fiu" or isinstance(values, np.ma.MaskedArray):
            raise ValueError(f"{expects}, was given a {type(values).__name__} of type {values.dtype}")
        with np.errstate(over="ignore"):  # infinity is refused as such
            array = np.ascontiguousarray(values, np.float32)
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    kind = values.dtype
    if kind.is_complex or kind is torch.bool or values.layout is not torch.strided or values.is_meta:
        raise ValueError(f"{expects}, was given a tensor of {kind}, {values.layout}, on {values.device}")
    return values.detach().to(torch.float32)


def as_stored(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as a safetensors file takes them: in main memory and contiguous, and no two on the same memory."""
    stored: dict[str, torch.Tensor] = {}
    taken = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if (place := tensor.untyped_storage().data_ptr()) in taken:
            tensor = tensor.clone()  # the keys of one token and their transpose, say
        taken.add(place)
        stored[name] = tensor
    return stored


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
