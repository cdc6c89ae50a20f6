"""Figures as data, and how they are drawn with matplotlib: one look for all, and a digest of what each shows.

A :class:`Chart` holds the numbers; :func:`draw` makes the picture, and :func:`save` writes it. A PNG carries the digest
of its chart, so that a test sees when a figure is older than its records (``benchmarks.figures --check``).
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.results.labels import place_names
from benchmarks.results.styles import REST, Style, style_of
from benchmarks.results.texts import printable
from editenv.atomic_files import atomic_write

MOST_LINES = 8
"""More lines than these are not told apart in one figure."""

DIGEST = "Chart-SHA256"
"""Keyword of a PNG's text that holds :func:`digest`."""

PERCENT = (-3.0, 103.0)
"""Limits of an axis from 0 to 100%, with room for the line's width."""

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """One agent's numbers in a panel.

    Attributes:
        agent: Name of the row.
        x, y: The points.
        spread: For each point its lowest and highest value, or an interval; None where there is none.
        cross: A point to be marked besides.
    """

    agent: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    spread: tuple[Interval | None, ...] = ()
    cross: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: What is measured, or where.
        x_label, y_label: With units; without a ``y_label`` the axis is the left neighbour's.
        series: One for each agent, in the order of the legend.
        log: Whether the horizontal axis is logarithmic.
        y_limits: Of the vertical axis.
        x_limits: Of the horizontal one; around the points if None.
        front: Corners of a line by steps: the Pareto front.
        named: Of ``points``, the agents in their colours and with their names; the others are grey.
    """

    title: str
    x_label: str
    series: tuple[Series, ...]
    y_label: str | None = None
    log: bool = True
    y_limits: Interval = PERCENT
    x_limits: Interval | None = None
    front: tuple[tuple[float, float], ...] = ()
    named: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure.

    Attributes:
        title: What the figure is about.
        note: What a reader must know: the model, what bands are.
        panels: From left to right, row by row.
        columns: Panels in a row.
        kind: ``lines`` between the points, or ``steps`` (a value holds until the next); ``points`` alone, each with
            its name; ``bars``, one for each agent.
        bands: Whether spreads are drawn as bands, or as upright lines.
        highlighted: Of ``lines`` and ``steps``, the agents in their colours, at most :data:`MOST_LINES`; the others are
            thin, grey and not in the legend.
    """

    title: str
    note: str
    panels: tuple[Panel, ...]
    columns: int
    kind: Literal["lines", "steps", "points", "bars"] = "lines"
    bands: bool = True
    highlighted: tuple[str, ...] = ()

    def agents(self) -> list[str]:
        """All, in the order in which they come."""
        return list(dict.fromkeys(series.agent for panel in self.panels for series in panel.series))


def digest(chart: Chart) -> str:
    """SHA-256 of all that a chart shows, in hexadecimal: words, styles, and numbers to six digits.

    Six digits are more than a picture has, and fewer than two machines may differ in.
    """
    styles = {agent: asdict(style_of(agent)) for agent in chart.agents()}
    text = json.dumps([_rounded(asdict(chart)), styles], sort_keys=True)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):  # what a chart does not have makes no difference
        return {key: _rounded(item) for key, item in value.items() if item not in (None, (), "")}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def choose_highlighted(agents: Sequence[str], chosen: Iterable[str] = ()) -> tuple[str, ...]:
    """The agents that are drawn in colour.

    Args:
        agents: All, the most important first.
        chosen: Those that a reader is to see; all if none, as far as there is room.

    Raises:
        ValueError: If more are chosen than can be told apart, or one is not there.
    """
    wanted = tuple(chosen)
    if missing := [agent for agent in wanted if agent not in agents]:
        raise ValueError(f"no row {', '.join(missing)}; there are {', '.join(agents)}")
    if len(wanted) > MOST_LINES:
        raise ValueError(f"a figure shows at most {MOST_LINES} rows in colour, not {len(wanted)}: {', '.join(wanted)}")
    return wanted or tuple(agents[:MOST_LINES])


