"""Records of general capability along editing runs, as a table and as a figure.

See docs/guides/general_capability.md.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import tables as table
from benchmarks.results.charts import PERCENT, Chart, Panel, Series, choose_highlighted, save

STANDARD_ERRORS = 3.0
"""How far above chance the unedited model must be on a task that is to show a loss."""

ACCURACIES = ("acc", "acc_norm", "acc_bytes")
"""lm-eval's metrics of a multiple choice that chance is known for."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What must be alike in records that are compared.

    Attributes:
        model, dtype: The language model and its weights' type.
        modules: Edited modules as they were named; None for the model's own.
        dataset, split, dataset_options, edits_per_step: The stream.
        training: Data set whose training split agents learned from.
        tasks: What is scored.
        data: Name of the folder with the records; None for lm-eval's own tasks.
        limit: Records of each task; None for all.
        lm_eval: Its version.
        observed_tokens: Which tokens of a batch agents see, unless their own settings name them.
        suite: NAME-vN of the suite that all of this is of; None for a stream that the command described itself.
    """

    model: str
    dtype: str
    modules: list[str] | None
    dataset: str
    split: str
    dataset_options: dict[str, Any] | None
    training: str
    edits_per_step: int
    tasks: list[str]
    data: str | None
    limit: int | None
    lm_eval: str
    observed_tokens: str = "answers"
    suite: str | None = None


@dataclass(frozen=True, slots=True)
class Capability:
    """lm-eval's figures after some edits.

    Attributes:
        agent, seed, edits: What had happened to the model.
        failures: Edits among them whose action was refused (NaN or infinity).
        setting: What the records of one file have in common.
        tasks: By task, the metrics from 0 to 1, with ``NAME_stderr`` (None where lm-eval has none), ``records``, and
            the accuracy by ``chance`` (not in older records, and only of multiple choices).
        made_with: The agent's settings, and the fingerprints of the model and of the edits; None in older records.
    """

    agent: str
    seed: int
    edits: int
    failures: int
    setting: Setting
    tasks: dict[str, dict[str, float | None]]
    made_with: dict[str, Any] | None = None


def read(path: Path) -> list[Capability]:
    """All records of a file.

    Raises:
        ValueError: If a line is not a record, naming file and line.
    """
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            records.append(Capability(**row | {"setting": Setting(**row["setting"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number} is not a capability record: {error}") from error
    return records


def metrics(records: Sequence[Capability], task: str) -> list[str]:
    """What a task was scored with, without the standard errors."""
    names = dict.fromkeys(name for record in records for name in record.tasks[task])
    return [name for name in names if "_stderr" not in name and name not in ("records", "chance")]


def stderr_key(metric: str) -> str:
    """lm-eval puts the filter, if there is one, last."""
    name, comma, filtered = metric.partition(",")
    return f"{name}_stderr{comma}{filtered}"


def points(records: Sequence[Capability], agent: str, task: str, metric: str) -> dict[int, tuple[float, float, int]]:
    """By number of edits: mean over seeds in %, standard error over a task's records in % (NaN if there is none),
    seeds.
    """
    by_edits: dict[int, tuple[float, float, int]] = {}
    for edits in sorted({record.edits for record in records if record.agent == agent}):
        group = [r.tasks[task] for r in records if r.agent == agent and r.edits == edits]
        values = [math.nan if (value := scores.get(metric)) is None else value for scores in group]
        errors = [math.nan if (value := scores.get(stderr_key(metric))) is None else value for scores in group]
        by_edits[edits] = 100 * float(np.mean(values)), 100 * float(np.mean(errors)), len(group)
    return by_edits


def as_markdown(records: Sequence[Capability]) -> str:
    """A row for each agent and number of edits, a column for each task and metric; in %, means over seeds."""
    columns = [(task, metric) for task in records[0].setting.tasks for metric in metrics(records, task)]
    headings = ["agent", "edits", "seeds", *(f"{task} {metric}" for task, metric in columns)]
    body = []
    for agent in dict.fromkeys(record.agent for record in records):
        curves = [points(records, agent, task, metric) for task, metric in columns]
        for edits, (_, _, seeds) in curves[0].items():
            cells = []
            for mean, error, _ in (curve[edits] for curve in curves):
                cells.append(f"{mean:.1f}" if math.isnan(error) else f"{mean:.1f} ± {error:.1f}")
            body.append([agent, str(edits), str(seeds), *cells])
    return table.markdown(headings, body)


@dataclass(frozen=True, slots=True)
class Start:
    """How good the unedited model is at a task.

    Attributes:
        task, metric: What is measured.
        records: The task's.
        chance: Accuracy of the best guess without reading the question.
        score: The model's.
        error: Its standard error over the records.
    """

    task: str
    metric: str
    records: int
    chance: float
    score: float
    error: float

    @property
    def errors_above_chance(self) -> float:
        """(score - chance) / error; without any error there is no noise, either."""
        difference = self.score - self.chance
        return difference / self.error if self.error else math.copysign(math.inf, difference) if difference else 0.0

    @property
    def can_show_a_loss(self) -> bool:
        return self.errors_above_chance >= STANDARD_ERRORS


def starts(records: Sequence[Capability]) -> list[Start]:
    """Of every task and accuracy that chance is known for, from the first record without edits that says it."""
    measured: dict[tuple[str, str], Start] = {}
    for record in (record for record in records if record.edits == 0):
        for task, figures in record.tasks.items():
            for metric in metrics([record], task):
                values = figures.get("chance"), figures.get(metric), figures.get(stderr_key(metric))
                if metric.partition(",")[0] in ACCURACIES and None not in values:
                    chance, score, error = (float(value) for value in values if value is not None)
                    start = Start(task, metric, int(figures["records"] or 0), chance, score, error)
                    measured.setdefault((task, metric), start)
    return list(measured.values())


def without_loss(records: Sequence[Capability]) -> set[str]:
    """Tasks that cannot show a loss: the unedited model is not clearly above chance by any accuracy."""
    measured = starts(records)
    return {start.task for start in measured} - {start.task for start in measured if start.can_show_a_loss}


def starts_as_markdown(records: Sequence[Capability]) -> str:
    """A row for each task and accuracy: chance, the unedited model, and whether an editor's loss can be seen; in %."""
    if not starts(records):
        return "No multiple choice was scored without edits: --at 0 tells which tasks the model is above chance on."
    headings = ["task", "metric", "records", "chance", "unedited", "standard error", "(unedited - chance) / SE", "loss"]
    body = []
    for start in starts(records):
        figures = (f"{100 * value:.1f}" for value in (start.chance, start.score, start.error))
        loss = "can be seen" if start.can_show_a_loss else f"cannot be seen: below {STANDARD_ERRORS:g}"
        above = f"{start.errors_above_chance:.1f}"
        body.append([start.task, start.metric, str(start.records), *figures, above, loss])
    return table.markdown(headings, body)


