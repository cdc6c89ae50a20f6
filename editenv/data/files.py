"""Edits from files, folders and the hub, in any of the published formats.

A file is read once, record by record; every record is validated before anything is edited. What was read is kept as an
Arrow table that is mapped into memory, not loaded, so that a file of gigabytes costs little; the same file is not read
twice.
"""

import hashlib
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from editenv.atomic_files import atomic_write_text
from editenv.data.edits import Edit, Locality
from editenv.data.formats import FORMATS, Fields, detect, to_edit
from editenv.data.options import FileOptions
from editenv.data.records import BadRecordError, read_records

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

VERSION = 2
"""Of the tables kept on disk; raised when the same file would give other edits."""

REFUSALS_TOLD = 1000

SUFFIXES = (".json", ".jsonl", ".csv")
SPLIT_NAMES = {"train": ("train",), "validation": ("valid", "dev"), "test": ("test", "edit", "eval")}
"""Parts of a file's name by which a folder's files are told apart."""

SHARES = {"train": (0.0, 0.5), "validation": (0.5, 0.6), "test": (0.6, 1.0)}
"""How a single file is cut by subject when one of its splits is asked for."""


@dataclass(slots=True)
class Report:
    """What was found in a file.

    Attributes:
        source: File or hub id.
        format: One of :data:`editenv.data.formats.FORMATS`.
        records: Records read.
        bad: How many of them were bad, by kind.
        examples: The first message of each kind.
        refused: What was said about each of them, the first :data:`REFUSALS_TOLD`.
    """

    source: str
    format: str
    records: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def add(self, error: BadRecordError) -> None:
        self.bad[error.kind] += 1
        self.examples.setdefault(error.kind, str(error))
        if len(self.refused) < REFUSALS_TOLD:
            self.refused.append(str(error))

    def __str__(self) -> str:
        if not self.bad:
            return f"{self.source}: {self.records:,} records"
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.bad.most_common())
        return f"{self.source}: {self.records:,} records, {self.bad.total():,} of them left out ({kinds})"


class MissingSplitError(ValueError):
    """A data set has no such split."""