def short_name(agent: str, length: int = 38) -> str:
    """A row's name, its beginning cut if it is long (a file's path, say), on one line."""
    name = " ".join(agent.split())
    return name if len(name) <= length else "…" + name[1 - length :]


INK, FAINT = "#22262c", "#dfe2e6"

LOOK = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "legend.fontsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8b9098",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "lines.scale_dashes": True,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": "#555b63",
    "ytick.color": "#555b63",
    "text.parse_math": False,  # a row's name may hold anything
    "svg.hashsalt": "lifelongedit",  # the same picture is the same file
}

PANEL_INCHES = (3.3, 2.9)
NARROW_INCHES = 2.6
"""Width of a panel where there are four in a row."""
PAD_INCHES = 0.06
LEGEND_COLUMNS = 4
LEGEND_LETTERS = 120
"""About as many as stand in a line of it."""


def _printable(part: Any) -> Any:
    """A chart, or a part of it, with all of its texts as they can be shown: XML has no character for a NUL."""
    if isinstance(part, str):
        return printable(part)
    if isinstance(part, tuple):
        return tuple(map(_printable, part))
    if is_dataclass(part) and not isinstance(part, type):
        return replace(part, **{field.name: _printable(getattr(part, field.name)) for field in fields(part)})
    return part


def draw(chart: Chart) -> Any:
    """The chart as a ``matplotlib.figure.Figure``."""
    import matplotlib

    chart = _printable(chart)
    with matplotlib.rc_context(LOOK):
        figure, axes = _axes(chart)
        for axis, panel in zip(axes, chart.panels, strict=True):
            _draw_panel(axis, panel, chart)
        _draw_title(figure, chart)
        if chart.kind in ("lines", "steps"):
            _legend(figure, chart)
        if chart.kind == "points":
            figure.draw_without_rendering()  # names go where there is room, once it is known where the points are
            for axis, panel in zip(axes, chart.panels, strict=True):
                _name_points(axis, panel)
    return figure


def save(chart: Chart, path: Path) -> None:
    """Writes the picture in the format that the path ends in; whole or not at all, and the same file each time."""
    import matplotlib

    metadata = {"Software": None, DIGEST: digest(chart)} if path.suffix == ".png" else {"Date": None}
    figure = draw(chart)
    with matplotlib.rc_context(LOOK), atomic_write(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], dpi=180, metadata=metadata)


def saved_digest(path: Path) -> str | None:
    """The digest that a PNG was saved with; None if it has none."""
    from PIL import Image

    with Image.open(path) as image:
        text = image.info.get(DIGEST)
    return text if isinstance(text, str) else None


def _axes(chart: Chart) -> tuple[Any, Sequence[Any]]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = -(-len(chart.panels) // chart.columns)
    width, height = PANEL_INCHES
    if chart.columns > 3:
        width = NARROW_INCHES
    if chart.kind == "points":
        width, height = 5.0, 4.2
    if chart.kind == "bars":
        height = 0.6 + 0.22 * len(chart.agents())
    legend = 0.24 * -(-len(chart.highlighted) // _legend_columns(chart)) if chart.kind in ("lines", "steps") else 0
    size = (max(6.5, width * chart.columns), height * rows + legend + 0.6)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=PAD_INCHES, h_pad=PAD_INCHES))
    axes = list(figure.subplots(rows, chart.columns, squeeze=False).flat)
    for axis in axes[len(chart.panels) :]:
        axis.set_visible(False)
    return figure, axes[: len(chart.panels)]


def _draw_title(figure: Any, chart: Chart) -> None:
    """The title, and below it the note, which says what is grey."""
    rest = [short_name(agent) for agent in chart.agents() if agent not in chart.highlighted]
    note = chart.note
    if rest and chart.kind in ("lines", "steps"):
        note += "; grey: " + (", ".join(rest) if len(rest) <= 2 else f"the other {len(rest)} rows")
    left, top = PAD_INCHES / figure.get_figwidth(), 1 - PAD_INCHES / figure.get_figheight()
    # The layout leaves room for one title of one size: the note below an empty line, in which the title stands.
    figure.suptitle(f"\n{note}", x=left, ha="left", fontsize=9.5, color="#555b63", linespacing=1.5)
    figure.text(left, top, chart.title, va="top", fontsize=11, weight="bold")


