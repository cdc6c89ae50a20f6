"""Records as the rows of a leaderboard: one agent on one task, over its seeds."""

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.results import files, records, rules
from benchmarks.results.records import MetricValues, Record, disagreements
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
from benchmarks.results.texts import message
from benchmarks.suites import id_of
from editenv.evaluation.metrics import METRICS

RANKED = ("generation", "generation_prefix", "wild", "teacher_forced", "probability")
"""Protocols that rows are ranked by: those with efficacy, generalization and specificity."""

MEAN = "mean"
"""Beside efficacy, generalization and specificity: their harmonic mean."""

LOWER_REFERENCE, UPPER_REFERENCE = "no-edit", "joint-fine-tune"
"""Rows that the normalised score measures by; they edit nothing, or all at once, and take no part in the Pareto
front.
"""


def is_upper_reference(agent: str) -> bool:
    """Joint fine-tuning, with whatever settings (``joint-fine-tune@FOLDER``)."""
    return agent.partition("@")[0] == UPPER_REFERENCE


def is_reference(agent: str) -> bool:
    """No editing, or joint fine-tuning."""
    return agent == LOWER_REFERENCE or is_upper_reference(agent)


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
        by_seed = {r.seed: scores for r in self.records if (scores := getattr(r, protocol)) is not None}
        if metric == MEAN:
            return {seed: harmonic_mean(scores) for seed, scores in by_seed.items()}
        return {seed: scores[metric] for seed, scores in by_seed.items() if scores[metric] is not None}

    def estimate(self, protocol: str, metric: str) -> Estimate | None:
        """Interquartile mean over seeds with its interval; None if no seed has the figure."""
        values = list(self.values(protocol, metric).values())
        return estimate([values]) if values else None

    def seconds(self, setup: bool) -> float:
        """Per edit, the median over seeds; with the setup spread over the edits, or without (the paper's Figure 4)."""
        return float(np.median([r.edit_seconds + setup * r.setup_seconds / r.edits for r in self.records]))

    def floors(self, setup: bool) -> float:
        """The same in units of the time floor, a plain forward and backward timed in the same run: machines and
        their load cancel.
        """
        return float(
            np.median([r.floor_ratio * (1 + setup * r.setup_seconds / r.edits / r.edit_seconds) for r in self.records])
        )

    def median(self, field: str) -> float:
        """Of one of the records' costs over seeds: other work on a machine makes some of them several times as long."""
        return float(np.median([getattr(record, field) for record in self.records]))

    @property
    def failures(self) -> int:
        """Edits refused, in all seeds together."""
        return sum(record.failures for record in self.records)


def entries(records: Sequence[Record]) -> list[Entry]:
    """Rows in the order in which they appear."""
    groups: dict[tuple[Task, str], list[Record]] = {}
    for record in records:
        groups.setdefault((Task(record.suite, record.model), record.agent), []).append(record)
    return [
        Entry(task, agent, tuple(sorted(group, key=lambda record: record.seed)))
        for (task, agent), group in groups.items()
    ]


def read(folders: Sequence[Path], left_out: list[str] | None = None) -> list[Record]:
    """The records of several folders together.

    Args:
        folders: Each with a ``results.jsonl``, or such a file itself.
        left_out: Takes a line for each record that is left out: it is none, is there twice, or is of something else
            than an earlier one of its suite and model. Without it the first such record is an error.

    Raises:
        ValueError: If a folder has no such file, if there are no records, or for a record that would be left out;
            names the files.
    """
    together: list[Record] = []
    paths: dict[tuple[str, str, str, int], Path] = {}
    comparison = _Comparison()
    for folder in folders:
        path = folder if folder.suffix == ".jsonl" else folder / "results.jsonl"
        if not path.exists():
            raise ValueError(f"there is no {path}: give a folder that benchmarks.run has written, or a .jsonl file")
        for line in records.read_lines(path):
            try:
                together.append(_comparable(line, path, paths, comparison))
            except ValueError as error:
                if left_out is None:
                    raise
                left_out.append(f"left out: {error}")
    if not together:
        raise ValueError("\n".join([*(left_out or ()), f"there are no records in {', '.join(map(str, folders))}"]))
    return together


def _comparable(
    line: Record | ValueError,
    path: Path,
    paths: dict[tuple[str, str, str, int], Path],
    comparison: "_Comparison",
) -> Record:
    """The record of a line, if it can stand beside those before it.

    Raises:
        ValueError: If it is none, if the run is there already, or if it is of something else.
    """
    if isinstance(line, ValueError):
        raise line
    run = (id_of(line.suite), line.model, line.agent, line.seed)
    if run in paths:
        raise ValueError(
            f"{line.suite}, {line.model}, {line.agent}, seed {line.seed} is there twice: in {paths[run]} and in {path}"
        )
    comparison.add(line, path)
    paths[run] = path
    return line


