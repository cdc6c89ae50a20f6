from dataclasses import replace
from pathlib import Path

import pytest
from test_records import RECORD

from benchmarks.documents import Args, main, rewritten
from benchmarks.results.records import append

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PAGE = """# Results

<!-- table: found.jsonl smoke -->
| agent | stale |
<!-- end -->
Between the tables.
<!-- details: found.jsonl smoke -->
<!-- end -->
The end.
"""


@pytest.fixture
def document(tmp_path):
    scores = {"efficacy": 12.34, "generalization": 50.0, "specificity": 100.0}
    append(tmp_path / "found.jsonl", replace(RECORD, suite="smoke", teacher_forced=scores))
    append(tmp_path / "found.jsonl", replace(RECORD, suite="other", agent="elsewhere"))
    path = tmp_path / "page.md"
    path.write_text(PAGE, encoding="utf-8")
    return path


def test_a_documents_tables_are_what_the_records_say():
    """Those between comments."""
    for path in (ROOT / "README.md", *sorted(RESULTS.glob("*.md"))):
        assert rewritten(path) == path.read_text(encoding="utf-8"), f"python -m benchmarks.documents {path}"


def test_the_main_files_are_shown():
    shown = "".join(path.read_text(encoding="utf-8") for path in RESULTS.glob("*.md"))
    for name in ("atlas-50x20", "atlas-400x20", "methods-50x20", "ablations-20x100", "real"):
        assert f"<!-- table: {name}.jsonl" in shown


def test_only_what_is_between_the_comments_changes(document, capsys):
    assert main(Args(documents=(document,), check=True)) == 1
    assert document.read_text(encoding="utf-8") == PAGE
    assert str(document) in capsys.readouterr().out
    assert main(Args(documents=(document,))) == 0
    text = document.read_text(encoding="utf-8")
    assert "stale" not in text
    assert "| no-edit | 1 | 12.3 / 50.0 / 100.0 |" in text
    assert "elsewhere" not in text
    assert text.startswith("# Results\n\n<!-- table: found.jsonl smoke -->\n| agent |")
    assert "|\n<!-- end -->\nBetween the tables.\n<!-- details: found.jsonl smoke -->\n| agent |" in text
    assert text.endswith("|\n<!-- end -->\nThe end.\n")
    assert main(Args(documents=(document,), check=True)) == 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("table: found.jsonl smoke", "tables: found.jsonl smoke", "line 3: must be"),
        ("table: found.jsonl smoke", "table: found.jsonl", "line 3: must be"),
        ("details: found.jsonl smoke", "details: found.jsonl smoke nil", "line 7: found.jsonl holds no record of suite 'nil'"),
        ("details: found.jsonl smoke", "details: found.jsonl smoky", "line 7: found.jsonl holds no record of suite 'smoky'"),
        ("stale |\n<!-- end -->", "stale |", "line 3: the table has no"),
        ("<!-- end -->\nThe end.", "The end.", "line 7: the table has no"),
        ("table: found.jsonl", "table: lost.jsonl", "lost.jsonl"),
    ],
)  # fmt: skip
def test_a_comment_that_cannot_be_followed_is_named_and_nothing_is_written(document, old, new, message):
    page = PAGE.replace(old, new)
    assert page != PAGE
    document.write_text(page, encoding="utf-8")
    with pytest.raises(SystemExit, match=message):
        main(Args(documents=(document,)))
    assert document.read_text(encoding="utf-8") == page
