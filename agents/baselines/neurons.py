"""A few neurons of an edited module: which of them an update may write, and how it is solved for in them alone."""

from collections.abc import Mapping

import torch

from agents.preconditioner import Preconditioner
from editenv.deltas import LowRank, ridge_regression
from editenv.language_model.editable_lm import Gradient


def leading(scores: torch.Tensor, share: float) -> torch.Tensor:
    """The neurons of the largest scores that together have no more than a share of all; at least one.

    Args:
        scores: ``(d_in,)``, none below 0.
        share: Of their sum.

    Returns:
        Their indices, the largest score first.
    """
    scores, order = scores.sort(descending=True)
    if share == 1:
        return order
    within = scores.double().cumsum(0) <= share * scores.double().sum()
    return order[: max(1, int(within.sum()))]


class NeuronPreconditioner(Preconditioner):
    """``P^-1``, of which a submatrix is inverted for each batch.

    Args:
        start: P^-1 before the first batch, ``(d_in, d_in)`` for each module.
    """

    def __init__(self, start: dict[str, torch.Tensor]) -> None:
        super().__init__(start, recursive=True)

    def project_within(
        self, name: str, keys: torch.Tensor, neurons: torch.Tensor, held: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``(P^-1 + H^T H)_SS^-1 U_S^T``, ``(s, n)``, of keys ``(n, d_in)`` at ``s`` neurons S.

        Args:
            name: The module.
            keys: U.
            neurons: S.
            held: H, ``(m, d_in)``, keys at which nothing is to change; none by default.
        """
        matrix = self._current[name][neurons][:, neurons].double()
        if held is not None:
            held_there = held[:, neurons].double()
            matrix = matrix + held_there.T @ held_there
        factor = torch.linalg.cholesky(matrix)
        return torch.cholesky_solve(keys[:, neurons].T.double(), factor).to(keys)

    def solve_within(
        self,
        name: str,
        keys: torch.Tensor,
        missing: torch.Tensor,
        neurons: torch.Tensor,
        held: torch.Tensor | None = None,
    ) -> LowRank:
        """``(P^-1 + H^T H + U^T U)_SS^-1 U_S^T R`` at the neurons S, zero at all others.

        Args:
            name: The module.
            keys: U, ``(n, d_in)``.
            missing: R, ``(n, d_out)``.
            neurons: S.
            held: H, as in :meth:`project_within`.
        """
        projected = self.project_within(name, keys, neurons, held)
        within = ridge_regression(keys[:, neurons], missing, 1.0, projected)
        left = torch.zeros(keys.shape[1], within.left.shape[1], dtype=keys.dtype, device=keys.device)
        left[neurons] = within.left
        return LowRank(left, within.right)

    def absorb(
        self,
        gradients: Mapping[str, Gradient],
        noise: dict[str, float],
        projected: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Adds a finished batch's keys: ``P^-1 <- P^-1 + U^T U / noise``."""
        for name, gradient in gradients.items():
            self._current[name].addmm_(gradient.keys.T, gradient.keys, alpha=1 / noise[name])
