"""What an episode looks like: a table, the same table live, or the retention heat map."""

from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from editenv.evaluation import metrics
from editenv.evaluation.batch import EvaluationBatch
from editenv.language_model.editable_lm import EditableLM
from editenv.rewards import RewardTerms

if TYPE_CHECKING:
    from rich.table import Table

ROWS_SHOWN = 12
"""Last steps in the table."""

LARGEST_SIDE = 1024
"""Pixels of the heat map's sides at most."""

LOST, KEPT, EMPTY = (68, 1, 84), (253, 231, 37), (40, 40, 40)
"""RGB of the heat map: the two ends of viridis, which colour-blind people can tell apart, and grey for what is not
there yet.
"""


class StepRow(NamedTuple):
    """What one step did: which action it was, and how it was judged."""

    batch: int
    attempt: int
    terms: RewardTerms
    scores: dict[str, float | None]


@dataclass
class History:
    """What has happened in an episode.

    Attributes:
        batches: Of the whole stream; None if it has no end.
        steps: Every step.
        evaluation_batches: Every batch edited so far, if there is to be a heat map: they are large.
        retention: For each look back, how many steps were done, and the efficacy, 0 to 100, of every batch done by
            then.
    """

    batches: int | None = None
    steps: list[StepRow] = field(default_factory=list)
    evaluation_batches: list[EvaluationBatch] = field(default_factory=list)
    retention: list[tuple[int, list[float]]] = field(default_factory=list)

    def add(
        self,
        batch: int,
        attempt: int,
        evaluation_batch: EvaluationBatch | None,
        terms: RewardTerms,
        scores: dict[str, float | None],
    ) -> None:
        """Takes in a step.

        Args:
            batch: Number of the batch, from 0.
            attempt: Number of the action on it, from 0.
            evaluation_batch: The batch, if there is to be a heat map.
            terms: Of the reward.
            scores: Teacher-forced, 0 to 100.
        """
        self.steps.append(StepRow(batch, attempt, terms, scores))
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


def heat_map(history: History, cell: int = 8, smallest_side: int = 64) -> np.ndarray:
    """``(height, width, 3)`` uint8: a row for each batch done, a column for each looked back at, from dark (lost) to
    light (kept).

    Frames of one stream are of one size, as videos need them: a row for each number of batches done, the last look
    at it. Without the stream's length the map grows.

    Args:
        history: With a look back at the moments to show.
        cell: Pixels of a field's sides, if the map is neither too small nor too large with them.
        smallest_side: Pixels of the map's sides at least.
    """
    rows = {len(efficacies): efficacies for _, efficacies in history.retention}
    batches = history.batches or max(rows, default=1)
    stride = -(-batches // LARGEST_SIDE)  # of a longer stream only every so many batches are shown
    fields = -(-batches // stride)
    image = np.full((fields, fields, 3), EMPTY, np.uint8)
    lost, kept = np.array(LOST), np.array(KEPT)
    for done, efficacies in rows.items():
        share = np.array(efficacies[::stride])[:, None] / 100
        image[(done - 1) // stride, : len(share)] = (lost + share * (kept - lost)).astype(np.uint8)
    pixels = min(max(cell, -(-smallest_side // fields)), LARGEST_SIDE // fields)
    return image.repeat(pixels, 0).repeat(pixels, 1)


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
