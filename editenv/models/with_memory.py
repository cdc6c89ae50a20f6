"""A model that is a base model and what is beside it, side memories or a context: a folder of small files.

``memory.safetensors`` has the memories, ``context.json`` the context, each if there is one; ``base.json`` says which
model they belong to. Where weights were edited, too, the folder ``weights`` has that model, and ``base.json`` names it.
It is no folder of transformers, which would load the weights and lose what is beside them without a word:
:func:`editenv.load_model` loads both.
"""

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from editenv import contexts
from editenv.contexts import Context, load_context, save_context
from editenv.memories import Memory, attach, attached, detach, load_memories, save_memories

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MEMORY = "memory.safetensors"
"""The file of the memories."""

CONTEXT_FILE = "context.json"
"""The file of the context."""

BASE = "base.json"
"""The file that says which model they are beside."""

WEIGHTS = "weights"
"""The folder of the model that they are beside, if it is not one that was there before."""


def has_memory(folder: Path) -> bool:
    """Whether this is such a folder, its base.json aside."""
    return any((folder / name).is_file() for name in (MEMORY, CONTEXT_FILE))


def write(
    folder: Path,
    model: "PreTrainedModel",
    base: str | None,
    memories: Mapping[str, Memory],
    context: Context | None = None,
) -> None:
    """Writes the files into a folder that is there.

    Args:
        folder: Where.
        model: With the base model's weights.
        base: Its name or folder; a folder is noted by its absolute path. None: what lies in :data:`WEIGHTS`.
        memories: By module; none has no file. Those that are beside other modules of the model are written, too.
        context: None has no file.
    """
    about = {
        "model": WEIGHTS if base is None else _absolute(base),
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights": weights_digest(model),
        "load": "editenv.load_model(FOLDER); plain transformers would load the base model without it",
    }
    if memories := attached(dict(model.named_modules())) | dict(memories):
        save_memories(folder / MEMORY, memories)
    if context is not None:
        save_context(folder / CONTEXT_FILE, context)
    (folder / BASE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _absolute(base: str) -> str:
    path = Path(base).expanduser()
    return str(path.resolve()) if path.exists() else base


def base_of(folder: Path) -> dict[str, Any]:
    """What :func:`write` noted of the base model, whose name is where it is loaded from.

    Raises:
        ValueError: If the file is not its.
    """
    try:
        about = json.loads((folder / BASE).read_text(encoding="utf-8"))
        if about["model"] == WEIGHTS and (folder / WEIGHTS).is_dir():
            about["model"] = folder / WEIGHTS
        return {name: str(about[name]) for name in ("model", "dtype", "weights")}
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"{folder / BASE} does not name a base model, its dtype and its weights") from None


def beside(folder: Path, base: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel":
    """A model with a folder's memories beside its modules, and its context before each prompt that ``generate`` is given;
    it shares the base's weights, which stays as it is. What is beside the base, if that is such a folder itself, is not
    beside this one: its files say all.

    Args:
        folder: Of :func:`write`.
        base: The model that it names.
        tokenizer: The base's.

    Raises:
        ValueError: If it is another model, as far as that can be told: digests are of weights in one precision.
    """
    about = base_of(folder)
    if about["dtype"] == str(base.dtype).removeprefix("torch.") and about["weights"] != weights_digest(base):
        raise ValueError(
            f"{folder}: {about['model']} is not the model that this memory was made for: its weights differ"
        )
    memories = load_memories(folder / MEMORY) if (folder / MEMORY).is_file() else {}
    shared: dict[int, Any] = {id(p): p for p in base.parameters()} | {id(b): b for b in base.buffers()}
    model = copy.deepcopy(base, shared).eval()
    modules = dict(model.named_modules())
    detach(modules)
    contexts.without_context(model)
    for name, memory in memories.items():
        weight = getattr(modules.get(name), "weight", None)
        if weight is None or sorted(weight.shape) != sorted(memory.shape):
            raise ValueError(f"{folder}: the model has no module {name} of shape {memory.shape}, which a memory is for")
        memories[name] = memory.to(weight.device)
    attach({name: modules[name] for name in memories}, memories)
    if (folder / CONTEXT_FILE).is_file():
        contexts.beside(model, tokenizer, load_context(folder / CONTEXT_FILE))
    return model


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over names, shapes, types and every bit of a model's parameters."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        if not parameter.is_meta:  # moved out of memory
            digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
