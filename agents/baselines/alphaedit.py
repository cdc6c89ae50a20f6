"""AlphaEdit (Fang et al. 2025, ICLR): edits where the text's keys are not."""

import torch

from agents.baselines.memit import MEMIT
from agents.baselines.values import LayerValueConfig, ValueConfig
from agents.preconditioner import Preconditioner, null_space
from editenv.arguments import PositiveFloat, PositiveInt


class AlphaEdit(MEMIT):
    """MEMIT whose updates are projected onto the null space of the text's keys.

    With Q the projection onto the eigenvectors of C below a threshold, and K_p the keys of earlier batches,

        D = Q (Q (U^T U + K_p^T K_p) Q + ridge I)^-1 Q U^T R
        eq. 14

    Keys of the text in the other eigenvectors keep their values exactly. The inverse is kept up to date by each batch's
    keys (Woodbury), so that a solve is one in token space; nothing of one run is left in the next.

    Needs and precomputes what MEMIT does, and Q.

    Args:
        value: Search for the values.
        threshold: Eigenvalues of C below it count as zero: 1e-2 in the paper, 2e-2 in the public code for
            Llama-3-8B. In units of C, so it has to fit the model.
        ridge: Weight of |D|^2: 1 in the paper, 10 in the public code for Llama-3-8B. In units of a squared key,
            so it has to fit the model, too.
        samples: Texts for C.
    """

    def __init__(
        self,
        value: LayerValueConfig | ValueConfig | None = None,
        threshold: PositiveFloat = 1e-2,
        ridge: PositiveFloat = 1.0,
        samples: PositiveInt = 100_000,
    ) -> None:
        super().__init__(value, samples=samples, cache_keys=True)
        self.threshold, self.ridge = threshold, ridge

    def _precondition(self, covariance: dict[str, torch.Tensor]) -> Preconditioner:
        start = {name: null_space(matrix, self.threshold) / self.ridge for name, matrix in covariance.items()}
        return Preconditioner(start, recursive=True)
