from dataclasses import replace
from pathlib import Path

import pytest
from test_records import RECORD as BARE
from test_rl import RUN

from benchmarks.documents import Args, main, rewritten
from benchmarks.results.records import append

RECORD = replace(BARE, commit="a" * 40, hardware={"processor": "one"})
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
    for path in (ROOT / "README.md", *sorted(RESULTS.glob("*.md")), *sorted((ROOT / "docs/reference").glob("*.md"))):
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
        ("table: found.jsonl smoke", "table: found.jsonl agents=no-edit", "line 3: must be"),
        ("jsonl smoke -->\n<", "jsonl smoke agents=no-edit,nil -->\n<",
         "line 7: found.jsonl holds no record of agent 'nil' there; it has no-edit"),
        ("jsonl smoke -->\n<", "jsonl smoke agents=elsewhere -->\n<", "line 7: .*no record of agent 'elsewhere'"),
        ("jsonl smoke -->\n<", "jsonl smoke agents= -->\n<", "line 7: found.jsonl holds no record of agent ''"),
        ("jsonl smoke -->\n<", "jsonl smoke agents=no-edit,no-edit -->\n<", "line 7: agents= names 'no-edit' twice"),
        ("jsonl smoke -->\n<", "jsonl smoke agents=no-edit agents=no-edit -->\n<", "line 7: must be"),
        ("table: found.jsonl smoke", "rl: found.jsonl smoke", "line 3: must be '<!-- rl: FILE TABLE -->', TABLE being"),
    ],
)  # fmt: skip
def test_a_comment_that_cannot_be_followed_is_named_and_nothing_is_written(document, old, new, message):
    page = PAGE.replace(old, new)
    assert page != PAGE
    document.write_text(page, encoding="utf-8")
    with pytest.raises(SystemExit, match=message):
        main(Args(documents=(document,)))
    assert document.read_text(encoding="utf-8") == page


def rows_of(path, comment):
    path.write_text(f"<!-- {comment} -->\n<!-- end -->\n", encoding="utf-8")
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in rewritten(path).splitlines()[1:-1]]


def test_the_rows_that_are_named_come_alone_and_in_their_order(tmp_path):
    for agent in ("no-edit", "rome", "memit", "prune"):
        append(tmp_path / "found.jsonl", replace(RECORD, suite="smoke", agent=agent))
    append(tmp_path / "found.jsonl", replace(RECORD, suite="smoke", agent="memit", seed=1))
    for kind in ("table", "summary", "scores", "times"):
        heading, _, *rows = rows_of(tmp_path / "page.md", f"{kind}: found.jsonl smoke agents=prune,memit")
        assert [row[0] for row in rows] == ["prune", "memit"]
        assert {len(row) for row in rows} == {len(heading)}
    assert [row[:2] for row in rows_of(tmp_path / "page.md", "scores: found.jsonl smoke agents=memit,rome")[2:]] == [
        ["memit", "2"],
        ["rome", "1"],
    ]


def test_rows_of_several_files_stand_in_one_table(tmp_path):
    append(tmp_path / "found.jsonl", replace(RECORD, suite="smoke", agent="rome"))
    append(tmp_path / "others.jsonl", replace(RECORD, suite="smoke", agent="memit"))
    comment = "scores: found.jsonl+others.jsonl smoke agents=memit,rome"
    assert [row[0] for row in rows_of(tmp_path / "page.md", comment)[2:]] == ["memit", "rome"]


def test_where_an_answer_is_judged_by_its_beginning_the_best_row_is_first(tmp_path):
    for agent, figure in (("bare", None), ("middling", 20.0), ("best", 70.0), ("worst", 10.0)):
        begun = None if figure is None else dict.fromkeys(("efficacy", "generalization", "specificity"), figure)
        append(tmp_path / "found.jsonl", replace(RECORD, suite="smoke", agent=agent, generation_prefix=begun))
    _, _, *rows = rows_of(tmp_path / "page.md", "begun: found.jsonl smoke")
    assert [row[0] for row in rows] == ["best", "middling", "worst", "bare"]