class EditFile(Sequence[Edit]):
    """The edits of a file, made when they are asked for.

    Attributes:
        report: What was found on reading.
    """

    def __init__(self, table: "Dataset", rows: np.ndarray, report: Report) -> None:
        self._table, self._rows, self.report = table, rows, report
        self._without_rephrases: set[int] = set()
        self._edited: frozenset[bytes] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Edit: ...
    @overload
    def __getitem__(self, place: slice) -> "list[Edit]": ...
    def __getitem__(self, place: int | slice) -> "Edit | list[Edit]":
        if isinstance(place, slice):
            rows = self._rows[place]
            if len(rows) == 0:
                return []
            columns = self._table[rows.tolist()]
            return [self._edit(int(row), {k: v[i] for k, v in columns.items()}) for i, row in enumerate(rows)]
        row = int(self._rows[place])
        return self._edit(row, self._table[row])

    def __iter__(self) -> Iterator[Edit]:
        for start in range(0, len(self), 1000):
            yield from self[start : start + 1000]

    def _edit(self, row: int, values: Mapping[str, Any]) -> Edit:
        locality = zip(values["locality_prompts"], values["locality_answers"], strict=True)
        return Edit(
            id=values["id"],
            prompt=values["prompt"],
            target=values["target"],
            rephrases=() if row in self._without_rephrases else tuple(values["rephrases"]),
            locality=tuple(
                Locality(prompt, answer)
                for prompt, answer in locality
                if self._edited is None or _digest(prompt) not in self._edited
            ),
            subject=values["subject"],
            old_answer=values["old_answer"],
            relation=values["relation"],
        )

    def where(self, keep: np.ndarray) -> "EditFile":
        """The edits at which ``(n,)`` bools are true (or in the order of ``(m,)`` places)."""
        found = EditFile(self._table, self._rows[keep], self.report)
        found._without_rephrases, found._edited = self._without_rephrases, self._edited
        return found

    def column(self, name: str) -> Iterator[Any]:
        """One field of every edit, without making the edits."""
        part = self._table.select_columns([name])
        for start in range(0, len(self), 10_000):
            yield from part[self._rows[start : start + 10_000].tolist()][name]

    def subjects(self) -> np.ndarray:
        """``(n,)`` 8-byte digests of what each edit is about: its subject, or its prompt."""
        pairs = zip(self.column("subject"), self.column("prompt"), strict=True)
        return np.array([_digest(subject or prompt) for subject, prompt in pairs], dtype="S8")

    def check_lengths(self, tokenizer: "PreTrainedTokenizerBase", context: int, options: FileOptions) -> "EditFile":
        """Without the edits of which a prompt with its answer is longer than the model's context.

        Raises:
            BadRecordError: For the first such edit, unless bad records are to be skipped.
        """
        keep = np.ones(len(self), dtype=bool)
        for start in range(0, len(self), 1000):
            for i, edit in enumerate(self[start : start + 1000], start=start):
                texts = {"prompt": f"{edit.prompt} {edit.target}"}
                texts |= {f"rephrase {j + 1}": f"{text} {edit.target}" for j, text in enumerate(edit.rephrases)}
                texts |= {f"locality prompt {j + 1}": f"{it.prompt} {it.answer}" for j, it in enumerate(edit.locality)}
                if max(len(text.encode()) for text in texts.values()) < context:
                    continue  # a token is at least one byte, and there is one BOS
                lengths = dict(zip(texts, map(len, tokenizer(list(texts.values()))["input_ids"]), strict=True))
                name = max(lengths, key=lengths.__getitem__)
                if lengths[name] > context:
                    what = f"has {lengths[name]} tokens with its answer; the model's context holds {context}"
                    _refuse(BadRecordError(*_place(edit), what, name, "length"), self.report, options)
                    keep[i] = False
        return self.where(keep) if not keep.all() else self


def load_file_edits(dataset: str, split: str, options: FileOptions) -> EditFile:
    """The edits of one split.

    Args:
        dataset: ``PATH`` or ``FORMAT:PATH``, where PATH is a file, a folder with one file for each split, or a hub id.
        split: ``"train"``, ``"validation"``, ``"test"``, or ``"all"`` of a single file.
        options: How to read it.

    Raises:
        BadRecordError: For the first record that cannot be used, unless they are to be skipped.
        FileNotFoundError: If there is no such file.
        ValueError: For a file that is empty, a split that is not there, or an unknown format.
    """
    if split not in (*SHARES, "all"):
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SHARES)} and, of a single file, all")
    edits = _read_split(dataset, split, options)
    if options.rephrases != "as-is":
        edits = _with_checked_rephrases(edits, first=options.rephrases == "checked-first")
    if options.limit is not None:
        edits = edits.where(np.arange(len(edits)) < options.limit)
    kept = (_asked(later) for later in _later_splits(dataset, split, options))
    edited = frozenset().union(*kept, map(_digest, edits.column("prompt")) if options.locality == "checked" else ())
    if edited:
        edits = edits.where(np.ones(len(edits), dtype=bool))
        edits._edited = edited
    if len(edits) == 0:
        raise ValueError(f"dataset {dataset!r}: no edit is left in split {split!r} ({edits.report})")
    if edits.report.bad:
        warnings.warn(str(edits.report), stacklevel=2)
    return edits


def _read_split(dataset: str, split: str, options: FileOptions) -> EditFile:
    name, colon, place = dataset.partition(":")
    if not colon or name not in FORMATS:
        name, place = "", dataset
    path = Path(place).expanduser()
    if path.is_dir():
        return _folder_split(path, name, split, options)
    if path.is_file():
        return _share(read_edits(path, name, options), split)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", place) and not path.suffix:
        return _hub_split(place, name, split, options)
    formats = ", ".join(FORMATS)
    raise FileNotFoundError(
        f"dataset {dataset!r}: there is no file or folder {place} (a format before it is one of {formats})"
    )


