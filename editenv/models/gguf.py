"""GGUF files as models: dequantised once into a Hugging Face folder in the user's cache.

A GGUF file holds packed integers, to which no delta can be added.
transformers reads it and multiplies the integers out; what quantising lost stays lost.
The folder that this makes is a plain float32 model, four to eight times as large as the file, and everything else works
on it as on any other folder: a model edited from it is saved likewise, and may be quantised again with llama.cpp.
"""

import hashlib
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from editenv.atomic_files import make_folder, named_in_errors, replace_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAGIC = b"GGUF"
"""The first four bytes of such a file."""


def cache_folder() -> Path:
    """Where fetched and dequantised models are kept: ``LIFELONGEDIT_CACHE``, or ``lifelongedit`` in the user's cache."""
    if named := os.environ.get("LIFELONGEDIT_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lifelongedit"


def is_gguf(path: Path) -> bool:
    """Whether this is a GGUF file, by its first bytes."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def dequantised_folder(path: Path) -> Path:
    """Where the folder made from a GGUF file is, or will be; a file that changes has another one."""
    stat = path.stat()
    key = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    return cache_folder() / "gguf" / f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def dequantise(path: Path, folder: Path) -> Path:
    """Makes a Hugging Face folder of float32 weights from a GGUF file, unless it is there.

    Args:
        path: The file.
        folder: Whole or not there at all, whenever the process is killed.

    Returns:
        The folder.

    Raises:
        ValueError: If transformers does not read this file, or the package ``gguf`` is not installed.
        OSError: If the disk is full; names the folder.
    """
    if folder.is_dir():
        return folder
    make_folder(folder.parent)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        model, tokenizer = _dequantised(path)
        with named_in_errors(folder):
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        if not folder.is_dir():  # another process may have been faster
            replace_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _dequantised(path: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The model of a GGUF file, with float32 weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parent, name = str(path.parent), path.name
    try:
        quantised = AutoModelForCausalLM.from_pretrained(
            parent, gguf_file=name, dtype=torch.float32, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(parent, gguf_file=name, trust_remote_code=False)
    except ImportError:
        raise ValueError(
            f"{path} is a GGUF file, which is read with the package gguf: pip install 'lifelongedit[gguf]'"
        ) from None
    except (ValueError, KeyError, NotImplementedError, RuntimeError, AttributeError, TypeError, OSError) as error:
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path}: transformers does not read this GGUF file ({first_line}); give the folder of the unquantised model"
        ) from None
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # transformers does not save a model that came from packed integers: the same weights in a model that did not.
    with torch.device("meta"):
        model = type(quantised)(config)
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = quantised.generation_config
    return model, tokenizer
