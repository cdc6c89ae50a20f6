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

PIECE = 2**16
"""Characters read at a time."""

_TOO_LONG = f"does not end within {LARGEST_RECORD:,} characters, or is not JSON"


class BadRecordError(ValueError):
    """Something is wrong with one record of a file.

    Args:
        file: Its name.
        record: The record's number, from 1.
        what: What is wrong, as the end of a sentence.
        field: The field that it is wrong with, if it is one.
        kind: See below.
        fatal: See below.

    Attributes:
        kind: What is wrong, in a word: ``syntax``, ``encoding``, ``field``, ``unchanged``, ``length``, ``duplicate``,
            ``conflict`` or ``leak``.
        fatal: Whether the records after it cannot be read either.
    """

    def __init__(
        self, file: str, record: int, what: str, field: str | None = None, kind: str = "field", fatal: bool = False
    ) -> None:
        where = f"{file}, record {record}" + (f", field {field!r}" if field else "")
        super().__init__(f"{where}: {what}")
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
    is_csv = path.suffix.lower() == ".csv"
    # utf-8-sig takes a byte order mark away; csv wants to see line ends as they are.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="" if is_csv else None) as file:
        if is_csv:
            records = _csv(file, path.name)
        elif _first_character(file) == "[":
            records = _json_array(file, path.name)
        else:
            records = _json_lines(file, path.name)
        empty = True
        for number, record in records:
            empty = False
            yield number, _checked_text(record, path.name, number)
        if empty:
            raise ValueError(f"{path} holds no records")


def _checked_text(record: Any, name: str, number: int) -> "dict[str, Any] | BadRecordError":
    """The record, or an error in its place if it has no fields or is not UTF-8."""
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
            printable = field.encode("ascii", "replace").decode()
            return BadRecordError(name, number, "is not UTF-8 text; save the file as UTF-8", printable, kind="encoding")
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
            yield number, BadRecordError(name, number, _TOO_LONG, kind="syntax", fatal=True)
            return
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            what = f"is not JSON ({error}); a file has one JSON array of objects, or one object a line"
            yield number, BadRecordError(name, number, what, kind="syntax")


def _json_array(file: TextIO, name: str) -> Iterator[tuple[int, Any]]:
    """Values of one array, decoded as the text comes in: memory holds one piece of the file and one record."""
    text = _ArrayText(file)
    number = 0
    while text.next_character() != "]":
        number += 1
        try:
            if number > 1:
                text.take_comma()
            record = text.take_value()
        except ValueError as error:
            yield number, BadRecordError(name, number, str(error), kind="syntax", fatal=True)
            return
        yield number, record
    if rest := text.after_the_end():
        what = f"comes after the end of the array: {rest[:40]!r}"
        yield number + 1, BadRecordError(name, number + 1, what, kind="syntax", fatal=True)


class _ArrayText:
    """The text of a JSON array behind its ``[``, read from a file piece by piece.

    Args:
        file: At its start; the first character that is not white space is the ``[``.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._decoder = json.JSONDecoder()
        self._text, self._position = file.read(PIECE).lstrip()[1:], 0

    def next_character(self) -> str:
        """The next one that is not white space, which stays the next one; empty at the end of the file."""
        while True:
            while self._position < len(self._text) and self._text[self._position].isspace():
                self._position += 1
            if self._position < len(self._text):
                return self._text[self._position]
            self._text, self._position = self._file.read(PIECE), 0
            if not self._text:
                return ""

    def take_comma(self) -> None:
        """Goes past a comma; at the end of the file, where there is none, nothing happens.

        Raises:
            ValueError: If something else comes next.
        """
        character = self.next_character()
        if character == ",":
            self._position += 1
        elif character:
            text = self._text[self._position : self._position + 20]
            raise ValueError(f"is not preceded by a comma but by {text!r}")

    def take_value(self) -> Any:
        """Decodes a value and goes past it.

        Raises:
            ValueError: If there is none, or it is not JSON or too long.
        """
        if not self.next_character():
            raise ValueError("is missing: the file ends before the array's closing ]")
        piece = PIECE
        while True:
            try:
                value, self._position = self._decoder.raw_decode(self._text, self._position)
                break
            except (ValueError, RecursionError) as error:  # perhaps only because the text so far ends here
                more = self._file.read(piece)
                if not more:
                    why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                    raise ValueError(f"is not JSON ({why}), or the file is cut off in it") from None
            self._text, self._position = self._text[self._position :] + more, 0
            if len(self._text) > LARGEST_RECORD:
                raise ValueError(_TOO_LONG)
            # Each attempt decodes the value from its start: with pieces that double, all of them together take no
            # longer than a few decodings of the whole.
            piece = min(2 * piece, 2**22)
        if self._position > PIECE:
            self._text, self._position = self._text[self._position :], 0
        return value

    def after_the_end(self) -> str:
        """What follows the ``]`` that comes next, or its beginning; white space aside."""
        return self._text[self._position + 1 :].strip() or self._file.read(2**10).strip()


def _csv(file: TextIO, name: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(file, strict=True)
    if error := _header_error(reader, name):
        yield 1, error
        return
    number = 0
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
            what = f"has more cells than the header has columns: {row[None]!r}"
            yield number, BadRecordError(name, number, what, kind="syntax")
        elif None in row.values():
            empty = next(column for column, value in row.items() if value is None)
            yield number, BadRecordError(name, number, "has no cell in this column", str(empty), kind="syntax")
        else:
            yield number, row


def _header_error(reader: "csv.DictReader[str]", name: str) -> BadRecordError | None:
    """What is wrong with the header, if anything is; without it no row can be read."""
    try:
        columns = list(reader.fieldnames or ())
    except csv.Error as error:
        return BadRecordError(name, 1, f"is not CSV ({error})", kind="syntax", fatal=True)
    if repeated := sorted({column for column in columns if column and columns.count(column) > 1}):
        what = "stands in the header twice: only one of them could be read"
        return BadRecordError(name, 1, what, repeated[0], kind="syntax", fatal=True)
    if len(columns) == 1 and ";" in columns[0]:
        what = f"the header {columns[0]!r} is one column: are semicolons the separator? CSV has commas"
        return BadRecordError(name, 1, what, kind="syntax", fatal=True)
    return None
