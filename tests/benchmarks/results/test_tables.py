from dataclasses import replace

import pytest
from test_records import RECORD

from benchmarks.documents import as_scores
from benchmarks.results.figures import draw_retention
from benchmarks.results.leaderboard import entries
from benchmarks.results.statistics import Estimate
from benchmarks.results.tables import (
    COLUMNS,
    as_details,
    as_differences,
    as_intervals,
    as_markdown,
    as_means,
    as_portability,
    as_times,
    markdown,
    one_line,
    readable,
    show,
    with_interval,
)


def scores(efficacy, generalization, specificity):
    return {"efficacy": efficacy, "generalization": generalization, "specificity": specificity}


def cells(records):
    """The texts of the main table by the keys of its columns, one dictionary a row."""
    return [{column.key: column.text(entry) for column in COLUMNS} for entry in entries(records)]


def test_a_table_says_what_rows_change_where_that_is_not_weights_alone():
    rows = [replace(RECORD, agent=agent) for agent in ("fine-tune", "grace@mine", "my.py:Mine")]
    for table in (as_markdown, as_times, as_scores):
        assert "changes" not in table(rows[:1])
        heading, _, *lines = table(rows).splitlines()
        column = heading.split(" | ").index("changes")
        assert {line.split(" | ")[0].strip("| "): line.split(" | ")[column] for line in lines} == {
            "fine-tune": "weights", "grace@mine": "side memory", "my.py:Mine": "-"
        }  # fmt: skip


def test_an_estimate_is_shown_with_what_is_known_of_it():
    assert with_interval(Estimate(78.06, (77.0, 79.25))) == "78.1 [77.0, 79.2]"
    assert with_interval(Estimate(0.5), 2) == "0.50"
    assert with_interval(Estimate(-0.001, (-0.004, 0.2)), 2) == "0.00 [0.00, 0.20]"
    assert with_interval(None) == "-"


@pytest.mark.parametrize(
    ("number", "digits", "text"),
    [(17.846, 2, "17.85"), (0.0421, 3, "0.042"), (-233.46, 1, "-233.5"), (999.4, 2, "999.40"), (2001.36, 2, "2001"),
     (9999.2, 1, "9999"), (15753.33, 2, "1.6e4"), (-703307869.6, 1, "-7.0e8"), (3.413261662569697e24, 2, "3.4e24"),
     (2.5e100, 2, "2.5e100")],
)  # fmt: skip
def test_a_large_number_can_be_read(number, digits, text):
    assert readable(number, digits) == text
    assert float(text) == pytest.approx(number, rel=0.05)


def test_a_cell_cannot_leave_its_column():
    from markdown_it import MarkdownIt

    names = ["a | b", "<script>alert(1)</script>", "`code", "line\nend", "back\\|slash", "[x](javascript:alert(1))"]
    html = MarkdownIt("commonmark").enable("table").render(markdown(["agent", "n"], [[name, "1"] for name in names]))
    assert html.count("<td>") == 2 * len(names)
    assert html.count("<tr>") == 1 + len(names)
    assert "<script" not in html
    assert "<a " not in html
    assert "a | b" in html


def test_rows_are_interquartile_means_over_seeds():
    first = replace(RECORD, teacher_forced=scores(100.0, 50.0, 25.0), failures=1, edit_seconds=0.001)
    second = replace(RECORD, seed=1, teacher_forced=scores(50.0, 50.0, 75.0), failures=2, edit_seconds=0.003)
    other = replace(RECORD, agent="fine-tune", generation=scores(0.0, 10.0, 20.0))
    row, other_row = cells([first, other, second])
    assert (row["agent"], row["seeds"], other_row["agent"], other_row["seeds"]) == ("no-edit", "2", "fine-tune", "1")
    assert row["teacher_forced"] == "75.0 / 50.0 / 50.0"
    low, high = 3 / (1 / 100 + 1 / 50 + 1 / 25), 3 / (1 / 50 + 1 / 50 + 1 / 75)
    assert row["teacher_forced_mean"] == f"{(low + high) / 2:.1f} [{low:.1f}, {high:.1f}]"
    assert row["immediate"] == "90.0 / 45.5 / 100.0"
    assert row["milliseconds"] == "2.00"
    assert row["failures"] == "3"
    assert other_row["generation_mean"] == "0.0", "one seed has no interval"


