"""Which modules are edited: the paper's presets, and a choice for any other model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OUTPUTS = ("down_proj", "fc2", "fc_out", "c_proj", "dense_4h_to_h", "wo", "w2")
"""What the projections out of an MLP are called: Llama and its kin, OPT, GPT-J, GPT-2, GPT-NeoX and Falcon."""

ATTENTION = ("attn", "attention")


@dataclass(frozen=True, slots=True)
class Preset:
    """One row of RLEdit's Table 3.

    Attributes:
        modules: Endings of the edited modules' names.
        rank: Of the hypernetwork's linear maps.
        locality: lambda_loc of eq. 8.
    """

    modules: tuple[str, ...]
    rank: int
    locality: float


def _layers(projection: str, first: int, last: int) -> tuple[str, ...]:
    return tuple(f"layers.{i}.mlp.{projection}_proj" for i in range(first, last + 1))


_GEMMA = _layers("gate", 32, 40) + _layers("up", 32, 40)
_LLAMA = _layers("gate", 22, 30) + _layers("up", 22, 30)

PRESETS: dict[str, Preset] = {
    "llama-3-8b/zsre": Preset(_layers("gate", 11, 15) + _layers("up", 18, 24), 1024, 0.6),
    "llama-3-8b/counterfact": Preset(_LLAMA, 512, 0.6),
    "llama-3-8b/fever": Preset(_LLAMA, 1024, 0.6),
    "gemma-2-9b/zsre": Preset(_GEMMA, 512, 0.6),
    "gemma-2-9b/counterfact": Preset(_GEMMA, 1024, 0.6),
    "gemma-2-9b/fever": Preset(_GEMMA, 1024, 0.6),
    "mistral-7b/zsre": Preset(_layers("down", 17, 18), 1024, 0.8),
    "mistral-7b/counterfact": Preset(_layers("down", 17, 19), 1024, 0.8),
    "mistral-7b/fever": Preset(_layers("down", 17, 18), 1024, 0.6),
}
"""RLEdit (Li et al. 2025), Table 3, by model and data set."""


def default_modules(model: "PreTrainedModel", name: str) -> Sequence[str]:
    """The modules edited unless the user says otherwise.

    What the model's config lists as ``edited_modules``; otherwise the projections out of the MLPs of two layers just
    behind the middle, as in the paper's preset for Mistral (layers 17 and 18 of 32).

    Args:
        model: A causal LM.
        name: Named in the error.

    Raises:
        ValueError: If the model has no such projections.
    """
    listed = getattr(model.config, "edited_modules", None)
    if listed:
        return tuple(listed)
    found = mlp_outputs(model)
    if not found:
        raise ValueError(
            f"no MLP projections called {', '.join(OUTPUTS)} were found in {name!r}; name the modules to edit, e.g. "
            "modules=['layers.30.mlp.down_proj']"
        )
    start = min(17 * len(found) // 32, max(0, len(found) - 2))
    return tuple(found[start : start + 2])


def mlp_outputs(model: nn.Module) -> list[str]:
    """Names of the linear modules that project out of each layer's MLP, from the first layer to the last."""
    from transformers.pytorch_utils import Conv1D

    found = []
    for name, module in model.named_modules():
        parts = name.split(".")
        inside_attention = any(word in part for part in parts[:-1] for word in ATTENTION)
        if isinstance(module, nn.Linear | Conv1D) and parts[-1] in OUTPUTS and not inside_attention:
            found.append(name)
    return found
