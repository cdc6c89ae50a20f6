"""Which modules of a model are edited, and where in the model they lie.

torch is imported inside the functions: command lines take :data:`PRESETS` from here before they need a model.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from editenv.models.presets import OF_MODEL, PRESETS, Preset, gradient_layers, lookup_layers, modules_of, preset

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

__all__ = [
    "PRESETS",
    "Preset",
    "attention_and_mlp",
    "default_modules",
    "find_modules",
    "layer_number",
    "layer_stack",
    "mlp_outputs",
    "modules_of",
    "preset",
    "shared_with",
    "stream_outputs",
    "upper_modules",
]

OUTPUTS = ("down_proj", "fc2", "fc_out", "c_proj", "dense_4h_to_h", "wo", "w2", "output_linear")
"""What the projections out of an MLP are called: Llama and its kin, OPT, GPT-J, GPT-2, GPT-NeoX and Falcon, ..., the
shared experts of Granite's mixtures."""

MIXER_OUTPUTS = ("o_proj", "out_proj")
"""What the projections out of attention or a state space are called where the MLPs hold no linear module."""

ATTENTION = ("attn", "attention")
"""Parts of the names of attention blocks."""


def default_modules(model: "PreTrainedModel", name: str) -> Sequence[str]:
    """The modules edited unless the user says otherwise.

    What the model's config lists as ``edited_modules``, or what its preset has
    (:data:`editenv.models.presets.OF_MODEL`); otherwise the projections out of the MLPs of two layers, at two thirds
    and at three quarters of the depth (:func:`editenv.models.presets.gradient_layers`). Where no MLP has a linear module
    (Mixtral: all experts are one tensor), those out of the attention, with a warning.

    Args:
        model: A causal LM.
        name: What it was loaded by; named in messages.

    Raises:
        ValueError: If the model has no such projections.
    """
    listed = getattr(model.config, "edited_modules", None)
    if listed:
        if not isinstance(listed, list | tuple) or not all(isinstance(pattern, str) for pattern in listed):
            raise ValueError(f"{name}: edited_modules in config.json must be a list of module names, not {listed!r}")
        return tuple(listed)
    if name in OF_MODEL:
        return preset(OF_MODEL[name]).modules
    outputs = stream_outputs(model)
    if not outputs:
        known = _endings(_linear_modules(model, text_only=True))
        there_are = f"its linear modules are {known}" if known else "it has no linear module"
        raise ValueError(
            f"no projections out of an MLP or an attention (called {', '.join(OUTPUTS + MIXER_OUTPUTS)}) were found in {name!r}; "
            f"name the modules to edit: {there_are}"
        )
    chosen = tuple(outputs[i] for i in gradient_layers(len(outputs)))
    if not mlp_outputs(model):
        warnings.warn(
            f"{name}: no MLP has a linear module that could be edited (a mixture's experts are one tensor); edited are "
            f"{', '.join(chosen)}",
            stacklevel=2,
        )
    return chosen


def stream_outputs(model: "nn.Module") -> list[str]:
    """Names of the linear modules that write to the residual stream, from the first layer to the last.

    Those of the MLPs (:func:`mlp_outputs`); where there are none, those out of attention, or out of a state space.
    """
    return mlp_outputs(model) or [
        name for name in _linear_modules(model, text_only=True) if name.rpartition(".")[2] in MIXER_OUTPUTS
    ]


def mlp_outputs(model: "nn.Module") -> list[str]:
    """Names of the linear modules that project out of each layer's MLP, from the first layer to the last.

    Only of the part that reads text: a vision tower has MLPs, too.
    """
    names = []
    for name in _linear_modules(model, text_only=True):
        *parents, own_name = name.split(".")
        # c_proj is what GPT-2 calls the projection out of its attention, too.
        inside_attention = any(word in parent for parent in parents for word in ATTENTION)
        if own_name in OUTPUTS and not inside_attention:
            names.append(name)
    return names


def lookup_modules(model: "PreTrainedModel") -> tuple[str, ...]:
    """Where facts are looked up at their subject: every second of the projections to the residual stream in those layers
    (:func:`editenv.models.presets.lookup_layers`), without the last layer, behind which no token sees another.
    """
    outputs = stream_outputs(model)
    layers = [layer for layer in lookup_layers(len(outputs)) if layer < len(outputs) - 1] or [0]
    return tuple(outputs[layer] for layer in layers[::2])


