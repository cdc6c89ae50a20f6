"""StableEdit (Ma et al. 2026, arXiv 2605.11836): UltraEdit with a warm-up of its statistics and full whitening of
gradients.

"Lifelong normalization", statistics of ``[u; delta]`` that go on over the whole life of a model, is what keeps such
editors stable; StableEdit takes these statistics along a stream of other edits first, and normalises value
gradients by their whole covariance. What follows was read from the paper's public code (MINE-USTC/StableEdit),
which is its source here.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch

from agents.base import Agent, Observation, ProgressCallback
from agents.baselines.ultraedit import ENERGY, energy_of, initial_output_energy
from agents.hypernetwork.networks import Normalizer
from editenv.deltas import LowRank, ridge_regression
from editenv.env import Action, LifelongEditEnv
from editenv.language_model.editable_lm import EditableLM, Gradient


class Whitener:
    """Running statistics of one module's tokens: mean and deviation of keys and gradients, covariance of gradients.

    Args:
        shape: ``(d_in, d_out)`` of the module.
        device: Of the statistics.
    """

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        self.keys, self.grads = Normalizer(shape[0]).to(device), Normalizer(shape[1]).to(device)
        self.scatter = torch.zeros(shape[1], shape[1], device=device)
        self.key_energy = self.output_energy = 0.0

    def observe(self, gradient: Gradient, output_energy: float) -> None:
        """Takes in a batch's ``keys`` (r, d_in) and ``value_grads`` (r, d_out), and the summed squares of theta_0's
        outputs.
        """
        grads = gradient.value_grads
        shift = grads.mean(0) - self.grads.mean
        before, tokens = float(self.grads.count), len(grads)
        centred = grads - grads.mean(0)
        self.scatter += centred.T @ centred + before * tokens / (before + tokens) * torch.outer(shift, shift)
        self.keys.observe(gradient.keys)
        self.grads.observe(grads)
        self.key_energy += float(gradient.keys.square().sum())
        self.output_energy += output_energy

    @property
    def tokens(self) -> float:
        return float(self.keys.count)

    def whiten(self, grads: torch.Tensor, floor: float) -> torch.Tensor:
        """``(delta - mean) C^(-1/2)``; by the deviations alone while there are fewer tokens than C needs.

        Args:
            grads: ``(r, d_out)``.
            floor: Smallest eigenvalue of C that is believed, relative to the mean one.
        """
        degrees = self.tokens - len(self.scatter) - 1
        if degrees <= 0:
            return self.grads(grads)
        values, vectors = torch.linalg.eigh(self.scatter / degrees)
        values = values.clamp(min=floor * float(values.mean()))
        return (grads - self.grads.mean) @ (vectors * values.rsqrt()) @ vectors.T


class StableEdit(Agent):
    """Normalisation and least squares, no network: ``D = (U^T U + lambda I)^-1 U^T V`` with ``v = -eta |u^|^2 delta^``.

    ``u^`` is the key normalised by its running deviations, ``delta^`` the gradient whitened by its running covariance.
    Precomputes: the statistics along ``warm_up_batches`` batches of training edits, which are made one after the
    other (by the deviations alone) so that the statistics are those of a model that is being edited. The public
    code leaves these edits in the model; here it is put back, because facts of the training split are no part of
    the stream. Needs: training edits (prompts and targets); no subject, no text.

    The public step size (1e-6) and ridge (1) depend on a model's scale. Here, as in
    :class:`agents.baselines.ultraedit.UltraEdit`, eta is relative to a typical output of the module's unedited weight
    (during the warm-up, too) and lambda to a typical squared key.

    Args:
        step_size: eta.
        ridge: lambda.
        warm_up_batches: Training batches, of the size of the environment that :meth:`prepare` is given: the stream's in
            benchmarks, 20 in the editor. The public code takes 20 of 100 edits.
        floor: Smallest eigenvalue of the covariance that is believed, relative to the mean one; 1e-6, absolute, in
            the public code.
        actions_per_batch: K.
    """

    learns = True

    looks_at_model = True

    def __init__(
        self,
        step_size: float = 3.0,
        ridge: float = 0.03,
        warm_up_batches: int = 50,
        floor: float = 1e-3,
        actions_per_batch: int = 1,
    ) -> None:
        self.step_size, self.ridge = step_size, ridge
        self.warm_up_batches, self.floor = warm_up_batches, floor
        self.actions_per_batch = actions_per_batch

    @torch.no_grad()
    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        lm = env.language_model
        self._warm = {name: Whitener(lm.shape(name), lm.device) for name in lm.modules}
        env.reset(seed=seed)
        batches = min(self.warm_up_batches, len(env.stream) // env.edits_per_step)
        for batch in range(batches):
            gradients = env.gradient_of(env.stream[batch * env.edits_per_step : (batch + 1) * env.edits_per_step])
            observe(self._warm, lm, gradients)
            lm.apply(self._deltas(self._warm, gradients, whole=False))
            progress("warm-up", batch + 1, batches)
        lm.restore()

    def begin(self, env: LifelongEditEnv) -> None:
        self._env = env
        self._statistics = copy.deepcopy(self._warm)
        self._seen: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        if info["attempt"] == 0:
            self._before = copy.deepcopy(self._statistics)
            self._seen = observe(self._statistics, self._env.language_model, observation)
        return self._deltas(self._statistics, observation, whole=True)

    def _deltas(
        self, statistics: dict[str, Whitener], gradients: Mapping[str, Gradient], whole: bool
    ) -> dict[str, LowRank]:
        deltas = {}
        for name, gradient in gradients.items():
            seen = statistics[name]
            normal_keys = seen.keys(gradient.keys)
            grads = gradient.value_grads
            normal_grads = seen.whiten(grads, self.floor) if whole else seen.grads(grads)
            length = (seen.output_energy / seen.tokens / grads.shape[1]) ** 0.5
            gate = normal_keys.square().mean(1, keepdim=True)
            values = -self.step_size * length * gate * normal_grads
            deltas[name] = ridge_regression(gradient.keys, values, self.ridge * seen.key_energy / seen.tokens)
        return deltas

    def revert_batch(self) -> None:
        self._statistics, self._seen = self._before, {}

    def batch_state(self) -> dict[str, torch.Tensor]:
        return self._seen

    def load_batch_state(self, state: dict[str, torch.Tensor]) -> None:
        for name, statistics in self._statistics.items():
            if f"{name}/keys" in state:
                gradient = Gradient(state[f"{name}/keys"], state[f"{name}/value_grads"])
                statistics.observe(gradient, energy_of(state, self._env.language_model, name))


def observe(
    statistics: dict[str, Whitener], lm: EditableLM, gradients: Mapping[str, Gradient]
) -> dict[str, torch.Tensor]:
    """Lets the statistics see a batch; what they saw, by name."""
    seen: dict[str, torch.Tensor] = {}
    for name, gradient in gradients.items():
        energy = initial_output_energy(lm, name, gradient.keys)
        statistics[name].observe(gradient, energy)
        seen |= {
            f"{name}/keys": gradient.keys,
            f"{name}/value_grads": gradient.value_grads,
            f"{name}/{ENERGY}": torch.tensor(energy, dtype=torch.float64),
        }
    return seen
