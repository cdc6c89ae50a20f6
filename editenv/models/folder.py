"""A model folder, looked at before transformers reads it: what cannot be read is named, in one line."""

import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
"""Says which file holds which weight."""

JSON_FILES = (
    "config.json",
    "generation_config.json",
    INDEX,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
"""What transformers reads of a folder: each is a JSON object."""

PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
"""Files of weights that are unpickled to be read."""

TO_SAFETENSORS = (
    "if you trust it, convert it with transformers: AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW), and the "
    "tokenizer likewise"
)


_ABOUT_GGUF = (
    "a GGUF file, whose weights are quantised or packed for llama.cpp: edit the Hugging Face folder (config.json, "
    "*.safetensors) that it was made from, and make a GGUF file of the edited model"
)

LONGEST_MESSAGE = 400
"""Characters of a message of transformers that are passed on."""


def check_is_no_file(path: Path) -> None:
    """Whether a model's name is that of a file, which is no model folder.

    Raises:
        ValueError: If it is; for a GGUF file with what to do instead.
        FileNotFoundError: If it is named like a GGUF file that is not there.
    """
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        raise ValueError(f"{path} is {_ABOUT_GGUF}")
    if path.is_file():
        raise ValueError(
            f"{path} is a file: name the Hugging Face model folder that holds config.json and *.safetensors"
        )


def check_folder(path: str) -> None:
    """Whether a folder holds a whole model that can be read; hub ids are left to transformers.

    Raises:
        ValueError: For a PEFT adapter, GGUF files, pickled weights, or a JSON file that is none.
        FileNotFoundError: If there is no config, or there are no weights.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{path} is a PEFT adapter, not a model: merge it into its base model first (peft's merge_and_unload, then "
            "save_pretrained)"
        )
    gguf = _first(folder, "*.gguf")
    if not (folder / "config.json").is_file():
        if gguf:
            raise ValueError(f"{path} holds no config.json, and {gguf} is {_ABOUT_GGUF}")
        raise FileNotFoundError(f"{path} holds no config.json: it is not a Hugging Face model folder")
    for name in JSON_FILES:
        if (folder / name).is_file():
            content = _json_object(folder / name)
            if name == INDEX:
                _check_index(folder / name, content.get("weight_map"))
    if not _first(folder, "*.safetensors"):
        if pickled := next(filter(None, (_first(folder, pattern) for pattern in PICKLES)), None):
            raise ValueError(
                f"{path} has its weights in {pickled}, a pickle, which can run code when it is read; only safetensors files are "
                f"read: {TO_SAFETENSORS}"
            )
        if gguf:
            raise ValueError(f"{path} holds no *.safetensors, and {gguf} is {_ABOUT_GGUF}")
        raise FileNotFoundError(f"{path} holds no weights (*.safetensors)")


def _first(folder: Path, pattern: str) -> str | None:
    """Name of the first file of a pattern, if there is one."""
    return min((path.name for path in folder.glob(pattern)), default=None)


def _check_index(path: Path, files: Any) -> None:
    """Whether an index names safetensors files of its own folder: others are unpickled, or lie anywhere."""
    if not isinstance(files, dict):
        raise ValueError(f"{path} has no object 'weight_map', which says in which file each weight is")
    for weight, file in files.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or Path(file).name != file:
            raise ValueError(f"{path}: {weight} is said to be in {file!r}, which is no safetensors file of this folder")


def _json_object(path: Path) -> dict[str, Any]:
    """The content of a file that must hold a JSON object."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        cut = "it is empty" if not path.stat().st_size else str(error)
        raise ValueError(f"{path} is not JSON ({cut}): it may have been cut when it was copied") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, where a model has an object")
    return content


@contextmanager
def one_line_errors(path: str, what: str) -> Iterator[None]:
    """What transformers makes of an odd file (any exception) becomes a ValueError of one line.

    Args:
        path: Folder or hub id.
        what: Is read, for the message.

    Raises:
        ValueError: As said.
        OSError: As it was: a file or a host that is not there; from a hub id with pickled weights, a ValueError.
    """
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except OSError as error:
        if "use_safetensors" in str(error):
            raise ValueError(
                f"{path} has no safetensors files, and pickled weights are not read: {TO_SAFETENSORS}"
            ) from None
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{path} needs Python code of its own (auto_map), and code of a model folder is never run: only architectures and "
                "tokenizers that transformers has are read (docs/reference/architectures.md)"
            ) from None
        message = textwrap.shorten(f"{type(error).__name__}: {error}", LONGEST_MESSAGE, placeholder=" ...")
        raise ValueError(f"{path}: {what} cannot be read: {message}") from error
