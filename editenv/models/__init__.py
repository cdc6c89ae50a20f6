"""Loading language models by name, folder or hub id."""

import os
import warnings
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
    return os.path.expanduser(name)


def check_device(device: str) -> None:
    """Whether there is such a device, or it is ``"auto"``.

    Raises:
        ValueError: If not.
    """
    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None


_loaded: dict[tuple[str, str, str], tuple[object, "tuple[PreTrainedModel, PreTrainedTokenizerBase]"]] = {}


def load_model(
    name: str, device: str = "cpu", dtype: str = "float32"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Loads a causal language model and its tokenizer, once per process as long as its files are the same.

    Callers must not change the weights.

    Args:
        name: Of :data:`PACKAGED`, a Hugging Face model folder, or a hub id.
        device: A torch device, or ``"auto"`` for a model larger than one of them.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.

    Raises:
        ValueError: For an unknown dtype or device, a quantised model, an adapter, or one that lacks weights.
        FileNotFoundError: If ``name`` is a folder that is not there or holds no model.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
    check_device(device)
    folder = Path(model_path(name))
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not folder.is_dir():
        raise FileNotFoundError(f"there is no model folder {name}")
    files = [(file.name, file.stat()) for file in sorted(folder.iterdir()) if file.is_file()] if folder.is_dir() else []
    state = [(file, stat.st_size, stat.st_mtime_ns, stat.st_ino) for file, stat in files]
    known = _loaded.get((name, device, dtype))
    if known is None or known[0] != state:
        _loaded.pop((name, device, dtype), None)  # not both in memory
        known = _loaded[name, device, dtype] = state, _load(name, str(folder) if files else name, device, dtype)
    return known[1]


def _load(name: str, path: str, device: str, dtype: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

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
    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            path, dtype=DTYPES[dtype], output_loading_info=True, **placed
        )
    except SafetensorError as error:
        raise ValueError(f"{path}: a file of weights is damaged: {error}") from None
    if missing := sorted(told["missing_keys"]):
        raise ValueError(
            f"{path} lacks weights that the model has: {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}; they would be "
            "random numbers"
        )
    if left := sorted(told["unexpected_keys"]):
        warnings.warn(
            f"{path} holds weights that transformers does not take into this model, and a saved one will not have: "
            f"{', '.join(left[:3])}{' ...' if len(left) > 3 else ''}",
            stacklevel=3,
        )
    model = model.eval()
    if device != "auto":
        model = model.to(device)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model, tokenizer
