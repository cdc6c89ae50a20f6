"""Whether a model's weights are numbers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def not_finite(model: "nn.Module") -> list[str]:
    """Names of the parameters that hold NaN or infinity; those that were moved out of memory are passed over."""
    names = []
    for name, parameter in model.named_parameters():
        if parameter.is_meta or not parameter.numel():
            continue
        # One pass, without a tensor of the parameter's size; NaN is passed on.
        low, high = parameter.detach().aminmax()
        if not (low.isfinite() and high.isfinite()):
            names.append(name)
    return names


def first_three(names: Sequence[str]) -> str:
    """The first three names, and whether there are more."""
    return f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
