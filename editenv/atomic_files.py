"""Files that are there whole or not at all, whenever a process is killed."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary file to write to, which replaces ``path`` when the block ends; after an error, ``path`` is as it was.

    Several processes, of several machines, may write the same path: each has a file of its own, and the last to end
    stands.

    Args:
        path: Its folder is made if need be.

    Raises:
        OSError: If the disk is full or read-only.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # safetensors makes files that nobody else may read
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str) -> None:
    """A UTF-8 file with this text."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