def _later_splits(dataset: str, split: str, options: FileOptions) -> Iterator[EditFile]:
    """Those that a policy of this split is judged on: what is edited there must not be learned as what has to stay.

    Raises:
        ValueError: If one is there and cannot be read.
    """
    later = list(SHARES)[list(SHARES).index(split) + 1 :] if split in SHARES else []
    whole = FileOptions("skip", nq_prefix=options.nq_prefix)
    for name in later:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield _read_split(dataset, name, whole)
            except MissingSplitError:
                continue


def _asked(edits: EditFile) -> Iterator[bytes]:
    """Digests of all prompts of these edits, rephrases included."""
    yield from map(_digest, edits.column("prompt"))
    for rephrases in edits.column("rephrases"):
        yield from map(_digest, rephrases)


def _folder_split(folder: Path, name: str, split: str, options: FileOptions) -> EditFile:
    """A folder's files by their names; a validation split that has no file is cut from the training file."""
    files = {key: _split_file(folder, parts) for key, parts in SPLIT_NAMES.items()}
    if split in ("train", "validation"):
        own = files[split] or files["train"]
        if own is None:
            raise MissingSplitError(
                f"{folder}: no file for split {split!r}; its name must contain {' or '.join(SPLIT_NAMES[split])}"
            )
        edits = read_edits(own, name, options)
        if files["validation"] is not None:
            return edits
        tenth = _fractions(edits.subjects()) < 0.1
        return edits.where(tenth if split == "validation" else ~tenth)
    if split == "all" or files["test"] is None:
        asked = (
            "the whole of one file: name the file"
            if split == "all"
            else "test: its name must contain test, edit or eval"
        )
        raise MissingSplitError(f"{folder}: no file for split {asked}")
    edits = read_edits(files["test"], name, options)
    if files["train"] is None:
        return edits
    seen = set(read_edits(files["train"], name, FileOptions("skip", nq_prefix=options.nq_prefix)).subjects().tolist())
    leaks = np.array([subject in seen for subject in edits.subjects().tolist()], dtype=bool)
    for place in np.flatnonzero(leaks):
        edit = edits[int(place)]
        what = f"{edit.subject or edit.prompt!r} is edited in {files['train'].name} too: a policy trained there has seen it"
        _refuse(
            BadRecordError(*_place(edit), what, "subject" if edit.subject else "prompt", "leak"), edits.report, options
        )
    return edits.where(~leaks)


def _split_file(folder: Path, parts: Iterable[str]) -> Path | None:
    found = [
        f
        for f in sorted(folder.iterdir())
        if f.suffix.lower() in SUFFIXES and any(part in f.stem.lower() for part in parts)
    ]
    if len(found) > 1:
        raise ValueError(f"{folder}: {', '.join(f.name for f in found)} could all be one split; name one file instead")
    return found[0] if found else None


def _share(edits: EditFile, split: str) -> EditFile:
    """A part of a single file that shares no subject with the other parts."""
    if split == "all":
        return edits
    low, high = SHARES[split]
    fractions = _fractions(edits.subjects())
    return edits.where((fractions >= low) & (fractions < high))


def _hub_split(place: str, name: str, split: str, options: FileOptions) -> EditFile:
    from datasets import get_dataset_split_names, load_dataset

    if split != "all" and split not in (known := get_dataset_split_names(place)):
        raise MissingSplitError(f"dataset {place!r} of the hub has no split {split!r}; there are {', '.join(known)}")
    table = load_dataset(place, split="train" if split == "all" else split)
    path = table_path(f"{place}/{table._fingerprint}/{split}", name, options)
    if not path.exists() or not _whole(path):
        _write(path, place, name, options, enumerate(table, start=1))
    return _index(path, options)


