"""Lists the records that do not say where they come from: commit, versions, hardware, files as they were committed.

    python -m benchmarks.provenance docs/results/*.jsonl

A line for each file, suite and row, with its seeds; then the count. Files of other things than records are named and
passed over. Exit status 1 if any record lacks something.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.results import files
from benchmarks.results.provenance import lacking
from benchmarks.results.records import Record, read
from benchmarks.results.texts import printable


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        results: Files of records (results.jsonl).
    """

    results: tyro.conf.Positional[tuple[Path, ...]]


def gaps(records: Sequence[Record]) -> dict[tuple[str, str, str], list[int]]:
    """The seeds of records that lack something, by suite, row and what they lack."""
    seeds: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for record in records:
        if what := ", ".join(lacking(record)):
            seeds[record.suite, record.agent, what].append(record.seed)
    return dict(seeds)


def main(args: Args) -> int:
    """Prints what is lacking; 1 if anything is.

    Raises:
        SystemExit: If a file cannot be read, or a line of a file of records is none.
    """
    count = total = 0
    for path in args.results:
        try:
            if not _holds_records(path):
                print(f"{path}: holds no records")
                continue
            records = read(path)
        except ValueError as error:
            raise SystemExit(printable(str(error))) from None
        total += len(records)
        for (suite, agent, what), seeds in gaps(records).items():
            count += len(seeds)
            numbers = ", ".join(map(str, sorted(seeds)))
            print(printable(f"{path}: {suite}, {agent}, seed{'s' * (len(seeds) > 1)} {numbers}: no {what}"))
    print(f"{count} of {total} records lack something")
    return 1 if count else 0


def _holds_records(path: Path) -> bool:
    """Whether the first line has a suite, as each record does; those of benchmarks.rl have none."""
    row = files.parse(files.read_text(path).partition("\n")[0] or "null")
    return isinstance(row, dict) and "suite" in row


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
