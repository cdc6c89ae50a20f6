"""Deltas as safetensors files, which can be added to a base model and taken away again."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from editenv.atomic_files import atomic_write
from editenv.deltas import Delta, LowRank
from editenv.language_model.editable_lm import EditableLM

FORMAT = "lifelongedit-deltas-1"
"""In the file's metadata."""


def fingerprint(lm: EditableLM) -> str:
    """SHA-256 over the edited modules: names, shapes, types and every bit of the weights as they are now."""
    digest = hashlib.sha256()
    for name in lm.modules:
        weight = lm.model.get_parameter(f"{name}.weight").detach().cpu().contiguous()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(weight.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def frozen_fingerprint(lm: EditableLM) -> str:
    """SHA-256 over the rest of the model: every parameter that is not edited, and the tokenizer's vocabulary."""
    digest = hashlib.sha256()
    edited = {f"{name}.weight" for name in lm.modules}
    for name, parameter in lm.model.named_parameters():
        if name in edited:
            continue
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        if not parameter.is_meta:  # moved out of memory
            digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    digest.update(json.dumps(sorted(lm.tokenizer.get_vocab().items())).encode())
    return digest.hexdigest()


def tensors_of(actions: Sequence[Mapping[str, Delta]]) -> dict[str, torch.Tensor]:
    """The factors of each action's deltas, by ``action/module/left|right|dense``; actions count from 0."""
    tensors: dict[str, torch.Tensor] = {}
    for i, deltas in enumerate(actions):
        for name, delta in deltas.items():
            if isinstance(delta, LowRank):
                tensors[f"{i}/{name}/left"], tensors[f"{i}/{name}/right"] = delta.left, delta.right
            else:
                tensors[f"{i}/{name}/dense"] = delta
    return tensors


def read_delta(tensors: Mapping[str, torch.Tensor]) -> list[dict[str, Delta]]:
    """The actions that :func:`tensors_of` took apart; tensors of other names are passed over.

    Raises:
        ValueError: If one of two factors is missing.
    """
    actions: dict[int, dict[str, Delta]] = {}
    for key, tensor in tensors.items():
        number, _, rest = key.partition("/")
        if not number.isdecimal():
            continue
        name, _, part = rest.rpartition("/")
        if part == "dense":
            actions.setdefault(int(number), {})[name] = tensor
        elif part == "left":
            right = f"{number}/{name}/right"
            if right not in tensors:
                raise ValueError(f"not a file of deltas: it holds {key} without {right}")
            actions.setdefault(int(number), {})[name] = LowRank(tensor, tensors[right])
    return [actions[i] for i in sorted(actions)]


def write_delta_file(
    path: Path, actions: Sequence[Mapping[str, Delta]], before: str, after: str, frozen: str | None = None
) -> None:
    """One file of all actions in order; whole or not at all.

    Args:
        path: Where.
        actions: Deltas by module.
        before, after: :func:`fingerprint` of the model without and with them.
        frozen: :func:`frozen_fingerprint` of it; None leaves open what else is in the model.

    Raises:
        OSError: If the disk is full or read-only.
    """
    metadata = {"format": FORMAT, "before": before, "after": after, "actions": str(len(actions))}
    if frozen is not None:
        metadata["frozen"] = frozen
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors_of(actions).items()}
    with atomic_write(path) as partial:
        save_file(tensors, partial, metadata)


def read_delta_file(path: Path) -> tuple[list[dict[str, Delta]], dict[str, str]]:
    """The actions of a file, and its metadata.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not a file of deltas.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not a file of deltas: its format is {metadata.get('format')!r}, not {FORMAT!r}")
    if missing := {"before", "after"} - metadata.keys():
        raise ValueError(f"{path} is not a file of deltas: its metadata lack {', '.join(sorted(missing))}")
    return read_delta(tensors), metadata


def modules_of(actions: Sequence[Mapping[str, Delta]], path: Path) -> list[str]:
    """The modules that a file's deltas are for.

    Raises:
        ValueError: If it holds none.
    """
    names = list(dict.fromkeys(name for deltas in actions for name in deltas))
    if not names:
        raise ValueError(f"{path} holds no delta: nothing was edited")
    return names


def apply_file(lm: EditableLM, path: Path, allow_rounding: bool = False) -> bool:
    """Adds a file's deltas to the base model, in order: the same bits as editing it had given.

    Args:
        lm: The base model.
        path: The file.
        allow_rounding: Take a result that differs, as it may by rounding on another machine.

    Returns:
        Whether the result is the edited model to the bit.

    Raises:
        ValueError: If the model is not the one the deltas were made for, or the result is another.
    """
    actions, metadata = read_delta_file(path)
    if fingerprint(lm) != metadata["before"]:
        raise ValueError(
            f"{path} was made for another base model, or one in another precision: the fingerprints of the edited modules differ"
        )
    _check_frozen(lm, path, metadata)
    for deltas in actions:
        lm.apply(deltas)
    exact = fingerprint(lm) == metadata["after"]
    if not exact and not allow_rounding:
        raise ValueError(
            f"{path}: the result is not the edited model to the bit (another machine or number of threads?); --allow-rounding "
            "takes it all the same"
        )
    return exact


def _check_frozen(lm: EditableLM, path: Path, metadata: Mapping[str, str]) -> None:
    """Whether the rest of the model is what it was when the file was written, if the file says so.

    Raises:
        ValueError: If not.
    """
    if "frozen" in metadata and metadata["frozen"] != frozen_fingerprint(lm):
        raise ValueError(
            f"{path} was made for another model: the edited modules are the same, other weights or the tokenizer are not"
        )


def revert_file(lm: EditableLM, path: Path) -> bool:
    """Takes a file's deltas away from the edited model.

    Returns:
        Whether the result is the base model to the bit; it always is within rounding.

    Raises:
        ValueError: If the model is not the one these deltas were added to.
    """
    actions, metadata = read_delta_file(path)
    if fingerprint(lm) != metadata["after"]:
        raise ValueError(
            f"{path} was not what this model was edited with, or not in this precision: the fingerprints differ"
        )
    _check_frozen(lm, path, metadata)
    for deltas in reversed(actions):
        lm.apply({name: _negative(delta) for name, delta in deltas.items()})
    return fingerprint(lm) == metadata["before"]


def _negative(delta: Delta) -> Delta:
    return LowRank(-delta.left, delta.right) if isinstance(delta, LowRank) else -delta
