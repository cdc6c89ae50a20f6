"""Edits from files, folders and the hub, in any of the published formats, split by split.

Every record is validated before anything is edited (:mod:`editenv.data.tables`). What a policy is judged on is kept
from what it learns: the parts of one file share no subject, a folder's test edits are not about subjects of its
training edits, and no prompt that a later split edits is protected as a locality prompt.
"""

import hashlib
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from editenv.data.edit_file import EditFile, digest
from editenv.data.formats import FORMATS
from editenv.data.opening import inner_suffix
from editenv.data.options import FileOptions
from editenv.data.records import SUFFIXES, RawRecord
from editenv.data.rephrases import with_true_rephrases
from editenv.data.tables import is_whole, open_table, read_edits, table_path, write_table

__all__ = ["EditFile", "FileOptions", "MissingSplitError", "load_file_edits"]

SPLIT_NAMES = {"train": ("train",), "validation": ("valid", "dev"), "test": ("test", "edit", "eval")}
"""Parts of a file's name by which a folder's files are told apart."""

SHARES = {"train": (0.0, 0.5), "validation": (0.5, 0.6), "test": (0.6, 1.0)}
"""How a single file is cut by subject when one of its splits is asked for."""


class MissingSplitError(ValueError):
    """A data set has no such split."""


def load_file_edits(dataset: str, split: str, options: FileOptions) -> EditFile:
    """The edits of one split.

    Args:
        dataset: ``PATH`` or ``FORMAT:PATH``, where PATH is a file, a folder with one file for each split, or a hub id.
        split: ``"train"``, ``"validation"``, ``"test"``, or ``"all"`` of a single file.
        options: How to read it.

    Raises:
        BadRecordError: For the first record that cannot be used, unless they are to be skipped.
        FileNotFoundError: If there is no such file.
        ValueError: For a file that is empty, a split that is not there, or an unknown format.
    """
    if split not in (*SHARES, "all"):
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SHARES)} and, of a single file, all")
    edits = _read_split(dataset, split, options)
    if options.apart_from is not None:
        edits = _apart_from(edits, options)
    if options.only is not None:
        edits = _only(edits, Path(options.only).expanduser())
    if options.rephrases != "as-is":
        edits = with_true_rephrases(edits, first=options.rephrases == "checked-first")
    if options.limit is not None:
        edits = edits.where(np.arange(len(edits)) < options.limit)
    edited = frozenset().union(*map(_prompt_digests, _later_splits(dataset, split, options)))
    if options.locality == "checked":
        edited |= {digest(prompt) for prompt in edits.column("prompt")}
    if edited:
        edits = edits.without_locality_among(edited)
    if len(edits) == 0:
        reasons = "\n".join(("", *edits.report.reasons()))
        raise ValueError(f"dataset {dataset!r}: no edit is left in split {split!r} ({edits.report}){reasons}")
    if edits.report.bad:
        warnings.warn(str(edits.report), stacklevel=2)
    for remark in edits.report.remarks():
        warnings.warn(f"{edits.report.source}: {remark}", stacklevel=2)
    return edits


def load_every_usable_edit(dataset: str, options: FileOptions) -> EditFile:
    """All edits of one file as they are, possibly none; what was left out is in the report.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If nothing in it can be read.
    """
    return _read_split(dataset, "all", options)


def format_and_source(dataset: str) -> tuple[str, str]:
    """The two parts of ``FORMAT:SOURCE``; the format is empty if none is named."""
    name, colon, source = dataset.partition(":")
    return (name, source) if colon and name in FORMATS else ("", dataset)


def _read_split(dataset: str, split: str, options: FileOptions) -> EditFile:
    name, source = format_and_source(dataset)
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder_split(path, name, split, options)
    if path.is_file():
        return _share(read_edits(path, name, options), split)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not path.suffix:
        return _hub_split(source, name, split, options)
    formats = ", ".join(FORMATS)
    raise FileNotFoundError(
        f"dataset {dataset!r}: there is no file or folder {source} (a format before it is one of {formats})"
    )


def _later_splits(dataset: str, split: str, options: FileOptions) -> Iterator[EditFile]:
    """Those that a policy of this split is judged on: what is edited there must not be learned as what has to stay.

    Raises:
        ValueError: If one is there and cannot be read.
    """
    later = list(SHARES)[list(SHARES).index(split) + 1 :] if split in SHARES else []
    everything = FileOptions("skip", nq_prefix=options.nq_prefix, columns=options.columns)
    for name in later:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield _read_split(dataset, name, everything)
            except MissingSplitError:
                continue


def _prompt_digests(edits: EditFile) -> Iterator[bytes]:
    """Of all prompts of these edits, rephrases included."""
    yield from map(digest, edits.column("prompt"))
    for rephrases in edits.column("rephrases"):
        yield from map(digest, rephrases)


# -- a folder with a file for each split --------------------------------------------------------------------------


