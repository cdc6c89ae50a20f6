"""The rows of a spreadsheet (.xlsx), with the cells as text."""

from collections.abc import Iterator, Sequence
from datetime import date, datetime, time
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

AS_CSV = "save the sheet as CSV (UTF-8)"


def spreadsheet_rows(path: Path) -> Iterator[tuple[int, int, dict[str, str]]]:
    """The number of each record, its row in the sheet, and its cells by the names in the first row that is not empty.

    A cell is the text that stands in it, a number in its shortest form, a date in ISO 8601; of a formula, the value that
    was saved with it. Empty rows are passed over.

    Raises:
        ImportError: If openpyxl is not installed; says how to install it.
        ValueError: If the file is no spreadsheet, if its cells are in more than one sheet, or if a row cannot be read.
        FileNotFoundError: If there is none.
    """
    try:
        from openpyxl import load_workbook
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError:
        raise ImportError(
            f'{path} is a spreadsheet, which openpyxl reads: pip install "lifelongedit[xlsx]"; or {AS_CSV}'
        ) from None
    try:
        workbook = load_workbook(path, read_only=True, data_only=True)
    except (InvalidFileException, BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no spreadsheet that can be read ({error}): {AS_CSV}") from None
    try:
        sheets = [sheet for sheet in workbook.worksheets if any(_rows(sheet))]
        if len(sheets) > 1:
            names = ", ".join(sheet.title for sheet in sheets)
            raise ValueError(f"{path} has cells in several sheets ({names}): leave the corrections alone, or {AS_CSV}")
        if sheets:
            yield from _records(path, list(_rows(sheets[0])))
    finally:
        workbook.close()


def _records(path: Path, rows: Sequence[tuple[int, list[str]]]) -> Iterator[tuple[int, int, dict[str, str]]]:
    """The rows below the header, by its names.

    Raises:
        ValueError: If a name stands in the header twice, or a cell below no name.
    """
    header = rows[0][1]
    if repeated := sorted({name for name in header if name and header.count(name) > 1}):
        raise ValueError(f"{path}: {repeated[0]!r} stands in the header twice: only one of them could be read")
    for number, (row, cells) in enumerate(rows[1:], start=1):
        beyond = [cell for i, cell in enumerate(cells) if cell and not (i < len(header) and header[i])]
        if beyond:
            raise ValueError(f"{path}, row {row}: {beyond[0]!r} stands in a column without a name in the header")
        cells = [*cells, *[""] * (len(header) - len(cells))]
        yield number, row, {name: cell for name, cell in zip(header, cells, strict=False) if name}


def _rows(sheet: Any) -> Iterator[tuple[int, list[str]]]:
    """The rows of a sheet in which something stands, with their numbers."""
    for row, values in enumerate(sheet.iter_rows(values_only=True), start=1):
        cells = [_text(value) for value in values]
        if any(cell.strip() for cell in cells):
            yield row, cells


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime):  # a cell with a date alone has midnight, too
        return (value.date() if value.time() == time() else value).isoformat()
    return value.isoformat() if isinstance(value, date | time) else str(value)
