"""What was found out about records by those who checked them: ``benchmarks.validate`` writes it, the report shows it.

A verdict names its record by a digest, so that it says nothing about a record that was changed afterwards. Verdicts are
read from files that the reader of a report names, never from a submission, which would speak of itself.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

from benchmarks.results import files, rules
from benchmarks.results.leaderboard import Entry
from benchmarks.results.records import Record
from benchmarks.results.texts import message
from editenv.atomic_files import atomic_write_text

NOT_VERIFIED, REPLAYED, REVERIFIED, FALSE = "not verified", "replayed", "verified by re-running", "does not hold"
"""What is said of a row, from all of its records."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """About one record.

    Attributes:
        record: Its digest (:func:`digest_of`).
        holds: Whether its deltas, replayed, gave its figures.
        rerun: Whether its agent, run again on new streams, did as well; None if it was not.
        unverified: What it claims that was not checked.
    """

    record: Annotated[str, rules.sha256]
    holds: Annotated[bool, rules.boolean]
    rerun: Annotated[bool | None, rules.boolean | None]
    unverified: Annotated[list[str], rules.list_of(rules.text)]

    def __post_init__(self) -> None:
        rules.check_fields(self)


def digest_of(record: Record) -> str:
    """SHA-256 of all that a record says."""
    return hashlib.sha256(json.dumps(asdict(record), sort_keys=True).encode()).hexdigest()


def write(path: Path, verdicts: Iterable[Verdict]) -> None:
    """One JSON object a line."""
    atomic_write_text(path, "".join(json.dumps(asdict(verdict)) + "\n" for verdict in verdicts))


def read(paths: Sequence[Path]) -> dict[str, Verdict]:
    """The verdicts of some files by the digests of their records; of two about one record the later counts.

    Raises:
        ValueError: If a line is none; names the file and the line.
    """
    verdicts: dict[str, Verdict] = {}
    for path in paths:
        for number, line in enumerate(files.read_text(path).split("\n"), start=1):
            try:
                if line:
                    row = files.parse(line)
                    if not isinstance(row, dict) or row.keys() != {field.name for field in fields(Verdict)}:
                        raise ValueError(f"a verdict has {', '.join(field.name for field in fields(Verdict))}")
                    verdicts[row["record"]] = Verdict(**row)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: {message(error)}") from error
    return verdicts


def status_of(entry: Entry, verdicts: dict[str, Verdict]) -> str:
    """What can be said of a row: the least of what was found out about its records."""
    known = [verdicts.get(digest_of(record)) for record in entry.records]
    if any(verdict is not None and (not verdict.holds or verdict.rerun is False) for verdict in known):
        return FALSE
    if any(verdict is None for verdict in known):
        return NOT_VERIFIED
    return REVERIFIED if all(verdict is not None and verdict.rerun for verdict in known) else REPLAYED


def statuses(entries: Sequence[Entry], verdicts: dict[str, Verdict]) -> list[tuple[str, str, str]]:
    """Of each row its suite with the model, its agent, and :func:`status_of` with what was not checked."""
    rows = []
    for entry in entries:
        unverified = {
            claim
            for record in entry.records
            if (verdict := verdicts.get(digest_of(record))) is not None
            for claim in verdict.unverified
        }
        status = status_of(entry, verdicts)
        text = f"{status}; not verified: {', '.join(sorted(unverified))}" if unverified else status
        rows.append((str(entry.task), entry.agent, text))
    return rows
