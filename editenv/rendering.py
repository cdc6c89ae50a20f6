"""What an episode looks like: a table, the same table live, or the retention heat map."""

from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING

import numpy as np

from editenv.evaluation import metrics
from editenv.evaluation.batch import EvaluationBatch
from editenv.language_model.editable_lm import EditableLM
from editenv.rewards import RewardTerms

if TYPE_CHECKING:
    from rich.table import Table

ROWS_SHOWN = 12
LARGEST = 1024
"""Pixels of the heat map's sides at most."""


@dataclass
class History:
    """What has happened in an episode.

    Attributes:
        steps: ``(batch, attempt, terms, scores)`` of every step.
        questions: The questions about every batch edited so far, if there is to be a heat map: they are large.
        retention: One row for each look back: efficacy, 0 to 100, of every batch done by then.
        batches: Of the whole stream; None if it has no end.
    """

    batches: int | None = None

    steps: list[tuple[int, int, RewardTerms, dict[str, float | None]]] = field(default_factory=list)
    questions: list[EvaluationBatch] = field(default_factory=list)
    retention: list[tuple[int, list[float]]] = field(default_factory=list)

    def add(
        self,
        batch: int,
        attempt: int,
        questions: EvaluationBatch | None,
        terms: RewardTerms,
        scores: dict[str, float | None],
    ) -> None:
        self.steps.append((batch, attempt, terms, scores))
        if questions is not None and batch == len(self.questions):
            self.questions.append(questions)

    def look_back(self, lm: EditableLM) -> None:
        """Asks about every batch done so far at the current weights."""
        if not self.steps or (self.retention and self.retention[-1][0] == len(self.steps)):
            return
        scores = [float(100 * metrics.teacher_forced(lm, q).efficacy.mean()) for q in self.questions]
        self.retention.append((len(self.steps), scores))


def _table(history: History) -> "Table":
    from rich.table import Table

    columns = ("batch", "attempt", "reward", "edit", "locality", "memory", "|D|^2", "efficacy", "general.", "specif.")
    table = Table(*columns, title=f"LifelongEdit-v0, {len(history.steps)} steps", title_justify="left")
    for column in table.columns:
        column.justify = "right"
    for batch, attempt, terms, scores in history.steps[-ROWS_SHOWN:]:
        losses = (terms.reward, terms.edit, terms.locality, terms.memory, terms.regularization)
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


def heat_map(history: History, cell: int = 8, least: int = 64) -> np.ndarray:
    """``(height, width, 3)`` uint8: a row for each batch done, a column for each asked about, from dark (lost) to
    light (kept).

    Frames of one stream are of one size, as videos need them: a row for each number of batches done, the last look
    at it. Without the stream's length the map grows.
    """
    rows = {len(row): row for _, row in history.retention}
    batches = history.batches or max(rows, default=1)
    every = -(-batches // LARGEST)  # of a longer stream every so many batches are shown
    width = -(-batches // every)
    image = np.full((width, width, 3), 40, np.uint8)
    # Two anchors of a colour-blind-safe ramp; what is not there yet stays grey.
    low, high = np.array([68, 1, 84]), np.array([253, 231, 37])
    for done, row in rows.items():
        share = np.array(row[::every])[:, None] / 100
        image[(done - 1) // every, : len(share)] = (low + share * (high - low)).astype(np.uint8)
    scale = max(cell, -(-least // min(image.shape[:2])))
    scale = min(scale, LARGEST // width)
    return image.repeat(scale, 0).repeat(scale, 1)


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
