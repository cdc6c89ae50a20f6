"""Which modules are edited: the paper's presets, and a choice for any other model."""

from collections.abc import Iterable, Sequence
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


def preset(name: str) -> Preset:
    """A preset by its name.

    Raises:
        ValueError: If there is none.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


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


def modules_of(modules: tuple[str, ...], name: str | None) -> tuple[str, ...]:
    """Those that were named, or a preset's.

    Raises:
        ValueError: If both were given, or there is no such preset.
    """
    if modules and name is not None:
        raise ValueError("preset: it names the modules; give --modules or --preset")
    return preset(name).modules if name is not None else modules


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


def find_modules(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """The linear modules whose dotted names end with one of the patterns, in the model's order.

    Raises:
        ValueError: If a pattern matches nothing.
    """
    from transformers.pytorch_utils import Conv1D

    if isinstance(patterns, str):
        raise ValueError(f"modules must be a list of patterns, not the single string {patterns!r}")
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    found: dict[str, nn.Module] = {}
    for pattern in patterns:
        matches = {name: m for name, m in linear.items() if name == pattern or name.endswith(f".{pattern}")}
        if not matches:
            known = sorted({".".join(name.split(".")[-2:]) for name in linear})
            raise ValueError(f"modules: no linear module's name ends with {pattern!r}; there are {', '.join(known)}")
        found |= matches
    if not found:
        raise ValueError("modules: name at least one module to edit")
    return {name: module for name, module in linear.items() if name in found}


def layer_stack(model: nn.Module, names: Iterable[str]) -> str:
    """Dotted name of the ModuleList in which all edited modules lie.

    Raises:
        ValueError: If there is none.
    """
    stacks = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    for stack in sorted(stacks, key=len):
        if all(name.startswith(f"{stack}.") for name in names):
            return stack
    raise ValueError(f"modules: {', '.join(names)} do not all lie in one stack of layers")


def attention_and_mlp(
    layer: nn.Module, names: Iterable[str], stack: str, index: int
) -> tuple[nn.Module | None, nn.Module | None]:
    """Attention and MLP of the first edited layer, if its edited modules all lie in its MLP."""
    inside = {name.split(".")[len(stack.split(".")) + 1] for name in names if name.startswith(f"{stack}.{index}.")}
    if len(inside) != 1:
        return None, None
    mlp = layer.get_submodule(inside.pop())
    called_so = [c for name, c in layer.named_children() if {"attn", "attention"} & set(name.split("_"))]
    # Norms and dropouts may be called after it.
    attention = [c for c in called_so if "norm" not in type(c).__name__.lower() and list(c.parameters())]
    if len(attention) != 1 or attention[0] is mlp or not list(mlp.children()):
        return None, None
    return attention[0], mlp
