"""The numbers that the paper reports, and which of our rows they go with.

``published.csv`` holds Tables 2, 4 and 5 of "Reinforced Lifelong Editing for Language Models" (Li et al. 2025,
arXiv 2502.05759), one value a row: percentages with the standard deviation the paper gives, and seconds per edit including
setup, averaged over the three models, on one A100 80 GB in half precision. They are theirs: other models, other hardware.
"""

import csv
from dataclasses import dataclass
from importlib import resources

SOURCE = "Li et al. 2025, arXiv 2502.05759"
METRICS = ("efficacy", "generalization", "specificity", "seconds_per_edit")

METHODS = {
    "ft-l": "FT",
    "fine-tune": "FT",
    "rome": "ROME",
    "memit": "MEMIT",
    "prune": "PRUNE",
    "rect": "RECT",
    "alphaedit": "AlphaEdit",
    "mend": "MEND",
    "mend-retrained": "MEND*",
    "malmen": "MALMEN",
    "malmen-retrained": "MALMEN*",
    "dafnet": "DAFNet",
    "rledit": "RLEdit",
    "rledit-fixed": "w/o RL training framework",
    "rledit-no-memory": "w/o memory backtracking",
    "rledit-no-regularization": "w/o regularization",
}
"""Our rows by theirs. Their FT is FT-L (appendix A.1): ``ft-l`` is that method, ``fine-tune`` ours without its constraint."""


@dataclass(frozen=True, slots=True)
class Published:
    """One number of the paper.

    Attributes:
        table: ``table2``, ``table4`` or ``table5``.
        dataset: ``ZsRE``, ``FEVER`` or ``CounterFact``; the last under the probability protocol, the others teacher-forced.
        task: Batches x edits per batch.
        model: The language model; empty where the paper gives one number for all.
        method: As the paper names it.
        metric: One of :data:`METRICS`.
        mean: In percent, or in seconds.
        std: None where the paper gives none.
    """

    table: str
    dataset: str
    task: str
    model: str
    method: str
    metric: str
    mean: float
    std: float | None

    @property
    def edits(self) -> int:
        """In all."""
        batches, _, size = self.task.partition("x")
        return int(batches) * int(size)


def read() -> list[Published]:
    """All of them, in the paper's order."""
    text = resources.files("benchmarks").joinpath("published.csv").read_text(encoding="utf-8")
    return [
        Published(
            **{name: row[name] for name in ("table", "dataset", "task", "model", "method", "metric")},
            mean=float(row["mean"]),
            std=float(row["std"]) if row["std"] else None,
        )
        for row in csv.DictReader(text.splitlines())
    ]
