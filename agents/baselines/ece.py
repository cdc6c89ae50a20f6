"""ECE (Zhang et al. 2025, WWW; doi 10.1145/3696410.3714835): similar facts written together, into the neurons that an
explanation names for them.
"""

from typing import Literal

import torch
from scipy.cluster.vq import kmeans2
from torch.nn import functional as F

from agents.baselines.lookup import Lookup
from agents.baselines.memit import MEMIT
from agents.baselines.neurons import NeuronPreconditioner, leading
from agents.baselines.values import LayerValueConfig, ValueConfig
from agents.preconditioner import Preconditioner, regularised
from editenv.arguments import NonNegativeFloat, PositiveFloat, PositiveInt, PositiveShare
from editenv.deltas import LowRank, low_rank_sum

Attribution = Literal["activation", "weights", "relevance"]


def attribute(keys: torch.Tensor, weight: torch.Tensor, attribution: Attribution) -> torch.Tensor:
    """How much each neuron j has to do with what a module says at each key.

    ``activation`` is ``|u_j|``, ``weights`` the sum over outputs of ``|W_jo|``, and ``relevance`` their product.

    Args:
        keys: U, ``(n, d_in)``.
        weight: W, ``(d_in, d_out)``.
        attribution: Which of them.

    Returns:
        ``(n, d_in)``.
    """
    activation, weights = keys.abs(), weight.float().abs().sum(1)
    if attribution == "activation":
        return activation
    return weights.expand_as(activation) if attribution == "weights" else activation * weights


def clustered(attributions: torch.Tensor, clusters: int) -> list[torch.Tensor]:
    """Facts with similar attributions, by k-means of their directions; the same for the same facts.

    Args:
        attributions: ``(n, d_in)``.
        clusters: At most so many.

    Returns:
        Of each cluster its facts' numbers, ascending; none is empty.
    """
    clusters = min(clusters, len(attributions))
    if clusters == 1:
        return [torch.arange(len(attributions))]
    directions = F.normalize(attributions.double(), dim=1).cpu().numpy()
    _, labels = kmeans2(directions, clusters, minit="++", missing="warn", rng=0)
    return [torch.from_numpy(labels == label).nonzero()[:, 0] for label in sorted(set(labels))]


class ECE(MEMIT):
    """MEMIT-seq that writes the facts of a cluster in one step, into the neurons that matter for them.

    A layer's update, with the batch's keys U and what is missing R:

        a_i = attribution of fact i to the layer's neurons                                  (:func:`attribute`)
        facts with similar a_i make a cluster c                                             (:func:`clustered`)
        S   = neurons with the share ``neurons`` of the sum over c of a_i
        D_c = (weight C + K_p^T K_p + U^T U)_SS^-1 U_cS^T R_c,        D_c = 0 at all other neurons
        D   = sum over clusters of D_c

    where K_p are the keys of earlier batches. ``U^T U`` is of the whole batch, so that a cluster leaves the facts of
    the others as they are; with ``neurons=1`` the clusters add up to MEMIT-seq. One cluster is the public code
    (``ECE_AS`` for ``activation``, ``ECE_WI`` for ``weights``). Values are searched for all facts at a time in any
    case.

    Needs and precomputes what MEMIT does; as for NSE, C itself is kept in the place of its inverse.

    Args:
        value: Search for the values.
        weight, samples, epsilon: As MEMIT has them.
        attribution: What explains a module's output.
        neurons: Share of a cluster's attribution that its neurons have: 0.8 in the public settings for ``activation``,
            and 1, all neurons, for the others.
        clusters: How many at most; the paper's number is not known.
    """

    def __init__(
        self,
        value: LayerValueConfig | ValueConfig | None = None,
        weight: PositiveFloat = 15_000.0,
        samples: PositiveInt = 100_000,
        epsilon: NonNegativeFloat = 1e-4,
        attribution: Attribution = "activation",
        neurons: PositiveShare = 0.8,
        clusters: PositiveInt = 4,
    ) -> None:
        super().__init__(value, weight, samples, epsilon, cache_keys=True)
        self.attribution: Attribution = attribution
        self.neurons, self.clusters = neurons, clusters

    def _precondition(self, covariance: dict[str, torch.Tensor]) -> Preconditioner:
        return NeuronPreconditioner({n: self.weight * regularised(C, self.epsilon) for n, C in covariance.items()})

    def _solve(self, name: str, keys: torch.Tensor, missing: torch.Tensor, lookup: Lookup) -> LowRank:
        lm = self._env.language_model
        assert isinstance(self._preconditioner, NeuronPreconditioner)
        attributions = attribute(keys, lm.weight(name), self.attribution)
        parts = []
        for cluster in clustered(attributions, self.clusters):
            neurons = leading(attributions[cluster].sum(0), self.neurons)
            others = torch.ones(len(keys), dtype=torch.bool)
            others[cluster] = False
            parts.append(
                self._preconditioner.solve_within(name, keys[cluster], missing[cluster], neurons, keys[others])
            )
        return low_rank_sum(parts, lm.shape(name), lm.device)
