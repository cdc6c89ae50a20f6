"""UltraEdit (Gu et al. 2025, arXiv 2505.14679): editing by normalisation and least squares alone, without any training.

Features ``z = [u; delta]`` of each token (input of the module, gradient at its output) are normalised with
statistics that go on over the whole life of the model; the update solves the same ridge regression as MALMEN and
RLEdit with ``v = -eta |u~|^2 delta~``, u~ and delta~ being the normalised features. It is RLEdit without the
network (whose gate is ``u . u~``): what a trained policy has to beat.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch

from agents.base import Agent, Observation
from agents.hypernetwork.networks import Normalizer
from editenv.deltas import ridge_regression
from editenv.env import Action, LifelongEditEnv
from editenv.language_model.editable_lm import EditableLM, Gradient


class UltraEdit(Agent):
    """Training-free; needs the gradients, and the unedited weights (their outputs are the unit of the step).

    Statistics begin with the first batch. Of one token alone there is no deviation, so that a first batch of one
    edit with a one-token answer changes nothing here; the public code makes NaN of it, and of every batch of one
    token (it keeps its statistics by weight shape, not by module).

    The paper's learning rate and its unit ridge depend on a model's scale. Here both are relative to what has been
    seen: ``step_size`` to a typical output of the module and a typical ``|u~|^2``, ``ridge`` to a typical squared
    key. The outputs are those of theta_0's weight, so that the unit is as constant as the paper's: of the edited
    weight's it would grow with the edits, and the edits with it.

    Args:
        step_size: eta; the default is where the search on the embedded model began.
        ridge: lambda of ``(U U^T + lambda I)``.
        actions_per_batch: K.
    """

    looks_at_model = True

    # Measured on the embedded model, efficacy of a first batch of 1, 2, 3, 5, 10, 20: 0, 4, 33, 58, 85, 83.
    fair_first_batch = 10

    def __init__(self, step_size: float = 1.0, ridge: float = 0.03, actions_per_batch: int = 1) -> None:
        self.step_size, self.ridge, self.actions_per_batch = step_size, ridge, actions_per_batch

    def begin(self, env: LifelongEditEnv) -> None:
        self._env = env
        lm = env.language_model
        self._normalizers = {name: Normalizer(*lm.shape(name)).to(lm.device) for name in lm.modules}
        self._key_energy = dict.fromkeys(lm.modules, 0.0)
        self._output_energy = dict.fromkeys(lm.modules, 0.0)
        self._seen: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        if info["attempt"] == 0:
            self._before = copy.deepcopy((self._normalizers, self._key_energy, self._output_energy))
            self._seen = {}
            for name, gradient in observation.items():
                self._observe(name, gradient, initial_output_energy(self._env.language_model, name, gradient.keys))
        deltas = {}
        for name, gradient in observation.items():
            keys, normalizer = gradient.keys, self._normalizers[name]
            normal = normalizer(torch.cat([keys, gradient.value_grads], 1))
            pseudo_keys, pseudo_grads = normal[:, : keys.shape[1]], normal[:, keys.shape[1] :]
            gate = pseudo_keys.square().mean(1, keepdim=True)
            values = -self.step_size * self.output_length(name) * gate * pseudo_grads
            deltas[name] = ridge_regression(keys, values, self.ridge * self._key_energy[name] / float(normalizer.count))
        return deltas

    def output_length(self, name: str) -> float:
        """The unit of the step: root mean square of an entry of theta_0's outputs at all tokens seen so far."""
        d_out = self._env.language_model.shape(name)[1]
        return (self._output_energy[name] / float(self._normalizers[name].count) / d_out) ** 0.5

    def revert_batch(self) -> None:
        self._normalizers, self._key_energy, self._output_energy = self._before
        self._seen = {}

    def batch_state(self) -> dict[str, torch.Tensor]:
        return self._seen

    def load_batch_state(self, state: dict[str, torch.Tensor]) -> None:
        for name in self._normalizers if state else ():
            gradient = Gradient(state[f"{name}/keys"], state[f"{name}/value_grads"])
            self._observe(name, gradient, energy_of(state, self._env.language_model, name))
        self._seen = {}

    def _observe(self, name: str, gradient: Gradient, output_energy: float) -> None:
        self._normalizers[name].observe(torch.cat([gradient.keys, gradient.value_grads], 1))
        self._key_energy[name] += float(gradient.keys.square().sum())
        self._output_energy[name] += output_energy
        energy = torch.tensor(output_energy, dtype=torch.float64)
        self._seen |= {
            f"{name}/keys": gradient.keys,
            f"{name}/value_grads": gradient.value_grads,
            f"{name}/{ENERGY}": energy,
        }


ENERGY = "initial_energy"
"""Under this name a batch's state has the summed squares of theta_0's outputs."""


def initial_output_energy(lm: EditableLM, name: str, keys: torch.Tensor) -> float:
    """Summed squares of the outputs that theta_0's weight of a module has at ``keys`` (r, d_in)."""
    return float((keys @ lm.initial_weight(name).float()).square().sum())


def energy_of(state: Mapping[str, torch.Tensor], lm: EditableLM, name: str) -> float:
    """The same of a batch's state. Where an earlier version wrote it, it has the edited weights' outputs only."""
    if f"{name}/{ENERGY}" in state:
        return float(state[f"{name}/{ENERGY}"])
    return initial_output_energy(lm, name, state[f"{name}/keys"])
