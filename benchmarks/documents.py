"""Keeps the tables of documents what the records say.

    python -m benchmarks.documents README.md docs/results/*.md docs/reference/*.md
    python -m benchmarks.documents README.md docs/results/*.md docs/reference/*.md --check

A table stands between two comments, which readers of the page do not see::

    <!-- table: methods-50x20.jsonl atlas-50x20 -->
    ...
    <!-- end -->

The first word is the kind of table (:data:`KINDS`), the second the file of records, named from the document's folder.
Then come one suite or several; a suite may be a pattern (``capacity-*``).
``agents=no-edit,rledit-p`` behind them shows these rows alone, in this order.
Records of several files are joined by a plus: ``atlas-50x20.jsonl+methods-50x20.jsonl``.
``<!-- differences: atlas-50x20.jsonl atlas-50x20 pairs=rledit:rledit-fixed -->`` compares rows on the same streams.
A row is marked if one of its records does not say where it comes from (benchmarks.results.provenance).
``<!-- rl: rl.jsonl steps -->`` is the table of benchmarks.rl_report, ``<!-- rl: rl-choice.jsonl choice -->`` that of
learning rates,
``<!-- agreement: agreement.json -->`` that of benchmarks.agreement (``agreement.json closest``: the least differences),
``<!-- returns: returns.jsonl -->`` and ``<!-- curves: learning_curves.jsonl -->`` those of the modules called so.
Everything between the comments is written anew; --check only says which documents would change.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import tyro

from benchmarks import agreement, capacity, learning_curves, returns
from benchmarks.results import provenance
from benchmarks.results.leaderboard import MEAN, Entry, entries
from benchmarks.results.records import Record, read
from benchmarks.results.statistics import interquartile_mean
from benchmarks.results.tables import (
    CHANGES,
    as_details,
    as_differences,
    as_intervals,
    as_markdown,
    as_means,
    as_portability,
    as_summary,
    as_times,
    change_more_than_weights,
    escaped,
    markdown,
    with_interval,
)
from editenv.atomic_files import atomic_write_text
from editenv.evaluation.metrics import METRICS


def as_scores(records: Sequence[Record], protocol: str = "teacher_forced", best_first: bool = False) -> str:
    """The table that a report shows first: one figure a column, means with their intervals, names in plain words.

    Args:
        records: Of one suite.
        protocol: What efficacy, generalization and specificity are judged by; the mean of the other protocol follows.
        best_first: Rows go by that mean, and not in the records' order.
    """
    other = next(name for name in PROTOCOLS if name != protocol)
    rows = entries(records)
    if best_first:
        rows = sorted(rows, key=partial(_mean_of, protocol=protocol), reverse=True)
    headings = ["row", "seeds", *METRICS, "mean", f"mean, {PROTOCOLS[other]}", "edit time / floor"]
    cells = [_scores(entry, protocol, other) for entry in rows]
    if change_more_than_weights(rows):
        headings.insert(1, CHANGES.heading)
        for entry, of_entry in zip(rows, cells, strict=True):
            of_entry.insert(1, CHANGES.text(entry))
    return markdown(headings, cells)


def _mean_of(entry: Entry, protocol: str) -> float:
    """0 where the protocol was not asked."""
    estimate = entry.estimate(protocol, MEAN)
    return 0.0 if estimate is None else estimate.value


def _scores(entry: Entry, protocol: str, other: str) -> list[str]:
    columns = [list(entry.values(protocol, metric).values()) for metric in METRICS]
    return [
        entry.agent,
        str(len(entry.records)),
        *(f"{interquartile_mean(values):.1f}" if values else "-" for values in columns),
        *(with_interval(entry.estimate(name, MEAN)) for name in (protocol, other)),
        f"{entry.median('floor_ratio'):.2f}",
    ]


PROTOCOLS = {"teacher_forced": "teacher-forced", "generation": "freely generated"}
"""The two that a table of scores has, and what its last column calls them."""
KINDS: dict[str, Callable[[Sequence[Record]], str]] = {
    "scores": as_scores,
    "generated": partial(as_scores, protocol="generation"),
    "begun": partial(as_scores, protocol="generation_prefix", best_first=True),
    "table": as_markdown,
    "details": as_details,
    "portability": as_portability,
    "summary": as_summary,
    "intervals": as_intervals,
    "means": as_means,
    "times": as_times,
    "capacity": lambda records: capacity.as_markdown(capacity.curves(records)),
}
"""By name, what makes a table of records:

* ``scores``: the columns that a reader needs first; ``generated``: the same of free generation; ``begun``: of its
  beginning alone, best first, for a model that does not stop after an answer.
* ``table``: all of benchmarks.results.tables; ``summary``: both protocols without costs.
* ``details``: the probability comparison, drift and probes; ``intervals``: each figure with its interval.
* ``portability``: a column for each kind of portability question.
* ``means``: a column for each suite; ``times``: what an edit takes with and without the setup.
* ``capacity``: the breaking points of benchmarks.capacity.
"""

DIFFERENCES = "differences"
"""The kind that compares pairs of rows on the same streams: ``pairs=A:B,C:D``."""
RL = "rl"
"""The kind whose file holds runs of benchmarks.rl, not records."""
AGREEMENT = "agreement"
"""The kind whose file is of benchmarks.agreement."""
CLOSEST = "closest"
WHOLE_FILES: dict[str, Callable[[Path], str]] = {
    "returns": lambda file: returns.as_markdown(returns.read(file)),
    "curves": lambda file: learning_curves.as_markdown(learning_curves.read(file)),
}
"""Kinds whose file is of a module of its own, and shown whole."""
BEGIN = re.compile(r"^<!-- (\w+): (.*) -->\n", re.MULTILINE)
END = "<!-- end -->\n"
AGENTS = "agents="
PAIRS = "pairs="


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        documents: Markdown files.
        check: Change nothing; name the documents whose tables are not what the records say, and fail if there are any.
    """

    documents: tyro.conf.Positional[tuple[Path, ...]]
    check: bool = False


