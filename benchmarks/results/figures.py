"""The figures of records, as charts. What each of them shows is said in the documentation of the statistics."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.results.charts import Chart, Panel, Series, choose_highlighted, save, short_name
from benchmarks.results.leaderboard import (
    MEAN,
    Entry,
    Leaderboard,
    Task,
    curve,
    entries,
    is_reference,
)
from benchmarks.results.records import Record
from benchmarks.results.statistics import interquartile_mean
from editenv.evaluation.metrics import METRICS

ALONG = {"edits": "number of edits", "batch size": "edits per batch"}
"""What suites may differ in, and its name on an axis."""

PROTOCOL = "generation"
"""What rows are ordered by where nothing else is said."""


def best(rows: Sequence[Entry], protocol: str = PROTOCOL) -> list[str]:
    """The agents, the references first and then by their mean after the last edit, on average over their tasks."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row.agent, []).extend(row.values(protocol, MEAN).values())
    means = {agent: float(interquartile_mean(values)) if values else -1.0 for agent, values in scores.items()}
    return sorted(means, key=lambda agent: (not is_reference(agent), -means[agent]))


def retention(rows: Sequence[Entry], chosen: Iterable[str] = ()) -> Chart:
    """Efficacy, generalization and specificity (teacher-forced) over all edits so far, against their number.

    Args:
        rows: Of one task.
        chosen: Agents in colour; the best by default.
    """
    panels = []
    for metric in METRICS:
        label = "over all edits so far (%)" if metric == METRICS[0] else None
        series = tuple(_kept(row, metric) for row in rows)
        panels.append(Panel(metric.capitalize(), "edits so far", series, label))
    several = any(len(row.records) > 1 for row in rows)
    note = f"{_named(rows[0].task)}, teacher-forced" + ("; bands span the seeds" if several else "")
    highlighted = choose_highlighted(best(rows), chosen)
    return Chart("What is kept along the stream", note, tuple(panels), len(METRICS), highlighted=highlighted)


def _kept(row: Entry, metric: str) -> Series:
    """One metric along the stream; a band where seeds differ."""
    edits, means, spreads = [], [], []
    for point in curve(row):
        at, values = point["edits"], point[metric]
        if isinstance(at, float | int) and isinstance(values, tuple):
            mean, low, high = values
            edits.append(float(at))
            means.append(mean)
            spreads.append((low, high) if low < high else None)
    return Series(row.agent, tuple(edits), tuple(means), tuple(spreads))


def bars(rows: Sequence[Entry], protocol: str) -> Chart:
    """Efficacy, generalization and specificity of each row after the last edit, with their intervals."""
    panels = []
    for metric in METRICS:
        series = []
        for row in rows:
            estimate = row.estimate(protocol, metric)
            value, interval = ((), ()) if estimate is None else ((estimate.value,), (estimate.interval,))
            series.append(Series(row.agent, (), value, interval))
        label = "" if metric == METRICS[0] else None
        panels.append(Panel(metric.capitalize(), "%", tuple(series), label, log=False))
    note = f"{_named(rows[0].task)}, {_name(protocol)}; lines are 95% intervals over seeds"
    return Chart("After the last edit", note, tuple(panels), len(METRICS), "bars")


def pareto(board: Leaderboard, task: Task) -> Chart:
    """Quality against time per edit in units of its floor, without the setup and with it spread over the edits (the
    paper's Figure 4).

    The rows on the front and the references are in colour and have their names.
    """
    rows = [row for row in board.rows if row.task == task]
    quality = {row.agent: board.quality(row) for row in rows}
    references = [row.agent for row in rows if is_reference(row.agent)]
    panels = []
    for setup in (False, True):
        series = tuple(
            Series(row.agent, (row.floors(setup),), (quality[row.agent].value,), (quality[row.agent].interval,))
            for row in rows
        )
        front = sorted((one for one in series if one.agent in board.front(task, setup)), key=lambda one: one.x)
        panels.append(
            Panel(
                "With the setup spread over the edits" if setup else "Without the setup",
                "time per edit (plain forwards and backwards)",
                series,
                f"harmonic mean (%), {_name(board.protocol)}" if not setup else None,
                front=tuple((one.x[0], one.y[0]) for one in front),
                named=(*(one.agent for one in front), *references),
            )
        )
    note = f"{_named(task)}; the line is the Pareto front, which the references take no part in; grey: rows behind it"
    return Chart("Quality against time", note, tuple(panels), 2, "points", bands=False)


def by_size(tasks: Sequence[Sequence[Entry]], protocol: str, along: str, chosen: Iterable[str] = ()) -> Chart:
    """The three figures after the last edit, for suites that differ in one thing (the paper's Figures 3 and 8).

    Args:
        tasks: The rows of each suite.
        protocol: One of the leaderboard's.
        along: What the suites differ in: a key of :data:`ALONG`.
        chosen: Agents in colour; the best by default.
    """
    rows_of: dict[str, list[Entry]] = {}
    for rows in sorted(tasks, key=lambda rows: size(rows[0], along)):
        for row in rows:
            rows_of.setdefault(row.agent, []).append(row)
    rows_of = {agent: rows for agent, rows in rows_of.items() if len(rows) > 1}
    panels = []
    for metric in METRICS:
        series = [_by_size(agent, rows, protocol, metric, along) for agent, rows in rows_of.items()]
        label = "of all edits (%)" if metric == METRICS[0] else None
        panels.append(Panel(metric.capitalize(), ALONG[along], tuple(series), label))
    record = tasks[0][0].records[0]
    what = f"{short_name(record.dataset, 40)} in {short_name(record.model, 40)}, {alike(tasks[0][0], along)}"
    highlighted = choose_highlighted(best([row for rows in rows_of.values() for row in rows], protocol), chosen)
    note = f"{what}, {_name(protocol)}; upright lines are 95% intervals over seeds"
    return Chart(
        f"After the last edit, by {ALONG[along]}",
        note,
        tuple(panels),
        len(METRICS),
        bands=False,
        highlighted=highlighted,
    )


def _by_size(agent: str, rows: Sequence[Entry], protocol: str, metric: str, along: str) -> Series:
    estimates = {float(size(row, along)): row.estimate(protocol, metric) for row in rows}
    points = [(x, estimate.value, estimate.interval) for x, estimate in estimates.items() if estimate is not None]
    return Series(agent, tuple(x for x, _, _ in points), tuple(y for _, y, _ in points), tuple(s for _, _, s in points))


def size(row: Entry, along: str) -> int:
    """A suite's number of edits, or its batch size."""
    record = row.records[0]
    if along == "edits":
        return record.edits
    batch_size = ((record.configuration or {}).get("suite") or {}).get("edits_per_step")
    if batch_size is not None:
        return int(batch_size)
    return int(record.retention[0]["edits"] or 0) if record.retention else 0  # older records: a curve's first point


def alike(row: Entry, along: str) -> str:
    """What suites that differ in one of the two have in common."""
    (other,) = set(ALONG) - {along}
    return {"edits": "{:,} edits", "batch size": "batches of {:,}"}[other].format(size(row, other))


def draw_retention(records: Sequence[Record], path: Path, chosen: Iterable[str] = ()) -> None:
    """The retention curves of one suite's records, as a picture."""
    save(retention(entries(records), chosen), path)


def _named(task: Task) -> str:
    return f"{short_name(task.suite, 40)} on {short_name(task.model, 40)}"


def _name(protocol: str) -> str:
    return protocol.replace("_", "-")
