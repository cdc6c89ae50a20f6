"""How far a sum of deltas may be off by rounding, weight by weight.

Taking deltas away from an edited model, or adding them on another machine, gives other last bits than the model on
record. What floating-point arithmetic can make of it has a bound, and whatever lies beyond is not rounding.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from editenv.deltas import Delta, LowRank
from editenv.identity import fingerprint_beside
from editenv.language_model.editable_lm import EditableLM
from editenv.memories import Change, deltas_of

SAMPLES = 2**16
"""Weights of a module that are kept to compare with; of a smaller module all."""

BESIDE = "beside"
"""Stands in the place of a module for what is beside the weights."""

AT_ONCE = 2**12
"""Weights whose bound is computed together."""

UNIT = 2.0**-24
"""Unit roundoff of float32, in which deltas add up."""


def sampled_weights(lm: EditableLM) -> dict[str, torch.Tensor]:
    """Weights of each edited module of the base and of the edited model, by ``base/module`` and ``edited/module``.

    Returns:
        ``(min(SAMPLES, d_in d_out),)`` float32 each: in the precision in which edits add up. And of either model, by
        ``base/beside`` and ``edited/beside``, the bytes of :func:`editenv.identity.fingerprint_beside`.
    """
    kept = {}
    for name in lm.modules:
        positions = sampled_positions(lm.shape(name)).to(lm.device)
        kept[f"base/{name}"] = lm.initial_weight(name).flatten()[positions].float().cpu()
        kept[f"edited/{name}"] = lm.weight(name).flatten()[positions].cpu()
    kept[f"edited/{BESIDE}"] = _beside(lm)
    with lm.at_initial_weights():
        kept[f"base/{BESIDE}"] = _beside(lm)
    return kept


def _beside(lm: EditableLM) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(fingerprint_beside(lm))), dtype=torch.uint8)


def other_beside(lm: EditableLM, weights: Mapping[str, torch.Tensor], which: Literal["base", "edited"]) -> bool:
    """Whether a model has other memories, or another context, than the one that it should be; these are never rounded.

    Args:
        lm: The model.
        weights: Of :func:`sampled_weights`; earlier versions kept nothing to tell this by.
        which: The model that it should be.
    """
    expected = weights.get(f"{which}/{BESIDE}")
    return expected is not None and not torch.equal(expected, _beside(lm))


def sampled_positions(shape: tuple[int, int]) -> torch.Tensor:
    """Places in a flattened ``(d_in, d_out)`` matrix, the same ones always; all of them if they are few.

    Multiples of the golden ratio, modulo 1, are spread evenly over the rows and over the columns.
    """
    total = shape[0] * shape[1]
    if total <= SAMPLES:
        return torch.arange(total)
    golden = 11400714819323198485  # of 2^64
    return torch.tensor([(i * golden % 2**64) * total >> 64 for i in range(SAMPLES)])


def beyond_rounding(
    lm: EditableLM,
    actions: Sequence[Mapping[str, Change]],
    weights: Mapping[str, torch.Tensor],
    which: Literal["base", "edited"],
) -> str | None:
    """Which weight of a model is off by more than rounding can be, in words; None if there is none.

    Args:
        lm: What came of adding the deltas (``"edited"``) or of taking them away (``"base"``).
        actions: The deltas, in the order in which they were added.
        weights: Of :func:`sampled_weights`, when they were added.
        which: The model that it should be.
    """
    for name in lm.modules:
        positions = sampled_positions(lm.shape(name))
        base = weights[f"base/{name}"].double()
        found, expected = lm.weight(name).flatten().cpu()[positions].double(), weights[f"{which}/{name}"].double()
        deltas = [deltas_of(action)[name] for action in actions if name in deltas_of(action)]
        dtype = lm.model.get_parameter(f"{name}.weight").dtype
        bound = torch.cat(
            [
                rounding_bound(base[at], deltas, positions[at], dtype, which)
                for at in torch.arange(len(positions)).split(AT_ONCE)
            ]
        )
        off = (found - expected).abs()
        over = ~(off <= bound)  # true of NaN, too
        if over.any():
            worst = int((off - bound).nan_to_num(nan=torch.inf).argmax())
            row, column = divmod(int(positions[worst]), lm.shape(name)[1])
            return (
                f"{int(over.sum()):,} of {len(over):,} weights of {name} that were compared, such as ({row}, {column}), off by "
                f"{float(off[worst]):.3g} where rounding is at most {float(bound[worst]):.3g}"
            )
    return None


def rounding_bound(
    base: torch.Tensor,
    deltas: Sequence[Delta],
    positions: torch.Tensor,
    dtype: torch.dtype,
    which: Literal["base", "edited"],
) -> torch.Tensor:
    """The largest difference that rounding can make at some weights of a module.

    A weight W and the r products of a delta's factors are r + 1 terms, which float32 adds up, in whatever order, with
    an error of at most ``gamma_{r+1} (|W| + sum_k |l_k r_k|)``, ``gamma_n = n u / (1 - n u)``, ``u = 2^-24`` (Higham,
    Accuracy and Stability of Numerical Algorithms, 2002, eq. 3.5); a dense delta is one term. These errors add up over
    the deltas, at the intermediate weights, which are computed here in float64. A model in another precision is
    rounded to it once, after its last edit.

    Args:
        base: ``(s,)`` weights before the deltas, float64.
        deltas: In order.
        positions: ``(s,)`` where in the flattened matrix they lie.
        dtype: Precision of the model.
        which: ``"edited"`` for two sums of the same deltas; ``"base"`` for adding them, rounding to ``dtype`` and
            taking them away again.

    Returns:
        ``(s,)`` float64.
    """
    weight, error = base.clone(), torch.zeros_like(base)
    terms = [_terms(delta, positions) for delta in deltas]
    tiny = torch.finfo(torch.float32).tiny  # results below it may be lost whole
    for change, magnitude, count in terms:
        error = error + _gamma(count + 1) * (weight.abs() + error + magnitude) + count * tiny
        weight = weight + change
    if which == "edited":
        return 2 * error
    if dtype != torch.float32:
        precision = torch.finfo(dtype)
        error = error + precision.eps / 2 * (weight.abs() + error) + precision.tiny * precision.eps
    for change, magnitude, count in reversed(terms):
        error = error + _gamma(count + 1) * (weight.abs() + error + magnitude) + count * tiny
        weight = weight - change
    return error


def _terms(delta: Delta, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Of a delta at some weights, in float64: its entries, the sum of its terms' magnitudes, and their number."""
    rows, columns = positions // delta.shape[1], positions % delta.shape[1]
    if isinstance(delta, LowRank):
        products = delta.left.cpu()[rows].double() * delta.right.cpu()[:, columns].T.double()
        return products.sum(1), products.abs().sum(1), products.shape[1]
    entries = delta.cpu()[rows, columns].double()
    return entries, entries.abs(), 1


def _gamma(terms: int) -> float:
    return terms * UNIT / (1 - terms * UNIT)
