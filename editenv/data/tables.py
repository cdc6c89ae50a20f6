"""Files of edits as Arrow tables on disk: read and validated once, then mapped into memory, not loaded.

So a file of gigabytes costs little, and the same file is not read twice.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from editenv.atomic_files import atomic_write_text, replace, sync
from editenv.data.checked_edits import to_edits
from editenv.data.edit_file import EDITS_AT_A_TIME, EditFile, ReadReport, digest_as_written, repeat_error, repeats
from editenv.data.edits import Edit
from editenv.data.fields import Fields
from editenv.data.formats import detect
from editenv.data.options import FileOptions, columns_of
from editenv.data.own_format import with_columns
from editenv.data.records import BadRecordError, RawRecord, place_of, read_records

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 6
"""Of the tables kept on disk; raised when the same file would give other edits."""

TEXTS = ("id", "prompt", "target", "subject", "old_answer", "relation", "messages")
LISTS = (
    "rephrases",
    "locality_prompts",
    "locality_answers",
    "portability_kinds",
    "portability_prompts",
    "portability_answers",
)
"""The columns of a table: one text each (``messages`` as JSON), and lists of texts, of which ``portability_answers`` has
null for none; beside them ``record``, the record's number, and ``line``, where it begins.
"""


def read_edits(path: Path, name: str, options: FileOptions) -> EditFile:
    """All edits of one file, validated; read again only if its content or the options have changed.

    Args:
        path: The file.
        name: Of its format; empty for whichever it is in.
        options: How to read it.

    Raises:
        BadRecordError: For the first record that cannot be used, unless they are to be skipped.
        ValueError: If the file is empty, or in no known format.
        FileNotFoundError: If there is none.
    """
    table = table_path(f"{path.name}/{content_digest(path)}", name, options)
    if not is_whole(table):
        write_table(table, path.name, name, options, read_records(path))
    return open_table(table, options)


def content_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 24):
            sha256.update(piece)
    return sha256.hexdigest()


def table_path(identity: str, name: str, options: FileOptions) -> Path:
    """Where the table of a source is kept: beside the tables of the ``datasets`` library.

    Args:
        identity: Of the source's content.
        name: Of the format asked for.
        options: Those that change what is in the table are part of its name.
    """
    from datasets import config

    key = json.dumps([VERSION, identity, name, options.bad_records, options.nq_prefix, options.columns])
    return Path(config.HF_DATASETS_CACHE) / "lifelongedit" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.arrow"


def is_whole(table: Path) -> bool:
    """Whether a table is there and can be opened; one that a full disk or a copy has cut is made again."""
    import pyarrow as pa
    from datasets import Dataset

    if not table.exists():
        return False
    try:
        json.loads(table.with_suffix(".json").read_text(encoding="utf-8"))
        Dataset.from_file(str(table))
    except (pa.ArrowException, ValueError, OSError):
        return False
    return True


def write_table(table: Path, source: str, name: str, options: FileOptions, records: Iterable[RawRecord]) -> None:
    """Parses and validates every record into an Arrow table; it appears whole or not at all.

    Args:
        table: Where; the report lies beside it.
        source: File or hub id, named in errors.
        name: Of the format asked for; empty for any.
        options: How to read it.
        records: One that could not be read has a :class:`BadRecordError` as its content.

    Raises:
        BadRecordError: For the first record that cannot be used, unless they are to be skipped.
    """
    import pyarrow as pa

    schema = _schema()
    table.parent.mkdir(parents=True, exist_ok=True)
    partial = table.with_suffix(f".{os.getpid()}.partial")
    report = ReadReport(source, name)
    try:
        with (
            pa.OSFile(str(partial), "wb") as file,
            pa.ipc.new_stream(file, schema) as writer,
            _progress(f"reading {source}") as show_progress,
        ):
            rows: list[dict[str, Any]] = []
            for edit, number, line in _parsed(records, report, name, options):
                rows.append(_row(edit, number, line))
                if len(rows) == EDITS_AT_A_TIME:
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))
                    rows = []
                    show_progress(report.records)
            if rows:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))
        atomic_write_text(table.with_suffix(".json"), json.dumps(report.as_json()))
        sync(partial)
        replace(partial, table)
    finally:
        partial.unlink(missing_ok=True)


def _parsed(
    records: Iterable[RawRecord], report: ReadReport, name: str, options: FileOptions
) -> Iterator[tuple[Edit, int, int | None]]:
    """The edits of raw records, each with its record's number and line; the first record that can be read tells the format."""
    parse = None
    columns = columns_of(options.columns)
    name = "own" if columns and not name else name
    first_error: BadRecordError | None = None
    for number, line, record in records:
        report.records += 1
        try:
            if isinstance(record, BadRecordError):
                raise record
            fields = Fields(report.source, number, record, line)
            if columns:
                fields = with_columns(fields, columns)
            if parse is None:
                report.format, parse = detect(fields.values, report.source, name or None, number, line)
            if not name and report.format != "own":
                fields = replace_fields(fields, taken_for=report.format)
            edits = to_edits(fields, parse, options.nq_prefix)
        except BadRecordError as error:
            if error.fatal:
                raise
            first_error = first_error or error
            report.refuse(error, options)
        else:
            for note in dict.fromkeys(fields.notes):
                report.note(note, number, line)
            yield from ((edit, number, line) for edit in edits)
    if parse is None and first_error is not None:  # not a file of edits at all
        if report.records > 1:
            first_error.args = ("\n".join((f"{report}", *report.reasons())),)
        raise first_error


