"""The numbers that the paper reports, beside ours.

``published.csv`` holds Tables 2, 4 and 5 of "Reinforced Lifelong Editing for Language Models" (Li et al. 2025,
arXiv 2502.05759), one value a row: percentages with the standard deviation the paper gives, and seconds per edit
including setup, averaged over the three models, on one A100 80 GB in half precision. They are theirs: other models,
other hardware.
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from benchmarks.results.leaderboard import Entry, Task
from benchmarks.results.tables import triple
from benchmarks.suites import all_suites

SOURCE = "Li et al. 2025, arXiv 2502.05759"
METRICS = ("efficacy", "generalization", "specificity", "seconds_per_edit")

METHODS = {
    "ft-l": "FT",
    "fine-tune": "FT",
    "rome": "ROME",
    "memit": "MEMIT",
    "prune": "PRUNE",
    "rect": "RECT",
    "alphaedit": "AlphaEdit",
    "mend": "MEND",
    "mend-retrained": "MEND*",
    "malmen": "MALMEN",
    "malmen-retrained": "MALMEN*",
    "dafnet": "DAFNet",
    "rledit": "RLEdit",
    "rledit-fixed": "w/o RL training framework",
    "rledit-no-memory": "w/o memory backtracking",
    "rledit-no-regularization": "w/o regularization",
}
"""Our rows by theirs; rows that are not here are ours only.

Their FT is FT-L (appendix A.1): ``ft-l`` is that method, ``fine-tune`` ours without its constraint.
"""

ABLATIONS = ("w/o RL training framework", "w/o memory backtracking", "w/o regularization")


@dataclass(frozen=True, slots=True)
class Published:
    """One number of the paper.

    Attributes:
        table: ``table2``, ``table4`` or ``table5``.
        dataset: ``ZsRE``, ``FEVER`` or ``CounterFact``; the last under the probability protocol, the others
            teacher-forced.
        task: Batches x edits per batch.
        model: The language model; empty where the paper gives one number for all.
        method: As the paper names it.
        metric: One of :data:`METRICS`.
        mean: In percent, or in seconds.
        std: None where the paper gives none.
    """

    table: str
    dataset: str
    task: str
    model: str
    method: str
    metric: str
    mean: float
    std: float | None

    @property
    def edits(self) -> int:
        """In all."""
        batches, _, size = self.task.partition("x")
        return int(batches) * int(size)


def read() -> list[Published]:
    """All of them, in the paper's order."""
    text = resources.files(__package__).joinpath("published.csv").read_text(encoding="utf-8")
    return [
        Published(
            **{name: row[name] for name in ("table", "dataset", "task", "model", "method", "metric")},
            mean=float(row["mean"]),
            std=float(row["std"]) if row["std"] else None,
        )
        for row in csv.DictReader(text.splitlines())
    ]


