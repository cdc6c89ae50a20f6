"""Data sets as streams of edits."""

from collections.abc import Sequence

from editenv.data import atlas
from editenv.data.edits import Edit, Locality

DATASETS = ("atlas",)

__all__ = ["DATASETS", "Edit", "Locality", "load_edits"]


def load_edits(dataset: str, split: str, seed: int | None = None) -> Sequence[Edit]:
    """The edits of one split of a data set.

    Args:
        dataset: ``"atlas"``, the embedded world.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        seed: Redraws targets and phrasings of the training split; None gives the canonical edits.

    Raises:
        ValueError: For an unknown data set or split.
    """
    if dataset not in DATASETS:
        raise ValueError(f"unknown dataset {dataset!r}; known are {', '.join(DATASETS)}")
    return atlas.load_edits(split, seed)