def _schema() -> "pa.Schema":
    import pyarrow as pa

    texts, lists = dict.fromkeys(TEXTS, pa.string()), dict.fromkeys(LISTS, pa.list_(pa.string()))
    return pa.schema(texts | lists | {"record": pa.int64(), "line": pa.int64()})


def _row(edit: Edit, number: int, line: int | None) -> dict[str, Any]:
    messages = [asdict(message) for message in edit.messages]
    return {name: getattr(edit, name) for name in TEXTS if name != "messages"} | {
        "messages": json.dumps(messages) if messages else None,
        "record": number,
        "line": line,
        "rephrases": list(edit.rephrases),
        "locality_prompts": [item.prompt for item in edit.locality],
        "locality_answers": [item.answer for item in edit.locality],
        "portability_kinds": [item.kind for item in edit.portability],
        "portability_prompts": [item.prompt for item in edit.portability],
        "portability_answers": [item.answer for item in edit.portability],
    }


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


def open_table(path: Path, options: FileOptions) -> EditFile:
    """Opens a table, without the edits that repeat or contradict an earlier one, or have its id.

    Raises:
        BadRecordError: For the first such edit, unless bad records are to be skipped.
    """
    from datasets import Dataset

    report = ReadReport.of_json(json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
    table = Dataset.from_file(str(path))
    edits = EditFile(table, np.arange(len(table)), report)
    keep = np.ones(len(edits), dtype=bool)
    for i, earlier in repeats(edits.column("prompt")):
        keep[i] = False
        row, first = table[i], table[earlier]
        error = repeat_error(row["target"], first["target"], place_of(*edits.place(earlier)))
        if error[-1] == "duplicate" and report.format == "mquake":  # several of its questions rest on the same fact
            report.note("a fact that an earlier record edits, too, is edited once", row["record"], None)
        else:
            report.refuse(edits.bad(i, *error), options)
    return _without_repeated_ids(edits.where(keep), options)


def _without_repeated_ids(edits: EditFile, options: FileOptions) -> EditFile:
    """The edits without those whose id an earlier one has.

    Raises:
        BadRecordError: For the first such edit, unless bad records are to be skipped.
    """
    keep = np.ones(len(edits), dtype=bool)
    for i, earlier in repeats(edits.column("id"), digest_as_written):
        keep[i] = False
        number, line, _ = edits.place(earlier)
        what = f"is that of {place_of(number, line)}, too: results could not be told apart"
        edits.report.refuse(edits.bad(i, what, "id", "duplicate"), options)
    return edits.where(keep)
