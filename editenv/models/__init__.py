"""Loading language models by name, folder or hub id.

torch and transformers are imported inside the functions: command lines check the names of models before they need one.
"""

import os
import warnings
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editenv.models.finite import first_three, not_finite
from editenv.models.folder import check_folder, check_is_no_file, one_line_errors
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

BESIDE = ("memory.safetensors", "context.json")
"""Files of what is beside a base model (:mod:`editenv.models.with_memory`)."""

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


def _load_with_memory(folder: Path, device: str, dtype: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The base model that a folder names, with the folder's memories and context beside it.

    Raises:
        FileNotFoundError: If the base model is not where it was.
    """
    from editenv.models.with_memory import BASE, base_of, beside

    if not (folder / BASE).is_file():
        raise FileNotFoundError(f"{folder} has a memory or a context and no {BASE}, which says for which model")
    base = base_of(folder)["model"]
    try:
        model, tokenizer = load_model(base, device, dtype)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder} is a memory or a context beside the model {base}, which cannot be loaded: {error}. If it lies elsewhere, "
            f"write where into {folder / BASE}"
        ) from None
    return beside(folder, model, tokenizer), tokenizer


_FileStates = list[tuple[str, int, int, int]]
_loaded: dict[tuple[str, str, str], tuple[_FileStates, "tuple[PreTrainedModel, PreTrainedTokenizerBase]"]] = {}


def load_model(
    name: str, device: str = "cpu", dtype: str = "float32"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Loads a causal language model and its tokenizer, once per process as long as its files are the same.

    Callers must not change the weights.

    No code of a model folder is run, and nothing is unpickled: architectures are those of transformers, weights those
    of safetensors files.

    Args:
        name: Of :data:`PACKAGED` or :data:`PUBLIC`, a Hugging Face model folder, a GGUF file, a hub id, or the folder of
            an edited model that is a base model with a memory or a context beside it. A public model is fetched, and a GGUF file
            dequantised, the first time.
        device: A torch device, or ``"auto"`` for a model larger than one of them.
        dtype: Of :data:`DTYPES`.

    Raises:
        ValueError: For an unknown dtype or device, a GGUF file that transformers does not read, a quantised model, an
            adapter, a model that needs code of its own or is no causal language model, weights that are missing,
            pickled or not finite, a tokenizer of another model, or a file that is cut or odd.
        FileNotFoundError: If ``name`` is a folder that is not there or holds no model.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
    check_device(device)
    folder = Path(model_path(name))
    if folder.is_dir() and any((folder / name).exists() for name in BESIDE):
        return _load_with_memory(folder, device, dtype)
    if name in PUBLIC:
        fetch(name)
    elif is_gguf(file := Path(name).expanduser()):
        dequantise(file, folder)
    check_is_no_file(folder)
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not folder.is_dir():
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

    check_folder(path)
    if name in PACKAGED:
        logging.disable_progress_bar()  # for models that load in a blink
    with one_line_errors(path, "config.json"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    _check_config(name, config)
    with one_line_errors(path, "the tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    # "auto" spreads the layers over the devices there are (accelerate).
    placement = {"device_map": "auto"} if device == "auto" else {}
    try:
        with one_line_errors(path, "the model"):
            model, loading = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=getattr(torch, dtype),
                output_loading_info=True,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # named below
                **placement,
            )
    except SafetensorError as error:
        raise ValueError(f"{path}: a file of weights is damaged: {error}") from None
    _check_weights(path, loading)
    if names := not_finite(model):
        raise ValueError(f"{path} has weights that are NaN or infinite: {first_three(names)}")
    _check_tokenizer(path, model, tokenizer)
    model = model.eval()
    if device != "auto":
        model = model.to(device)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model, tokenizer


def _check_config(name: str, config: Any) -> None:
    """Whether a model of this configuration can be edited.

    Raises:
        ValueError: If it is quantised, no causal language model, or asks for code from elsewhere.
    """
    from transformers import AutoModelForCausalLM

    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{name} is quantised: a delta cannot be added to packed integers. Edit the unquantised model and quantise after"
        )
    for part in (config, *(getattr(config, key, None) for key in config.sub_configs)):
        for key in ("_attn_implementation", "_experts_implementation"):
            if "/" in str(implementation := getattr(part, key, None)):
                raise ValueError(
                    f"{name}: config.json asks for {implementation!r}, code of the hub, which is not run: remove the line"
                )
    has_own_class = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if type(config) not in AutoModelForCausalLM._model_mapping and not has_own_class:
        raise ValueError(
            f"{name} is of type {config.model_type}, which is none of the causal language models of transformers "
            "(AutoModelForCausalLM): it cannot be edited (docs/reference/architectures.md)"
        )


def _check_tokenizer(path: str, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Whether the model has an embedding for every token; warns of special ones without.

    Raises:
        ValueError: If an ordinary token has none, or one that begins, ends or pads texts.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= rows}
    # Classes of transformers add special tokens of their own, which no text has: a model may do without them.
    spare = set(tokenizer.all_special_ids) - {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    if refused := {token: i for token, i in beyond.items() if i not in spare}:
        token, largest = max(refused.items(), key=lambda item: item[1])
        raise ValueError(
            f"{path}: the tokenizer has tokens up to {largest} ({token!r}), the model embeds {rows}: take the model's own "
            "tokenizer, or give the model more rows (resize_token_embeddings) and save it"
        )
    if beyond:
        warnings.warn(
            f"{path}: the model has no embedding for {', '.join(map(repr, beyond))}: texts with it cannot be read",
            stacklevel=4,
        )


def _check_weights(path: str, loading: Mapping[str, Any]) -> None:
    """Whether the files held the weights that the model has.

    Args:
        path: Folder or hub id.
        loading: What transformers says of it.

    Raises:
        ValueError: If some are missing or of another shape: transformers fills them with random numbers, and says so
            in a log only.
    """
    if mismatched := sorted(loading["mismatched_keys"]):
        name, stored, needed = mismatched[0]
        raise ValueError(
            f"{path}: {name} has the shape {tuple(stored)} in the file, and {tuple(needed)} by config.json: they are not of one "
            "model"
        )
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"{path} lacks weights that the model has: {first_three(missing)}; they would be random numbers"
        )
    unexpected = sorted(loading["unexpected_keys"])
    if unexpected:
        warnings.warn(
            f"{path} holds weights that transformers does not take into this model, and a saved one will not have: "
            f"{first_three(unexpected)}",
            stacklevel=4,
        )
