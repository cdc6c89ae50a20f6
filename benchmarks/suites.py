"""Suites: what is edited, in which portions. A suite's name never changes its meaning; a changed one gets a new name."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Suite:
    """One stream: ``batches`` batches of ``edits_per_step`` edits of a split."""

    name: str
    batches: int
    edits_per_step: int
    model: str = "atlas"
    dataset: str = "atlas"
    split: str = "test"


SUITES = {
    suite.name: suite
    for suite in (
        Suite("smoke", 5, 20),
        Suite("atlas-50x20", 50, 20),
        Suite("atlas-400x20", 400, 20),
        # Choices are made here, never on the test split.
        Suite("atlas-50x20-validation", 50, 20, split="validation"),
    )
}
