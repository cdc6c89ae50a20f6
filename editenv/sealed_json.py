"""JSON files that are known to be as they were written: a digest in each is over all the rest of it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from editenv.atomic_files import atomic_write_text

SEAL = "seal"
"""Name of the entry that holds the digest."""


def write_sealed(path: Path, record: Mapping[str, Any]) -> None:
    """An object as a file, whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    atomic_write_text(path, json.dumps({**record, SEAL: _digest(record)}, indent=2) + "\n")


def read_sealed(path: Path) -> dict[str, Any]:
    """The object in a file, without its seal; a file from before there were seals is taken as it is.

    Raises:
        ValueError: If it is not a JSON object, or was changed after it was written; names the file.
        OSError: If it cannot be read.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON, or not all of it: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(record).__name__}")
    seal = record.pop(SEAL, None)
    if seal is not None and seal != _digest(record):
        raise ValueError(f"{path} was changed after it was written (if that was meant, remove its entry {SEAL!r})")
    return record


def _digest(record: Mapping[str, Any]) -> str:
    as_json = json.loads(json.dumps(dict(record)))  # tuples are lists then
    return hashlib.sha256(json.dumps(as_json, sort_keys=True).encode()).hexdigest()