def read_edits(path: Path, name: str, options: FileOptions) -> EditFile:
    """All edits of one file, validated; read again only if its content or the options have changed.

    Raises:
        BadRecordError: For the first record that cannot be used, unless they are to be skipped.
    """
    table = table_path(f"{path.name}/{content_digest(path)}", name, options)
    if not table.exists() or not _whole(table):
        _write(table, path.name, name, options, read_records(path))
    return _index(table, options)


def content_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 24):
            digest.update(piece)
    return digest.hexdigest()


def _whole(table: Path) -> bool:
    """Whether a table can be opened; one that a full disk or a copy has cut is made again."""
    import pyarrow as pa
    from datasets import Dataset

    try:
        json.loads(table.with_suffix(".json").read_text(encoding="utf-8"))
        Dataset.from_file(str(table))
    except (pa.ArrowException, ValueError, OSError):
        return False
    return True


def table_path(identity: str, name: str, options: FileOptions) -> Path:
    """Where the table of a source is kept: beside the tables of the ``datasets`` library."""
    from datasets import config

    key = json.dumps([VERSION, identity, name, options.bad_records, options.nq_prefix])
    return Path(config.HF_DATASETS_CACHE) / "lifelongedit" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.arrow"


def _write(table: Path, source: str, name: str, options: FileOptions, records: Iterable[tuple[int, Any]]) -> Path:
    """Parses and validates every record into an Arrow table; it appears whole or not at all."""
    import pyarrow as pa

    text, texts = pa.string(), pa.list_(pa.string())
    one = dict.fromkeys(("id", "prompt", "target", "subject", "old_answer", "relation"), text)
    schema = pa.schema(one | dict.fromkeys(("rephrases", "locality_prompts", "locality_answers"), texts))
    table.parent.mkdir(parents=True, exist_ok=True)
    partial = table.with_suffix(f".{os.getpid()}.partial")
    report, parse = Report(source, name), None
    first: BadRecordError | None = None
    try:
        with (
            pa.OSFile(str(partial), "wb") as file,
            pa.ipc.new_stream(file, schema) as writer,
            _progress(f"reading {source}") as tell,
        ):
            rows: list[dict[str, Any]] = []
            for number, record in records:
                report.records += 1
                try:
                    if isinstance(record, BadRecordError):
                        raise record
                    if parse is None:
                        report.format, parse = detect(record, source, name or None, number)
                    edit = to_edit(Fields(source, number, record), parse, options.nq_prefix)
                except BadRecordError as error:
                    if error.fatal:
                        raise
                    first = first or error
                    _refuse(error, report, options)
                    continue
                rows.append(_row(edit))
                if len(rows) == 1000:
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))
                    rows = []
                    tell(number)
            if rows:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))
        if parse is None and first is not None:  # not a file of edits at all
            raise first
        found = {"source": report.source, "format": report.format, "records": report.records}
        found |= {"bad": dict(report.bad), "examples": report.examples, "refused": report.refused}
        atomic_write_text(table.with_suffix(".json"), json.dumps(found))
        os.replace(partial, table)
    finally:
        partial.unlink(missing_ok=True)
    return table


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int], None]]:
    """How many records have been read, on a terminal; the file's end is not known beforehand."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task(what, total=None)
        yield lambda number: bars.update(bar, description=f"{what}: {number:,} records")


def _row(edit: Edit) -> dict[str, Any]:
    values = {name: getattr(edit, name) for name in ("id", "prompt", "target", "subject", "old_answer", "relation")}
    locality = {
        "locality_prompts": [i.prompt for i in edit.locality],
        "locality_answers": [i.answer for i in edit.locality],
    }
    return values | {"rephrases": list(edit.rephrases)} | locality


def _index(path: Path, options: FileOptions) -> EditFile:
    """Opens a table and finds the edits that repeat or contradict an earlier one."""
    from datasets import Dataset

    found = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    report = Report(
        found["source"], found["format"], found["records"], Counter(found["bad"]), found["examples"], found["refused"]
    )
    table = Dataset.from_file(str(path))
    edits = EditFile(table, np.arange(len(table)), report)
    keep = np.ones(len(edits), dtype=bool)
    for place, earlier, same in repeats(edits):
        keep[place] = False
        edit = edits[place]
        first = edits[earlier].id.rpartition("/")[2]
        if same:
            error = BadRecordError(*_place(edit), f"repeats record {first}", "prompt", "duplicate")
        else:
            what = f"contradicts record {first}, which has another target for the same prompt"
            error = BadRecordError(*_place(edit), what, "target", "conflict")
        _refuse(error, report, options)
    return edits.where(keep)


def repeats(edits: EditFile) -> list[tuple[int, int, bool]]:
    """Edits whose prompt an earlier edit has: their place, the first one's, and whether the targets agree."""
    prompts = np.array([_digest(prompt) for prompt in edits.column("prompt")], dtype="S8")
    order = np.argsort(prompts, kind="stable")
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = prompts[order[1:]] != prompts[order[:-1]]
    first = order[np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))]
    pairs = sorted(zip(order[~starts].tolist(), first[~starts].tolist(), strict=True))
    return [(i, j, edits[i].target.casefold() == edits[j].target.casefold()) for i, j in pairs]


