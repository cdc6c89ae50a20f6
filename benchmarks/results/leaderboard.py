"""Records as the rows of a leaderboard: one agent on one task, over its seeds."""

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.results import records
from benchmarks.results.records import Record, disagreements
from benchmarks.results.statistics import (
    Estimate,
    TaskSeed,
    estimate,
    harmonic_mean,
    interquartile_mean,
    interquartile_mean_over_tasks,
    normalized,
    pareto_front,
    probability_of_improvement,
)
from benchmarks.suites import id_of
from editenv.evaluation.metrics import METRICS

RANKED = ("generation", "teacher_forced", "probability")
"""Protocols that rows are ranked by: those with efficacy, generalization and specificity."""
MEAN = "mean"
"""Beside efficacy, generalization and specificity: their harmonic mean."""

FLOOR, CEILING = "no-edit", "joint-fine-tune"
"""Rows that the normalised score measures by; they edit nothing, or all at once, and take no part in the Pareto
front.
"""


def is_ceiling(agent: str) -> bool:
    """Joint fine-tuning, with whatever settings (``joint-fine-tune@FOLDER``)."""
    return agent.partition("@")[0] == CEILING


def is_reference(agent: str) -> bool:
    """No editing, or the ceiling."""
    return agent == FLOOR or is_ceiling(agent)