class _Comparison:
    """Whether runs of one task were of the same suite, model and edits, and runs of one agent of the same settings."""

    def __init__(self) -> None:
        # For each task, and each agent on it: what its records say so far, and the first of them with its file.
        self._known: dict[Any, tuple[dict[str, Any], Record, Path]] = {}

    def add(self, record: Record, path: Path) -> None:
        """Compares a record with those before it.

        Raises:
            ValueError: If it says something else than they do; names what, and both files.
        """
        task = Task(record.suite, record.model)
        for key, said in ((task, _made_of(record)), ((task, record.agent), {"settings": _settings_of(record)})):
            known, first, first_path = self._known.setdefault(key, (said, record, path))
            if differing := sorted(disagreements(known, said)):
                raise ValueError(
                    f"runs of {record.suite} on {record.model} cannot be compared, their {', '.join(differing)} "
                    f"differ: those of {first.agent}, seed {first.seed}, in {first_path}, and of {record.agent}, seed "
                    f"{record.seed}, in {path}"
                )
            self._known[key] = (_joined(said, known), first, first_path)


def _joined(said: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """All that either says; what both say is the same, or an object to be joined."""
    in_both = {
        key: _joined(said[key], value) for key, value in known.items() if isinstance(value, dict) and key in said
    }
    return said | known | in_both


def _made_of(record: Record) -> dict[str, Any]:
    """What must be alike in the runs of one task, as far as the record knows it."""
    configuration = record.configuration or {}
    fingerprints = configuration.get("fingerprints") or {}
    return {
        "edits": record.edits,
        "dataset": record.dataset,
        "suite": {"observed_tokens": "answers"} | suite if (suite := configuration.get("suite")) else {},
        # A model of the hub has no fingerprint.
        "fingerprints": {name: value for name, value in fingerprints.items() if value is not None},
    }


def _settings_of(record: Record) -> dict[str, Any]:
    """What must be alike in the runs of one agent on it."""
    return (record.configuration or {}).get("settings") or {}


STREAM_FIELDS = (
    "dataset",
    "split",
    "options",
    "order",
    "batches",
    "edits_per_step",
    "modules",
    "dtype",
    "end_of_answer",
    "observed_tokens",
)
"""What of a suite makes its stream; the rest says how it is judged, and what it is for."""


def stream_of(rows: Sequence[Entry]) -> str:
    """An identifier of a task's stream: suites for which it is the same (the paper has several at 20x100) are one
    stream.

    Args:
        rows: Of the task.
    """
    known: dict[str, Any] = {}
    for record in (record for row in rows for record in row.records):
        known = _joined(_made_of(record), known)  # an older record says less
    if not known["suite"]:
        return str(rows[0].task)
    fingerprints = [known["fingerprints"].get(name) for name in ("model", "edits")]
    identity = [rows[0].task.model, [known["suite"].get(name) for name in STREAM_FIELDS], fingerprints]
    return json.dumps(identity, sort_keys=True)


@dataclass(frozen=True, slots=True)
class FailedCell:
    """A cell that ended in an error, as ``benchmarks.run`` leaves it in ``cells/``."""

    suite: str
    agent: str
    seed: int
    error: str


def read_failures(
    folders: Sequence[Path],
    finished: Container[tuple[str, str, int]] = (),
    left_out: list[str] | None = None,
) -> list[FailedCell]:
    """The cells of the folders that have come to nothing, and have not finished since, in any of them.

    Args:
        folders: As :func:`read` takes them.
        finished: Suite, agent and seed of the cells that have a record.
        left_out: Takes a line for each file that does not say which cell failed and why.
    """
    failed = []
    for folder in folders:
        results = folder.parent if folder.suffix == ".jsonl" else folder
        for path in sorted((results / "cells").glob("*/*.failed.json")):
            try:
                failed.append(_failed_cell(files.parse(files.read_text(path))))
            except ValueError as error:
                if left_out is not None:
                    left_out.append(f"left out: {path}: {message(error)}")
    return [cell for cell in failed if (id_of(cell.suite), cell.agent, cell.seed) not in finished]


def _failed_cell(row: Any) -> FailedCell:
    """What a cell's file says of its failure.

    Raises:
        ValueError: If it says something else; names the field.
    """
    names = ("suite", "agent", "seed", "error")
    if not isinstance(row, dict) or not set(names) <= row.keys():
        raise ValueError(f"a failed cell has {', '.join(names)}")
    rules.name.check("suite", row["suite"])
    rules.name.check("agent", row["agent"])
    rules.whole_number(least=0).check("seed", row["seed"])
    if not isinstance(row["error"], str):
        raise ValueError(f"error must be a text, not {type(row['error']).__name__}")
    return FailedCell(row["suite"], row["agent"], row["seed"], message(row["error"]))


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
        first_tasks: dict[str, Task] = {}
        self._same_stream = {  # each task -> the first task that is the same stream
            task: first_tasks.setdefault(stream_of([row for row in rows if row.task == task]), task)
            for task in dict.fromkeys(row.task for row in rows)
        }
        self._scores: dict[str, dict[TaskSeed, float]] = {}
        for row in self.rows:
            scores = self._scores.setdefault(row.agent, {})
            for seed, score in row.values(protocol, MEAN).items():
                scores.setdefault((str(self._same_stream[row.task]), seed), score)
        self._lower_scores = self.scores(LOWER_REFERENCE)
        self._upper_scores: dict[TaskSeed, float] = {}
        for agent in filter(is_upper_reference, self.agents):  # of several on one stream the highest counts
            for task_seed, score in self.scores(agent).items():
                self._upper_scores[task_seed] = max(score, self._upper_scores.get(task_seed, score))

    def scores(self, agent: str) -> dict[TaskSeed, float]:
        """Harmonic means of one agent's runs; of runs on suites that are the same stream the first counts."""
        return self._scores.get(agent, {})

    def normalized(self, row: Entry) -> Estimate | None:
        """On the scale from no editing (0) to joint fine-tuning (1); None without both of them on this task."""
        values = self._normalized(row)
        return estimate([values]) if values else None

    def _normalized(self, row: Entry) -> list[float]:
        """Of each seed that can be normalised."""
        task = str(self._same_stream[row.task])
        values = (
            normalized(score, (task, seed), self._lower_scores, self._upper_scores)
            for seed, score in row.values(self.protocol, MEAN).items()
        )
        return [value for value in values if value is not None]

    def referenced(self) -> list[Task]:
        """The tasks that have both references, and so a normalised score; suites that are the same stream lend them."""
        return [task for task in self.tasks if any(row.task == task and self._normalized(row) for row in self.rows)]

    def compared(self) -> list[Task]:
        """The tasks that :meth:`overall` is over: those with both references, of suites that are the same stream
        the first.
        """
        return list(dict.fromkeys(self._same_stream[task] for task in self.referenced()))

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
        estimates: dict[str, Estimate | None] = {}
        for agent in self.agents:
            by_task: dict[str, list[float]] = {str(task): [] for task in tasks}
            for (task, seed), score in self.scores(agent).items():
                value = normalized(score, (task, seed), self._lower_scores, self._upper_scores)
                if task in by_task and value is not None:
                    by_task[task].append(value)
            complete = all(by_task.values())
            estimates[agent] = estimate(list(by_task.values()), interquartile_mean_over_tasks) if complete else None
        return estimates

    def improvements(self) -> dict[tuple[str, str], Estimate]:
        """For each pair of agents with a stream in common: how often the first is better."""
        scores = {agent: self.scores(agent) for agent in self.agents}
        improvements: dict[tuple[str, str], Estimate] = {}
        for first, second in combinations(self.agents, 2):
            better = probability_of_improvement(scores[first], scores[second])
            if better is not None:
                interval = better.interval and (1 - better.interval[1], 1 - better.interval[0])
                improvements[first, second] = better
                improvements[second, first] = Estimate(1 - better.value, interval)
        return improvements

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


CurvePoint = dict[str, tuple[float, float, float] | float | None]
"""``edits``, and for each metric the interquartile mean, lowest and highest of the seeds, or None if none has it."""


def curve(row: Entry) -> list[CurvePoint]:
    """What is kept along the stream, at each number of edits at which every seed looked back."""
    seeds: list[Mapping[float, MetricValues]] = [
        {point["edits"]: point for point in record.retention if point["edits"] is not None} for record in row.records
    ]
    points: list[CurvePoint] = []
    for edits in seeds[0]:
        if all(edits in seed for seed in seeds):
            point: CurvePoint = {"edits": edits}
            for metric in METRICS:
                values = [value for seed in seeds if (value := seed[edits][metric]) is not None]
                point[metric] = (float(interquartile_mean(values)), min(values), max(values)) if values else None
            points.append(point)
    return points
