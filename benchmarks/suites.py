"""Suites: what is edited, in which portions. A suite's name never changes its meaning; a changed one gets a new name."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Suite:
    """One stream: ``batches`` batches of ``edits_per_step`` edits of a split.

    Attributes:
        name: Unique.
        batches: Batches in the stream.
        edits_per_step: Edits in a batch.
        model: Name, folder or hub id; None if the suite needs to be told.
        dataset: As :func:`editenv.data.load_edits` takes it; ``{data}`` stands for the folder of the data sets.
        split: What is edited.
        training: Data set whose training split agents learn from; the same by default.
        options: How files are read.
        data: The folder that ``{data}`` stands for.
    """

    name: str
    batches: int
    edits_per_step: int
    model: str | None = "atlas"
    dataset: str = "atlas"
    split: str = "test"
    training: str | None = None
    options: tuple[tuple[str, str | int], ...] = ()
    data: Path | None = None

    def environment(self, training: bool = False) -> dict[str, Any]:
        """Arguments of the environment that is edited, or of the one that agents are prepared on."""
        dataset = (self.training or self.dataset) if training else self.dataset
        split = "train" if training else self.split
        found = {"model": self.model, "dataset": dataset.format(data=self.data), "split": split}
        return found if dataset == "atlas" else found | {"dataset_options": dict(self.options)}

    def at(self, model: str | None, data: Path | None) -> "Suite":
        """With the model and the data folder of this machine.

        Raises:
            ValueError: If the suite needs one that is not given.
        """
        if "{data}" in self.dataset and data is None:
            raise ValueError(f"suite {self.name} reads real data: give its folder with --data (see docs/data.md)")
        if self.model is None and model is None:
            raise ValueError(
                f"suite {self.name} needs a model that knows its data: give one with --model (see docs/data.md)"
            )
        return replace(self, model=model or self.model, data=data)


# Real records are taken as they are, but for those that say two things at once or leak from the training file.
SKIP = (("bad_records", "skip"),)

SUITES = {
    suite.name: suite
    for suite in (
        Suite("smoke", 5, 20),
        Suite("atlas-50x20", 50, 20),
        Suite("atlas-400x20", 400, 20),
        # Choices are made here, never on the test split.
        Suite("atlas-50x20-validation", 50, 20, split="validation"),
        # 1,740 of these 2,000 edits have a rephrase that is a paraphrase; the others have none.
        Suite(
            "counterfact-100x20",
            100,
            20,
            model=None,
            dataset="counterfact:{data}/counterfact",
            options=(*SKIP, ("rephrases", "checked-first"), ("limit", 2000)),
        ),
        # The public file has 1,000 records; all of them are edited, and agents learn on the embedded world.
        Suite("zsre-50x20", 50, 20, None, "zsre:{data}/zsre/zsre_edit_1000.json", "all", training="atlas"),
        Suite(
            "fever-100x20",
            100,
            20,
            model=None,
            dataset="fever:{data}/fever/fever_edit.json",
            options=(*SKIP, ("locality", "checked"), ("limit", 2000)),
        ),
    )
}
