"""Loading language models by name, folder or hub id.

torch and transformers are imported inside the functions: command lines check the names of models before they need one.
"""

import os
import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from editenv.models.gguf import dequantise, dequantised_folder, is_gguf
from editenv.models.public import PUBLIC, fetch, public_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "atlas"
"""Name of the model that environments and commands edit by default."""

PACKAGED = {
    EMBEDDED: "the embedded world's 21,546 facts",
    "real": "the same, and what CounterFact, ZsRE and FEVER take a model to believe",
}
"""Models that ship in the package, and what they know."""

DTYPES = ("float32", "bfloat16", "float16")
"""Types that a model's weights may have, by their names in torch."""


def model_path(name: str) -> str:
    """The folder or hub id that ``name`` stands for; of a public model or a GGUF file, the folder in the user's cache."""
    if name in PACKAGED:
        return str(resources.files(__package__).joinpath(name))
    if name in PUBLIC:
        return str(public_folder(name))
    path = os.path.expanduser(name)
    return str(dequantised_folder(Path(path))) if is_gguf(Path(path)) else path


def check_device(device: str) -> None:
    """Whether there is such a device, or it is ``"auto"``.

    Raises:
        ValueError: If not.
    """
    import torch

    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None


_FileStates = list[tuple[str, int, int, int]]
_loaded: dict[tuple[str, str, str], tuple[_FileStates, "tuple[PreTrainedModel, PreTrainedTokenizerBase]"]] = {}


def load_model(
    name: str, device: str = "cpu", dtype: str = "float32"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Loads a causal language model and its tokenizer, once per process as long as its files are the same.

    Callers must not change the weights.

    Args:
        name: Of :data:`PACKAGED` or :data:`PUBLIC`, a Hugging Face model folder, a GGUF file, or a hub id. A public model
            is fetched, and a GGUF file dequantised, the first time.
        device: A torch device, or ``"auto"`` for a model larger than one of them.
        dtype: Of :data:`DTYPES`.

    Raises:
        ValueError: For an unknown dtype or device, a quantised model, an adapter, or one that lacks weights.
        FileNotFoundError: If ``name`` is a folder that is not there or holds no model.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
    check_device(device)
    folder = Path(model_path(name))
    if name in PUBLIC:
        fetch(name)
    elif is_gguf(file := Path(name).expanduser()):
        dequantise(file, folder)
    elif (name.startswith((".", "/", "~")) or name.count("/") > 1) and not folder.is_dir():
        raise FileNotFoundError(f"there is no model folder {name}")
    states = _file_states(folder)
    cached = _loaded.get((name, device, dtype))
    if cached is None or cached[0] != states:
        _loaded.pop((name, device, dtype), None)  # not both in memory
        cached = _loaded[name, device, dtype] = states, _load(name, str(folder) if states else name, device, dtype)
    return cached[1]


def _file_states(folder: Path) -> _FileStates:
    """Name, size, time of change and inode of each file: what changes when a model is saved anew. Empty on the hub."""
    if not folder.is_dir():
        return []
    stats = [(file.name, file.stat()) for file in sorted(folder.iterdir()) if file.is_file()]
    return [(file, stat.st_size, stat.st_mtime_ns, stat.st_ino) for file, stat in stats]


def _load(name: str, path: str, device: str, dtype: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    _check_folder(path)
    if name in PACKAGED:
        logging.disable_progress_bar()  # for models that load in a blink
    config = AutoConfig.from_pretrained(path)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{name} is quantised: a delta cannot be added to packed integers. Edit the unquantised model and quantise after"
        )
    tokenizer = AutoTokenizer.from_pretrained(path)
    # "auto" spreads the layers over the devices there are (accelerate).
    placement = {"device_map": "auto"} if device == "auto" else {}
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), output_loading_info=True, **placement
        )
    except SafetensorError as error:
        raise ValueError(f"{path}: a file of weights is damaged: {error}") from None
    _check_weights(path, missing=sorted(loading["missing_keys"]), unexpected=sorted(loading["unexpected_keys"]))
    model = model.eval()
    if device != "auto":
        model = model.to(device)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model, tokenizer


def _check_folder(path: str) -> None:
    """Whether a folder holds a whole model; hub ids are left to transformers.

    Raises:
        ValueError: For a PEFT adapter.
        FileNotFoundError: If there is no config.
    """
    if not os.path.isdir(path):
        return
    if (Path(path) / "adapter_config.json").exists():
        raise ValueError(
            f"{path} is a PEFT adapter, not a model: merge it into its base model first (peft's merge_and_unload, then "
            "save_pretrained)"
        )
    if not (Path(path) / "config.json").exists():
        raise FileNotFoundError(f"{path} holds no config.json: it is not a Hugging Face model folder")


def _check_weights(path: str, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    """Whether the files held the weights that the model has.

    Raises:
        ValueError: If some are missing: transformers fills them with random numbers, and says so in a log only.
    """
    if missing:
        raise ValueError(
            f"{path} lacks weights that the model has: {_first_three(missing)}; they would be random numbers"
        )
    if unexpected:
        warnings.warn(
            f"{path} holds weights that transformers does not take into this model, and a saved one will not have: "
            f"{_first_three(unexpected)}",
            stacklevel=4,
        )


def _first_three(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