def true_rephrases(edits: Sequence[Edit]) -> np.ndarray:
    """``(n,)`` whether all rephrases of an edit are paraphrases, by the file's own prompts.

    A rephrase passes if it ends in a template that some prompt of the file was made from, filled with this edit's
    subject, and if that template occurs with this edit's target or old answer. That tells CounterFact's paraphrase
    prompts (lead-in and template) from its generation prompts.
    """
    objects: dict[str, set[bytes]] = {}
    for edit in edits:
        if edit.subject and edit.subject in edit.prompt:
            template = edit.prompt.replace(edit.subject, "{}", 1)
            objects.setdefault(template, set()).update(_digest(o) for o in (edit.target, edit.old_answer) if o)
    # Templates by their last word: few have to be tried on each rephrase.
    by_end: dict[str, list[str]] = {}
    for template in objects:
        by_end.setdefault(template.rsplit(None, 1)[-1].replace("{}", ""), []).append(template)

    def passes(text: str, edit: Edit) -> bool:
        if not edit.subject:
            return False
        answers = {_digest(o) for o in (edit.target, edit.old_answer) if o}
        ends = {text.rsplit(None, 1)[-1], text.rsplit(None, 1)[-1].replace(edit.subject.rsplit(None, 1)[-1], ""), ""}
        return any(
            text.endswith(template.replace("{}", edit.subject)) and objects[template] & answers
            for end in ends
            for template in by_end.get(end, ())
        )

    return np.array(
        [bool(edit.rephrases) and all(passes(text, edit) for text in edit.rephrases) for edit in edits], dtype=bool
    )


def _with_checked_rephrases(edits: EditFile, first: bool) -> EditFile:
    kept = true_rephrases(edits)
    found = edits.where(np.argsort(~kept, kind="stable") if first else np.arange(len(edits)))
    found._without_rephrases = {int(row) for row in edits._rows[~kept]}
    return found


def _refuse(error: BadRecordError, report: Report, options: FileOptions) -> None:
    """Counts a bad record, or stops at it."""
    report.add(error)
    if options.bad_records == "error":
        error.args = (f"{error} (the dataset option bad_records=skip leaves such records out and counts them)",)
        raise error


def _place(edit: Edit) -> tuple[str, int]:
    file, _, number = edit.id.rpartition("/")
    return file, int(number)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=8).digest()


def _fractions(digests: np.ndarray) -> np.ndarray:
    """``(n,)`` uniform in [0, 1), the same for the same digest."""
    return np.array([int.from_bytes(hashlib.sha256(d).digest()[:7], "big") / 2**56 for d in digests.tolist()])