def _draw_panel(axis: Any, panel: Panel, chart: Chart) -> None:
    if chart.kind == "bars":
        _draw_bars(axis, panel)
        return
    in_colour = panel.named if chart.kind == "points" else chart.highlighted
    for series in sorted(panel.series, key=lambda series: series.agent in in_colour):  # the others first, behind them
        if chart.kind == "points":
            _draw_point(axis, series, style_of(series.agent), series.agent in in_colour)
        else:
            _draw_line(axis, series, chart, style_of(series.agent), series.agent in in_colour)
    if panel.front:
        axis.step(*zip(*panel.front, strict=True), where="post", color=INK, linewidth=1, alpha=0.55, zorder=1.5)
    axis.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label or "", ylim=panel.y_limits)
    axis.tick_params(labelleft=panel.y_label is not None)
    if panel.log:
        _logarithmic(axis, panel)
    else:
        axis.set_xlim(panel.x_limits)
        if all(x.is_integer() for series in panel.series for x in series.x):  # there is no layer 2.5
            axis.xaxis.get_major_locator().set_params(integer=True)


def _draw_line(axis: Any, series: Series, chart: Chart, style: Style, highlighted: bool) -> None:
    where = "steps-post" if chart.kind == "steps" else "default"
    if not highlighted:
        alone = len(series.x) == 1  # a line of one point is no line
        axis.plot(
            series.x, series.y, color=REST, linewidth=0.8, drawstyle=where, zorder=1.2,
            marker="o" if alone else None, markersize=2.5,
        )  # fmt: skip
        return
    axis.plot(
        series.x, series.y, label=short_name(series.agent), color=style.colour, drawstyle=where, linewidth=1.6,
        zorder=2.5, linestyle=(0, style.dashes) if style.dashes else "-",
        marker=None if chart.kind == "steps" else style.marker, markersize=4.5, markeredgewidth=0.9,
        markerfacecolor="white" if style.hollow else style.colour,
    )  # fmt: skip
    _draw_spread(axis, series, chart, style.colour)
    if series.cross is not None:
        axis.plot(*series.cross, "x", color=style.colour, markersize=10, markeredgewidth=2.2, zorder=2.6)


def _draw_spread(axis: Any, series: Series, chart: Chart, colour: str) -> None:
    points = [(x, *spread) for x, spread in zip(series.x, series.spread, strict=False) if spread is not None]
    if not chart.bands:
        for x, low, high in points:
            axis.plot([x, x], [low, high], color=colour, linewidth=1.2, zorder=2.4)
    elif points:
        step = "post" if chart.kind == "steps" else None
        axis.fill_between(*zip(*points, strict=True), color=colour, alpha=0.12, linewidth=0, step=step, zorder=1.1)


def _draw_point(axis: Any, series: Series, style: Style, highlighted: bool) -> None:
    colour = style.colour if highlighted else REST
    for x, spread in zip(series.x, series.spread, strict=False):
        if spread is not None:
            axis.plot(
                [x, x], spread, color=colour, linewidth=1.1 if highlighted else 0.8, zorder=2 if highlighted else 1.2
            )
    axis.plot(
        series.x, series.y, linestyle="", color=colour, marker=style.marker if highlighted else "o",
        markersize=7 if highlighted else 4, markerfacecolor="white" if style.hollow and highlighted else colour,
        zorder=2.5 if highlighted else 1.3,
    )  # fmt: skip


def _draw_bars(axis: Any, panel: Panel) -> None:
    heights = np.arange(len(panel.series))[::-1]
    for height, series in zip(heights, panel.series, strict=True):
        if not series.y:
            axis.text(1, height, "-", va="center")
            continue
        (value,) = series.y
        right = value
        axis.barh(height, value, height=0.7, color=style_of(series.agent).colour, alpha=0.8)
        for spread in filter(None, series.spread):
            right = max(right, spread[1])
            axis.plot(spread, [height, height], color=INK, linewidth=1.2, solid_capstyle="butt")
        axis.text(right + 1.5, height, f"{value:.1f}", va="center", fontsize=8)
    axis.set(title=panel.title, xlabel=panel.x_label, xlim=(0, 114), xticks=range(0, 101, 20))
    axis.set_ylim(-0.7, len(panel.series) - 0.3)
    axis.grid(False, axis="y")
    axis.set_yticks(heights, [short_name(series.agent) for series in panel.series])
    axis.tick_params(axis="y", length=0, labelleft=panel.y_label is not None)


