"""O-Edit (Cai and Cao 2024, arXiv 2410.11469): each update orthogonal to the earlier ones, and to text.

There is no public code. This follows the paper's abstract and the method that its "core gradient space" comes from:
gradient projection memory (Saha et al. 2021, ICLR, arXiv 2103.09762).
"""

from collections.abc import Sequence

import torch

from agents.baselines.lookup import Lookup
from agents.baselines.memit import MEMIT
from agents.baselines.values import LayerValueConfig, ValueConfig
from agents.preconditioner import Preconditioner
from editenv.arguments import NonNegativeFloat, PositiveFloat, PositiveInt, Share
from editenv.data import Edit
from editenv.deltas import LowRank
from editenv.env import LifelongEditEnv


class OEdit(MEMIT):
    """MEMIT, each update of which is projected onto the complement of a space S of keys.

    With S (d_in, s) orthonormal and D MEMIT's delta (d_in, d_out), what is written is

        D - S S^T D

    so that keys in S keep their outputs exactly. S begins with the leading eigenvectors of the text's key covariance C,
    as many as make up the share ``text_share`` of its trace. After each batch the leading left singular vectors of its
    update are added, as many as make up ``update_share`` of its squared norm.

    A layer's update is projected before the next layer's values are looked at, so that what it could not write is
    written there. Needs and precomputes what MEMIT does.

    Args:
        value, weight, samples, epsilon: As MEMIT has them.
        text_share: Of the trace of C, from 0 to 1.
        update_share: Of an update's squared norm: GPM's threshold, about 0.97 there.
    """

    def __init__(
        self,
        value: LayerValueConfig | ValueConfig | None = None,
        weight: PositiveFloat = 15_000.0,
        samples: PositiveInt = 100_000,
        epsilon: NonNegativeFloat = 1e-4,
        text_share: Share = 0.5,
        update_share: Share = 0.97,
    ) -> None:
        super().__init__(value, weight, samples, epsilon)
        self.text_share, self.update_share = text_share, update_share

    def _precondition(self, covariance: dict[str, torch.Tensor]) -> Preconditioner:
        self._text = {name: leading_eigenvectors(C, self.text_share) for name, C in covariance.items()}
        return super()._precondition(covariance)

    def begin(self, env: LifelongEditEnv) -> None:
        super().begin(env)
        self._space = dict(self._text)

    def _write(self, edits: Sequence[Edit]) -> dict[str, LowRank]:
        deltas = super()._write(edits)
        self._finished = {name: leading_directions(delta, self.update_share).T for name, delta in deltas.items()}
        return deltas

    def _solve(self, name: str, keys: torch.Tensor, missing: torch.Tensor, lookup: Lookup) -> LowRank:
        delta, space = super()._solve(name, keys, missing, lookup), self._space[name]
        return LowRank(delta.left - space @ (space.T @ delta.left), delta.right)

    def _absorb(self, keys: dict[str, torch.Tensor]) -> None:
        """Adds a finished batch's directions, ``(s, d_in)`` for each module, to S."""
        for name, directions in keys.items():
            space = self._space[name]
            new = directions.T - space @ (space.T @ directions.T)  # they are orthogonal to S up to rounding
            self._space[name] = torch.cat([space, torch.linalg.qr(new).Q], 1)


def how_many(sizes: torch.Tensor, share: float) -> int:
    """Of so many parts, the largest first, how few make up a share of their sum; none of a share of 0."""
    reached = sizes.double().cumsum(0) / sizes.double().sum()
    return min(int((reached < share).sum()) + 1, len(sizes)) if share else 0


def leading_eigenvectors(matrix: torch.Tensor, share: float) -> torch.Tensor:
    """Of a symmetric positive ``(d, d)`` matrix, as many as make up a share of its trace: ``(d, s)``, orthonormal."""
    values, vectors = torch.linalg.eigh(matrix.double())
    return vectors.flip(1)[:, : how_many(values.flip(0), share)].to(matrix)


def leading_directions(delta: LowRank, share: float) -> torch.Tensor:
    """Left singular vectors that make up a share of a delta's squared norm: ``(d_in, s)``, orthonormal.

    Of a delta that is zero there are none.
    """
    Q, R = torch.linalg.qr(delta.left)
    U, s, _ = torch.linalg.svd(R @ delta.right, full_matrices=False)
    return Q @ U[:, : how_many(s.square(), share) if s.any() else 0]
