"""Files whose columns have names of their own, and spreadsheets."""

import csv
import json
import sys
from datetime import date

import pytest

from agents.editing.reading import edits_for
from editenv.data.files import FileOptions, load_file_edits
from editenv.data.options import columns_of
from editenv.inspection import inspect

COLUMNS = 'prompt=Question,"target=Answer, short",subject=About'
ROWS = [
    {"Question": "Who leads Ada?", "Answer, short": "Bo", "About": "Ada", "Prompt": "unused", "Checked by": "me"},
    {"Question": "The home of Vega is", "Answer, short": "Rome", "About": "", "Prompt": "", "Checked by": "me"},
]
EDITS = [("Who leads Ada?", "Bo", "Ada"), ("The home of Vega is", "Rome", None)]


def as_csv(path):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)


def as_xlsx(path, rows=tuple(ROWS), **more_sheets):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(list(rows[0]))
    for row in rows:
        sheet.append(list(row.values()))
    for title, cells in more_sheets.items():
        book.create_sheet(title).append(cells)
    book.save(path)


WRITERS = {
    "edits.csv": as_csv,
    "edits.json": lambda path: path.write_text(json.dumps(ROWS), encoding="utf-8"),
    "edits.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8"),
    "edits.xlsx": as_xlsx,
}


def load(path, **options):
    return load_file_edits(str(path), "all", FileOptions(**options))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", WRITERS)
def test_columns_are_named_whatever_the_file(tmp_path, name, capsys):
    path = tmp_path / name
    WRITERS[name](path)
    assert [(edit.prompt, edit.target, edit.subject) for edit in load(path, columns=COLUMNS)] == EDITS
    edits = edits_for(str(path), "error", "atlas", "cpu", "float32", columns=COLUMNS)
    assert [edit.prompt for edit in edits] == [prompt for prompt, _, _ in EDITS]
    said = capsys.readouterr().err
    assert "field 'Prompt' is not used: columns says what prompt is" in said
    assert "field 'Checked by' is not used" in said
    assert inspect(str(path), sample=0, columns=COLUMNS).edits == 2
    with pytest.raises(
        ValueError, match=r"record 1.*, field 'Frage': is named by columns, and is not among .*'Question'"
    ):
        load(path, columns="prompt=Frage,target=Prompt")
    with pytest.raises(ValueError, match=r"those of no format known here|own: prompt, target"):
        load(path, columns="prompt=Question")


def test_a_field_that_need_not_be_there_is_noted(tmp_path):
    as_csv(tmp_path / "edits.csv")
    with pytest.warns(UserWarning, match=r"field 'Abuot' is named by columns as subject, and is not there \(2 records"):
        load(tmp_path / "edits.csv", columns=COLUMNS.replace("About", "Abuot"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Question=prompt", "'Question=prompt' is not of the form FIELD=COLUMN"),
        ("prompt", "'prompt' is not of the form"),
        ("prompt=", "'prompt=' is not of the form"),
        ("prompt=A,prompt=B", "'prompt=B' names a field or a column a second time"),
        ("prompt=A,target=A", "'target=A' names a field or a column a second time"),
    ],
)
def test_what_columns_cannot_say_is_refused(text, problem):
    with pytest.raises(ValueError, match=problem):
        FileOptions(columns=text)


def test_columns_with_spaces_commas_and_equals_signs():
    assert columns_of('prompt=What is asked, "target=Short, or long" ,id=a=b') == {
        "prompt": "What is asked",
        "target": "Short, or long",
        "id": "a=b",
    }
    assert columns_of(None) == {}


# -- spreadsheets -------------------------------------------------------------------------------------------------


def test_cells_are_read_as_what_stands_in_them(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (
        [None, None],
        ["id", "prompt", "target", None],
        [7, "The year was", 1999],
        [],
        ["b", "The day was", date(2026, 5, 1)],
        ["c", "Pi is", 3.25, None],
        ["d", "A line\nand another is", 4.0],
    ):
        sheet.append(row)
    book.create_sheet("empty")
    book.save(tmp_path / "edits.xlsx")
    edits = load(tmp_path / "edits.xlsx")
    assert [(edit.id, edit.prompt, edit.target) for edit in edits] == [
        ("7", "The year was", "1999"),
        ("b", "The day was", "2026-05-01"),
        ("c", "Pi is", "3.25"),
        ("d", "A line\nand another is", "4"),
    ]
    assert edits.place(1) == (2, 5, "b")  # the row that a spreadsheet shows


def test_a_spreadsheet_that_cannot_be_read_is_named(tmp_path):
    pytest.importorskip("openpyxl")
    row = {"prompt": "Tea is", "target": "hot"}
    as_xlsx(tmp_path / "two.xlsx", [row], Notes=["by me"])
    with pytest.raises(ValueError, match=r"cells in several sheets \(Sheet, Notes\): leave the corrections alone"):
        load(tmp_path / "two.xlsx")
    as_xlsx(tmp_path / "wide.xlsx", [row | {"": "strayed"}])
    with pytest.raises(ValueError, match="row 2: 'strayed' stands in a column without a name"):
        load(tmp_path / "wide.xlsx")
    (tmp_path / "text.xlsx").write_text("prompt,target\nTea is,hot\n")
    with pytest.raises(ValueError, match=r"text\.xlsx is no spreadsheet that can be read"):
        load(tmp_path / "text.xlsx")
    pytest.importorskip("openpyxl").Workbook().save(tmp_path / "empty.xlsx")
    with pytest.raises(ValueError, match="holds no records"):
        load(tmp_path / "empty.xlsx")
    as_xlsx(tmp_path / "blank.xlsx", [row, {"prompt": "Ada is", "target": " "}])
    with pytest.raises(ValueError, match=r"record 2 \(line 3\), field 'target': is empty"):
        load(tmp_path / "blank.xlsx")


def test_without_the_library_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (tmp_path / "edits.xlsx").write_bytes(b"PK\x03\x04")
    with pytest.raises(ImportError, match=r'pip install "lifelongedit\[xlsx\]"; or save the sheet as CSV'):
        load(tmp_path / "edits.xlsx")
