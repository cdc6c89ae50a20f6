"""Deltas as safetensors files, which can be added to a base model and taken away again."""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from editenv.atomic_files import atomic_write
from editenv.contexts import CONTEXT, Context, as_tensor, of_tensor, removal
from editenv.deltas import LowRank, as_stored
from editenv.identity import Identity, cautions, differences, fingerprint, frozen_fingerprint, identity
from editenv.language_model.editable_lm import EditableLM
from editenv.memories import PARTS, Change, Memory, no_memory
from editenv.rounding import beyond_rounding, other_beside

FORMAT = "lifelongedit-deltas-1"
"""In the file's metadata."""

DIGEST = "sha256"
"""Entry of the metadata: over all else."""

WEIGHTS = "weights/"
"""Begins the names of what is kept of the weights, beside the deltas."""


def tensors_of(actions: Sequence[Mapping[str, Change]]) -> dict[str, torch.Tensor]:
    """The factors of each action's deltas, by ``action/module/left|right|dense``, and the tensors of its memories, by
    ``action/module/GATE-keys|GATE-values|GATE-thresholds|GATE-rows``, the last if it has any; its context is bytes of JSON,
    ``action/context/json``. Actions count from 0.
    """
    tensors: dict[str, torch.Tensor] = {}
    for i, deltas in enumerate(actions):
        for name, delta in deltas.items():
            if isinstance(delta, LowRank):
                tensors[f"{i}/{name}/left"], tensors[f"{i}/{name}/right"] = delta.left, delta.right
            elif isinstance(delta, Memory):
                tensors |= {f"{i}/{name}/{delta.gate}-{part}": tensor for part, tensor in delta.parts().items()}
            elif isinstance(delta, Context):
                tensors[f"{i}/{name}/json"] = as_tensor(delta)
            else:
                tensors[f"{i}/{name}/dense"] = delta
    return tensors


def read_delta(tensors: Mapping[str, torch.Tensor]) -> list[dict[str, Change]]:
    """The actions that :func:`tensors_of` took apart; tensors of other names are passed over.

    Raises:
        ValueError: If one of two factors is missing, or a part of a memory; or a context is none.
    """
    actions: dict[int, dict[str, Change]] = {}
    for key, tensor in tensors.items():
        number, _, rest = key.partition("/")
        if not number.isdecimal():
            continue
        name, _, part = rest.rpartition("/")
        if part == "dense":
            actions.setdefault(int(number), {})[name] = tensor
        elif part == "json" and name == CONTEXT:
            actions.setdefault(int(number), {})[name] = of_tensor(tensor)
        elif part == "left":
            right = f"{number}/{name}/right"
            if right not in tensors:
                raise ValueError(f"not a file of deltas: it holds {key} without {right}")
            actions.setdefault(int(number), {})[name] = LowRank(tensor, tensors[right])
        elif part.endswith("-keys"):
            gate: Any = part.removesuffix("-keys")
            parts = {part: tensors.get(f"{number}/{name}/{gate}-{part}") for part in PARTS}
            if missing := [part for part, value in parts.items() if value is None]:
                raise ValueError(f"not a file of deltas: it holds {key} without its {', '.join(missing)}")
            memory: dict[str, Any] = parts
            rows = tensors.get(f"{number}/{name}/{gate}-rows")
            actions.setdefault(int(number), {})[name] = Memory(gate, **memory, rows=rows)
    return [actions[i] for i in sorted(actions)]


def write_delta_file(
    path: Path,
    actions: Sequence[Mapping[str, Change]],
    before: str,
    after: str,
    frozen: str | None = None,
    model: Identity | None = None,
    weights: Mapping[str, torch.Tensor] = MappingProxyType({}),
    digest: bool = True,
) -> None:
    """One file of all actions in order; whole or not at all.

    Args:
        path: Where.
        actions: Deltas by module.
        before, after: :func:`editenv.identity.fingerprint` of the model without and with them.
        frozen: :func:`editenv.identity.frozen_fingerprint` of it; None leaves open what else is in the model.
        model: Its :func:`editenv.identity.identity`; None leaves that open.
        weights: Of :func:`editenv.rounding.sampled_weights`, by which a result is judged that differs in the last bits.
        digest: Note one over all of it, by which a change is noticed; of what a benchmark records its record has one.

    Raises:
        OSError: If the disk is full or read-only.
    """
    named = tensors_of(actions) | {f"{WEIGHTS}{name}": values for name, values in weights.items()}
    tensors = as_stored(named)
    metadata = {"format": FORMAT, "before": before, "after": after, "actions": str(len(actions))}
    if frozen is not None:
        metadata["frozen"] = frozen
    if model is not None:
        metadata["identity"] = json.dumps(model)
    if digest:
        metadata[DIGEST] = _digest_of(tensors, metadata)
    with atomic_write(path) as partial:
        save_file(tensors, partial, metadata)


