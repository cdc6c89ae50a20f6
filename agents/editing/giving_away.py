"""A saved model given away: as a GGUF file through llama.cpp's converter, and on the Hugging Face hub."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

from agents.editing.model_card import public_name
from editenv.atomic_files import replace, sync
from editenv.models import BESIDE
from editenv.models.with_memory import BASE, WEIGHTS

CONVERTER = "convert_hf_to_gguf.py"
"""The converter's name in llama.cpp's repository."""

GGUF_TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
"""The converter's names of the precisions in which models are edited: nothing is lost."""

OF_A_MODEL = (
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json"),
    *(*BESIDE, BASE, f"{WEIGHTS}/*"),
)
"""Files of a model that lay in a repository before: with the new one's, another model would be loaded from them."""

_MAGIC = b"GGUF"


def check_converter(converter: Path) -> None:
    """Whether llama.cpp's converter is there; to be asked before the work is done.

    Raises:
        FileNotFoundError: If it is not; says where to get it.
    """
    if not converter.is_file():
        raise FileNotFoundError(
            f"gguf: {converter} is not there; name the {CONVERTER} of a clone of https://github.com/ggml-org/llama.cpp"
        )


def convert_to_gguf(model: Path, file: Path, converter: Path, dtype: str) -> None:
    """Writes a saved model as a GGUF file; whole or not at all.

    Args:
        model: The saved folder.
        file: To be written, or written over.
        converter: llama.cpp's.
        dtype: The precision that the model was saved in, which the file keeps.

    Raises:
        ValueError: If the converter fails; with the last that it says. The model is as it was.
    """
    partial = file.with_name(f".{file.name}.partial")
    words = [str(converter), str(model), "--outfile", str(partial), "--outtype", GGUF_TYPES[dtype]]
    try:
        ended = subprocess.run([sys.executable, *words], capture_output=True, text=True, errors="replace", check=False)
        with_magic = partial.is_file() and partial.open("rb").read(len(_MAGIC)) == _MAGIC
        if ended.returncode or not with_magic:
            last = next((line for line in reversed(ended.stderr.splitlines()) if line.strip()), "it wrote no GGUF file")
            raise ValueError(f"{model} is saved, but {converter} could not convert it: {last.strip()}")
        sync(partial)
        replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def check_hub(name: str) -> None:
    """Whether a model can be put on the hub under a name; to be asked before the work is done.

    Raises:
        ValueError: If the name is none that the hub takes, if nobody is logged in, or if the hub cannot be asked.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"push-to-hub: {name!r} is no name of a repository: {error}") from None
    try:
        HfApi().whoami()
    except _hub_errors() as error:
        _hub_failed(
            "push-to-hub: nobody is logged in to the hub, or it cannot be reached (`hf auth login` logs in)", error
        )


def push_to_hub(model: Path, name: str) -> str:
    """Puts a saved model on the hub, with its card; a repository that is not there yet is made, and is private. The weights
    of a model that lay there, and what was beside it, go.

    Of a memory, the file that names the base model is uploaded without the folders of this machine.

    Args:
        model: The saved folder.
        name: Of the repository.

    Returns:
        Its address.

    Raises:
        ValueError: If the hub refuses it; the model is saved all the same.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        repository = api.create_repo(name, private=True, exist_ok=True)
        with _public(model) as folder:
            api.upload_folder(
                repo_id=repository.repo_id,
                folder_path=folder,
                commit_message="Model edited with LifelongEdit",
                delete_patterns=list(OF_A_MODEL),  # those that are uploaded stay
            )
    except _hub_errors() as error:
        _hub_failed(f"{model} is saved, but could not be put on the hub as {name}; the same command tries again", error)
    return str(repository)


@contextmanager
def _public(model: Path) -> Iterator[Path]:
    """The folder as it may be seen by others: of a memory a copy, whose base model has no path of this machine."""
    if not (model / BASE).is_file() or (model / WEIGHTS).is_dir():  # of which nothing lies elsewhere
        yield model
        return
    with TemporaryDirectory() as place:
        copy = Path(place) / model.name
        shutil.copytree(model, copy)
        about = json.loads((model / BASE).read_text(encoding="utf-8"))
        about["model"] = public_name(about["model"])
        (copy / BASE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        yield copy


def _hub_errors() -> tuple[type[Exception], ...]:
    """The disk's, the hub's, and those of whichever HTTP client the library has."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, *(kind for kind in HfHubHTTPError.__bases__ if issubclass(kind, Exception)))


def _hub_failed(what: str, error: Exception) -> NoReturn:
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    raise ValueError(f"{what}: {reason}") from None
