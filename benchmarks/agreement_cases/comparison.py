"""How far apart two results are."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Comparison:
    """Something that public code and this project both compute, and how far apart the results are.

    Attributes:
        method: The row or method, by this project's name.
        compared: What was computed on both sides.
        options: Which of the documented differences have been taken away, and by what.
        relative_difference: ``|public - ours| / |public|``, over all modules or parameters together.
        cosine: Of the angle between the two.
        explanation: What explains the difference that is left.
    """

    method: str
    compared: str
    options: str
    relative_difference: float
    cosine: float
    explanation: str


def compared(
    method: str,
    what: str,
    public: Mapping[str, torch.Tensor],
    ours: Mapping[str, torch.Tensor],
    options: str = "",
    explanation: str = "rounding",
) -> Comparison:
    """The comparison of two sets of tensors; see :func:`distance`, which raises what this raises."""
    try:
        relative, cosine = distance(public, ours)
    except ValueError as error:
        raise ValueError(f"{method}, {what}: {error}") from None
    return Comparison(method, what, options, relative, cosine, explanation)


def distance(public: Mapping[str, torch.Tensor], ours: Mapping[str, torch.Tensor]) -> tuple[float, float]:
    """``|public - ours| / |public|`` and the cosine, over all tensors as one vector, in double precision.

    Raises:
        ValueError: If the two do not have the same names and shapes, one is not finite, or the public one is zero.
    """
    if public.keys() != ours.keys():
        raise ValueError(f"public code has {', '.join(sorted(public))}; this project {', '.join(sorted(ours))}")
    for name, tensor in public.items():
        if tensor.shape != ours[name].shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)} in public code and {tuple(ours[name].shape)} here")
    first, second = (
        torch.cat([tensors[name].detach().double().flatten() for name in sorted(public)]) for tensors in (public, ours)
    )
    for whose, vector in (("public code's", first), ("this project's", second)):
        if not vector.isfinite().all():
            raise ValueError(f"{whose} result is not finite")
    if not first.norm() > 0:
        raise ValueError("public code's result is zero")
    cosine = float(first @ second / (first.norm() * second.norm())) if second.norm() > 0 else 0.0
    return float((first - second).norm() / first.norm()), cosine
