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

from benchmarks.results.leaderboard import Entry
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
OURS, THEIRS = "ours", "theirs"


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
    different models
    and data stand side by side: they are no race.
    """
    return [_comparison(entries, table) for table in TITLES]


def _comparison(entries: Sequence[Entry], table: str) -> Comparison:
    published = [number for number in read() if number.table == table]
    methods = list(dict.fromkeys(number.method for number in published))
    entries = _repeating(entries, table)
    agents = list(dict.fromkeys(entry.agent for entry in entries))
    named = [(agent, method) for method in methods for agent in agents if METHODS.get(agent) == method]
    named += [("-", method) for method in methods if method not in {method for _, method in named}]
    named.sort(key=lambda pair: methods.index(pair[1]))
    if table != "table4":
        named += [(agent, "-") for agent in agents if METHODS.get(agent) not in methods]

    columns: list[Column] = []
    texts: list[dict[str, str]] = []
    wanted = {entry.task for entry in entries if table != "table4" or METHODS.get(entry.agent) in ABLATIONS}
    ours = [[entry for entry in entries if entry.task == task] for task in dict.fromkeys(e.task for e in entries)]
    for rows in sorted((rows for rows in ours if rows[0].task in wanted), key=lambda rows: rows[0].records[0].edits):
        task = rows[0].task
        protocol = protocol_of(rows[0])
        columns.append(Column(OURS, task.suite, f"{task.model}, {protocol.replace('_', '-')}"))
        texts.append({row.agent: _scores(row, protocol, seconds=table == "table2") for row in rows})
    groups = dict.fromkeys((number.dataset, number.task, number.model) for number in published)
    for dataset, size, model in sorted(groups, key=lambda group: group[0]):
        found = [n for n in published if (n.dataset, n.task, n.model) == (dataset, size, model)]
        columns.append(Column(THEIRS, f"{dataset} {size}", model or "s per edit, with setup"))
        texts.append({method: _numbers([n for n in found if n.method == method]) for method in methods})
    return Comparison(
        TITLES[table],
        columns,
        [
            (
                agent,
                method,
                [
                    text.get(agent if column.owner == OURS else method, "-")
                    for column, text in zip(columns, texts, strict=True)
                ],
            )
            for agent, method in named
        ],
    )


def _repeating(entries: Sequence[Entry], table: str) -> Sequence[Entry]:
    """The rows of suites that repeat a table of the paper; all rows if there are none."""
    where = re.compile(rf"\bTable {table.removeprefix('table')}\b")
    known = {suite.label: suite.paper for suite in all_suites()}
    found = [entry for entry in entries if (paper := known.get(entry.task.suite)) and where.search(paper.where)]
    return found or entries


def protocol_of(entry: Entry) -> str:
    """Which of our protocols is the paper's for this data."""
    return "probability" if entry.records[0].dataset.startswith("counterfact") else "teacher_forced"


def _scores(entry: Entry, protocol: str, seconds: bool) -> str:
    found = [scores for record in entry.records if (scores := getattr(record, protocol)) is not None]
    text = triple(found) if found else "-"
    return f"{text}, {entry.seconds(setup=True):.4f} s" if seconds else text


def _numbers(found: Sequence[Published]) -> str:
    """As the paper prints them."""
    by_metric = {number.metric: number.mean for number in found}
    if "seconds_per_edit" in by_metric:
        return f"{by_metric['seconds_per_edit']:.4f}"
    return (
        " / ".join(f"{by_metric[metric]:.2f}" if metric in by_metric else "-" for metric in METRICS[:3])
        if found
        else "-"
    )
