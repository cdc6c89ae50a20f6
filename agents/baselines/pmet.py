"""PMET (Li et al. 2024, AAAI; arXiv 2308.08742): values of attention and MLP are searched together, the MLP's written."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from agents.base import ProgressCallback
from agents.baselines.lookup import Lookup, read_values
from agents.baselines.memit import MEMIT
from agents.baselines.values import JointValueConfig, optimise_values
from editenv.arguments import NonNegativeFloat, PositiveFloat, PositiveInt
from editenv.data import Edit
from editenv.env import LifelongEditEnv
from editenv.language_model.editable_lm import EditableLM


class PMET(MEMIT):
    """MEMIT whose value is the last edited MLP's own output, found while its layer's attention may change, too.

    At the lookup token, Adam searches a change of the last edited MLP's output and one of its layer's attention
    output, which together make the target likely. The attention is not written: of general patterns it needs no
    update, and the MLP's value is spared what is not its business. With m the value of the MLP, and L layers left,

        D = (weight C + U^T U)^-1 U^T R,        R = (m - MLP output now) / sqrt(L)

    from the first edited layer to the last, where MEMIT divides by L and takes the residual stream.

    Needs and precomputes what MEMIT does. The edited modules are MLP projections, one a layer.

    Args:
        value: Search for the values.
        weight: Weight of C: 15,000 in EasyEdit's settings for GPT-J, where 6 layers are edited; in the model's units.
        samples: Texts for C; 100,000 there.
        epsilon: Ridge on C, as MEMIT has it.
        cache_keys: Add the keys of earlier batches to C, as ``memit-seq`` does; not in the paper.
    """

    def __init__(
        self,
        value: JointValueConfig | None = None,
        weight: PositiveFloat = 15_000.0,
        samples: PositiveInt = 100_000,
        epsilon: NonNegativeFloat = 1e-4,
        cache_keys: bool = False,
    ) -> None:
        super().__init__(value or JointValueConfig(), weight, samples, epsilon, cache_keys)

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        last_attention(env.language_model)  # so that a model without one is refused before anything is computed
        super().prepare(env, seed, progress)

    @property
    def _where_values_are(self) -> nn.Module:
        return list(self._env.language_model.modules.values())[-1]

    def _target_output(self, edits: Sequence[Edit], lookup: Lookup) -> torch.Tensor:
        lm, mlp = self._env.language_model, self._where_values_are
        change = optimise_values(lm, (mlp, last_attention(lm)), edits, lookup, self.value)
        return read_values(lm, mlp, lookup) + change[:, 0]

    def _spread(self, layers_left: int) -> float:
        return math.sqrt(layers_left)


def last_attention(lm: EditableLM) -> nn.Module:
    """The attention beside the last edited MLP.

    Raises:
        ValueError: If the last edited module lies in no MLP with one attention beside it.
    """
    name = list(lm.modules)[-1]
    attention = lm.attention_beside(name)
    if attention is None:
        raise ValueError(
            f"modules: PMET edits projections of an MLP that has one attention beside it in its layer; {name} is none"
        )
    return attention
