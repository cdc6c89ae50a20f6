"""What has been edited, on disk: append-only, durable batch by batch, checked when it is read again.

    OUT/journal.jsonl            a header, then one line a batch; each line's ``chain`` covers all lines before it
    OUT/batches/000001.safetensors   the tensors of batch 1
    OUT/journal.lock             held while a process writes

A batch's tensors are on disk before its line is, and its line before the next batch starts: a process killed at any
moment leaves whole batches, and at most one unfinished line or file, which the next one clears away.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

FORMAT = 1
BEGINNING = b'{"chain": "'
"""How every line begins: tells an unfinished first line from a file of something else."""


class JournalError(ValueError):
    """The journal cannot be gone on with."""


class Journal:
    """Opens a folder's journal, or begins one.

    Args:
        folder: Made if it is not there.
        header: What the run is; an existing journal must have been begun with the same, unless it holds no batch yet.
        in_common: Entries of the header, objects, of which only what both headers say must be the same: another version
            says more or less.

    Attributes:
        entries: By batch what :meth:`append` was given, with the batch's number and the SHA-256 of its tensors.

    Raises:
        JournalError: If another process has it open, if it belongs to another run, or if it is corrupt; names the
            file and the line.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], in_common: Sequence[str] = ()) -> None:
        self.folder, self.path = folder, folder / "journal.jsonl"
        (folder / "batches").mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "journal.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise JournalError(
                f"{folder} is being written by another process; wait for it or choose another folder"
            ) from None
        try:
            self._chain = ""
            self.header = json.loads(json.dumps(header))
            self._in_common = in_common
            self.entries: list[dict[str, Any]] = []
            if self.path.exists() and self.path.stat().st_size:
                self._read()
            if not self._chain:
                self._write_line({"journal": FORMAT, **self.header})
        except BaseException:
            self.close()
            raise

    def append(self, entry: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Makes a batch durable.

        Args:
            entry: What its line says, as JSON takes it.
            tensors: What its file holds.

        Raises:
            OSError: If the disk is full or read-only; the journal then ends with the batch before.
        """
        number = len(self.entries) + 1
        # Copies: the keys of one token and their transpose share memory, and the format holds none twice.
        copies = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }
        content = save_tensors(copies)
        path = self._tensor_path(number)
        partial = path.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        _sync_folder(path.parent)
        line = {"batch": number, **entry, "sha256": hashlib.sha256(content).hexdigest()}
        self._write_line(line)
        self.entries.append(json.loads(json.dumps(line)))

    def tensors(self, number: int) -> dict[str, torch.Tensor]:
        """The tensors of a batch, counted from 1.

        Raises:
            JournalError: If they are not what was written.
        """
        path = self._tensor_path(number)
        if not path.exists():
            raise JournalError(f"{path} is missing; the journal speaks of it")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.entries[number - 1]["sha256"]:
            raise JournalError(f"{path} is not what the journal says was written")
        return load_tensors(content)

    @property
    def size(self) -> int:
        """Bytes of all batches' tensors."""
        return sum(self._tensor_path(number).stat().st_size for number in range(1, len(self.entries) + 1))

    def close(self) -> None:
        """Lets another process write."""
        self._lock.close()

    def _tensor_path(self, number: int) -> Path:
        return self.folder / "batches" / f"{number:06d}.safetensors"

    def _write_line(self, fields: Mapping[str, Any]) -> None:
        """Appends a line, with the hash over it and all lines before it; whole or not at all."""
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
        chain = _chained(self._chain, text)
        line = f"{json.dumps({'chain': chain})[:-1]}, {text[1:]}\n".encode()
        with self.path.open("ab", buffering=0) as file:  # what a buffer holds would be written again after a failure
            size_before = file.tell()
            try:
                written = 0
                while written < len(line):  # unbuffered, a write may take a part only
                    written += file.write(line[written:])
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size_before)
                raise
        if size_before == 0:
            _sync_folder(self.folder)
        self._chain = chain

    def _read(self) -> None:
        """Takes in the lines that are there, and clears away an unfinished one.

        Raises:
            JournalError: If they are not a journal's, not as they were written, or of another run.
        """
        content = self.path.read_bytes()
        whole, newline, unfinished = content.rpartition(b"\n")
        if not newline and unfinished[: len(BEGINNING)] != BEGINNING[: len(unfinished)]:
            raise JournalError(f"{self.path}: not a journal")
        differences: list[str] = []
        for number, line in enumerate(whole.split(b"\n") if newline else [], start=1):
            fields = self._read_line(line, number)
            if number == 1:
                differences = self._differences(fields)
            else:
                self.entries.append(fields)
        if unfinished:
            # The writer was killed in the middle of this line; nothing was done on the strength of it.
            with self.path.open("r+b") as file:
                file.truncate(len(whole) + len(newline))
        if differences and self.entries:
            raise JournalError(f"{self.path} belongs to another run ({'; '.join(differences)}); choose another folder")
        if differences:  # a run that came to nothing
            os.truncate(self.path, 0)
            self._chain = ""

    def _read_line(self, line: bytes, number: int) -> dict[str, Any]:
        """A line's fields, if it is as it was written, and so are all lines before it."""
        try:
            fields: dict[str, Any] = json.loads(line)
            chain = fields.pop("chain")
            expected = _chained(self._chain, json.dumps(fields, sort_keys=True, ensure_ascii=False))
        except (ValueError, KeyError, AttributeError):
            raise JournalError(f"{self.path}, line {number}: not a line of a journal") from None
        if chain != expected:
            raise JournalError(f"{self.path}, line {number}: was changed after it was written, or a line before it was")
        self._chain = chain
        return fields

    def _differences(self, header: dict[str, Any]) -> list[str]:
        """In what the run of a header on disk was another than this one, in words."""
        if header.pop("journal", None) != FORMAT:
            raise JournalError(f"{self.path}: not a journal of format {FORMAT}")
        differences = {}
        for key in sorted({*header, *self.header}):
            there, here = header.get(key), self.header.get(key)
            if key in self._in_common and isinstance(there, dict) and isinstance(here, dict):
                shared = there.keys() & here.keys()
                there, here = ({name: side[name] for name in shared} for side in (there, here))
            if there != here:
                differences[key] = f"{key} was {there!r}, is {here!r}"
        if "threads" in differences:
            differences["threads"] += f": set OMP_NUM_THREADS={header.get('threads')} to go on to the same bits"
        return list(differences.values())


def _chained(chain: str, text: str) -> str:
    """The hash over a line and, by the hash before it, all lines before it."""
    return hashlib.sha256(f"{chain}{text}".encode()).hexdigest()


def _sync_folder(folder: Path) -> None:
    """A new name in a folder is durable once the folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