def test_each_figure_has_its_interval_where_there_are_two_seeds():
    first = replace(RECORD, teacher_forced=scores(100.0, 50.0, 25.0), generation=scores(10.0, None, 30.0))
    second = replace(RECORD, seed=1, teacher_forced=scores(50.0, 50.0, 75.0), generation=scores(20.0, None, 30.0))
    head, _, *lines = as_intervals([first, second, replace(RECORD, agent="fine-tune")]).splitlines()
    assert [cell.strip() for cell in head.strip("| ").split("|")][2:] == [
        f"{protocol} {metric}" for protocol in ("teacher-forced", "generation") for metric in ("Eff", "Gen", "Spe")
    ]
    (line,) = lines
    assert [cell.strip() for cell in line.strip("| ").split("|")] == [
        *("no-edit", "2", "75.0 [50.0, 100.0]", "50.0 [50.0, 50.0]", "50.0 [25.0, 75.0]"),
        *("15.0 [10.0, 20.0]", "-", "30.0 [30.0, 30.0]"),
    ]


def test_rows_are_compared_on_the_same_streams():
    values = {"a": (11.0, 52.0, 36.0), "b": (10.0, 50.0, 30.0)}
    records = [
        replace(RECORD, agent=agent, seed=seed, teacher_forced=scores(value, value, value))
        for agent, row in values.items()
        for seed, value in enumerate(row)
    ]
    lone = replace(RECORD, agent="c", seed=5)
    head, _, line, back = as_differences([*records, lone], [("a", "b"), ("b", "a")]).splitlines()
    assert head.count("|") == 5
    assert line == "| a - b | 3 | +3.0 [-3.6, +9.6] | +0.0 [+0.0, +0.0] |"
    assert back == "| b - a | 3 | -3.0 [-9.6, +3.6] | +0.0 [+0.0, +0.0] |"
    begun = [replace(r, generation_prefix=scores(2 * r.seed, 2 * r.seed, 2 * r.seed)) for r in records]
    head, _, line = as_differences(begun, [("a", "b")]).splitlines()
    assert head.endswith("| mean, freely begun |")
    assert line == "| a - b | 3 | +3.0 [-3.6, +9.6] | +0.0 [+0.0, +0.0] |"
    assert "freely generated" in as_differences([*begun, lone], [("a", "b")]), "one record does not say it"
    with pytest.raises(ValueError, match="a and c have no stream in common"):
        as_differences([*records, lone], [("a", "c")])
    with pytest.raises(ValueError, match="there is no row 'd'; there are a, b"):
        as_differences(records, [("a", "d")])


def test_means_have_a_column_for_each_suite_the_shorter_stream_first():
    def run(agent, suite, value, seed=0):
        return replace(RECORD, agent=agent, suite=suite, seed=seed, teacher_forced=scores(value, value, value))

    records = [run("no-edit", "atlas-50x20", 2.0), run("no-edit", "atlas-400x20", 1.0)]
    records += [run("rledit", "atlas-400x20", 30.0), run("rledit", "atlas-50x20", 50.0)]
    records += [run("rledit", "atlas-50x20", 60.0, seed=1), run("rledit", "atlas-10x500", 40.0)]
    records += [run("rome", "atlas-50x20", 70.0)]  # on one suite alone
    assert [[cell.strip() for cell in line.strip("| ").split("|")] for line in as_means(records).splitlines()] == [
        ["agent", "50 x 20", "10 x 500", "400 x 20"],
        ["---"] * 4,
        ["no-edit", "2.0", "-", "1.0"],
        ["rledit", "55.0 [50.0, 60.0]", "40.0", "30.0"],
    ]
    assert "| rome | 70.0 |" in as_means(records[-1:])


def test_times_are_with_and_without_the_setup_and_the_fastest_comes_first():
    slow = replace(RECORD, agent="rome", edit_seconds=0.02, floor_ratio=8.0, setup_seconds=4.0)
    fast = replace(RECORD, agent="rledit", edit_seconds=0.001, floor_ratio=0.5, setup_seconds=2.0)
    again = replace(fast, seed=1, edit_seconds=0.003, floor_ratio=1.0, setup_seconds=6.0)
    lines = as_times([slow, fast, again]).splitlines()[2:]
    assert [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines] == [
        ["rledit", "2.0", "0.75", "4", "102.0"],  # 2 ms, and 2 s and 6 s over 40 edits
        ["rome", "20.0", "8.00", "4", "120.0"],
    ]