TITLES = {
    "table2": "Table 2: 8,000 edits in batches of 20",
    "table4": "Table 4: what RLEdit's parts are worth, 2,000 edits in batches of 100",
    "table5": "Table 5: by number of edits, in batches of 100",
}
TIMED_TABLE, ABLATION_TABLE = "table2", "table4"
OURS, THEIRS = "ours", "theirs"
NOTHING = "-"
"""Where there is no such row or number."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a comparison.

    Attributes:
        owner: :data:`OURS` or :data:`THEIRS`.
        task: What was edited.
        model: The language model, and for ours the protocol; what the paper's seconds are.
    """

    owner: str
    task: str
    model: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A table of the paper's form, with our columns before the paper's.

    Attributes:
        title: Which table it is.
        columns: Ours, then theirs.
        rows: Our row's name, the paper's, and a text for each column; a dash where there is nothing.
    """

    title: str
    columns: list[Column]
    rows: list[tuple[str, str, list[str]]]


def comparisons(entries: Sequence[Entry]) -> list[Comparison]:
    """Tables 2, 4 and 5, each with our suites beside that repeat it, as their files say; where none of them was
    run, with all.

    Percentages are efficacy / generalization / specificity under the paper's protocol for the data: teacher-forced,
    and the probability comparison on CounterFact; in Table 2 with the seconds per edit, setup included. Numbers of
    different models and data stand side by side: they are no race.
    """
    return [_comparison(_repeating(entries, table), table) for table in TITLES]


def _comparison(entries: Sequence[Entry], table: str) -> Comparison:
    published = [number for number in read() if number.table == table]
    columns = [*_our_columns(entries, table), *_their_columns(published)]
    rows = [
        (agent, method, [texts.get(agent if column.owner == OURS else method, NOTHING) for column, texts in columns])
        for agent, method in _pairs(entries, published, table)
    ]
    return Comparison(TITLES[table], [column for column, _ in columns], rows)


def _repeating(entries: Sequence[Entry], table: str) -> Sequence[Entry]:
    """The rows of suites that repeat a table of the paper; all rows if there are none."""
    number = re.compile(rf"\bTable {table.removeprefix('table')}\b")
    repeated = {suite.label for suite in all_suites() if suite.paper and number.search(suite.paper.where)}
    return [entry for entry in entries if entry.task.suite in repeated] or entries


def _pairs(entries: Sequence[Entry], published: Sequence[Published], table: str) -> list[tuple[str, str]]:
    """Our agent and the paper's method of each row, in the paper's order; then the agents that it does not have."""
    agents = list(dict.fromkeys(entry.agent for entry in entries))
    pairs = []
    for method in dict.fromkeys(number.method for number in published):
        same = [agent for agent in agents if METHODS.get(agent) == method]
        pairs += [(agent, method) for agent in same or [NOTHING]]
    if table == ABLATION_TABLE:
        return pairs
    paired = {agent for agent, _ in pairs}
    return pairs + [(agent, NOTHING) for agent in agents if agent not in paired]


def _our_columns(entries: Sequence[Entry], table: str) -> list[tuple[Column, dict[str, str]]]:
    """Each task's column and its texts by agent, the shortest stream first."""
    tasks: dict[Task, list[Entry]] = {}
    for entry in entries:
        tasks.setdefault(entry.task, []).append(entry)
    columns = []
    for task, rows in sorted(tasks.items(), key=lambda item: item[1][0].records[0].edits):
        if table == ABLATION_TABLE and not any(METHODS.get(row.agent) in ABLATIONS for row in rows):
            continue
        protocol = protocol_of(rows[0])
        column = Column(OURS, task.suite, f"{task.model}, {protocol.replace('_', '-')}")
        columns.append((column, {row.agent: _scores(row, protocol, seconds=table == TIMED_TABLE) for row in rows}))
    return columns


def _their_columns(published: Sequence[Published]) -> list[tuple[Column, dict[str, str]]]:
    """Each column of the paper and its texts by method, data sets in the order of their names."""
    groups: dict[tuple[str, str, str], list[Published]] = {}
    for number in published:
        groups.setdefault((number.dataset, number.task, number.model), []).append(number)
    columns = []
    for (dataset, task, model), group in sorted(groups.items(), key=lambda item: item[0][0]):
        by_method: dict[str, list[Published]] = {}
        for number in group:
            by_method.setdefault(number.method, []).append(number)
        column = Column(THEIRS, f"{dataset} {task}", model or "s per edit, with setup")
        columns.append((column, {method: _numbers(numbers) for method, numbers in by_method.items()}))
    return columns


def protocol_of(entry: Entry) -> str:
    """Which of our protocols is the paper's for this data."""
    return "probability" if entry.records[0].dataset.startswith("counterfact") else "teacher_forced"


def _scores(entry: Entry, protocol: str, seconds: bool) -> str:
    measured = [scores for record in entry.records if (scores := getattr(record, protocol)) is not None]
    text = triple(measured) if measured else NOTHING
    return f"{text}, {entry.seconds(setup=True):.4f} s" if seconds else text


def _numbers(numbers: Sequence[Published]) -> str:
    """As the paper prints them: the seconds, or the three percentages."""
    means = {number.metric: number.mean for number in numbers}
    if "seconds_per_edit" in means:
        return f"{means['seconds_per_edit']:.4f}"
    return " / ".join(f"{means[metric]:.2f}" if metric in means else NOTHING for metric in METRICS[:3])
