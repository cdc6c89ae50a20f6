"""PRUNE (Ma et al. 2025, ICLR; arXiv 2405.16821, section 4): the singular values of all updates together are held
down.
"""

import math
import warnings
from typing import Annotated, Any, Literal

import torch

from agents.base import Observation
from agents.baselines.memit import MEMIT
from agents.baselines.values import LayerValueConfig, ValueConfig
from editenv.arguments import NonNegativeFloat, PositiveFloat, PositiveInt, above
from editenv.deltas import Delta, dense
from editenv.env import Action, LifelongEditEnv


def condense(delta: torch.Tensor, weight: torch.Tensor, base: float) -> torch.Tensor:
    """The delta with every singular value s above the weight's largest one, S, replaced by ``log(s) - log(S) + S``.

    Args:
        delta: All updates of a module, added up.
        weight: The module's weight before the first edit.
        base: Of the logarithms; the smaller, the gentler.
    """
    U, s, Vh = torch.linalg.svd(delta, full_matrices=False)
    largest = torch.linalg.matrix_norm(weight, 2)
    held = torch.where(s > largest, (s / largest).log() / math.log(base) + largest, s)
    return (U * held) @ Vh


class PRUNE(MEMIT):
    """MEMIT whose deltas, once the last batch is done, are added up and condensed.

    Needs and precomputes what MEMIT does.

    Args:
        value, weight, samples, epsilon: As MEMIT has them.
        base: Of the logarithm: 1.2 in the paper; the public code offers e, 2, 1.5 and 1.2.
        every_batch: Hold the condensed sum in the model after each batch, too: for a stream without an end. The
            paper condenses once, after all edits.
        onto: ``"initial"`` puts the condensed sum in the place of all updates, as in the paper; ``"edited"`` adds
            it to weights that hold them already, as AlphaEdit's public code does.
    """

    def __init__(
        self,
        value: LayerValueConfig | ValueConfig | None = None,
        weight: PositiveFloat = 15_000.0,
        samples: PositiveInt = 100_000,
        epsilon: NonNegativeFloat = 1e-4,
        base: Annotated[float, above(1)] = 1.2,
        every_batch: bool = False,
        onto: Literal["initial", "edited"] = "initial",
    ) -> None:
        if every_batch and onto == "edited":
            raise ValueError("onto: 'edited' would add all earlier edits again at every_batch; choose one of the two")
        super().__init__(value, weight, samples, epsilon)
        self.base, self.every_batch, self.onto = base, every_batch, onto

    @property
    def looks_ahead(self) -> bool:  # type: ignore[override]
        """Once, after the last edit."""
        return not self.every_batch

    def begin(self, env: LifelongEditEnv) -> None:
        super().begin(env)
        lm = env.language_model
        if not self.every_batch and not len(env.stream):
            raise ValueError("PRUNE condenses after the last edit, and this stream has no end: set every_batch")
        self._initial = {name: lm.weight(name).clone() for name in lm.modules}
        self._sum = {name: torch.zeros_like(weight) for name, weight in self._initial.items()}

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        lm, env = self._env.language_model, self._env
        if info["attempt"] == 0:
            self._before = {name: total.clone() for name, total in self._sum.items()}
        last_batch = (info["batch"] + 1) * env.edits_per_step >= len(env.stream)
        last = last_batch and info["attempt"] == env.actions_per_batch - 1
        deltas: dict[str, Delta] = {}
        try:
            deltas = {name: dense(delta) for name, delta in self._write(env.batch).items()}
        except torch.linalg.LinAlgError:
            if not last:
                raise
        if last and not (deltas and all(dense(delta).isfinite().all() for delta in deltas.values())):
            # The batch would be refused, and with it the condensing of all the others.
            warnings.warn(f"PRUNE: no update was found for the last batch, {len(env.batch)} edits", stacklevel=2)
            deltas = {name: torch.zeros_like(total) for name, total in self._sum.items()}
        for name, delta in deltas.items():
            self._sum[name] += dense(delta)
        if not (last or self.every_batch):
            return deltas
        condensed = {n: condense(total, self._initial[n], self.base) for n, total in self._sum.items()}
        if self.onto == "edited":
            return {name: dense(deltas[name]) + condensed[name] for name in condensed}
        return {name: self._initial[name] + condensed[name] - lm.weight(name) for name in condensed}

    def revert_batch(self) -> None:
        super().revert_batch()
        self._sum = self._before

    def batch_state(self) -> dict[str, torch.Tensor]:
        return super().batch_state() | {f"sum/{name}": total.clone() for name, total in self._sum.items()}

    def load_batch_state(self, state: dict[str, torch.Tensor]) -> None:
        self._sum = {name: state[f"sum/{name}"] for name in self._sum}
        super().load_batch_state({name: keys for name, keys in state.items() if name in self._sum})