def test_no_two_columns_have_a_key_in_common():
    assert len({column.key for column in COLUMNS}) == len(COLUMNS)


def test_markdown_has_a_line_for_each_agent():
    lines = as_markdown([RECORD, replace(RECORD, agent="fine-tune")]).splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}
    assert lines[2].startswith("| no-edit |")
    assert lines[3].startswith("| fine-tune |")


def test_each_kind_of_portability_question_has_a_column():
    def asked(agent, seed, **right):
        figures = {kind: {"right": value, "questions": 8} for kind, value in right.items()}
        return replace(RECORD, agent=agent, seed=seed, portability=figures)

    records = [asked("no-edit", 0, two_hop=12.5, yes=40.0), asked("rledit", 0, two_hop=20.0), RECORD]
    records.append(asked("rledit", 1, two_hop=30.0, locality=90.0))
    assert [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in as_portability(records).splitlines()
    ] == [
        ["agent", "seeds", "two hop", "yes", "locality"],
        ["---"] * 5,
        ["no-edit", "2", "12.5", "40.0", "-"],
        ["rledit", "2", "25.0", "-", "90.0"],
    ]


def test_details_have_a_column_for_wild_where_it_was_measured():
    plain = replace(RECORD, drift={"perplexity_before": 17.0, "perplexity": 20.5, "kl": 0.125})
    judged = replace(plain, wild={"efficacy": 30.0, "generalization": None, "specificity": 90.0})
    assert as_details([plain]).splitlines()[0].endswith("| KL |")
    lines = as_details([judged]).splitlines()
    assert lines[0].endswith("| KL | WILD Eff / Gen / Spe |")
    assert lines[2].endswith("| 0.125 | 30.0 / - / 90.0 |")


def test_details_have_columns_for_probes_where_they_were_asked():
    drift = {"perplexity_before": 17.0, "perplexity": 20.5, "kl": 0.125}
    probes = {"negation": 90.0, "negation_before": 95.0, "distractor": 50.0}
    for hops in ("one_hop", "two_hop"):
        probes |= {hops: 12.5, f"{hops}_before": 25.0, f"{hops}_questions": 8}
    plain = replace(RECORD, drift=drift, probes=None)
    probed = replace(plain, agent="fine-tune", probes=probes)
    lines = as_details([plain]).splitlines()
    assert lines[0].endswith("| KL |")
    assert lines[2].endswith("17.00, 20.50 | 0.125 |")
    lines = as_details([plain, probed]).splitlines()
    assert lines[2].endswith("| 0.125 | - | - | - (-; -) | - (-; -) |")
    assert lines[3].endswith("| 0.125 | 90.0 | 50.0 | 12.5 (25.0; 8) | 12.5 (25.0; 8) |")
    assert {line.count("|") for line in lines} == {11}
    broken = replace(plain, drift=drift | {"perplexity": 3413261662569697659322368.0, "kl": 52.9687})
    assert as_details([broken]).splitlines()[2].endswith("17.00, 3.4e24 | 52.969 |")
    lost = replace(broken, seed=1, drift=drift | {"perplexity": None})
    assert as_details([broken, lost]).splitlines()[2].endswith("17.00, not finite | 26.547 |")
    two = replace(plain, model="another", drift=drift | {"perplexity": 30.5})
    lines = as_details([plain, two, replace(two, seed=1), replace(two, seed=2, drift=None)]).splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["1", "2"], "models are rows of their own"
    assert "17.00, 30.50" in lines[3]


def test_one_line_and_show_hold_the_figures(capsys):
    text = one_line(replace(RECORD, generation=scores(12.3, 4.5, 67.8)))
    assert "90.0/45.5/100.0" in text
    assert "12.3/4.5/67.8" in text
    assert "1.00 ms/edit" in text
    show([RECORD])
    shown = capsys.readouterr().out
    assert "no-edit" in shown
    assert "90.0/45.5/100.0" in " ".join(shown.split())
    show([])
    assert capsys.readouterr().out == ""


