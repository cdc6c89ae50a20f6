"""Data sets as sequences of edits: the embedded world, published files, your own."""

from collections.abc import Mapping, Sequence
from typing import Any

from editenv.data import atlas
from editenv.data.edits import Edit, Locality, Question, edits_digest

__all__ = ["Edit", "Locality", "Question", "edits_digest", "load_edits"]


def load_edits(
    dataset: str, split: str, seed: int | None = None, options: Mapping[str, Any] | None = None
) -> Sequence[Edit]:
    """The edits of one split of a data set.

    Args:
        dataset: ``"atlas"``, the embedded world; or a file, folder or hub id, with its format before a colon or without
            (``"counterfact:edits.json"``, ``"edits.csv"``); see docs/reference/data_formats.md.
        split: ``"train"``, ``"validation"`` or ``"test"``; ``"all"`` of a single file.
        seed: Redraws targets and phrasings of atlas' training split; None gives the canonical edits.
        options: Of :class:`editenv.data.files.FileOptions`, for files.

    Raises:
        ValueError: For an unknown data set, split or option, and for a record that cannot be used.
        FileNotFoundError: If there is no such file.
    """
    if dataset == "atlas":
        if options:
            raise ValueError(f"atlas takes no dataset options, was given {sorted(options)}")
        return atlas.load_edits(split, seed)
    from editenv.data.files import FileOptions, load_file_edits

    if seed is not None:
        raise ValueError(f"only atlas can be redrawn, not {dataset!r}")
    return load_file_edits(dataset, split, FileOptions.of(options))