def _legend_columns(chart: Chart) -> int:
    """As many as fit with the longest name."""
    longest = max((len(short_name(agent)) for agent in chart.highlighted), default=0)
    return LEGEND_COLUMNS if longest <= LEGEND_LETTERS // LEGEND_COLUMNS else LEGEND_LETTERS // longest


def _legend(figure: Any, chart: Chart) -> None:
    """One entry for each agent in colour, in the order in which they were chosen."""
    handles: dict[str, Any] = {}
    for axis in figure.axes:
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    labels = [name for agent in chart.highlighted if (name := short_name(agent)) in handles]
    figure.legend(
        [handles[label] for label in labels], labels, loc="outside lower center", frameon=False, handlelength=3.2,
        ncols=min(_legend_columns(chart), max(1, len(labels))), columnspacing=1.8,
    )  # fmt: skip


LETTER_POINTS = 5.5
"""About the width of a digit on an axis."""


def _logarithmic(axis: Any, panel: Panel) -> None:
    """A logarithmic axis with ticks as a reader writes them: at the points if their labels fit, else at 1, 2 and 5, or
    1 and 3, or 1 times a power of ten.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    points = sorted({x for series in panel.series for x in series.x}) or [1.0]
    low, high = panel.x_limits or (points[0] / 1.25, points[-1] * 1.25)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(_ticks(points, low, high, 72 * _panel_inches(axis)[0])))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _label(value)))
    axis.set_xlim(low, high)


def _label(value: float) -> str:
    return f"{value:,.10g}"


def _ticks(points: Sequence[float], low: float, high: float, width: float) -> Sequence[float]:
    """The first of the ways above whose labels fit into the width, in points."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ways = [list(points) if all(point == round(point) for point in points) else []]
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ways.append([tick for tick in ticks if low <= tick <= high])
    for ticks in ways:
        letters = [(len(_label(a)) + len(_label(b))) / 2 for a, b in itertools.pairwise(ticks)]
        room = [width * np.log(b / a) / np.log(high / low) for a, b in itertools.pairwise(ticks)]
        if len(ticks) > 1 and all(gap > LETTER_POINTS * (n + 1) for gap, n in zip(room, letters, strict=True)):
            return ticks
    return ways[-1] or [points[0]]


def _name_points(axis: Any, panel: Panel) -> None:
    """A name beside each point that is to have one. The figure must have its layout."""
    named = [series for series in panel.series if series.agent in panel.named]
    names = [short_name(series.agent) for series in named]
    points_per_pixel = 72 / axis.figure.dpi
    pixels = axis.transData.transform([(series.x[0], series.y[0]) for series in named]) if named else []
    points = [(x * points_per_pixel, y * points_per_pixel) for x, y in pixels]
    left, bottom, right, top = (edge * points_per_pixel for edge in axis.get_window_extent().extents)
    for series, name, label in zip(
        named, names, place_names(points, names, (left, bottom, right, top), 8), strict=True
    ):
        axis.annotate(
            name, (series.x[0], series.y[0]), label.offset, textcoords="offset points", fontsize=8, zorder=3,
            ha=label.side, va="center" if label.offset[1] == 0 else "bottom" if label.offset[1] > 0 else "top",
            arrowprops={"arrowstyle": "-", "color": "#8b9098", "linewidth": 0.6} if label.far else None,
        ).set_in_layout(False)  # fmt: skip


def _panel_inches(axis: Any) -> tuple[float, float]:
    """About the size of a panel; the layout is known only when the figure is drawn."""
    width, height = axis.figure.get_size_inches()
    rows, columns = axis.get_subplotspec().get_gridspec().get_geometry()
    return 0.88 * width / columns, 0.75 * height / rows
