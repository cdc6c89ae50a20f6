"""What has been edited, on disk: append-only, durable batch by batch, checked when it is read again.

    OUT/journal.jsonl            a header, then one line a batch; each line's ``chain`` covers all lines before it
    OUT/batches/000001.safetensors   the tensors of batch 1
    OUT/journal.lock             held while a process writes

A batch's tensors are on disk before its line is, and its line before the next batch starts: a process killed at any
moment leaves whole batches, and at most one unfinished line or file, which the next one clears away.

Batches can be undone: a line says which, and from then on the run is what the others make. Their own lines stay,
and no other batch gets their numbers.
"""

import fcntl
import hashlib
import json
import os
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from editenv.atomic_files import atomic_write, make_folder, named_in_errors, sync

FORMAT = 1
BEGINNING = b'{"chain": "'
"""How every line begins: tells an unfinished first line from a file of something else."""


UNDONE = "undone"
"""Entry of a line by which batches are undone: their numbers. The line has no ``batch``."""


class JournalError(ValueError):
    """The journal cannot be gone on with."""


class Journal:
    """Opens a folder's journal, or begins one.

    Args:
        folder: Made if it is not there.
        header: What the run is; an existing journal must have been begun with the same, unless it holds no batch yet.
        in_common: Entries of the header, objects, of which only what both headers say must be the same: another version
            says more or less.
        compare: By entry of the header, what says in words how the one on disk (None if it is not there) and this one
            differ; entries that are not named must be equal.

    Attributes:
        begun_with: The header on disk.
        lines: All lines but the header's: of each batch what :meth:`append` was given, with the batch's number and the
            SHA-256 of its tensors; and what was given to :meth:`undo`.
        entries: Those of the batches that have not been undone.

    Raises:
        JournalError: If another process has it open, if it belongs to another run, or if it is corrupt; names the
            file and the line.
        OSError: If the folder cannot be written, or files in it cannot be locked; names the file.
    """

    def __init__(
        self,
        folder: Path,
        header: Mapping[str, Any],
        in_common: Sequence[str] = (),
        compare: Mapping[str, Callable[[Any, Any], list[str]]] = MappingProxyType({}),
    ) -> None:
        self.folder, self.path = folder, folder / "journal.jsonl"
        make_folder(folder / "batches")
        self._lock = (folder / "journal.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            if not isinstance(error, BlockingIOError):  # such as a file system without locks
                raise OSError(error.errno, error.strerror, str(folder / "journal.lock")) from error
            raise JournalError(
                f"{folder} is being written by another process; wait for it or choose another folder"
            ) from None
        try:
            self._chain = ""
            self.header = json.loads(json.dumps(header))
            self.begun_with = self.header
            self._in_common, self._compare = in_common, compare
            for leftover in (folder / "batches").glob("*.partial"):  # of a killed writer
                leftover.unlink()
            self.lines: list[dict[str, Any]] = []
            if self.path.exists() and self.path.stat().st_size:
                self._read()
            if not self._chain:
                self._write_line({"journal": FORMAT, **self.header})
            self.entries = standing(self.lines)
            self._remove_undone_tensors()
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
            ValueError: If text of the entry is no Unicode; likewise.
        """
        number = self.next_batch
        # Copies: the keys of one token and their transpose share memory, and the format holds none twice.
        copies = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }
        content = save_tensors(copies)
        line = {"batch": number, **entry, "sha256": hashlib.sha256(content).hexdigest()}
        self._chained_line(line)  # refused before the tensors are written
        with atomic_write(self._tensor_path(number)) as partial:
            partial.write_bytes(content)
        self._write_line(line)
        self.lines.append(json.loads(json.dumps(line)))
        self.entries.append(self.lines[-1])

    def undo(self, batches: Collection[int], entry: Mapping[str, Any]) -> None:
        """Goes on as if these batches had not been; durable when this returns.

        Args:
            batches: Their numbers.
            entry: What the line says besides, as JSON takes it.

        Raises:
            OSError: If the disk is full or read-only; nothing is undone then.
        """
        line = {UNDONE: sorted(batches), **entry}
        self._write_line(line)
        self.lines.append(json.loads(json.dumps(line)))
        self.entries = standing(self.lines)
        self._remove_undone_tensors()

    @property
    def next_batch(self) -> int:
        """The number of the batch that comes next."""
        return 1 + next((line["batch"] for line in reversed(self.lines) if "batch" in line), 0)

    def _remove_undone_tensors(self) -> None:
        for line in self.lines:
            for number in line.get(UNDONE, ()):
                self._tensor_path(number).unlink(missing_ok=True)

    def tensors(self, number: int) -> dict[str, torch.Tensor]:
        """The tensors of a batch that has not been undone, by its number.

        Raises:
            JournalError: If they are not what was written.
        """
        path = self._tensor_path(number)
        if not path.exists():
            raise JournalError(f"{path} is missing; the journal speaks of it")
        content = path.read_bytes()
        entry = self.entries[bisect_left(self.entries, number, key=lambda entry: entry["batch"])]
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise JournalError(f"{path} is not what the journal says was written")
        return load_tensors(content)

    @property
    def size(self) -> int:
        """Bytes of all batches' tensors."""
        return sum(self._tensor_path(entry["batch"]).stat().st_size for entry in self.entries)

    def close(self) -> None:
        """Lets another process write."""
        self._lock.close()

    def _tensor_path(self, number: int) -> Path:
        return self.folder / "batches" / f"{number:06d}.safetensors"

    def _chained_line(self, fields: Mapping[str, Any]) -> tuple[bytes, str]:
        """A line with the hash over it and all lines before it, and the hash.

        Raises:
            ValueError: If it has text that is no Unicode.
        """
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
        try:
            chain = _chained(self._chain, text)
        except UnicodeEncodeError as error:
            upto = error.object[: error.start + 1]
            raise ValueError(
                f"{self.path}: text with half a character (a lone surrogate) cannot be written: {upto[-40:]!r}"
            ) from None
        return f"{json.dumps({'chain': chain})[:-1]}, {text[1:]}\n".encode(), chain

    def _write_line(self, fields: Mapping[str, Any]) -> None:
        """Appends a line; whole or not at all."""
        line, chain = self._chained_line(fields)
        with (
            named_in_errors(self.path),
            self.path.open("ab", buffering=0) as file,  # what a buffer holds would be written again after a failure
        ):
            size_before = file.tell()
            try:
                written = 0
                while written < len(line):  # unbuffered, a write may take a part only
                    written += file.write(line[written:])
                os.fsync(file.fileno())
                self._chain = chain
            except BaseException:  # an interruption, too: the next line follows on the one before this
                file.truncate(size_before)
                raise
        if size_before == 0:
            sync(self.folder)

    def _read(self) -> None:
        """Takes in the lines that are there, and clears away an unfinished one.

        Raises:
            JournalError: If they are not a journal's, not as they were written, or of another run.
        """
        content = self.path.read_bytes()
        whole, newline, unfinished = content.rpartition(b"\n")
        if not newline and unfinished[: len(BEGINNING)] != BEGINNING[: len(unfinished)]:
            raise JournalError(f"{self.path}: not a journal")
        lines = whole.split(b"\n") if newline else []
        if is_finished := bool(unfinished) and self._is_finished(unfinished, len(lines) + 1):
            lines.append(unfinished)
        differences: list[str] = []
        for number, line in enumerate(lines, start=1):
            fields = self._read_line(line, number)
            if number == 1:
                differences = self._differences(fields)
            else:
                self.lines.append(fields)
        if differences and self.lines:
            raise JournalError(f"{self.path} belongs to another run ({'; '.join(differences)}); choose another folder")
        if is_finished:
            with self.path.open("ab") as file:
                file.write(b"\n")
                os.fsync(file.fileno())
        elif unfinished:
            # The writer was killed in the middle of this line; nothing was done on the strength of it.
            with self.path.open("r+b") as file:
                file.truncate(len(whole) + len(newline))
        if differences:  # a run that came to nothing
            os.truncate(self.path, 0)
            self._chain, self.begun_with = "", self.header

    def _is_finished(self, last: bytes, number: int) -> bool:
        """Whether a last line that no newline follows is all there but for it; or it is the beginning of one.

        Raises:
            JournalError: If something else follows, which no writer leaves.
        """
        text = last.decode("utf-8", "replace")
        try:
            _, end = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError):
            return False
        if end < len(text):
            raise JournalError(f"{self.path}, line {number}: its end was changed after it was written")
        return True

    def _read_line(self, line: bytes, number: int) -> dict[str, Any]:
        """A line's fields, if it is as it was written, and so are all lines before it."""
        try:
            fields: dict[str, Any] = json.loads(line)
            chain = fields.pop("chain")
            expected = _chained(self._chain, json.dumps(fields, sort_keys=True, ensure_ascii=False))
        except (ValueError, KeyError, AttributeError, RecursionError):
            raise JournalError(f"{self.path}, line {number}: not a line of a journal") from None
        if chain != expected:
            raise JournalError(f"{self.path}, line {number}: was changed after it was written, or a line before it was")
        self._chain = chain
        return fields

    def _differences(self, header: dict[str, Any]) -> list[str]:
        """In what the run of a header on disk was another than this one, in words."""
        if header.pop("journal", None) != FORMAT:
            raise JournalError(f"{self.path}: not a journal of format {FORMAT}")
        self.begun_with = header
        differences = {}
        for key in sorted({*header, *self.header}):
            there, here = header.get(key), self.header.get(key)
            if key in self._compare:
                if said := self._compare[key](there, here):
                    differences[key] = "; ".join(said)
                continue
            if key in self._in_common and isinstance(there, dict) and isinstance(here, dict):
                shared = there.keys() & here.keys()
                there, here = ({name: side[name] for name in shared} for side in (there, here))
            if there != here:
                differences[key] = f"{key} was {there!r}, is {here!r}"
        if "threads" in differences:
            differences["threads"] += f": set OMP_NUM_THREADS={header.get('threads')} to go on to the same bits"
        return list(differences.values())


def standing(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of a journal's lines without its header those of the batches that have not been undone since."""
    lines = list(lines)
    gone = {number for line in lines for number in line.get(UNDONE, ())}
    return [dict(line) for line in lines if "batch" in line and line["batch"] not in gone]


def _chained(chain: str, text: str) -> str:
    """The hash over a line and, by the hash before it, all lines before it."""
    return hashlib.sha256(f"{chain}{text}".encode()).hexdigest()
