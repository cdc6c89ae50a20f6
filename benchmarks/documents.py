"""Keeps the tables of documents what the records say.

    python -m benchmarks.documents README.md docs/results/*.md
    python -m benchmarks.documents README.md docs/results/*.md --check

A table stands between two comments, which readers of the page do not see::

    <!-- table: methods-50x20.jsonl atlas-50x20 -->
    ...
    <!-- end -->

``table`` is benchmarks.results.tables's first table and ``details`` its second, ``summary`` the first with fewer
columns, ``intervals`` each figure with its interval, ``means`` a column for each suite, ``times`` what an edit
takes with and without the setup, ``capacity`` that of benchmarks.capacity; of the records of one suite or several
in a file, named from the document's folder. A
suite may be a pattern: capacity-*.
Everything between the comments is written anew; --check only says which documents would change.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import tyro

from benchmarks import capacity
from benchmarks.results.records import Record, read
from benchmarks.results.tables import as_details, as_intervals, as_markdown, as_means, as_summary, as_times
from editenv.atomic_files import atomic_write_text

KINDS: dict[str, Callable[[Sequence[Record]], str]] = {
    "table": as_markdown,
    "details": as_details,
    "summary": as_summary,
    "intervals": as_intervals,
    "means": as_means,
    "times": as_times,
    "capacity": lambda records: capacity.as_markdown(capacity.curves(records)),
}

BEGIN = re.compile(r"^<!-- (\w+): (.*) -->\n", re.MULTILINE)
END = "<!-- end -->\n"


@dataclass
class Args:
    documents: tyro.conf.Positional[tuple[Path, ...]]
    """Markdown files."""
    check: bool = False
    """Change nothing; name the documents whose tables are not what the records say, and fail if there are any."""


def rewritten(document: Path) -> str:
    """The document with its tables made from the records.

    Raises:
        ValueError: If a comment is not as above, a file holds no record of the suite, or a table has no end; names
            the line.
    """
    text = document.read_text(encoding="utf-8")
    pieces, done = [], 0
    while begin := BEGIN.search(text, done):
        kind, source = begin[1], begin[2].split()
        where = f"{document}, line {text.count(chr(10), 0, begin.start()) + 1}"
        if kind not in KINDS or len(source) < 2:
            raise ValueError(f"{where}: must be '<!-- KIND: FILE SUITE -->', KIND being {' or '.join(KINDS)}")
        file, *suites = source
        found = read(document.parent / file)
        for suite in suites:
            if not any(fnmatchcase(record.suite, suite) for record in found):
                raise ValueError(f"{where}: {file} holds no record of suite {suite!r}")
        records = [record for record in found if any(fnmatchcase(record.suite, suite) for suite in suites)]
        end = text.find(END, begin.end())
        following = BEGIN.search(text, begin.end())
        if end < 0 or (following and following.start() < end):
            raise ValueError(f"{where}: the table has no {END.strip()!r}")
        pieces += [text[done : begin.end()], KINDS[kind](records)]
        done = end
    return "".join([*pieces, text[done:]])


def main(args: Args) -> int:
    """Exit status: 1 if --check found a document that would change."""
    try:
        made = {path: rewritten(path) for path in args.documents}
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None
    changed = [path for path, text in made.items() if text != path.read_text(encoding="utf-8")]
    for path in changed:
        if not args.check:
            atomic_write_text(path, made[path])
        print(f"{path}: {'is not what its records say' if args.check else 'written'}")
    if not changed:
        print("all tables are what the records say")
    return int(args.check and bool(changed))


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Args, description=__doc__)))