def chart(records: Sequence[Capability]) -> Chart:
    """A panel for each task and metric, against the number of edits; it says where the unedited model is at chance."""
    columns = [(task, metric) for task in records[0].setting.tasks for metric in metrics(records, task)]
    agents = list(dict.fromkeys(record.agent for record in records))
    across = min(3, len(columns))
    panels, at_chance = [], without_loss(records)
    for i, (task, metric) in enumerate(columns):
        series = tuple(_series(records, agent, task, metric) for agent in agents)
        values = [y for one in series for y in one.y]
        limits = min(PERCENT[0], *(y - 3 for y in values)), max(PERCENT[1], *(y + 3 for y in values))
        label = "score (%)" if i % across == 0 or limits != PERCENT else None
        title = f"{task}: {metric}" + (" (at chance)" if task in at_chance else "")
        panels.append(Panel(title, "edits so far", series, label, log=False, y_limits=limits))
    setting = records[0].setting
    note = f"{setting.model}, edits of {setting.dataset}; bands are one standard error over a task's records"
    return Chart(
        "General capability along the stream", note, tuple(panels), across, highlighted=choose_highlighted(agents)
    )


def _series(records: Sequence[Capability], agent: str, task: str, metric: str) -> Series:
    """Without the points that have no figure, and without a band where there is no standard error."""
    by_edits = points(records, agent, task, metric)
    scored = {edits: (mean, error) for edits, (mean, error, _) in by_edits.items() if not math.isnan(mean)}
    spread = tuple(None if math.isnan(error) else (mean - error, mean + error) for mean, error in scored.values())
    return Series(agent, tuple(map(float, scored)), tuple(mean for mean, _ in scored.values()), spread)


def draw(records: Sequence[Capability], path: Path) -> None:
    """The chart as a picture; written whole or not at all."""
    save(chart(records), path)