def test_scores_have_a_column_for_each_figure(tmp_path):
    first = {"efficacy": 100.0, "generalization": 50.0, "specificity": 25.0}
    second = {"efficacy": 50.0, "generalization": 50.0, "specificity": 75.0}
    said = {"efficacy": 10.0, "generalization": None, "specificity": 30.0}
    for seed, scores in enumerate((first, second)):
        record = replace(RECORD, suite="smoke", seed=seed, teacher_forced=scores, generation=said, floor_ratio=1.5)
        append(tmp_path / "found.jsonl", record)
    append(tmp_path / "found.jsonl", replace(RECORD, suite="smoke", agent="fever", teacher_forced=said))
    heading, _, row, lacking = rows_of(tmp_path / "page.md", "scores: found.jsonl smoke")
    low, high = 3 / (1 / 100 + 1 / 50 + 1 / 25), 3 / (1 / 50 + 1 / 50 + 1 / 75)
    assert dict(zip(heading, row, strict=True)) == {
        "row": "no-edit",
        "seeds": "2",
        "efficacy": "75.0",
        "generalization": "50.0",
        "specificity": "50.0",
        "mean": f"{(low + high) / 2:.1f} [{low:.1f}, {high:.1f}]",
        "mean, freely generated": "15.0 [15.0, 15.0]",  # of 10 and 30
        "edit time / floor": "1.50",
    }
    assert lacking[2:5] == ["10.0", "-", "30.0"]
    heading, _, row, _ = rows_of(tmp_path / "page.md", "generated: found.jsonl smoke")
    assert row[2:5] == ["10.0", "-", "30.0"]
    assert dict(zip(heading, row, strict=True))["mean"] == "15.0 [15.0, 15.0]"
    assert (
        dict(zip(heading, row, strict=True))["mean, teacher-forced"]
        == f"{(low + high) / 2:.1f} [{low:.1f}, {high:.1f}]"
    )


def test_runs_of_reinforcement_learning_are_shown_after_equal_steps_or_by_learning_rate(tmp_path):
    scores = {"efficacy": 1.0, "generalization": 2.0, "specificity": 3.0}
    points = [{"steps": float(x), "seconds": 1.0, "episode_return": 7.5} | scores for x in (0, 100)]
    append(tmp_path / "rl.jsonl", replace(RUN, steps=100, points=points))
    heading, _, row = rows_of(tmp_path / "page.md", "rl: rl.jsonl steps")
    assert heading[:4] == ["return after", "seeds", "0", "100"]
    assert row[:4] == ["rledit", "1", "7.50", "7.50"]
    assert rows_of(tmp_path / "page.md", "rl: rl.jsonl choice")[2] == ["rledit", "7.50", "1"]


def test_rows_whose_records_do_not_say_where_they_come_from_are_marked(document):
    append(document.parent / "found.jsonl", replace(BARE, suite="bare", agent="elsewhere"))
    document.write_text("<!-- scores: found.jsonl smoke bare -->\n<!-- end -->\n", encoding="utf-8")
    table, _, note = rewritten(document).partition("\n\n")
    assert "\n| no-edit | 1 |" in table
    assert "\n| elsewhere † | 1 |" in table
    assert note.startswith("† Of the records")
    document.write_text("<!-- scores: found.jsonl smoke -->\n<!-- end -->\n", encoding="utf-8")
    assert "†" not in rewritten(document)


def test_pairs_of_rows_are_compared_by_stream(document):
    append(document.parent / "found.jsonl", replace(RECORD, suite="smoke", agent="other"))
    begin = "<!-- differences: found.jsonl smoke pairs=other:no-edit"
    document.write_text(f"{begin} -->\n<!-- end -->\n", encoding="utf-8")
    assert "\n| other - no-edit | 1 | +" in rewritten(document)
    for wrong, message in (
        (":", "A:B"),
        ("", "A:B"),
        ("other:nil", "no row 'nil'"),
        ("other:no-edit pairs=a:b", "must be"),
    ):
        document.write_text(f"<!-- differences: found.jsonl smoke pairs={wrong} -->\n<!-- end -->\n", encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            rewritten(document)
    document.write_text("<!-- differences: found.jsonl smoke -->\n<!-- end -->\n", encoding="utf-8")
    with pytest.raises(ValueError, match="must be"):
        rewritten(document)