def _digest_of(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over tensors with their names, shapes and types, and the metadata; the file's order does not matter."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_delta_file(path: Path) -> tuple[list[dict[str, Change]], dict[str, str]]:
    """The actions of a file, and its metadata.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not a file of deltas, or was changed after it was written.
    """
    actions, metadata, _ = _read(path)
    return actions, metadata


def _read(path: Path) -> tuple[list[dict[str, Change]], dict[str, str], dict[str, torch.Tensor]]:
    """The actions, the metadata, and the weights kept to judge results by."""
    with _opened(path) as (file, metadata):
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
    rest = {name: value for name, value in metadata.items() if name != DIGEST}
    if DIGEST in metadata and metadata[DIGEST] != _digest_of(tensors, rest):  # not all files say
        raise ValueError(f"{path} was changed after it was written: its content is not what its digest is of")
    actions = read_delta(tensors)
    if str(len(actions)) != metadata.get("actions"):
        raise ValueError(
            f"{path} is not whole: it holds {len(actions)} actions, and was written with {metadata.get('actions')}"
        )
    weights = {key.removeprefix(WEIGHTS): values for key, values in tensors.items() if key.startswith(WEIGHTS)}
    return actions, metadata, weights


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """A file of deltas, open, and its metadata.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                journal = path.parent.name == "batches" and path.stem.isdecimal()
                hint = (
                    "; it is one batch of a journal, whose run's deltas.safetensors has all of them" if journal else ""
                )
                raise ValueError(
                    f"{path} is not a file of deltas: its format is {metadata.get('format')!r}, not {FORMAT!r}{hint}"
                )
            if missing := {"before", "after"} - metadata.keys():
                raise ValueError(f"{path} is not a file of deltas: its metadata lack {', '.join(sorted(missing))}")
            yield file, metadata
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or not all of one: {error}") from error


def modules_of(path: Path) -> list[str]:
    """The modules that a file's deltas are for.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a file of deltas, or holds none.
    """
    with _opened(path) as (file, _):
        keys = [key.split("/") for key in file.keys()]  # noqa: SIM118 - not a dictionary
    names = dict.fromkeys("/".join(parts[1:-1]) for parts in keys if parts[0].isdecimal())
    names.pop(CONTEXT, None)
    if not names:
        raise ValueError(f"{path} holds no delta: nothing was edited")
    return list(names)


Match = Literal["exact", "rounding", "unchecked"]
"""What a result is against the model on record: the same to the bit; within what rounding can be; or different, in a
file that has nothing to judge that by."""


def apply_file(lm: EditableLM, path: Path, allow_rounding: bool = False) -> Match:
    """Adds a file's deltas to the base model, in order: the same bits as editing it had given.

    Args:
        lm: The base model.
        path: The file.
        allow_rounding: Take a result that differs, as it may by rounding on another machine.

    Returns:
        What the result is against the edited model.

    Raises:
        ValueError: If the model is not the one the deltas were made for, or the result is another.
    """
    actions, metadata, weights = _read(path)
    if fingerprint(lm) != metadata["before"]:
        raise ValueError(
            f"{path} was made for another base model, or one in another precision: the fingerprints of the edited modules differ"
        )
    _check_rest(lm, path, metadata)
    _check_shapes(lm, path, actions)
    for deltas in actions:
        lm.apply(deltas)
    match = _judge(lm, path, metadata["after"], actions, weights, "edited")
    if match != "exact" and not allow_rounding:
        raise ValueError(
            f"{path}: the result is not the edited model to the bit (another machine or number of threads?); --allow-rounding "
            "takes one that differs by rounding"
        )
    return match


def revert_file(lm: EditableLM, path: Path) -> Match:
    """Takes a file's deltas away from the edited model.

    Returns:
        What the result is against the base model.

    Raises:
        ValueError: If the model is not the one these deltas were added to, or the result is not the base model within
            what rounding can be.
    """
    actions, metadata, weights = _read(path)
    if fingerprint(lm) != metadata["after"]:
        raise ValueError(
            f"{path} was not what this model was edited with, or not in this precision: the fingerprints differ"
        )
    _check_rest(lm, path, metadata)
    _check_shapes(lm, path, actions)
    for deltas in reversed(actions):
        lm.apply({name: _negative(delta) for name, delta in deltas.items()})
    return _judge(lm, path, metadata["before"], actions, weights, "base")


def _check_rest(lm: EditableLM, path: Path, metadata: Mapping[str, str]) -> None:
    """Whether the rest of the model is what it was when the file was written, as far as the file says.

    Raises:
        ValueError: If not.
    """
    if "frozen" not in metadata:  # what is recorded of a benchmark leaves it open
        return
    if metadata["frozen"] != frozen_fingerprint(lm):
        raise ValueError(
            f"{path} was made for another model: the edited modules are the same, other weights or the tokenizer are not"
        )
    there, here = None, identity(lm)
    if "identity" in metadata:
        there = json.loads(metadata["identity"])
    if different := differences(there, here):
        raise ValueError(f"{path} was made for another model: the weights are the same, but {'; '.join(different)}")
    for caution in cautions(there, here):
        warnings.warn(f"{path}: {caution}", stacklevel=4)


def _check_shapes(lm: EditableLM, path: Path, actions: Sequence[Mapping[str, Change]]) -> None:
    """Whether every delta can be added to its module.

    Raises:
        ValueError: If one has another shape, or is not of real numbers.
    """
    for number, deltas in enumerate(actions, start=1):
        for name, delta in deltas.items():
            if isinstance(delta, Context):
                continue
            if isinstance(delta, Memory):
                if delta.shape != lm.shape(name):
                    raise ValueError(
                        f"{path}: action {number} has a memory for {delta.shape} beside {name}, whose shape is {lm.shape(name)}"
                    )
                continue
            factors = (delta.left, delta.right) if isinstance(delta, LowRank) else (delta,)
            fit = len(factors) == 1 or factors[0].shape[-1] == factors[1].shape[0]
            if (
                any(f.ndim != 2 or not f.is_floating_point() for f in factors)
                or not fit
                or delta.shape != lm.shape(name)
            ):
                what = " and ".join(f"{tuple(f.shape)} {str(f.dtype).removeprefix('torch.')}" for f in factors)
                raise ValueError(
                    f"{path}: action {number} has {what} for {name}, whose delta is {lm.shape(name)} of real numbers"
                )


def _judge(
    lm: EditableLM,
    path: Path,
    expected: str,
    actions: Sequence[Mapping[str, Change]],
    weights: Mapping[str, torch.Tensor],
    which: Literal["base", "edited"],
) -> Match:
    """What the model is, now that the deltas were added to it or taken away.

    Args:
        lm: The result.
        path: The file, for messages.
        expected: Fingerprint of the model that it should be.
        actions: All deltas.
        weights: Kept in the file.
        which: The model that it should be.

    Raises:
        ValueError: If it cannot be that model, whatever the rounding.
    """
    if fingerprint(lm) == expected:
        return "exact"
    for name in lm.modules:
        if not lm.weight(name).isfinite().all():
            raise ValueError(f"{path}: the result has NaN or infinity in {name}: it is not the {which} model")
    if not weights:
        warnings.warn(
            f"{path}: the result is not the {which} model to the bit, and how far it is from it cannot be checked: the file "
            "has no weights to compare with (a benchmark or an earlier version wrote it)",
            stacklevel=3,
        )
        return "unchecked"
    if other_beside(lm, weights, which):
        raise ValueError(
            f"{path}: the memories and the context of the result are not those of the {which} model, which the file does not "
            "hold: load that model itself"
        )
    if off := beyond_rounding(lm, actions, weights, which):
        raise ValueError(f"{path}: the result is not the {which} model within rounding: {off}")
    return "rounding"


def _negative(delta: Change) -> Change:
    if isinstance(delta, Memory):
        return no_memory(delta.shape)  # the base model has none
    if isinstance(delta, Context):
        return removal(delta)
    return LowRank(-delta.left, delta.right) if isinstance(delta, LowRank) else -delta