def test_eighty_characters_are_enough_for_every_heading_and_figure(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    perfect = scores(100.0, 100.0, 100.0)
    costs = {"setup_seconds": 12345.0, "edit_seconds": 12.3, "floor_ratio": 1234.5}
    own = replace(RECORD, agent="my/long/path.py:MyPolicy", teacher_forced=perfect, generation=perfect, **costs)
    show([RECORD, own])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    for text in ("teacher-forced", "generation", "mean", "setup", "ms per", "floor"):
        assert text in shown
    assert "100.0/100.0/100.0 100.0/100.0/100.0 100.0 12345 12300.00 1234.50" in shown
    assert "my/long/path.py:MyPolicy" in shown.splitlines(), "a long name is whole, on a line of its own"


def test_no_name_is_broken_and_those_of_the_project_are_explained_below_the_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    names = (
        "no-edit",
        "untrained-p-k4",
        "rledit-p@smollm2-135m",
        "my_method.py:MyMethod@./mine",
        "methode:\u6587\u5b57",
    )
    show([replace(RECORD, agent=name) for name in names])
    table, _, legend = capsys.readouterr().out.partition("\n\nno-edit: ")
    lines = table.splitlines()
    assert all(sum(line.startswith(name) for line in lines) == 1 for name in names)
    assert max(map(len, [*lines, *legend.splitlines()])) <= 80
    figures = [line for line in lines if "90.0/45.5/100.0" in line]
    assert len(figures) == len(names)
    assert len({len(line) + line.count("\u6587") + line.count("\u5b57") for line in figures}) == 1, (
        "figures are aligned"
    )
    assert "untrained-p-k4: the untrained network with P, four actions" in legend
    assert "rledit-p@smollm2-135m: RLEdit with P; settings of smollm2-135m" in legend
    assert "P: a preconditioner" in legend
    assert "my_method" not in legend


def test_a_wide_terminal_has_each_row_in_one_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    show([replace(RECORD, agent="my_method.py:MyMethod@./mine")])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "my_method" in line]
    assert "90.0/45.5/100.0" in line


def test_the_picture_shows_each_agents_curve(tmp_path):
    from matplotlib import image

    path = tmp_path / "retention.png"
    draw_retention([RECORD, replace(RECORD, seed=1)], path)
    alone = image.imread(path)
    low = [{"edits": point["edits"], **scores(5.0, 5.0, 5.0)} for point in RECORD.retention]
    draw_retention([RECORD, replace(RECORD, seed=1), replace(RECORD, agent="worse", retention=low)], path)
    both = image.imread(path)
    assert alone.shape[:2] == both.shape[:2]
    assert min(alone.shape[:2]) > 200
    assert (alone != both).any(-1).sum() > 500
    assert [file.name for file in tmp_path.iterdir()] == ["retention.png"]


def test_an_outlier_among_four_seeds_does_not_count():
    records = [
        replace(RECORD, seed=seed, generation=scores(value, value, value))
        for seed, value in enumerate((0.0, 50.0, 60.0, 100.0))
    ]
    (row,) = cells(records)
    assert row["generation"] == "55.0 / 55.0 / 55.0"
    assert row["generation_mean"].startswith("55.0 [")


def test_a_picture_is_of_one_suite(tmp_path):
    from benchmarks.results import records
    from benchmarks.table import Args, main

    for suite in ("micro", "other"):
        records.append(tmp_path / "results.jsonl", replace(RECORD, suite=suite))
    with pytest.raises(SystemExit, match="micro, other"):
        main(Args(tmp_path / "results.jsonl", tmp_path / "retention.png"))
    assert not (tmp_path / "retention.png").exists()


def test_only_the_rows_that_were_asked_for(tmp_path, capsys):
    from benchmarks.results.records import append
    from benchmarks.table import Args, main

    for agent in ("a", "b", "c"):
        append(tmp_path / "results.jsonl", replace(RECORD, agent=agent))
    main(Args(tmp_path / "results.jsonl", agents=("a", "c")))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("| ")] == ["agent", "---", "a", "c"]
    with pytest.raises(SystemExit, match="has no row d"):
        main(Args(tmp_path / "results.jsonl", agents=("a", "d")))
