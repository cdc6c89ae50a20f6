"""An edited model as a folder: whole or not at all, and never in the place of anything else.

A Hugging Face folder if weights were edited; if a memory or a context was put beside them, that and the base model's name,
or a Hugging Face folder within it if both were done.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from agents.editing import model_card
from editenv.atomic_files import atomic_write_text, make_folder, named_in_errors, put_back, replace_folder
from editenv.language_model.editable_lm import EditableLM
from editenv.models import model_path, with_memory

MARKER = "lifelongedit.json"
"""File in a saved model's folder by which it is known as one that may be replaced; says what the model is."""

CARD = "README.md"
"""The model card, as the hub calls it."""


def check_place(folder: Path, base: str | None = None) -> None:
    """Whether a model may be saved there; to be asked before the work is done.

    Args:
        folder: Where the model is to go.
        base: Name or folder of the model it is made from.

    Raises:
        ValueError: If that would touch the base model, or replace what was not saved by :func:`save_model`.
    """
    if base is not None:
        target, source = folder.resolve(), Path(model_path(base)).resolve()
        if source.is_dir() and (target == source or target in source.parents or source in target.parents):
            raise ValueError(
                f"{folder} is in the place of the model that is edited, {base}, which is never changed; choose another folder"
            )
    if folder.is_symlink():
        raise ValueError(f"{folder} is a link; choose a folder that is not there yet")
    if folder.exists() and (foreign := _foreign(folder)):
        raise ValueError(
            f"{folder} holds something that was not saved here: {', '.join(foreign[:3])}; choose a folder that is not there yet"
        )


def _foreign(folder: Path) -> list[str]:
    """What is in the way: the names that the folder's marker does not have, or the folder itself."""
    if not folder.is_dir():
        return [folder.name]
    names = {path.name for path in folder.iterdir()}
    try:
        ours = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, LookupError, TypeError):
        ours = []
    return sorted(names - {*ours, MARKER}) or ([MARKER] if names and not ours else [])


def save_model(lm: EditableLM, folder: Path, about: dict[str, Any], base: str | None = None) -> None:
    """The model as it is now; a model saved there before is replaced once the new one is whole.

    For plain transformers, unless it has side memories or a context: then for :func:`editenv.load_model`
    (:mod:`editenv.models.with_memory`).

    Args:
        lm: The edited model.
        folder: Made if need be.
        about: What the marker and the model card say of it; names without folders of this machine
            (:func:`agents.editing.model_card.public_name`).
        base: As :func:`check_place` has it.

    Raises:
        ValueError: If it may not be saved there.
        OSError: If it cannot be written; what was there is as it was.
    """
    check_place(folder, base)
    partial = folder.with_name(f".{folder.name}.partial")
    put_back(folder)
    shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
    try:
        with named_in_errors(folder):
            make_folder(folder.parent)
            _write(lm, partial, about, base)
            replace_folder(partial, folder)
    finally:
        put_back(folder)
        shutil.rmtree(partial, ignore_errors=True)


def beside_weights(lm: EditableLM) -> list[str]:
    """What the model has besides its weights, in words."""
    kinds = [f"a memory beside {', '.join(lm.memories)}"] if lm.memories else []
    return kinds + ([f"a context of {len(lm.context)} texts"] if lm.context is not None else [])


def _weights_unchanged(lm: EditableLM) -> bool:
    return all(torch.equal(lm.weight(name), lm.initial_weight(name).float()) for name in lm.modules)


def write_card(folder: Path, report: Mapping[str, Any]) -> None:
    """Says in the model card what was measured after the model was saved.

    Args:
        folder: Of :func:`save_model`.
        report: Of the run.
    """
    about = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    atomic_write_text(folder / CARD, model_card.text(about, report))


def _write(lm: EditableLM, folder: Path, about: dict[str, Any], base: str | None) -> None:
    """The model, its tokenizer and the marker, into a new folder; of one with memories or a context those, and the base's
    name if its weights are the base's.
    """
    if not beside_weights(lm):
        _write_weights(lm, folder)
    elif base is not None and _weights_unchanged(lm):
        make_folder(folder)
        with_memory.write(folder, lm.model, base, lm.memories, lm.context)
    else:
        make_folder(folder)
        _write_weights(lm, folder / with_memory.WEIGHTS)
        with_memory.write(folder, lm.model, None, lm.memories, lm.context)
        about = about | {"weights": with_memory.WEIGHTS}
    if lm.memories:
        about = about | {"memories": sorted(lm.memories)}
    if lm.context is not None:
        about = about | {"context": len(lm.context)}
    (folder / CARD).write_text(model_card.text(about), encoding="utf-8")
    about = about | {"files": sorted(path.name for path in folder.iterdir())}
    (folder / MARKER).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _write_weights(lm: EditableLM, folder: Path) -> None:
    """For plain transformers."""
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    mode = (folder / "config.json").stat().st_mode
    for path in folder.glob("*.safetensors"):  # safetensors makes files that nobody else may read
        path.chmod(mode)
