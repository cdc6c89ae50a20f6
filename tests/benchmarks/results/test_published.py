from dataclasses import replace

import pytest
from test_records import RECORD

from benchmarks.results.leaderboard import entries
from benchmarks.results.published import METHODS, METRICS, OURS, THEIRS, comparisons, read


def number(**wanted):
    (found,) = [row for row in read() if all(getattr(row, name) == value for name, value in wanted.items())]
    return found


def test_what_the_paper_prints():
    """Typed from the paper's tables."""
    last = {"table": "table2", "dataset": "ZsRE", "model": "Mistral-7B-v0.3", "method": "RLEdit"}
    assert [number(**last, metric=metric).mean for metric in METRICS[:3]] == [71.12, 67.42, 27.43]
    assert [number(**last, metric=metric).std for metric in METRICS[:3]] == [0.31, 0.27, 0.44]
    assert number(table="table2", dataset="FEVER", method="FT", metric="seconds_per_edit").mean == 0.3358
    part = {"table": "table4", "dataset": "CounterFact", "model": "Llama-3-8B", "metric": "efficacy"}
    assert [number(**part, method=m).mean for m in ("RLEdit", "w/o RL training framework")] == [91.75, 50.30]
    long = number(table="table5", dataset="ZsRE", task="200x100", method="RLEdit", metric="generalization")
    assert (long.mean, long.edits) == (89.93, 20_000)


def test_the_tables_are_whole():
    rows = read()
    assert len({(r.table, r.dataset, r.task, r.model, r.method, r.metric) for r in rows}) == len(rows)
    assert all(0 <= row.mean <= 100 for row in rows)
    two = [row for row in rows if row.table == "table2"]
    assert len(two) == 12 * 2 * (3 * 3 + 1), "methods x data sets x (models x metrics + a time)"
    assert len([row for row in rows if row.table == "table4"]) == 4 * 3 * 3 * 3
    assert {row.metric for row in rows} == set(METRICS)


def test_our_rows_go_with_methods_of_the_paper():
    methods = {row.method for row in read()}
    assert set(METHODS.values()) == methods


@pytest.fixture
def tables():
    found = [
        replace(RECORD, agent="rledit", setup_seconds=4.0),
        replace(RECORD, agent="mine"),
        replace(RECORD, agent="rledit-fixed", suite="parts"),
        replace(RECORD, agent="rledit", suite="cf", dataset="counterfact:x/test"),
    ]
    return comparisons(entries(found))


def test_ours_stand_before_theirs_with_their_models(tables):
    for table in tables:
        owners = [column.owner for column in table.columns]
        assert owners == sorted(owners), "ours, then theirs"
        assert all(len(texts) == len(owners) for _, _, texts in table.rows)
        for column in table.columns:
            if column.owner == THEIRS:
                assert column.model in ("Llama-3-8B", "Gemma-2-9B", "Mistral-7B-v0.3", "s per edit, with setup")


def cell(table, ours, theirs, task, model=None):
    (row,) = [texts for a, b, texts in table.rows if (a, b) == (ours, theirs)]
    (place,) = [i for i, c in enumerate(table.columns) if c.task == task and model in (None, c.model)]
    return row[place]


def test_a_table_has_the_suites_beside_that_repeat_it():
    suites = ("atlas-50x20", "atlas-400x20", "fever-100x20", "atlas-50x100", "ablations-20x100")
    found = [replace(RECORD, agent="rledit-fixed", suite=suite) for suite in suites]
    found.append(replace(RECORD, agent="mine", suite="atlas-50x100"))
    ours = [{c.task for c in table.columns if c.owner == OURS} for table in comparisons(entries(found))]
    assert ours == [{"atlas-400x20", "fever-100x20"}, {"ablations-20x100"}, {"atlas-50x100"}]
    two, _, five = ({row[0] for row in table.rows} for table in comparisons(entries(found)))
    assert "mine" in five - two


def test_cells_by_hand(tables):
    two, four, five = tables
    assert cell(two, "rledit", "RLEdit", "micro") == "90.0 / 45.5 / 100.0, 0.1010 s", "(0.001 + 4 / 40) s"
    assert cell(two, "rledit", "RLEdit", "ZsRE 400x20", "Mistral-7B-v0.3") == "71.12 / 67.42 / 27.43"
    assert cell(two, "mine", "-", "ZsRE 400x20", "Mistral-7B-v0.3") == "-"
    assert cell(two, "-", "ROME", "micro") == "-"
    assert cell(two, "rledit", "RLEdit", "cf") == "-, 0.0010 s", "the probability comparison was not measured"
    assert [c.task for c in four.columns if c.owner == OURS] == ["parts"]
    assert cell(four, "rledit-fixed", "w/o RL training framework", "parts") == "90.0 / 45.5 / 100.0"
    assert not [row for row in four.rows if row[0] == "mine"]
    assert cell(five, "mine", "-", "micro") == "90.0 / 45.5 / 100.0"
    assert cell(five, "-", "MEND", "CounterFact 200x100") == "-", "the paper leaves it out"
