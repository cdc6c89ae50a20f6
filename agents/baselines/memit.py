"""MEMIT (Meng et al. 2023): many facts at once, written into several layers by least squares."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from agents.base import Agent, Observation, ProgressCallback
from agents.baselines.lookup import Lookup, look_up, mean_keys, read_keys, read_keys_and_values, read_values
from agents.baselines.values import (
    LayerValueConfig,
    ValueConfig,
    optimise_values,
    prompts_together,
    refuse_train_eos,
    sample_prefixes,
)
from agents.covariance import covariance_of
from agents.preconditioner import Preconditioner, inverted, regularised
from editenv.arguments import NonNegativeFloat, PositiveFloat, PositiveInt
from editenv.data import Edit
from editenv.deltas import LowRank, ridge_regression
from editenv.env import Action, LifelongEditEnv
from editenv.language_model.editable_lm import EditableLM, Gradient


class MEMIT(Agent):
    """Finds for each fact a value at the last edited layer's output (eq. 16), and spreads the way there over the
    edited layers.

    From the first layer to the last: with the keys U (n, d_in) at the lookup tokens, and R (n, d_out) what is still
    missing behind the last layer, in the residual stream, divided by the number of layers left (eq. 20),

        D = (weight C + U^T U)^-1 U^T R
        eq. 14

    where C is the text's key covariance. It is solved in token space, with ``P = (weight C)^-1``.

    The edited modules are the environment's, at most one a layer, which writes to the residual stream; the paper
    takes the MLP projections of five early layers.

    Needs: a subject (unless ``token="last"``), text for C. Precomputes: C and its inverse, and the prefixes.

    Args:
        value: Search for the values.
        weight: Weight of C. The paper's lambda is 15,000 for GPT-J and 20,000 for GPT-NeoX; 15,000 in the public
            code for Llama-3-8B.
        samples: Texts for C; the paper takes 100,000.
        epsilon: Ridge on C, relative to its mean eigenvalue, so that it has an inverse however few the texts; not
            in the paper.
        cache_keys: Add the keys of earlier batches to C (MEMIT-seq of AlphaEdit's public code). MEMIT itself does not.
    """

    reads_text = True
    looks_at_model = True

    def __init__(
        self,
        value: LayerValueConfig | ValueConfig | None = None,
        weight: PositiveFloat = 15_000.0,
        samples: PositiveInt = 100_000,
        epsilon: NonNegativeFloat = 1e-4,
        cache_keys: bool = False,
    ) -> None:
        self.value = value or LayerValueConfig()
        self.weight, self.samples, self.epsilon, self.cache_keys = weight, samples, epsilon, cache_keys

    @property
    def needs(self) -> tuple[str, ...]:
        return (*super().needs, "subjects") if self.value.token == "subject_last" else super().needs

    def prompts_together(self, edits: int) -> tuple[int, int]:
        return prompts_together(self.value, edits)

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        refuse_modules_inside(env.language_model)
        covariance = covariance_of(env, self.text, self.samples, progress)
        self._preconditioner = self._precondition(covariance)
        self._prefixes = sample_prefixes(env.language_model, self.value, seed)

    def _precondition(self, covariance: dict[str, torch.Tensor]) -> Preconditioner:
        start = {n: inverted(self.weight * regularised(C, self.epsilon)) for n, C in covariance.items()}
        return Preconditioner(start, self.cache_keys)

    def begin(self, env: LifelongEditEnv) -> None:
        refuse_train_eos(env)
        self._env = env
        self._preconditioner.reset()
        self._finished: dict[str, torch.Tensor] = {}

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        return self._write(self._env.batch)

    @torch.no_grad()
    def _write(self, edits: Sequence[Edit]) -> dict[str, LowRank]:
        """The update for a batch; the model is as it was afterwards."""
        self._absorb(self._finished)  # of the batch before, which has stayed
        self._finished = {}
        lm = self._env.language_model
        names = list(lm.modules)
        lookup = self._look_up(edits)
        target_output = self._target_output(edits, lookup)
        deltas: dict[str, LowRank] = {}
        with lm.unchanged():
            for i, name in enumerate(names):
                deltas[name] = self._towards(name, target_output, lookup, len(names) - i)
                lm.apply({name: deltas[name]})
            if self.cache_keys:
                self._finished = self._keys(lookup)
        return deltas

    def _towards(self, name: str, target_output: torch.Tensor, lookup: Lookup, layers_left: int) -> LowRank:
        """A module's part of the way from what is said now to the values ``(n, d_out)``."""
        lm = self._env.language_model
        keys, values = read_keys_and_values(lm, lm.modules[name], self._where_values_are, lookup)
        missing = target_output - values
        return self._solve(name, mean_keys(keys, lookup), missing / self._spread(layers_left), lookup)

    def _keys(self, lookup: Lookup) -> dict[str, torch.Tensor]:
        """``(n, d_in)`` for each module, at the weights as they are."""
        keys = read_keys(self._env.language_model, lookup)
        return {name: mean_keys(of_module, lookup) for name, of_module in keys.items()}

    # -- what methods based on it do in another way -----------------------------------------------------------------

    def _look_up(self, edits: Sequence[Edit]) -> Lookup:
        return look_up(self._env.language_model, edits, self.value.token, self._prefixes)

    @property
    def _where_values_are(self) -> nn.Module:
        """Whose output is to become the value: the last edited layer."""
        lm = self._env.language_model
        return lm.layer_of(list(lm.modules)[-1])

    def _target_output(self, edits: Sequence[Edit], lookup: Lookup) -> torch.Tensor:
        """``(n, d_out)`` values at the lookup tokens, by eq. 16."""
        lm, module = self._env.language_model, self._where_values_are
        change = optimise_values(lm, module, edits, lookup, self.value)
        return read_values(lm, module, lookup) + change

    def _spread(self, layers_left: int) -> float:
        """What is missing is divided by it."""
        return layers_left

    def _project(self, name: str, keys: torch.Tensor, lookup: Lookup) -> torch.Tensor:
        """``P U^T``, ``(d_in, n)``."""
        return self._preconditioner.project(name, keys)

    def _solve(self, name: str, keys: torch.Tensor, missing: torch.Tensor, lookup: Lookup) -> LowRank:
        """A module's delta (eq. 14), for its keys ``(n, d_in)`` and what is to be added to its outputs at them."""
        return ridge_regression(keys, missing, 1.0, self._project(name, keys, lookup))

    # -- the keys of earlier batches --------------------------------------------------------------------------------

    def _absorb(self, keys: dict[str, torch.Tensor]) -> None:
        gradients = {name: Gradient(key, key[:, :0]) for name, key in keys.items()}
        self._preconditioner.absorb(gradients, dict.fromkeys(keys, 1.0))

    def revert_batch(self) -> None:
        self._finished = {}

    def batch_state(self) -> dict[str, torch.Tensor]:
        return self._finished

    def load_batch_state(self, state: dict[str, torch.Tensor]) -> None:
        self._absorb(state)


INSIDE = ("q_proj", "k_proj", "v_proj", "query", "key", "value", "wq", "wk", "wv")
"""Projections that can be as wide as the residual stream and do not write to it."""


def refuse_modules_inside(lm: EditableLM) -> None:
    """What is missing in the residual stream can be written only by what is added to it, layer after layer.

    Gemma-2 normalises what an MLP says before it is added: there, as in the public code, an update asks for more or
    less than arrives.

    Raises:
        ValueError: If an edited module is no projection to the residual stream, or lies in one layer with another.
    """
    rule = (
        "this method edits at most one projection to the residual stream in each layer, such as layers.5.mlp.down_proj"
    )
    layers: dict[nn.Module, str] = {}
    for name in lm.modules:
        if lm.shape(name)[1] != lm.width or name.rpartition(".")[2] in INSIDE:
            raise ValueError(f"modules: {rule}; {name} is none")
        if other := layers.get(lm.layer_of(name)):
            raise ValueError(f"modules: {rule}; {other} and {name} lie in the same one")
        layers[lm.layer_of(name)] = name
