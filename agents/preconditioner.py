"""What replaces the identity in the ridge solve, so that new keys leave old ones alone.

``D = P U^T (U P U^T + lambda I)^-1 V`` for the keys U of a batch. With ``P = (lambda C)^-1`` of the text's key
covariance C it is MEMIT's update (Meng et al. 2023, eq. 14), with the projection onto the null space of C
AlphaEdit's (Fang et al. 2025, eq. 14); RLEdit (Li et al. 2025) has none, so that a policy with one is an extension.
Adding the keys of each finished batch to ``P^-1`` is recursive least squares: later batches leave earlier edits
alone. All of it needs keys that do not drift.

The recursion is not ours. SimIE (Guo et al. 2025, ICML) puts it around any editor, from ``P = I / lambda``; RLSEdit
(Wang et al. 2026, arXiv 2601.15686) around searched values, from ``P = (lambda^2 I + weight C)^-1``. Both are rows
(:mod:`agents.baselines.simie`, :mod:`agents.baselines.rlsedit`) and use this file. What the rows with ``-p`` do
otherwise: V comes from a network, which is trained through the solve along a stream; P is scaled so that a typical
key of text has ``u^T P u = 1``; and two numbers stand where theirs have one: lambda of the solve, which is trained,
and the noise that finished keys are added with. The weights are then not the minimiser of one objective.
"""

from collections.abc import Mapping

import torch

from editenv.language_model.editable_lm import Gradient


def regularised(covariance: torch.Tensor, epsilon: float) -> torch.Tensor:
    """``C + eps I``, ``(d_in, d_in)``, with epsilon relative to C's mean eigenvalue."""
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    return covariance + epsilon * covariance.trace() / len(covariance) * identity


def inverse_covariance(covariance: torch.Tensor, epsilon: float) -> torch.Tensor:
    """``(C + eps I)^-1``, scaled so that a typical key of the text has ``u^T P u = 1``.

    Args:
        covariance: C, ``(d_in, d_in)``.
        epsilon: Ridge on it, relative to its mean eigenvalue.

    Returns:
        P, ``(d_in, d_in)``.
    """
    inverse = inverted(regularised(covariance, epsilon))
    return inverse / (inverse * covariance).sum()


def inverted(matrix: torch.Tensor) -> torch.Tensor:
    """The inverse of a symmetric matrix ``(d, d)``, symmetric itself and in the matrix's precision.

    Through double precision: along directions that text hardly uses, C is almost singular.

    Raises:
        torch.linalg.LinAlgError: If the matrix is singular.
    """
    inverse = torch.linalg.inv(matrix.double())
    return ((inverse + inverse.T) / 2).to(matrix)


def inverse_root(covariance: torch.Tensor, epsilon: float) -> torch.Tensor:
    """The symmetric ``(C + eps I)^(-1/2)``, which whitens the text's keys.

    Args:
        covariance: C, ``(d_in, d_in)``.
        epsilon: Ridge on it, relative to its mean eigenvalue.

    Returns:
        ``(d_in, d_in)``.
    """
    values, vectors = torch.linalg.eigh(regularised(covariance.double(), epsilon))
    return ((vectors * values.rsqrt()) @ vectors.T).to(covariance)


def null_space(covariance: torch.Tensor, threshold: float) -> torch.Tensor:
    """The projection onto the eigenvectors of C whose eigenvalues are below the threshold (AlphaEdit, section 3.1).

    Args:
        covariance: C, ``(d_in, d_in)``.
        threshold: In units of C.

    Returns:
        ``(d_in, d_in)``.

    Raises:
        ValueError: If no eigenvalue is below it.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    kept = vectors[:, values < threshold]
    if not kept.shape[1]:
        raise ValueError(
            f"threshold {threshold:g} leaves no null space: the smallest eigenvalue is {float(values[0]):.3g}"
        )
    return (kept @ kept.T).to(covariance)


class Preconditioner:
    """``P`` for each module; recursive if asked.

    Args:
        start: P before the first batch, ``(d_in, d_in)`` for each module.
        recursive: Whether finished batches' keys are added.
    """

    def __init__(self, start: dict[str, torch.Tensor], recursive: bool) -> None:
        self.recursive = recursive
        self._start = start
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        start = self._start
        self._current = {name: matrix.clone() for name, matrix in start.items()} if self.recursive else start

    def project(self, name: str, keys: torch.Tensor) -> torch.Tensor:
        """``P U^T``, ``(d_in, tokens)``, for keys ``(tokens, d_in)``."""
        # In this order: for few tokens and a matrix in columns, as the inverse comes, BLAS takes 40 times as long
        # for P U^T.
        return (keys @ self._current[name].T).T

    def absorb(
        self,
        gradients: Mapping[str, Gradient],
        noise: dict[str, float],
        projected: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Adds a finished batch's keys: ``P <- P - P U^T (U P U^T + noise I)^-1 U P``, if it is recursive.

        Which is Woodbury's identity for ``(P^-1 + U^T U / noise)^-1``.

        Args:
            gradients: Whose keys U, ``(tokens, d_in)``, are added.
            noise: For each module; smaller is firmer.
            projected: ``P U^T``, ``(d_in, tokens)``, of these keys, if it is known.
        """
        if not self.recursive:
            return
        for name, gradient in gradients.items():
            P_keys = self.project(name, gradient.keys) if projected is None else projected[name]
            gram = gradient.keys @ P_keys
            gram.diagonal().add_(noise[name])
            self._current[name].addmm_(P_keys, torch.linalg.solve(gram, P_keys.T), alpha=-1)
