"""What an episode looks like: a table, the same table live, or a picture with the retention heat map."""

from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from editenv.evaluation import metrics
from editenv.evaluation.batch import EvaluationBatch
from editenv.language_model.editable_lm import EditableLM
from editenv.rewards import RewardTerms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

ROWS_SHOWN = 12
"""Last steps in the table."""

LARGEST_SIDE = 1024
"""Pixels of the heat map's sides at most."""

COLOURS, EMPTY = "viridis", (236, 238, 241)
"""Of the heat map: a scale that colour-blind people can read, and the grey of what is not there yet."""

PICTURE_INCHES, DPI = (9.6, 5.4), 100
"""Of a frame: 960 x 540 pixels."""

INK, FAINT = "#22262b", "#8b9098"
LINES = {"efficacy": "#0072b2", "generalization": "#d55e00", "specificity": "#009e73"}
"""Colours of Okabe and Ito, likewise."""

LOOK = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,
}


class StepRow(NamedTuple):
    """What one step did: which action it was, and how it was judged."""

    batch: int
    attempt: int
    terms: RewardTerms
    scores: dict[str, float | None]
    reward: float


@dataclass
class History:
    """What has happened in an episode.

    Attributes:
        batches: Of the whole stream; None if it has no end.
        steps: Every step.
        evaluation_batches: Every batch edited so far, if there is to be a heat map: they are large.
        retention: For each look back, how many steps were done, and the efficacy, 0 to 100, of every batch done by
            then.
        reward: What a reward of the environment is, in words.
        reward_limits: Between which two numbers it lies; None if it has no bounds.
    """

    batches: int | None = None
    steps: list[StepRow] = field(default_factory=list)
    evaluation_batches: list[EvaluationBatch] = field(default_factory=list)
    retention: list[tuple[int, list[float]]] = field(default_factory=list)
    reward: str = "minus the loss, nats"
    reward_limits: tuple[float, float] | None = None

    def add(
        self,
        batch: int,
        attempt: int,
        evaluation_batch: EvaluationBatch | None,
        terms: RewardTerms,
        scores: dict[str, float | None],
        reward: float,
    ) -> None:
        """Takes in a step.

        Args:
            batch: Number of the batch, from 0.
            attempt: Number of the action on it, from 0.
            evaluation_batch: The batch, if there is to be a heat map.
            terms: Of the reward.
            scores: Teacher-forced, 0 to 100.
            reward: The environment's.
        """
        self.steps.append(StepRow(batch, attempt, terms, scores, reward))
        if evaluation_batch is not None and batch == len(self.evaluation_batches):
            self.evaluation_batches.append(evaluation_batch)

    def look_back(self, lm: EditableLM) -> None:
        """Measures every batch done so far at the current weights; once for a number of steps."""
        if not self.steps or (self.retention and self.retention[-1][0] == len(self.steps)):
            return
        efficacies = [
            float(100 * metrics.teacher_forced(lm, batch).efficacy.mean()) for batch in self.evaluation_batches
        ]
        self.retention.append((len(self.steps), efficacies))


def _table(history: History) -> "Table":
    from rich.table import Table

    columns = ("batch", "attempt", "reward", "edit", "locality", "memory", "|D|^2", "efficacy", "general.", "specif.")
    table = Table(*columns, title=f"LifelongEdit, {len(history.steps)} steps", title_justify="left")
    for column in table.columns:
        column.justify = "right"
    for batch, attempt, terms, scores, reward in history.steps[-ROWS_SHOWN:]:
        losses = (reward, terms.edit, terms.locality, terms.memory, terms.regularization)
        table.add_row(
            str(batch),
            str(attempt),
            *(f"{value:.3f}" for value in losses),
            *("-" if scores[name] is None else f"{scores[name]:.1f}" for name in metrics.METRICS),
        )
    return table


def as_text(history: History) -> str:
    """The last steps as a plain text table."""
    from rich.console import Console

    out = StringIO()
    Console(file=out, width=110, no_color=True, force_terminal=False).print(_table(history))
    return out.getvalue()


