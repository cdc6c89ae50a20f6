"""ROME (Meng et al. 2022): one fact after the other, each a rank-one update."""

from typing import Any, Literal

import torch

from agents.base import Agent, Observation, ProgressCallback
from agents.baselines.lookup import look_up, mean_keys, read_token
from agents.baselines.values import ValueConfig, optimise_values, prompts_together, refuse_train_eos, sample_prefixes
from agents.covariance import covariance_of
from agents.preconditioner import inverted, regularised
from editenv.arguments import NonNegativeFloat, PositiveInt
from editenv.data import Edit
from editenv.deltas import LowRank, low_rank_sum
from editenv.env import Action, LifelongEditEnv


def rank_one_update(
    key: torch.Tensor, missing: torch.Tensor, inverse: torch.Tensor, seen: torch.Tensor | None = None
) -> LowRank:
    """``C^-1 k L^T`` with ``L = missing / (k^T C^-1 k)``: of all deltas with ``k^T D = missing`` the one with the least
    ``tr(D^T C D)`` (eq. 2; written for weights of shape (d_in, d_out)).

    Args:
        key: k, ``(d_in,)``.
        missing: What is to be added to the output at k, ``(d_out,)``.
        inverse: C^-1, ``(d_in, d_in)``.
        seen: The key at which the output will be ``missing`` larger, if not k itself.
    """
    direction = inverse @ key
    return LowRank(direction[:, None], missing[None] / ((key if seen is None else seen) @ direction))


class ROME(Agent):
    """Finds a value for the fact (eq. 4) and the least update that puts it there (eq. 2); a batch is done one edit
    at a time.

    The environment has to edit one module; the paper takes the MLP projection of a layer in the middle of the model.

    Needs: a subject (unless ``token="last"``), text for C. Precomputes: C and its inverse, and the prefixes.

    Args:
        value: Search for the value.
        keys: ``"consistent"`` uses the key averaged over prefixes throughout, as the paper's eq. 2 and 3 read
            (r-ROME, Gupta et al. 2024). ``"public"`` divides by the product with the key of the prompt alone, as
            ROME's public code does, which lets single edits break a model.
        samples: Texts for C; the paper takes 100,000.
        epsilon: Ridge on C, relative to its mean eigenvalue, so that it has an inverse however few the texts; not
            in the paper.
    """

    reads_text = True
    looks_at_model = True

    def __init__(
        self,
        value: ValueConfig | None = None,
        keys: Literal["consistent", "public"] = "consistent",
        samples: PositiveInt = 100_000,
        epsilon: NonNegativeFloat = 1e-4,
    ) -> None:
        self.value = value or ValueConfig()
        self.keys, self.samples, self.epsilon = keys, samples, epsilon

    @property
    def needs(self) -> tuple[str, ...]:
        return (*super().needs, "subjects") if self.value.token == "subject_last" else super().needs

    def prompts_together(self, edits: int) -> tuple[int, int]:
        return prompts_together(self.value, 1)

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        names = list(env.language_model.modules)
        if len(names) != 1:
            raise ValueError(f"ROME edits one module, not {', '.join(names)}: name one (modules)")
        (self._module,) = names
        C = covariance_of(env, self.text, self.samples, progress)[self._module]
        self._inverse = inverted(regularised(C, self.epsilon))
        self._prefixes = sample_prefixes(env.language_model, self.value, seed)

    def begin(self, env: LifelongEditEnv) -> None:
        refuse_train_eos(env)
        self._env = env

    @torch.no_grad()
    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        lm = self._env.language_model
        updates = []
        with lm.unchanged():
            for edit in self._env.batch:
                updates.append(self._write(edit))
                lm.apply({self._module: updates[-1]})
        return {self._module: low_rank_sum(updates, lm.shape(self._module), lm.device)}

    def _write(self, edit: Edit) -> LowRank:
        lm = self._env.language_model
        module = lm.modules[self._module]
        lookup = look_up(lm, [edit], self.value.token, self._prefixes)
        change = optimise_values(lm, module, [edit], lookup, self.value)
        keys, outputs = read_token(lm, module, lookup)
        key = mean_keys(keys, lookup)[0]
        value = outputs[0] + change[0]
        if self.keys == "public":
            return rank_one_update(key, value - outputs[0], self._inverse, seen=keys[0])
        # The module is affine, so what it says at the mean key is the mean of what it says.
        return rank_one_update(key, value - outputs.mean(0), self._inverse)
