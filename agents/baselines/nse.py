"""NSE (Jiang et al. 2025, ACL; arXiv 2410.04045): the neurons that are active at a batch's keys, values of theta_0."""

from collections.abc import Sequence

import torch

from agents.baselines.lookup import mean_keys, read_token, read_values
from agents.baselines.memit import MEMIT
from agents.baselines.neurons import NeuronPreconditioner, leading
from agents.baselines.values import LayerValueConfig, ValueConfig
from agents.preconditioner import Preconditioner, regularised
from editenv.arguments import NonNegativeFloat, PositiveFloat, PositiveInt, PositiveShare
from editenv.data import Edit
from editenv.deltas import LowRank, low_rank_sum


def active_neurons(keys: torch.Tensor, share: float) -> torch.Tensor:
    """The most active neurons that together have no more than a share of all activation; at least one.

    Args:
        keys: ``(n, d_in)``, whose activation at a neuron is the sum of their absolute values.
        share: Of the sum over all neurons.

    Returns:
        Their indices, the most active first.
    """
    return leading(keys.abs().sum(0), share)


class NSE(MEMIT):
    """MEMIT-seq that finds values in the unedited model, and changes active neurons alone, round after round.

    A value is ``h_0 + delta``: what the last edited layer says in theta_0, and the change found there, however many
    edits have been made since. In each round only the edits whose hidden state is between ``enough`` and ``too_far``
    away from their value are written. For each layer S are the neurons most active at their keys, and with K_p the
    keys of earlier batches

        D_S = (weight C + K_p^T K_p + U^T U)_SS^-1 U_S^T R / layers left,        D = 0 at all other neurons

    Needs and precomputes what MEMIT does; C itself is kept in the place of its inverse, and a system in the chosen
    neurons is solved for each batch, layer and round.

    Args:
        value: Search for the values.
        weight, samples, epsilon: As MEMIT has them.
        neurons: Share of the keys' absolute activation that the chosen neurons have. 1, all neurons, in the public
            settings of every model.
        enough: Distance from its value at which an edit is made: 2.5 in the public code for Llama-3-8B, 35 for GPT-2
            XL. In the model's units, so it has to fit the model; ``too_far`` likewise.
        too_far: Distance from which on it is given up: 50 and 150 there.
        rounds: At most so many; 2 there, as ``max_iterations`` counts one more than is made.
    """

    def __init__(
        self,
        value: LayerValueConfig | ValueConfig | None = None,
        weight: PositiveFloat = 15_000.0,
        samples: PositiveInt = 100_000,
        epsilon: NonNegativeFloat = 1e-4,
        neurons: PositiveShare = 1.0,
        enough: NonNegativeFloat = 2.5,
        too_far: PositiveFloat = 50.0,
        rounds: PositiveInt = 2,
    ) -> None:
        if enough >= too_far:
            raise ValueError(f"enough: {enough:g} must be below too_far, {too_far:g}, or no edit is ever made")
        super().__init__(value, weight, samples, epsilon, cache_keys=True)
        self.neurons, self.enough, self.too_far, self.rounds = neurons, enough, too_far, rounds

    def _precondition(self, covariance: dict[str, torch.Tensor]) -> Preconditioner:
        return NeuronPreconditioner({n: self.weight * regularised(C, self.epsilon) for n, C in covariance.items()})

    @torch.no_grad()
    def _write(self, edits: Sequence[Edit]) -> dict[str, LowRank]:
        self._absorb(self._finished)  # of the batch before, which has stayed
        self._finished = {}
        lm = self._env.language_model
        lookup = self._look_up(edits)
        with lm.at_initial_weights():
            target_output = self._target_output(edits, lookup)
        updates: dict[str, list[LowRank]] = {name: [] for name in lm.modules}
        with lm.unchanged():
            for _ in range(self.rounds):
                missing = target_output - read_values(lm, self._where_values_are, lookup)
                distance = missing.norm(dim=1)
                chosen = (distance > self.enough) & (distance < self.too_far)
                if not chosen.any():
                    break
                for i, name in enumerate(lm.modules):
                    missing = target_output - read_values(lm, self._where_values_are, lookup)
                    keys = mean_keys(read_token(lm, lm.modules[name], lookup)[0], lookup)
                    share = missing[chosen] / self._spread(len(lm.modules) - i)
                    updates[name].append(self._update(name, keys[chosen], share))
                    lm.apply({name: updates[name][-1]})
            self._finished = {n: mean_keys(read_token(lm, m, lookup)[0], lookup) for n, m in lm.modules.items()}
        return {name: low_rank_sum(parts, lm.shape(name), lm.device) for name, parts in updates.items()}

    def _update(self, name: str, keys: torch.Tensor, missing: torch.Tensor) -> LowRank:
        """The delta of one layer in one round."""
        assert isinstance(self._preconditioner, NeuronPreconditioner)
        return self._preconditioner.solve_within(name, keys, missing, active_neurons(keys, self.neurons))