def _folder_split(folder: Path, name: str, split: str, options: FileOptions) -> EditFile:
    """A folder's files by their names.

    Raises:
        MissingSplitError: If no file is of this split.
    """
    files = {key: _file_named(folder, parts) for key, parts in SPLIT_NAMES.items()}
    if split in ("train", "validation"):
        return _training_or_validation(folder, files, name, split, options)
    if split == "all":
        raise MissingSplitError(f"{folder}: split 'all' is the whole of one file: name the file")
    test, train = files["test"], files["train"]
    if test is None:
        raise MissingSplitError(f"{folder}: no file for split 'test'; its name must contain test, edit or eval")
    edits = read_edits(test, name, options)
    return edits if train is None else _without_leaks(edits, train, name, options)


def _training_or_validation(
    folder: Path, files: dict[str, Path | None], name: str, split: str, options: FileOptions
) -> EditFile:
    """The split's own file; without one for validation, a tenth of the training file's subjects."""
    file = files[split] or files["train"]
    if file is None:
        raise MissingSplitError(
            f"{folder}: no file for split {split!r}; its name must contain {' or '.join(SPLIT_NAMES[split])}"
        )
    edits = read_edits(file, name, options)
    if files["validation"] is not None:
        return edits
    tenth = _fractions(edits.subjects()) < 0.1
    return edits.where(tenth if split == "validation" else ~tenth)


def _without_leaks(edits: EditFile, train: Path, name: str, options: FileOptions) -> EditFile:
    """Without the test edits about subjects that the training file edits."""
    trained = read_edits(train, name, FileOptions("skip", nq_prefix=options.nq_prefix, columns=options.columns))
    seen = set(trained.subjects().tolist())
    leaks = np.array([subject in seen for subject in edits.subjects().tolist()], dtype=bool)
    for i in np.flatnonzero(leaks).tolist():
        edit = edits[i]
        what = f"{edit.subject or edit.prompt!r} is edited in {train.name} too: a policy trained there has seen it"
        field = "subject" if edit.subject else "prompt"
        edits.report.refuse(edits.bad(i, what, field, "leak"), options)
    return edits.where(~leaks)


def _apart_from(edits: EditFile, options: FileOptions) -> EditFile:
    """Without the edits about subjects that another file edits, and without locality prompts that it asks."""
    others = load_every_usable_edit(str(options.apart_from), FileOptions("skip", nq_prefix=options.nq_prefix))
    subjects = set(others.subjects().tolist())
    shared = np.array([subject in subjects for subject in edits.subjects().tolist()], dtype=bool)
    return edits.where(~shared).without_locality_among(frozenset(_prompt_digests(others)))


def _only(edits: EditFile, path: Path) -> EditFile:
    """The edits that a file of ids names.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it names none of these edits; names the file and an id of each side.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise FileNotFoundError(
            f"only: cannot read {path} ({error.strerror}); it has an edit's id on each line"
        ) from None
    ids = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
    chosen = np.array([edit_id in ids for edit_id in edits.column("id")], dtype=bool)
    if not chosen.any():
        raise ValueError(
            f"only: none of the {len(ids)} ids in {path} (the first is {min(ids, default='not there')}) is that of an edit of "
            f"{edits.report.source}, whose ids are like {next(edits.column('id'), 'none')}"
        )
    return edits.where(chosen)


def _file_named(folder: Path, parts: Iterable[str]) -> Path | None:
    """The one file of records whose name contains one of some parts, if there is one.

    Raises:
        ValueError: If there are several.
    """
    files = [
        file
        for file in sorted(folder.iterdir())
        if inner_suffix(file) in SUFFIXES and any(part in file.stem.lower() for part in parts)
    ]
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"{folder}: {names} could all be one split; name one file instead")
    return files[0] if files else None


# -- one file, and the hub ----------------------------------------------------------------------------------------


def _share(edits: EditFile, split: str) -> EditFile:
    """A part of a single file that shares no subject with the other parts."""
    if split == "all":
        return edits
    low, high = SHARES[split]
    fractions = _fractions(edits.subjects())
    return edits.where((fractions >= low) & (fractions < high))


def _fractions(digests: np.ndarray) -> np.ndarray:
    """``(n,)`` uniform in [0, 1), the same for the same digest."""
    return np.array([int.from_bytes(hashlib.sha256(d).digest()[:7], "big") / 2**56 for d in digests.tolist()])


def _hub_split(hub_id: str, name: str, split: str, options: FileOptions) -> EditFile:
    from datasets import get_dataset_split_names, load_dataset

    if split != "all" and split not in (known := get_dataset_split_names(hub_id)):
        raise MissingSplitError(f"dataset {hub_id!r} of the hub has no split {split!r}; there are {', '.join(known)}")
    dataset = load_dataset(hub_id, split="train" if split == "all" else split)
    table = table_path(f"{hub_id}/{dataset._fingerprint}/{split}", name, options)
    if not is_whole(table):
        write_table(
            table, hub_id, name, options, (RawRecord(i, None, record) for i, record in enumerate(dataset, start=1))
        )
    return open_table(table, options)