class Task(NamedTuple):
    """What is edited: runs on it are comparable."""

    suite: str
    model: str

    def __str__(self) -> str:
        return f"{self.suite} on {self.model}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A row.

    Attributes:
        task: What was edited.
        agent: Name of the row.
        records: One for each seed, in the order of seeds.
    """

    task: Task
    agent: str
    records: tuple[Record, ...]

    def values(self, protocol: str, metric: str) -> dict[int, float]:
        """The figure of each seed that has it, 0 to 100; ``metric`` is one of the three or :data:`MEAN`."""
        found = {record.seed: getattr(record, protocol) for record in self.records}
        if metric == MEAN:
            return {seed: harmonic_mean(scores) for seed, scores in found.items() if scores is not None}
        return {
            seed: scores[metric] for seed, scores in found.items() if scores is not None and scores[metric] is not None
        }

    def estimate(self, protocol: str, metric: str) -> Estimate | None:
        """Interquartile mean over seeds with its interval; None if no seed has the figure."""
        values = list(self.values(protocol, metric).values())
        return estimate([values]) if values else None

    def seconds(self, setup: bool) -> float:
        """Per edit, averaged over seeds; with the setup spread over the edits, or without (the paper's Figure 4)."""
        return float(np.mean([r.edit_seconds + setup * r.setup_seconds / r.edits for r in self.records]))

    def floors(self, setup: bool) -> float:
        """The same in units of the floor, a plain forward and backward timed in the same run: machines and their
        load cancel.
        """
        return float(
            np.mean([r.floor_ratio * (1 + setup * r.setup_seconds / r.edits / r.edit_seconds) for r in self.records])
        )

    def mean(self, field: str) -> float:
        """Of one of the records' costs over seeds."""
        return float(np.mean([getattr(record, field) for record in self.records]))

    @property
    def failures(self) -> int:
        """Edits refused, in all seeds together."""
        return sum(record.failures for record in self.records)


def entries(found: Sequence[Record]) -> list[Entry]:
    """Rows in the order in which they appear."""
    groups: dict[tuple[Task, str], list[Record]] = {}
    for record in found:
        groups.setdefault((Task(record.suite, record.model), record.agent), []).append(record)
    return [
        Entry(task, agent, tuple(sorted(group, key=lambda record: record.seed)))
        for (task, agent), group in groups.items()
    ]


def read(folders: Sequence[Path]) -> list[Record]:
    """The records of several folders together.

    Args:
        folders: Each with a ``results.jsonl``, or such a file itself.

    Raises:
        ValueError: If one has none, if a line is not a record, if a run is there twice, or if two runs of one suite
            and model were not of the same thing; names the files.
    """
    found: list[Record] = []
    origins: dict[tuple[str, str, str, int], Path] = {}
    firsts: dict[Any, tuple[dict[str, Any], Record, Path]] = {}
    for folder in folders:
        path = folder if folder.suffix == ".jsonl" else folder / "results.jsonl"
        if not path.is_file():
            raise ValueError(f"there is no {path}: give a folder that benchmarks.run has written, or a .jsonl file")
        for record in records.read(path):
            run = (id_of(record.suite), record.model, record.agent, record.seed)
            if run in origins:
                raise ValueError(
                    f"{record.suite}, {record.model}, {record.agent}, seed {record.seed} is there twice: in "
                    f"{origins[run]} and in {path}"
                )
            origins[run] = path
            task = Task(record.suite, record.model)
            for key, told in ((task, _made_of(record)), ((task, record.agent), {"settings": _settings_of(record)})):
                known, other, where = firsts.setdefault(key, (told, record, path))
                if differing := sorted(disagreements(known, told)):
                    raise ValueError(
                        f"runs of {record.suite} on {record.model} cannot be compared, their {', '.join(differing)} differ: "
                        f"those of {other.agent}, seed {other.seed}, in {where}, and of {record.agent}, seed {record.seed}, "
                        f"in {path}"
                    )
                firsts[key] = (_joined(told, known), other, where)
            found.append(record)
    if not found:
        raise ValueError(f"there are no records in {', '.join(map(str, folders))}")
    return found


def _joined(told: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """All that either says."""
    both = {key: _joined(told[key], value) for key, value in known.items() if isinstance(value, dict) and key in told}
    return told | known | both


def _made_of(record: Record) -> dict[str, Any]:
    """What must be alike in the runs of one task, as far as the record knows it."""
    configuration = record.configuration or {}
    # A model of the hub has no fingerprint.
    prints = {name: value for name, value in (configuration.get("fingerprints") or {}).items() if value is not None}
    suite = configuration.get("suite") or {}
    return {"edits": record.edits, "dataset": record.dataset, "suite": suite, "fingerprints": prints}


def _settings_of(record: Record) -> dict[str, Any]:
    """What must be alike in the runs of one agent on it."""
    return (record.configuration or {}).get("settings") or {}


def stream_of(rows: Sequence[Entry]) -> str:
    """What a task's stream is told by: suites that say the same here (the paper has several at 20x100) are one
    stream.
    """
    made: dict[str, Any] = {}
    for record in (record for row in rows for record in row.records):
        made = _joined(_made_of(record), made)  # an older record says less
    if not made["suite"]:
        return str(rows[0].task)
    told = ("dataset", "split", "options", "order", "batches", "edits_per_step", "modules", "dtype", "end_of_answer")
    prints = [made["fingerprints"].get(name) for name in ("model", "edits")]
    alike = [rows[0].task.model, [made["suite"].get(name) for name in told], prints]
    return json.dumps(alike, sort_keys=True)


@dataclass(frozen=True, slots=True)
class FailedCell:
    """A cell that ended in an error, as ``benchmarks.run`` leaves it in ``cells/``."""

    suite: str
    agent: str
    seed: int
    error: str


def read_failures(folders: Sequence[Path], made: Container[tuple[str, str, int]] = ()) -> list[FailedCell]:
    """The cells of the folders that have come to nothing, and have not been made since, in any of them."""
    rows = [
        json.loads(path.read_text(encoding="utf-8"))
        for folder in folders
        for path in sorted(((folder.parent if folder.suffix == ".jsonl" else folder) / "cells").glob("*/*.failed.json"))
    ]
    failed = [FailedCell(row["suite"], row["agent"], row["seed"], row["error"]) for row in rows]
    return [cell for cell in failed if (id_of(cell.suite), cell.agent, cell.seed) not in made]


class Leaderboard:
    """All rows under one protocol, compared.

    Args:
        rows: Of :func:`entries`.
        protocol: One of :data:`RANKED`.
    """

    def __init__(self, rows: Sequence[Entry], protocol: str):
        self.rows = [row for row in rows if row.values(protocol, MEAN)]
        self.protocol = protocol
        self.agents = list(dict.fromkeys(row.agent for row in self.rows))
        self.tasks = list(dict.fromkeys(row.task for row in self.rows))
        firsts: dict[str, Task] = {}
        self._alike = {
            task: firsts.setdefault(stream_of([row for row in rows if row.task == task]), task)
            for task in dict.fromkeys(row.task for row in rows)
        }
        self._scores: dict[str, dict[TaskSeed, float]] = {}
        for row in self.rows:
            found = self._scores.setdefault(row.agent, {})
            for seed, score in row.values(protocol, MEAN).items():
                found.setdefault((str(self._alike[row.task]), seed), score)
        self._floor = self.scores(FLOOR)
        self._ceiling: dict[TaskSeed, float] = {}
        for agent in filter(is_ceiling, self.agents):  # of several on one stream the highest
            for stream, score in self.scores(agent).items():
                self._ceiling[stream] = max(score, self._ceiling.get(stream, score))

    def scores(self, agent: str) -> dict[TaskSeed, float]:
        """Harmonic means of one agent's runs; of runs on suites that are the same stream the first counts."""
        return self._scores.get(agent, {})

    def normalized(self, row: Entry) -> Estimate | None:
        """On the scale from no editing (0) to joint fine-tuning (1); None without both of them on this task."""
        values = self._normalized(row)
        return estimate([values]) if values else None

    def _normalized(self, row: Entry) -> list[float]:
        scores = row.values(self.protocol, MEAN)
        task = str(self._alike[row.task])
        found = (normalized(score, (task, seed), self._floor, self._ceiling) for seed, score in scores.items())
        return [value for value in found if value is not None]

    def referenced(self) -> list[Task]:
        """The tasks that have both references, and so a normalised score; suites that are the same stream lend them."""
        return [task for task in self.tasks if any(row.task == task and self._normalized(row) for row in self.rows)]

    def compared(self) -> list[Task]:
        """The tasks that :meth:`overall` is over: those with both references, of suites that are the same stream
        the first.
        """
        return list(dict.fromkeys(self._alike[task] for task in self.referenced()))

    def streams_in_common(self, first: str, second: str) -> int:
        """How many runs of two agents are compared."""
        return len(self.scores(first).keys() & self.scores(second).keys())

    def overall(self) -> dict[str, Estimate | None]:
        """Interquartile mean of the normalised scores of all runs, tasks counting the same; None for an agent that
        is missing from one.

        Every row is over the same tasks, those with both references. Empty if there are fewer than two.
        """
        tasks = self.compared()
        if len(tasks) < 2:
            return {}
        found: dict[str, Estimate | None] = {}
        for agent in self.agents:
            by_task: dict[str, dict[int, float]] = {str(task): {} for task in tasks}
            for (task, seed), score in self.scores(agent).items():
                value = normalized(score, (task, seed), self._floor, self._ceiling)
                if task in by_task and value is not None:
                    by_task[task][seed] = value
            strata = [list(values.values()) for values in by_task.values() if values]
            whole = len(strata) == len(tasks)
            found[agent] = estimate(strata, interquartile_mean_over_tasks) if whole else None
        return found

    def improvements(self) -> dict[tuple[str, str], Estimate]:
        """For each pair of agents with a stream in common: how often the first is better."""
        scores = {agent: self.scores(agent) for agent in self.agents}
        found: dict[tuple[str, str], Estimate] = {}
        for a, b in combinations(self.agents, 2):
            better = probability_of_improvement(scores[a], scores[b])
            if better is not None:
                interval = better.interval and (1 - better.interval[1], 1 - better.interval[0])
                found[a, b], found[b, a] = better, Estimate(1 - better.value, interval)
        return found

    def front(self, task: Task, setup: bool) -> set[str]:
        """The agents of a task that no other one beats in both quality and time per edit (:meth:`Entry.floors`);
        the references aside.
        """
        rows = [row for row in self.rows if row.task == task and not is_reference(row.agent)]
        scores = [list(row.values(self.protocol, MEAN).values()) for row in rows]
        points = [(row.floors(setup), interquartile_mean(s)) for row, s in zip(rows, scores, strict=True)]
        return {row.agent for row, on_front in zip(rows, pareto_front(points), strict=True) if on_front}

    def quality(self, row: Entry) -> Estimate:
        """The interquartile mean of the harmonic mean."""
        return estimate([list(row.values(self.protocol, MEAN).values())])


def curve(row: Entry) -> list[dict[str, tuple[float, float, float] | float | None]]:
    """What is kept along the stream: at each number of edits the interquartile mean, lowest and highest of the
    seeds, by metric.

    Only numbers of edits that every seed was asked at.
    """
    points: list[Mapping[float, Mapping[str, float | None]]] = [
        {point["edits"]: point for point in record.retention if point["edits"] is not None} for record in row.records
    ]
    found: list[dict[str, tuple[float, float, float] | float | None]] = []
    for edits in points[0]:
        if all(edits in seed for seed in points):
            at: dict[str, tuple[float, float, float] | float | None] = {"edits": edits}
            for metric in METRICS:
                values = [value for seed in points if (value := seed[edits][metric]) is not None]
                at[metric] = (float(interquartile_mean(values)), min(values), max(values)) if values else None
            found.append(at)
    return found
