"""A file of records as text, whatever it is packed and encoded in; what cannot be read is named, with what would be
right.

Text is UTF-8, or UTF-16 or UTF-32 with a byte order mark; gzip is unpacked on the way.
"""

import codecs
import gzip
import io
from pathlib import Path
from typing import IO, TextIO, cast

_GZIP = b"\x1f\x8b"
_UNPACK = "unpack it and name the file in it"
_AS_CSV = "save it as CSV (UTF-8), or as JSON lines"

_OTHER_KINDS = (
    (b"PK\x03\x04", "a zip archive (or a spreadsheet: .xlsx, .ods)", f"{_UNPACK}; of a spreadsheet, {_AS_CSV}"),
    (b"\xd0\xcf\x11\xe0", "a spreadsheet of an old Excel", _AS_CSV),
    (b"PAR1", "a Parquet file", "write it as JSON lines, as pandas' to_json(orient='records', lines=True) does"),
    (b"ARROW1", "an Arrow file", "write it as JSON lines, as pandas' to_json(orient='records', lines=True) does"),
    (b"SQLite format 3\0", "an SQLite data base", "write its table as CSV or as JSON lines"),
    (b"BZh", "packed by bzip2", _UNPACK),
    (b"\xfd7zXZ\0", "packed by xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed by zstd", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"%PDF", "a PDF", "a file of edits is JSON, JSON lines or CSV"),
    (b"GGUF", "a model in GGUF form", "a file of edits is JSON, JSON lines or CSV"),
    (b"\x80", "a Python pickle", "a file of edits is JSON, JSON lines or CSV"),
)
"""First bytes of files that are no text, what they are, and what to do."""

_BYTE_ORDER_MARKS = (  # UTF-32's first: it begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def inner_suffix(path: Path) -> str:
    """The ending of a file's name in small letters, without the ``.gz`` of a packed one."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def open_text(path: Path, newline: str | None) -> TextIO:
    """Opens a file for reading.

    Bytes that are not UTF-8 are carried through as lone surrogates.

    Args:
        path: The file.
        newline: As of :func:`open`.

    Raises:
        ValueError: If it is no text, or in an encoding that cannot be told; says what it is.
        FileNotFoundError: If there is none.
    """
    file: IO[bytes] = path.open("rb")
    try:
        if file.peek(2)[:2] == _GZIP:  # type: ignore[attr-defined]  # a BufferedReader has it
            file = cast(IO[bytes], gzip.open(file))  # noqa: SIM115 - closed with the text that is returned
        encoding = _encoding_of(file.read(64), path)
        file.seek(0)
    except (OSError, EOFError) as error:
        file.close()
        raise ValueError(f"{path}: its gzip packing is damaged ({error})") from None
    except BaseException:
        file.close()
        raise
    errors = "surrogateescape" if encoding == "utf-8-sig" else "strict"
    return io.TextIOWrapper(file, encoding=encoding, errors=errors, newline=newline)


def _encoding_of(start: bytes, path: Path) -> str:
    """The encoding of a text by its first bytes.

    Raises:
        ValueError: If it is no text, or cannot be told.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if start.startswith(mark):
            return encoding
    for magic, what, advice in _OTHER_KINDS:
        if start.startswith(magic):
            raise ValueError(f"{path} is {what}, not a file of records: {advice}")
    if any(start[first::2].count(0) > len(start) // 4 for first in (0, 1)):
        raise ValueError(f"{path} looks like UTF-16 without a byte order mark: save it as UTF-8")
    return "utf-8-sig"  # takes UTF-8's mark away
