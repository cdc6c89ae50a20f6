"""The leaderboard's figures, drawn with matplotlib. What each of them shows is said in docs/reference/statistics.md."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results.leaderboard import Entry, Leaderboard, Task, curve, entries, is_reference, is_upper_reference
from benchmarks.results.records import Record
from editenv.atomic_files import atomic_write
from editenv.evaluation.metrics import METRICS

# Eight hues apart in hue and lightness; the page has the same ones. Rows beyond the eighth differ in line and marker.
COLOURS = ("#2f6db5", "#d97b1f", "#2e8f62", "#b8405e", "#7655b3", "#86691f", "#1d93ab", "#c04fa3")
REFERENCE = "#7b818a"
MOST_BANDS = 12
"""Above as many rows their bands would hide each other."""

LINES = ("-", "--", ":", "-.")
MARKERS = "osD^vPX*"
ALONG = {"edits": "number of edits", "batch size": "edits per batch"}
INK, FAINT = "#22262c", "#d9dce1"

STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8b9098",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": "#555b63",
    "ytick.color": "#555b63",
    "text.parse_math": False,  # a row's name may hold anything
    "svg.hashsalt": "lifelongedit",  # the same picture is the same file
}


def styles(agents: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, line and marker of each row: the same in all figures of one report. The two references are grey."""
    found, place = {}, 0
    for agent in agents:
        if is_reference(agent):
            found[agent] = {
                "color": REFERENCE,
                "linestyle": LINES[is_upper_reference(agent) + 1],
                "marker": "oD"[is_upper_reference(agent)],
                "markerfacecolor": "white",
            }
            continue
        found[agent] = {
            "color": COLOURS[place % len(COLOURS)],
            "linestyle": LINES[place // len(COLOURS) % len(LINES)],
            "marker": MARKERS[(place + place // len(COLOURS)) % len(MARKERS)],
        }
        place += 1
    return found


def shown(agent: str, length: int = 30) -> str:
    """A row's name, its beginning cut if it is long (a file's path, say), on one line."""
    name = " ".join(agent.split())
    return name if len(name) <= length else "…" + name[1 - length :]


def retention(rows: Sequence[Entry], look: dict[str, dict[str, Any]]) -> Any:
    """Efficacy, generalization and specificity (teacher-forced) over all edits so far, against their number."""
    banded = len(rows) <= MOST_BANDS and any(len(row.records) > 1 for row in rows)
    with _styled():
        figure, axes = _panels(len(METRICS), 4.2, len(rows))
        for axis, metric in zip(axes, METRICS, strict=True):
            for row in rows:
                points = [(point["edits"], point[metric]) for point in curve(row)]
                edits = [edits for edits, values in points if values is not None]
                means, lows, highs = (
                    [values[i] for _, values in points if isinstance(values, tuple)] for i in range(3)
                )
                axis.plot(edits, means, markersize=3.5, linewidth=1.5, label=shown(row.agent), **look[row.agent])
                if banded:
                    axis.fill_between(edits, lows, highs, color=look[row.agent]["color"], alpha=0.13, linewidth=0)
            axis.set(title=metric.capitalize(), xlabel="edits so far", xscale="log", ylim=(-3, 103))
            _plain_ticks(axis, [point["edits"] for row in rows for point in curve(row)])
        axes[0].set_ylabel("% over all edits so far, teacher-forced")
        bands = "; bands span the seeds" if banded else ""
        figure.suptitle(f"What is kept along the stream: {_title(rows[0].task)}{bands}")
        _legend(figure, axes[0])
    return figure


def bars(rows: Sequence[Entry], protocol: str) -> Any:
    """Efficacy, generalization and specificity of each row after the last edit, with their intervals."""
    with _styled():
        figure, axes = _panels(len(METRICS), 1.5 + 0.27 * len(rows))
        places = np.arange(len(rows))[::-1]
        for axis, metric, colour in zip(axes, METRICS, COLOURS, strict=False):
            for place, row in zip(places, rows, strict=True):
                found = row.estimate(protocol, metric)
                if found is None:
                    axis.text(1, place, "-", va="center")
                    continue
                reference = is_reference(row.agent)
                axis.barh(place, found.value, height=0.68, color=REFERENCE if reference else colour, alpha=0.75)
                right = found.value
                if found.interval is not None:
                    right = found.interval[1]
                    axis.plot(found.interval, [place, place], color=INK, linewidth=1.3, solid_capstyle="butt")
                axis.text(max(right, found.value) + 1.5, place, f"{found.value:.1f}", va="center", fontsize=8)
            axis.set(title=metric.capitalize(), xlabel="%", xlim=(0, 112), xticks=range(0, 101, 20))
            axis.set_ylim(-0.7, len(rows) - 0.3)
            axis.grid(False, axis="y")
            axis.set_yticks(places, [shown(row.agent) for row in rows])
            axis.tick_params(axis="y", length=0, labelleft=axis is axes[0])
        figure.suptitle(
            f"After the last edit, {_name(protocol)}: {_title(rows[0].task)}; lines are 95% intervals over seeds"
        )
    return figure


def pareto(board: Leaderboard, task: Task, look: dict[str, dict[str, Any]]) -> Any:
    """Quality against time per edit in units of its floor, without the setup and with it spread over the edits (the
    paper's Figure 4).
    """
    rows = [row for row in board.rows if row.task == task]
    with _styled():
        figure, axes = _panels(2, 4.6, len(rows))
        for axis, setup in zip(axes, (False, True), strict=True):
            for row in rows:
                style = {**look[row.agent], "linestyle": ""}
                time, quality = row.floors(setup), board.quality(row)
                axis.plot(time, quality.value, markersize=7, zorder=3, label=shown(row.agent), **style)
                if quality.interval is not None:
                    axis.plot([time, time], quality.interval, color=style["color"], linewidth=1.2)
            front = board.front(task, setup)
            ahead = sorted((row for row in rows if row.agent in front), key=lambda row: row.floors(setup))
            steps = [(row.floors(setup), board.quality(row).value) for row in ahead]
            times, best = [time for time, _ in steps], [quality for _, quality in steps]
            axis.step(times, best, where="post", color=INK, linewidth=1, alpha=0.55, zorder=1)
            axis.set(
                title="With setup spread over the edits" if setup else "Without setup",
                xlabel="time per edit, in plain forwards and backwards",
                xscale="log",
                ylim=(-3, 103),
            )
            _plain_ticks(axis, [row.floors(setup) for row in rows])
            axis.set_xlim(left=axis.get_xlim()[0] / 1.5)
            _names_ahead(axis, [(shown(row.agent), *step) for row, step in zip(ahead, steps, strict=True)])
        axes[0].set_ylabel(f"harmonic mean of the three, %, {_name(board.protocol)}")
        figure.suptitle(f"Quality against time: {_title(task)}; the line is the Pareto front, references in grey aside")
        _legend(figure, axes[0])
    return figure


def _names_ahead(axis: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Names the points of the front where there is room: above and left of them is no point, but there may be a
    name.
    """
    left, right = np.log(axis.get_xlim())
    taken: list[tuple[float, float, float]] = []
    for name, x, y in reversed(points):
        end = (np.log(x) - left) / (right - left)
        start = end - 0.011 * len(name) - 0.02  # a letter's share of the panel
        if start >= 0 and not any(start < other[1] and other[0] < end and abs(y - other[2]) < 5 for other in taken):
            axis.annotate(name, (x, y), (-6, 7), textcoords="offset points", ha="right", fontsize=8)
            taken.append((start, end, y))


def by_length(tasks: Sequence[Sequence[Entry]], protocol: str, look: dict[str, dict[str, Any]], along: str) -> Any:
    """The three figures after the last edit, for suites that differ in one thing (the paper's Figures 3 and 8).

    Args:
        tasks: The rows of each suite.
        protocol: One of the leaderboard's.
        look: Of :func:`styles`.
        along: What the suites differ in: a key of :data:`ALONG`.
    """
    lines: dict[str, list[Entry]] = {}
    for rows in sorted(tasks, key=lambda rows: size(rows[0], along)):
        for row in rows:
            lines.setdefault(row.agent, []).append(row)
    lines = {agent: line for agent, line in lines.items() if len(line) > 1}
    with _styled():
        figure, axes = _panels(len(METRICS), 4.2, len(lines))
        for axis, metric in zip(axes, METRICS, strict=True):
            for agent, line in lines.items():
                found = [(size(row, along), row.estimate(protocol, metric)) for row in line]
                points = [(at, estimate.value) for at, estimate in found if estimate is not None]
                axis.plot(*zip(*points, strict=True), markersize=5, linewidth=1.5, label=shown(agent), **look[agent])
                for at, estimate in found:
                    if estimate is not None and estimate.interval is not None:
                        axis.plot([at, at], estimate.interval, color=look[agent]["color"], linewidth=1.2)
            axis.set(title=metric.capitalize(), xlabel=ALONG[along], xscale="log", ylim=(-3, 103))
            _plain_ticks(axis, [size(row, along) for line in lines.values() for row in line])
        axes[0].set_ylabel(f"% after the last edit, {_name(protocol)}")
        record = tasks[0][0].records[0]
        what = f"{shown(record.dataset, 40)} in {shown(record.model, 40)}, {alike(tasks[0][0], along)}"
        figure.suptitle(f"After the last edit, by {ALONG[along]}: {what}; upright lines are 95% intervals over seeds")
        _legend(figure, axes[0])
    return figure


def size(row: Entry, along: str) -> int:
    """A suite's number of edits, or its batch size."""
    record = row.records[0]
    if along == "edits":
        return record.edits
    told = ((record.configuration or {}).get("suite") or {}).get("edits_per_step")
    if told is not None:
        return int(told)
    return int(record.retention[0]["edits"] or 0) if record.retention else 0  # older records: a curve's first point


def alike(row: Entry, along: str) -> str:
    """What suites that differ in one of the two have in common."""
    (other,) = set(ALONG) - {along}
    return {"edits": "{:,} edits", "batch size": "batches of {:,}"}[other].format(size(row, other))


def save(figure: Any, path: Path) -> None:
    """Writes a figure, in the format that the path ends in; whole or not at all."""
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with _styled(), atomic_write(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], dpi=150, metadata=metadata)


def _styled() -> Any:
    import matplotlib

    return matplotlib.rc_context(STYLE)


def _panels(count: int, height: float, legend: int = 0) -> tuple[Any, Sequence[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, height + 0.21 * -(-legend // 4)), layout="constrained")
    return figure, figure.subplots(1, count, sharey=count > 0)


def _legend(figure: Any, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, max(1, len(labels))), frameon=False)


def _plain_ticks(axis: Any, values: Sequence[Any]) -> None:
    """1, 2 or 5 times a power of ten, as a reader writes them, on a logarithmic axis."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = min(values), max(values)
    steps = (1, 2, 5) if high < 300 * low else (1,)
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [tick for decade in decades for step in steps if low / 1.2 <= (tick := step * 10.0**decade) <= 1.2 * high]
    axis.xaxis.set_major_locator(FixedLocator(ticks or [low]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_xlim(low / 1.25, high * 1.25)


def _title(task: Task) -> str:
    return f"{shown(task.suite, 40)} on {shown(task.model, 40)}"


def _name(protocol: str) -> str:
    return protocol.replace("_", "-")


def draw_retention(records: Sequence[Record], path: Path) -> None:
    """The retention curves of one suite's records, as a picture."""
    found = entries(records)
    save(retention(found, styles([entry.agent for entry in found])), path)