def upper_modules(model: "PreTrainedModel") -> tuple[str, ...]:
    """The projections to the residual stream of the upper half of the layers."""
    outputs = stream_outputs(model)
    return tuple(outputs[len(outputs) // 2 :])


def find_modules(model: "nn.Module", patterns: Sequence[str]) -> dict[str, "nn.Module"]:
    """The linear modules whose dotted names end with one of the patterns, in the model's order.

    Raises:
        ValueError: If there are no patterns, if one matches nothing, or if they are a single string.
    """
    if isinstance(patterns, str):
        raise ValueError(f"modules must be a list of patterns, not the single string {patterns!r}")
    linear = _linear_modules(model)
    edited: set[str] = set()
    for pattern in patterns:
        matches = {name for name in linear if name == pattern or name.endswith(f".{pattern}")}
        if not matches:
            known = _endings(linear)
            raise ValueError(f"modules: no linear module's name ends with {pattern!r}; there are {known}")
        edited |= matches
    if not edited:
        raise ValueError("modules: name at least one module to edit")
    return {name: module for name, module in linear.items() if name in edited}


def _linear_modules(model: "nn.Module", text_only: bool = False) -> dict[str, "nn.Module"]:
    """By dotted name, in the model's order; GPT-2's Conv1D is a linear module that stores its weight transposed.

    Args:
        model: A causal LM.
        text_only: Only those of its text decoder, if it has other parts (the vision tower of Gemma-3).
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    get_decoder: Callable[[], nn.Module] | None = getattr(model, "get_decoder", None)
    if not text_only or get_decoder is None:
        return linear
    decoder = get_decoder()
    prefix = next((f"{name}." for name, module in model.named_modules() if module is decoder and name), "")
    return {name: module for name, module in linear.items() if name.startswith(prefix)}


def _endings(names: Iterable[str]) -> str:
    """The last two parts of each name, each once: what tells kinds of modules apart."""
    return ", ".join(sorted({".".join(name.split(".")[-2:]) for name in names}))


def shared_with(model: "nn.Module", name: str) -> list[str]:
    """Other names of the very parameter called ``name``."""
    parameter = model.get_parameter(name)
    return [n for n, p in model.named_parameters(remove_duplicate=False) if p is parameter and n != name]


def layer_stack(model: "nn.Module", names: Iterable[str]) -> str:
    """Dotted name of the ModuleList in which all edited modules lie.

    Args:
        model: A causal LM.
        names: Full dotted names of the edited modules.

    Raises:
        ValueError: If there is none.
    """
    from torch import nn

    names = list(names)
    stacks = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    for stack in sorted(stacks, key=len):
        if all(name.startswith(f"{stack}.") for name in names):
            return stack
    raise ValueError(f"modules: {', '.join(names)} do not all lie in one stack of layers")


def layer_number(stack: str, name: str) -> int:
    """The place in a stack of layers (:func:`layer_stack`) of the layer that a module lies in, from 0."""
    return int(name.removeprefix(f"{stack}.").split(".")[0])


def attention_and_mlp(
    layer: "nn.Module", names: Iterable[str], stack: str, index: int
) -> tuple["nn.Module | None", "nn.Module | None"]:
    """Attention and MLP of the first edited layer, if its edited modules all lie in its MLP; otherwise None, None.

    Args:
        layer: The first edited layer.
        names: Full dotted names of all edited modules.
        stack: Dotted name of the stack of layers (:func:`layer_stack`).
        index: The layer's place in the stack.
    """
    depth = len(stack.split(".")) + 1
    children = {name.split(".")[depth] for name in names if name.startswith(f"{stack}.{index}.")}
    if len(children) != 1:
        return None, None
    mlp = layer.get_submodule(children.pop())
    candidates = [child for name, child in layer.named_children() if set(ATTENTION) & set(name.split("_"))]
    # Norms and dropouts may be called after the attention: "post_attention_layernorm".
    attentions = [c for c in candidates if "norm" not in type(c).__name__.lower() and list(c.parameters())]
    # An "MLP" without children is the edited linear module itself: the layer has no MLP block of its own.
    if len(attentions) != 1 or attentions[0] is mlp or not list(mlp.children()):
        return None, None
    return attentions[0], mlp
