"""Loading language models by name, folder or hub id."""

import os
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "atlas"
"""Name of the model that environments and commands edit by default."""

PACKAGED = {
    EMBEDDED: "the embedded world's 21,546 facts",
    "real": "the same, and what CounterFact, ZsRE and FEVER take a model to believe",
}
"""Models that ship in the package, and what they know."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def model_path(name: str) -> str:
    """The folder or hub id that ``name`` stands for."""
    if name in PACKAGED:
        return str(resources.files(__package__).joinpath(name))
    return name


@cache
def load_model(
    name: str, device: str = "cpu", dtype: str = "float32"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Loads a causal language model and its tokenizer, once per process; callers must not change the weights.

    Args:
        name: Of :data:`PACKAGED`, a Hugging Face model folder, or a hub id.
        device: A torch device, or ``"auto"`` for a model larger than one of them.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.

    Raises:
        ValueError: For an unknown dtype, a quantised model or an adapter.
        FileNotFoundError: If ``name`` is a folder without a model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
    path = model_path(name)
    if os.path.isdir(path) and (Path(path) / "adapter_config.json").exists():
        raise ValueError(
            f"{path} is a PEFT adapter, not a model: merge it into its base model first (peft's merge_and_unload, then "
            "save_pretrained)"
        )
    if os.path.isdir(path) and not (Path(path) / "config.json").exists():
        raise FileNotFoundError(f"{path} holds no config.json: it is not a Hugging Face model folder")
    if name in PACKAGED:
        logging.disable_progress_bar()  # for models that load in a blink
    config = AutoConfig.from_pretrained(path)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{name} is quantised: a delta cannot be added to packed integers. Edit the unquantised model and quantise after"
        )
    tokenizer = AutoTokenizer.from_pretrained(path)
    # "auto" spreads the layers over the devices there are (accelerate).
    placed = {"device_map": "auto"} if device == "auto" else {}
    model = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype], **placed).eval()
    if device != "auto":
        model = model.to(device)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model, tokenizer
