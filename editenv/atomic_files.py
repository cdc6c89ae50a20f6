"""Files and folders that are there whole or not at all, whenever a process is killed or the power fails.

A new name is durable once the folder that it lies in is: whatever is renamed here, its content is brought to the disk
(fsync) before, and the folder of its name after.
"""

import os
import shutil
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
        OSError: If it cannot be written (a full or read-only disk, missing rights); names the file.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.partial")
    with named_in_errors(path):
        make_folder(path.parent)
        try:
            partial.touch()
            mode = partial.stat().st_mode
            yield partial
            partial.chmod(mode)  # safetensors makes files that nobody else may read
            sync(partial)
            replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str) -> None:
    """A UTF-8 file with this text."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def named_in_errors(path: Path) -> Iterator[None]:
    """Within the context, a failure to write is an :class:`OSError` that names this path, whichever library failed.

    Raises:
        OSError: In place of what safetensors and tokenizers raise, and of one that names no file, as of a write to a full
            disk.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:
        from safetensors import SafetensorError  # command lines are checked before anything heavy is imported

        if type(error) not in (SafetensorError, Exception):  # tokenizers raises no narrower one
            raise
        raise OSError(f"{path} could not be written: {error}") from error


def make_folder(folder: Path) -> None:
    """Makes a folder, and those it lies in, if need be; durable when this returns."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync(made.parent)


def replace(source: Path, target: Path) -> None:
    """Renames a file or a folder, durable when this returns; its content must be so before."""
    os.replace(source, target)
    sync(target.parent)


def replace_folder(source: Path, target: Path) -> None:
    """Renames a folder into place once everything in it is on the disk.

    Where there is a folder of the target's name, that one is kept beside it until the new one is there: whoever finds
    it after a kill (:func:`put_back`) has the old one or the new one.
    """
    for folder, _, files in os.walk(source):
        for name in files:
            sync(Path(folder) / name)
        sync(Path(folder))
    if target.exists():
        replace(target, _old(target))
    replace(source, target)
    shutil.rmtree(_old(target), ignore_errors=True)


def put_back(target: Path) -> None:
    """What a kill in :func:`replace_folder` left: the old folder takes its place again if the new one has not."""
    if _old(target).exists() and not target.exists():
        replace(_old(target), target)
    shutil.rmtree(_old(target), ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def sync(path: Path) -> None:
    """Brings a file's content, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
