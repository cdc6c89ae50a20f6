"""Raw records out of a file, one at a time: a JSON array, JSON lines, one JSON object, CSV, TSV or a spreadsheet,
however large.

Every error names the file, the record and, where it has another number, the line. Bytes that are not UTF-8 are carried
through as lone surrogates, so that they are found in the record they belong to and not somewhere in a buffer.
"""

import csv
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from editenv.data.opening import inner_suffix, open_text
from editenv.data.spreadsheets import spreadsheet_rows
from editenv.data.text import printable

LARGEST_RECORD = 2**24
"""Characters one record may have; more is taken for a file that is not what it seems."""

PIECE = 2**16
"""Characters read at a time."""

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".xlsx")
"""Endings of the names of files of records; each but the last may be packed (``.csv.gz``)."""

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
"""What may stand between the columns of a table."""

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
        line: The line of the file that the record begins in, from 1, if that is known.
        id: The name that the record has in the file, if it has one.

    Attributes:
        kind: What is wrong, in a word: ``syntax``, ``encoding``, ``field``, ``unchanged``, ``length``, ``subject``,
            ``duplicate``, ``conflict``, ``leak`` or ``chat`` (the model's template does not take it).
        fatal: Whether the records after it cannot be read either.
    """

    def __init__(
        self,
        file: str,
        record: int,
        what: str,
        field: str | None = None,
        kind: str = "field",
        fatal: bool = False,
        line: int | None = None,
        id: str | None = None,
    ) -> None:
        where = f"{printable(file)}, {place_of(record, line, id)}" + (f", field {field!r}" if field else "")
        super().__init__(f"{where}: {what}")
        self.kind, self.fatal = kind, fatal


def place_of(record: int, line: int | None, id: str | None = None) -> str:
    """``record 3``, with its line where that is another number, and with its id if it has one."""
    about = [f"line {line}"] if line not in (None, record) else []
    about += [f"id {id!r}"] if id is not None else []
    return f"record {record}" + (f" ({', '.join(about)})" if about else "")


class RawRecord(NamedTuple):
    """A record as it stands in a file.

    Attributes:
        number: From 1.
        line: The line that it begins in, from 1; None where that is not counted (in a JSON array).
        content: By field; an error in its place if it could not be read.
    """

    number: int
    line: int | None
    content: "dict[str, Any] | BadRecordError"


def read_records(path: Path) -> Iterator[RawRecord]:
    """Each record; one that cannot be read is yielded as a :class:`BadRecordError`.

    ``.csv``, ``.tsv`` and ``.xlsx`` are read as a table with a header row; anything else as a JSON array of objects, one object a
    line, or one object. ``.gz`` is unpacked on the way (:mod:`editenv.data.opening`).

    Raises:
        ValueError: If the file is empty, a directory, or no text.
        FileNotFoundError: If there is none.
        ImportError: If it is a spreadsheet, and the library that reads it is not installed.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a file of records")
    if path.suffix.lower() == ".xlsx":
        number = 0
        for number, row, record in spreadsheet_rows(path):
            yield RawRecord(number, row, _checked_text(record, path.name, number, row))
        if number == 0:
            raise ValueError(f"{path} holds no records")
        return
    is_table = inner_suffix(path) in (".csv", ".tsv")
    with open_text(path, newline="" if is_table else None) as file:  # csv wants to see line ends as they are
        number = 0
        try:
            if is_table:
                records = _table(file, path.name)
            elif _first_character(file) == "[":
                records = _json_array(file, path.name)
            else:
                records = _json_lines(file, path.name)
            for number, line, record in records:
                yield RawRecord(number, line, _checked_text(record, path.name, number, line))
        except UnicodeDecodeError as error:
            what = f"is not {error.encoding} text, as the file begins: save it as UTF-8"
            yield _fatal(path.name, number + 1, what, "encoding")
        except (EOFError, OSError, zlib.error) as error:
            yield _fatal(path.name, number + 1, f"cannot be read: the file is cut off or damaged ({error})", "syntax")
        else:
            if number == 0:
                raise ValueError(f"{path} holds no records")


def _fatal(name: str, number: int, what: str, kind: str) -> RawRecord:
    return RawRecord(number, None, BadRecordError(name, number, what, kind=kind, fatal=True))


def _checked_text(record: Any, name: str, number: int, line: int | None) -> "dict[str, Any] | BadRecordError":
    """The record, or an error in its place if it has no fields or is not UTF-8."""
    if isinstance(record, BadRecordError):
        return record
    if not isinstance(record, dict):
        what = f"is a {type(record).__name__}, not an object with named fields"
        return BadRecordError(name, number, what, kind="syntax", line=line)
    for field, value in record.items():
        try:
            json.dumps([field, value], ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            shown = field.encode("ascii", "replace").decode()
            what = "is not UTF-8 text; save the file as UTF-8"
            return BadRecordError(name, number, what, shown, kind="encoding", line=line)
    return record


def _first_character(file: TextIO) -> str:
    """The first character that is not white space; the file is at its start again."""
    while (character := file.read(1)).isspace():
        pass
    file.seek(0)
    return character


def _json_lines(file: TextIO, name: str) -> Iterator[tuple[int, int | None, Any]]:
    number = line_number = 0
    while line := file.readline(LARGEST_RECORD):
        line_number += 1
        if not line.strip():
            continue
        number += 1
        if len(line) == LARGEST_RECORD:
            error = BadRecordError(name, number, _TOO_LONG, kind="syntax", fatal=True, line=line_number)
            yield number, line_number, error
            return
        try:
            yield number, line_number, json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == 1 and (records := _objects_over_lines(file, line_number)):
                yield from records
                return
            what = f"is not JSON ({error}); a file has one JSON array of objects, or one object a line"
            yield number, line_number, BadRecordError(name, number, what, kind="syntax", line=line_number)


def _objects_over_lines(file: TextIO, broken_line: int) -> list[tuple[int, int | None, Any]]:
    """The objects of a file in which one object goes over several lines, as it is printed for people; empty if it is no
    such file.

    Args:
        file: A file of which one line is no JSON. Its position is afterwards what it was, if nothing is returned.
        broken_line: The number of that line, from 1.
    """
    file.seek(0)
    text = file.read(LARGEST_RECORD + 1)
    objects: list[tuple[int, int | None, Any]] = []
    position, decoder = 0, json.JSONDecoder()
    try:
        while len(text) <= LARGEST_RECORD and (rest := text[position:].lstrip()):
            position = len(text) - len(rest)
            line = 1 + text.count("\n", 0, position)
            value, position = decoder.raw_decode(text, position)
            objects.append((len(objects) + 1, line, value))
        return objects
    except (ValueError, RecursionError):
        file.seek(0)
        for _ in range(broken_line):
            file.readline(LARGEST_RECORD)
        return []


def _json_array(file: TextIO, name: str) -> Iterator[tuple[int, int | None, Any]]:
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
            yield number, None, BadRecordError(name, number, str(error), kind="syntax", fatal=True)
            return
        yield number, None, record
    if rest := text.after_the_end():
        what = f"comes after the end of the array: {rest[:40]!r}"
        yield number + 1, None, BadRecordError(name, number + 1, what, kind="syntax", fatal=True)


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


def _table(file: TextIO, name: str) -> Iterator[tuple[int, int | None, Any]]:
    """Rows of CSV, by the names in the header; the columns may be separated by tabs or semicolons as well."""
    separator = _separator_of(file, name)
    reader = csv.DictReader(file, strict=True, delimiter=separator)
    if error := _header_error(reader, name):
        yield 1, None, error
        return
    number = 0
    while True:
        number += 1
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            what = f"is not CSV ({error})"
            yield number, line, BadRecordError(name, number, what, kind="syntax", fatal=True, line=line)
            return
        # A row ends in the line that was read last, and has the line ends of its cells in it.
        cells = [cell for cell in row.values() if isinstance(cell, str)]
        line = reader.line_num - sum(cell.count("\n") for cell in cells)
        if None in row:
            what = f"has more cells than the header has columns: {row[None]!r}"
            yield number, line, BadRecordError(name, number, what, kind="syntax", line=line)
        elif None in row.values():
            empty = next(column for column, value in row.items() if value is None)
            what = "has no cell in this column"
            yield number, line, BadRecordError(name, number, what, str(empty), kind="syntax", line=line)
        else:
            yield number, line, row


def _separator_of(file: TextIO, name: str) -> str:
    """What separates the columns: what the file's name says, unless the header is then a single column and another
    separator makes several of it. The file is at its start again.
    """
    header = file.readline(LARGEST_RECORD)
    file.seek(0)
    usual = "\t" if inner_suffix(Path(name)) == ".tsv" else ","
    others = [separator for separator in SEPARATORS if separator != usual and separator in header]
    return others[0] if usual not in header and len(others) == 1 else usual


def _header_error(reader: "csv.DictReader[str]", name: str) -> BadRecordError | None:
    """What is wrong with the header, if anything is; without it no row can be read."""
    try:
        columns = list(reader.fieldnames or ())
    except csv.Error as error:
        return BadRecordError(name, 1, f"is not CSV ({error})", kind="syntax", fatal=True)
    if repeated := sorted({column for column in columns if column and columns.count(column) > 1}):
        what = "stands in the header twice: only one of them could be read"
        return BadRecordError(name, 1, what, repeated[0], kind="syntax", fatal=True)
    between = [words for separator, words in SEPARATORS.items() if len(columns) == 1 and separator in columns[0]]
    if between:
        what = f"the header {columns[0]!r} is one column: are {' or '.join(between)} the separator? Use one of them"
        return BadRecordError(name, 1, what, kind="syntax", fatal=True)
    return None