def heat_map(history: History, cell: int = 8, smallest_side: int = 64) -> np.ndarray:
    """``(height, width, 3)`` uint8: a row for each batch done, a column for each looked back at, from dark (lost) to
    light (kept).

    There is a row for each number of batches done, the last look at it, and all rows of a stream are there from the
    start. Without the stream's length the map grows.

    Args:
        history: With a look back at the moments to show.
        cell: Pixels of a field's sides, if the map is neither too small nor too large with them.
        smallest_side: Pixels of the map's sides at least.
    """
    from matplotlib import colormaps

    rows = {len(efficacies): efficacies for _, efficacies in history.retention}
    batches = history.batches or max(rows, default=1)
    stride = -(-batches // LARGEST_SIDE)  # of a longer stream only every so many batches are shown
    fields = -(-batches // stride)
    image = np.full((fields, fields, 3), EMPTY, np.uint8)
    for done, efficacies in rows.items():
        colours = colormaps[COLOURS](np.array(efficacies[::stride]) / 100, bytes=True)
        image[(done - 1) // stride, : len(colours)] = colours[:, :3]
    pixels = min(max(cell, -(-smallest_side // fields)), LARGEST_SIDE // fields)
    return image.repeat(pixels, 0).repeat(pixels, 1)


def picture(history: History) -> np.ndarray:
    """``(540, 960, 3)`` uint8: the heat map with its axes and its scale, rewards and scores along the episode.

    All frames are of one size, and axes stay where they are along a stream whose length is known.

    Args:
        history: With a look back at the moment to show.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(LOOK):
        figure = Figure(PICTURE_INCHES, DPI)
        canvas = FigureCanvasAgg(figure)
        _draw_headline(figure, history)
        _draw_heat_map(figure, history)
        _draw_rewards(figure.add_axes((0.665, 0.555, 0.31, 0.265)), history)
        _draw_scores(figure.add_axes((0.665, 0.12, 0.31, 0.265)), history)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_headline(figure: "Figure", history: History) -> None:
    """What this is, how far it is, and how much is kept."""
    done = len(history.retention[-1][1]) if history.retention else 0
    of = f" of {history.batches}" if history.batches else ""
    text = f"{done}{of} batches edited"
    if done:
        text += f", {np.mean(history.retention[-1][1]):.0f}% of their edits answered right"
    figure.text(0.065, 0.935, "LifelongEdit", fontsize=17, fontweight="bold")
    figure.text(0.25, 0.937, text, fontsize=12, color=INK)


def _draw_heat_map(figure: "Figure", history: History) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    image = heat_map(history)
    rows = {len(efficacies) for _, efficacies in history.retention}
    batches = history.batches or max(rows, default=1)
    axes = figure.add_axes((0.065, 0.12, 0.44, 0.70))
    axes.imshow(image, extent=(0.5, batches + 0.5, batches + 0.5, 0.5), aspect="auto", interpolation="nearest")
    axes.set(title="Efficacy of every batch so far", xlabel="batch asked about", ylabel="batches edited by then")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    scale = figure.add_axes((0.52, 0.12, 0.014, 0.70))
    bar = figure.colorbar(ScalarMappable(Normalize(0, 100), COLOURS), scale)
    bar.set_ticks([0, 50, 100], labels=["0%", "50%", "100%"])
    bar.outline.set_edgecolor(FAINT)


def _draw_rewards(axes: "Axes", history: History) -> None:
    rewards = [row.reward for row in history.steps]
    axes.plot(range(1, len(rewards) + 1), rewards, color=INK, linewidth=1.6, marker=".", markersize=5)
    _line_axes(axes, history)
    axes.set_title(f"Reward: {history.reward}")
    if history.reward_limits is not None:
        low, high = history.reward_limits
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        axes.axhline(0, color=FAINT, linewidth=0.8)


def _draw_scores(axes: "Axes", history: History) -> None:
    """Of the batch just edited, as ``info`` has them."""
    steps = range(1, len(history.steps) + 1)
    for name, colour in LINES.items():
        values = [np.nan if (value := row.scores[name]) is None else value for row in history.steps]
        axes.plot(steps, values, color=colour, linewidth=1.6, label=name)
    _line_axes(axes, history)
    axes.set(xlabel="step", ylim=(-3, 103), yticks=(0, 50, 100))
    axes.set_title("The batch just edited, %", pad=22)  # the legend lies below it, where no line can lie behind it
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.03, 1.0), ncols=3, frameon=False, fontsize=9, columnspacing=1.0,
        handlelength=1.2, handletextpad=0.5, borderpad=0.0,
    )  # fmt: skip


def _line_axes(axes: "Axes", history: History) -> None:
    """Axes over all steps of the stream, as far as its length is known."""
    from matplotlib.ticker import MaxNLocator

    actions = max((row.attempt for row in history.steps), default=0) + 1
    last = max((history.batches or 0) * actions, len(history.steps), 2)
    axes.set_xlim(0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


class LiveView:
    """The table, redrawn in place on the terminal."""

    def __init__(self) -> None:
        from rich.live import Live

        self._live = Live(refresh_per_second=4)
        self._live.start()

    def update(self, history: History) -> None:
        self._live.update(_table(history))

    def close(self) -> None:
        self._live.stop()