def rewritten(document: Path) -> str:
    """The document with its tables made from the records.

    Raises:
        ValueError: If a comment is not as above, a file holds no record of the suite or of an agent, or a table has no
            end; names the line.
    """
    text = document.read_text(encoding="utf-8")
    pieces, done = [], 0
    while begin := BEGIN.search(text, done):
        where = f"{document}, line {text.count(chr(10), 0, begin.start()) + 1}"
        try:
            table = table_of(begin[1], begin[2].split(), document.parent)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        end = text.find(END, begin.end())
        following = BEGIN.search(text, begin.end())
        if end < 0 or (following and following.start() < end):
            raise ValueError(f"{where}: the table has no {END.strip()!r}")
        pieces += [text[done : begin.end()], table]
        done = end
    return "".join([*pieces, text[done:]])


def table_of(kind: str, source: Sequence[str], folder: Path) -> str:
    """The table that a comment asks for.

    Args:
        kind: One of :data:`KINDS`.
        source: A file in ``folder`` (or several: ``one.jsonl+two.jsonl``), suites, and perhaps ``agents=...``.
        folder: The document's.

    Raises:
        ValueError: If the comment cannot be followed.
    """
    file, *suites = [word for word in source if not word.startswith((AGENTS, PAIRS))] or [""]
    pairs = [word.removeprefix(PAIRS) for word in source if word.startswith(PAIRS)]
    options = [word.removeprefix(AGENTS) for word in source if word.startswith(AGENTS)]
    if kind == AGREEMENT and suites in ([], [CLOSEST]) and not options:
        comparisons = agreement.read(folder / file)
        return agreement.as_markdown(agreement.closest(comparisons) if suites else comparisons)
    if kind in WHOLE_FILES and not suites and not options:
        return WHOLE_FILES[kind](folder / file)
    compares = kind == DIFFERENCES
    if kind not in (*KINDS, RL, DIFFERENCES) or not suites or len(options) > 1 or len(pairs) != compares:
        kinds = " or ".join((*KINDS, RL))
        raise ValueError(
            f"must be '<!-- KIND: FILE SUITE -->', KIND being {kinds}, or '<!-- {DIFFERENCES}: FILE SUITE {PAIRS}A:B,C:D -->', "
            f"or '<!-- {AGREEMENT}: FILE [{CLOSEST}] -->', or "
            f"'<!-- KIND: FILE -->', KIND being {' or '.join(WHOLE_FILES)}"
        )
    if kind == RL:
        return _as_rl(folder / file, source[1:])
    records = [record for name in file.split("+") for record in read(folder / name)]
    for suite in suites:
        if not any(fnmatchcase(record.suite, suite) for record in records):
            raise ValueError(f"{file} holds no record of suite {suite!r}")
    records = [record for record in records if any(fnmatchcase(record.suite, suite) for suite in suites)]
    if compares:
        return as_differences(records, [_pair(words) for words in pairs[0].split(",")])
    return _with_marks(kind, _only(records, options[0].split(","), file) if options else records)


def _pair(words: str) -> tuple[str, str]:
    first, colon, second = words.partition(":")
    if not (first and colon and second):
        raise ValueError(f"{PAIRS} must be A:B,C:D, names of rows, not {words!r}")
    return first, second


def _with_marks(kind: str, records: Sequence[Record]) -> str:
    """The table, with a mark behind rows of which a record does not say where it comes from, and a note below it."""
    made = KINDS[kind](records)
    for agent in {record.agent for record in records if provenance.lacking(record)}:
        made = made.replace(f"| {escaped(agent)} |", f"| {escaped(agent)} {provenance.MARK} |")
    return f"{made}\n{provenance.NOTE}" if provenance.MARK in made else made


def _only(records: Sequence[Record], agents: Sequence[str], file: str) -> list[Record]:
    """The records of these agents, in the agents' order.

    Raises:
        ValueError: If an agent has no record, or is named twice.
    """
    known = {record.agent for record in records}
    for agent in agents:
        if agent not in known:
            raise ValueError(f"{file} holds no record of agent {agent!r} there; it has {', '.join(sorted(known))}")
        if agents.count(agent) > 1:
            raise ValueError(f"{AGENTS} names {agent!r} twice")
    chosen = [record for record in records if record.agent in agents]
    return sorted(chosen, key=lambda record: agents.index(record.agent))


def _as_rl(file: Path, tables: Sequence[str]) -> str:
    from benchmarks import rl, rl_report

    if len(tables) == 1 and tables[0] in rl_report.TABLES:
        return rl_report.TABLES[tables[0]](rl.read(file))
    raise ValueError(f"must be '<!-- {RL}: FILE TABLE -->', TABLE being {' or '.join(rl_report.TABLES)}")


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
