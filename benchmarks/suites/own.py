"""A file of records as a suite: no suite file is needed to tune methods on it and to compare them.

    python -m benchmarks.tune --methods fine-tune --edits facts.jsonl --model ./my-model --settings ./mine \
        --out runs/tune --write
    python -m benchmarks.run --edits facts.jsonl --model ./my-model --agents no-edit fine-tune@./mine --out runs/facts

A single file is cut by subject: methods learn from one part, settings are chosen on another, the rest is for the table.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.suites import OWN_PROTOCOLS, SUITES, Suite, find, literal
from editenv.data import Edit, load_edits
from editenv.data.records import BadRecordError

EDITS_PER_STEP = 20
"""Edits in a batch where nothing is said, as in most suites."""


@dataclass(frozen=True)
class OwnData:
    """Options of commands for records and text of one's own.

    Attributes:
        edits: Records of your own in place of a suite: a file, FORMAT:FILE, a folder or a hub id, as `editenv inspect`
            takes it.
        split: With --edits, which part of them: train, validation or test (by default, where tables are made); all of
            a single file has in it what methods learn from.
        edits_per_step: With --edits: edits in a batch, 20 by default.
        batches: With --edits: the first so many batches of the stream; by default as many as can be filled.
        text: Ordinary text that methods take statistics of, in place of the suite's: .txt (a text a line), .jsonl (a
            field text), a hub data set, or a folder made by agents.covariance. By default, with --edits, sentences of
            the training part.
        drift_text: The same for what drift is measured on.
    """

    edits: str | None = None
    split: str | None = None
    edits_per_step: int | None = None
    batches: int | None = None
    text: str | None = None
    drift_text: str | None = None

    def suite(self, name: str | None, split: str, data: Path | None = None) -> Suite:
        """The suite of this name or file, or that of the records.

        Args:
            name: What ``--suite`` says.
            split: The part of the records where ``--split`` says none.
            data: What ``--data`` says.

        Raises:
            ValueError: If both are given or neither, or if the records fill no batch.
            FileNotFoundError: If there is no such file.
        """
        if self.edits is None:
            only = {"--split": self.split, "--edits-per-step": self.edits_per_step, "--batches": self.batches}
            if given := [option for option, value in only.items() if value is not None]:
                raise ValueError(
                    f"{given[0]} goes with --edits; a suite says it itself (--suite NAME@BATCHES cuts one)"
                )
            if name is None:
                raise ValueError("what is to be edited? Give --suite NAME, --suite FILE.json, or --edits FILE")
            return find(name)
        if data is not None:
            raise ValueError(
                f"--data is the folder of a suite's data sets; --edits names its file itself ({self.edits})"
            )
        if name is not None:
            raise ValueError(f"give --suite or --edits, not both (--suite {name} --edits {self.edits})")
        return suite_of(self.edits, self.split or split, self.edits_per_step, self.batches)


def suite_of(source: str, split: str, edits_per_step: int | None = None, batches: int | None = None) -> Suite:
    """The suite that edits records in batches of one size; those left over, which fill none, are not edited.

    Args:
        source: As :func:`editenv.data.load_edits` takes it.
        split: Of them.
        edits_per_step: Edits in a batch; None for :data:`EDITS_PER_STEP`, or all of them if they are fewer.
        batches: The first so many batches; None for all.

    Raises:
        ValueError: If a batch, or so many batches, cannot be filled.
        FileNotFoundError: If there is no such file.
    """
    edits = _load(source, split)
    size = min(EDITS_PER_STEP, len(edits)) if edits_per_step is None else edits_per_step
    if not 1 <= size <= len(edits):
        raise ValueError(f"--edits-per-step: {source}, split {split}, has {len(edits)} edits, not {size} for a batch")
    most = len(edits) // size
    if batches is not None and not 1 <= batches <= most:
        raise ValueError(f"--batches: {source}, split {split}, has {most} batches of {size} edits, not {batches}")
    kind, colon, name = source.rpartition(":")
    path = Path(name).expanduser()
    # The file's folder is this machine's affair: records name the file, and hold what is in it by its fingerprint.
    dataset = f"{kind}{colon}{{data}}/{literal(path.name)}" if path.exists() else source
    return Suite(
        name=_name_of(path.name.partition(".")[0] if path.exists() else source, split, batches or most, size),
        batches=batches or most,
        edits_per_step=size,
        model=None,
        dataset=dataset,
        split=split,
        data=path.absolute().parent if path.exists() else None,
        about=f"Edits of {path.name}.",
        protocols=_protocols(edits),
    )


def _load(source: str, split: str) -> Sequence[Edit]:
    try:
        return load_edits(source, split)
    except BadRecordError:
        raise
    except ValueError as error:
        if source == "atlas" or split == "all" or Path(source.rpartition(":")[2]).is_dir():
            raise
        raise ValueError(
            f"{error}. A single file is cut by subject, half to learn from (train), a tenth to choose settings on "
            "(validation) and the rest for the table (test): of fewer than a few dozen subjects no part may be left for "
            "one; a folder may have a file for each"
        ) from None


def _name_of(stem: str, split: str, batches: int, size: int) -> str:
    """``facts-50x20``, or ``facts-50x20-validation``; never the name of a suite of the package."""
    stem = re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "edits"
    name = f"{stem}-{batches}x{size}" + ("" if split == "test" else f"-{split}")
    return f"{name}-own" if name in SUITES else name


def _protocols(edits: Sequence[Edit]) -> tuple[str, ...]:
    return (*OWN_PROTOCOLS, "portability") if any(edit.portability for edit in edits) else OWN_PROTOCOLS
