"""Raw records out of a file, one at a time: a JSON array, JSON lines or CSV, however large.

Every error names the file and the record. Bytes that are not UTF-8 are carried through as lone surrogates, so that they
are found in the record they belong to and not somewhere in a buffer.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

LARGEST_RECORD = 2**24
"""Characters one record may have; more is taken for a file that is not what it seems."""


class BadRecordError(ValueError):
    """Something is wrong with one record of a file.

    Attributes:
        kind: What, in a word: ``syntax``, ``encoding``, ``field``, ``unchanged``, ``length``, ``duplicate``,
            ``conflict`` or ``leak``.
        fatal: Whether the records after it cannot be read either.
    """

    def __init__(
        self, file: str, record: int, what: str, field: str | None = None, kind: str = "field", fatal: bool = False
    ) -> None:
        place = f"{file}, record {record}" + (f", field {field!r}" if field else "")
        super().__init__(f"{place}: {what}")
        self.kind, self.fatal = kind, fatal


def read_records(path: Path) -> Iterator[tuple[int, "dict[str, Any] | BadRecordError"]]:
    """Each record with its number, from 1; a record that cannot be read is yielded as a :class:`BadRecordError`.

    ``.csv`` is read as CSV with a header row; anything else as a JSON array of objects, or one object a line.

    Raises:
        ValueError: If the file is empty or a directory.
        FileNotFoundError: If there is none.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a file of records")
    # utf-8-sig takes a byte order mark away.
    with path.open(
        encoding="utf-8-sig", errors="surrogateescape", newline="" if path.suffix.lower() == ".csv" else None
    ) as file:
        if path.suffix.lower() == ".csv":
            found = _csv(file, path.name)
        else:
            start = _first_character(file)
            found = _json_array(file, path.name) if start == "[" else _json_lines(file, path.name)
        empty = True
        for number, record in found:
            empty = False
            yield number, _checked_text(record, path.name, number)
        if empty:
            raise ValueError(f"{path} holds no records")


def _checked_text(record: Any, name: str, number: int) -> "dict[str, Any] | BadRecordError":
    if isinstance(record, BadRecordError):
        return record
    if not isinstance(record, dict):
        return BadRecordError(
            name, number, f"is a {type(record).__name__}, not an object with named fields", kind="syntax"
        )
    for field, value in record.items():
        try:
            json.dumps([field, value], ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            shown = field.encode("ascii", "replace").decode()
            return BadRecordError(name, number, "is not UTF-8 text; save the file as UTF-8", shown, kind="encoding")
    return record


def _first_character(file: TextIO) -> str:
    """The first character that is not white space; the file is at its start again."""
    while (character := file.read(1)).isspace():
        pass
    file.seek(0)
    return character


def _json_lines(file: TextIO, name: str) -> Iterator[tuple[int, Any]]:
    number = 0
    while line := file.readline(LARGEST_RECORD):
        if not line.strip():
            continue
        number += 1
        if len(line) == LARGEST_RECORD:
            yield number, _too_long(name, number)
            return
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            what = f"is not JSON ({error}); a file has one JSON array of objects, or one object a line"
            yield number, BadRecordError(name, number, what, kind="syntax")


def _json_array(file: TextIO, name: str) -> Iterator[tuple[int, Any]]:
    """Objects of one array, decoded as the text comes in: memory holds one piece of the file and one record."""
    decoder = json.JSONDecoder()
    text, place, number, piece = file.read(2**16).lstrip()[1:], 0, 0, 2**16
    ended = False

    def broken(what: str) -> tuple[int, BadRecordError]:
        return number, BadRecordError(name, number, what, kind="syntax", fatal=True)

    while True:
        while place < len(text) and text[place].isspace():
            place += 1
        if place == len(text) and not ended:
            text, place = file.read(piece), 0
            ended = not text
            continue
        if text[place : place + 1] == "]":
            rest = text[place + 1 :].strip() or file.read(2**10).strip()
            if rest:
                number += 1
                yield broken(f"comes after the end of the array: {rest[:40]!r}")
            return
        if number and text[place : place + 1] == ",":
            place += 1
            while place < len(text) and text[place].isspace():
                place += 1
        elif number and place < len(text):
            number += 1
            yield broken(f"is not preceded by a comma but by {text[place : place + 20]!r}")
            return
        number += 1
        while True:
            try:
                record, place = decoder.raw_decode(text, place)
                break
            except (ValueError, RecursionError) as error:  # perhaps only because the text so far ends here
                more = "" if ended else file.read(piece)
                if not more:
                    if not text[place:].strip():
                        yield broken("is missing: the file ends before the array's closing ]")
                    else:
                        why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                        yield broken(f"is not JSON ({why}), or the file is cut off in it")
                    return
                text, place = text[place:].lstrip() + more, 0
                if len(text) > LARGEST_RECORD:
                    yield number, _too_long(name, number)
                    return
                piece = min(2 * piece, 2**22)
        piece = 2**16
        yield number, record
        if place > 2**16:
            text, place = text[place:], 0


def _too_long(name: str, number: int) -> BadRecordError:
    what = f"does not end within {LARGEST_RECORD:,} characters, or is not JSON"
    return BadRecordError(name, number, what, kind="syntax", fatal=True)


def _csv(file: TextIO, name: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(file, strict=True)
    number = 0
    try:
        columns = list(reader.fieldnames or ())
    except csv.Error as error:
        yield 1, BadRecordError(name, 1, f"is not CSV ({error})", kind="syntax", fatal=True)
        return
    if twice := sorted({column for column in columns if column and columns.count(column) > 1}):
        what = "stands in the header twice: only one of them could be read"
        yield 1, BadRecordError(name, 1, what, twice[0], kind="syntax", fatal=True)
        return
    if len(columns) == 1 and ";" in columns[0]:
        what = f"the header {columns[0]!r} is one column: are semicolons the separator? CSV has commas"
        yield 1, BadRecordError(name, 1, what, kind="syntax", fatal=True)
        return
    while True:
        number += 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, BadRecordError(name, number, f"is not CSV ({error})", kind="syntax", fatal=True)
            return
        if None in row:
            yield (
                number,
                BadRecordError(
                    name, number, f"has more cells than the header has columns: {row[None]!r}", kind="syntax"
                ),
            )
        elif None in row.values():
            short = next(column for column, value in row.items() if value is None)
            yield number, BadRecordError(name, number, "has no cell in this column", str(short), kind="syntax")
        else:
            yield number, row
