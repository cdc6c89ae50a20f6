"""Loading language models by name, folder or hub id."""

import os
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "atlas"
"""Name of the model that ships in the package."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def model_path(name: str) -> str:
    """The folder or hub id that ``name`` stands for."""
    if name == EMBEDDED:
        return str(resources.files(__package__).joinpath("atlas"))
    return name


@cache
def load_model(
    name: str, device: str = "cpu", dtype: str = "float32"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Loads a causal language model and its tokenizer, once per process; callers must not change the weights.

    Args:
        name: ``"atlas"`` (the embedded model), a Hugging Face model folder, or a hub id.
        device: A torch device.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.

    Raises:
        ValueError: For an unknown dtype.
        FileNotFoundError: If ``name`` is a folder without a model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
    path = model_path(name)
    if os.path.isdir(path) and not (Path(path) / "config.json").exists():
        raise FileNotFoundError(f"{path} holds no config.json: it is not a Hugging Face model folder")
    if name == EMBEDDED:
        logging.disable_progress_bar()  # for a model that loads in a blink
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype]).to(device).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model, tokenizer


def default_modules(model: "PreTrainedModel", name: str) -> Sequence[str]:
    """The modules edited unless the user says otherwise: what the model's config lists as ``edited_modules``.

    The embedded model lists its last layer's ``down_proj``: nothing behind it moves its inputs, so its keys never drift,
    and it is the widest input of the model.

    Raises:
        ValueError: If the config lists none.
    """
    modules = getattr(model.config, "edited_modules", None)
    if not modules:
        raise ValueError(
            f"no default modules are known for {name!r}; name them, e.g. modules=['layers.30.mlp.down_proj']"
        )
    return tuple(modules)
