"""Trials of ``benchmarks.place``, and what they show: quality of an edit against the layer that is edited, beside where
the model's facts pass through it (:mod:`benchmarks.causal_trace`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import files
from benchmarks.results.charts import MOST_LINES, Chart, Interval, Panel, Series
from benchmarks.results.records import MetricValues
from benchmarks.results.statistics import harmonic_mean
from benchmarks.results.styles import STATES
from benchmarks.results.tables import markdown, triple
from editenv.evaluation.metrics import METRICS

TRIALS, TRACE = "place.jsonl", "trace.json"
"""Files of the measurement."""

PROTOCOLS = ("teacher_forced", "generation_prefix")
"""By which trials are judged; the best is chosen by the first."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One row with one step at one layer: one line of place.jsonl.

    Attributes:
        row: Its name.
        layer: Whose MLP's output projection is edited, from 0.
        step: By what its own step size (or clamp) was multiplied.
        modules: The edited module.
        settings: What the method was made with.
        teacher_forced, generation_prefix: Percentages by metric over all edits after the last; None if it ended in an
            error.
        refused: Batches whose action was not finite, and which were left as they were.
        seconds: What the trial took, its preparation and judging included.
        about: What all trials of a file have in common: suite, model, seed, ...
        error: What the method could not do here.
    """

    row: str
    layer: int
    step: float
    modules: tuple[str, ...]
    settings: dict[str, Any]
    teacher_forced: MetricValues = field(default_factory=lambda: dict.fromkeys(METRICS))
    generation_prefix: MetricValues = field(default_factory=lambda: dict.fromkeys(METRICS))
    refused: int = 0
    seconds: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def key(self) -> tuple[str, int, float]:
        """What tells it from the other trials of its file."""
        return self.row, self.layer, self.step

    @property
    def score(self) -> float:
        """Harmonic mean of the teacher-forced figures; 0 after an error."""
        return 0.0 if self.error else harmonic_mean(self.teacher_forced)


@dataclass(frozen=True, slots=True)
class Effects:
    """Causal traces of several facts, averaged.

    Attributes:
        facts: How many.
        clean: Mean probability of the answer.
        corrupted: The same with noise on the subject.
        indirect: By state and token, for each layer in order, the average indirect effect, a difference of
            probabilities.
        window: Layers whose MLPs or attentions were restored together.
    """

    facts: int
    clean: float
    corrupted: float
    indirect: dict[str, dict[str, tuple[float, ...]]]
    window: int


def read_trials(path: Path) -> list[Trial]:
    """The trials of a file; none if there is no file.

    Raises:
        ValueError: If a line is no trial; names the file and the line.
    """
    if not path.exists():
        return []
    known = {one.name for one in fields(Trial)}
    required = {one.name for one in fields(Trial) if one.default is MISSING and one.default_factory is MISSING}
    trials = []
    for number, line in enumerate(files.read_text(path).splitlines(), start=1):
        try:
            row = files.parse(line)
            if not isinstance(row, dict) or not required <= row.keys() <= known:
                raise ValueError(f"is no trial: an object with {', '.join(sorted(required))}")
            trials.append(Trial(**row | {"modules": tuple(row["modules"])}))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return trials


def read_effects(path: Path) -> Effects | None:
    """The mean over the facts of a trace's file; None if there is no file, or no fact in it.

    Raises:
        ValueError: If it is not such a file.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(files.read_text(path))
        traced = content["facts"]
        if not traced:
            return None
        corrupted = np.array([fact["corrupted"] for fact in traced])
        indirect = {
            state: {
                token: tuple(
                    (np.array([fact["restored"][state][token] for fact in traced]).T - corrupted).mean(1).tolist()
                )
                for token in tokens
            }
            for state, tokens in traced[0]["restored"].items()
        }
        clean = float(np.mean([fact["clean"] for fact in traced]))
        return Effects(len(traced), clean, float(corrupted.mean()), indirect, content["about"]["window"])
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no trace of `python -m benchmarks.place`: {error!r}") from None


def best_steps(trials: Sequence[Trial]) -> dict[str, dict[int, Trial]]:
    """For each row, and layer in order, the trial with the best score; none where every step ended in an error."""
    best: dict[str, dict[int, Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.layer):
        if trial.error:
            continue
        by_layer = best.setdefault(trial.row, {})
        if trial.layer not in by_layer or trial.score > by_layer[trial.layer].score:
            by_layer[trial.layer] = trial
    return {row: best[row] for row in dict.fromkeys(trial.row for trial in trials) if row in best}


# -- the figure -------------------------------------------------------------------------------------------------------


def chart(trials: Sequence[Trial], effects: Effects | None = None, protocol: str = PROTOCOLS[0]) -> Chart:
    """A panel for each metric and for their harmonic mean, a line for each row; and the trace, a panel for each token.

    Args:
        trials: Of one file.
        effects: Of the same model.
        protocol: Of :data:`PROTOCOLS`.

    Raises:
        ValueError: If no trial has come to its end.
    """
    best = best_steps(trials)
    if not best:
        raise ValueError("there is no trial that came to its end, of which a figure could be made")
    about = trials[0].about
    x_limits = (-0.5, about["layers"] - 0.5)
    panels = []
    for metric in (*METRICS, "mean"):
        series = tuple(_along_layers(row, by_layer, protocol, metric) for row, by_layer in best.items())
        title = "Harmonic mean" if metric == "mean" else metric.capitalize()
        label = "of all edits (%)" if metric in (METRICS[0], "mean") else None
        panels.append(Panel(title, "edited layer", series, label, log=False, x_limits=x_limits))
    traced = () if effects is None else tuple(STATES)
    if effects is not None:
        panels += _trace_panels(effects, x_limits)
    note = f"{about['suite']} on {about['model']}, {protocol.replace('_', '-')}; one module, the best of its steps"
    if effects is not None:
        note += f"; causal trace of {effects.facts} facts"
    highlighted = (*list(best)[: MOST_LINES - len(traced)], *traced)
    return Chart("The place of an edit decides", note, tuple(panels), 3, highlighted=highlighted)


def _along_layers(row: str, by_layer: Mapping[int, Trial], protocol: str, metric: str) -> Series:
    points = []
    for layer, trial in by_layer.items():
        scores: MetricValues = getattr(trial, protocol)
        value = harmonic_mean(scores) if metric == "mean" else scores[metric]
        if value is not None:
            points.append((float(layer), value))
    return Series(row, tuple(x for x, _ in points), tuple(y for _, y in points))


def _trace_panels(effects: Effects, x_limits: Interval) -> list[Panel]:
    """A panel for each token, with the same vertical axis: points of probability."""
    tokens = list(next(iter(effects.indirect.values())))
    highest = 100 * max(max(values) for by_token in effects.indirect.values() for values in by_token.values())
    lowest = 100 * min(min(values) for by_token in effects.indirect.values() for values in by_token.values())
    margin = 0.05 * (highest - min(lowest, 0.0)) or 1.0
    panels = []
    for token in tokens:
        series = tuple(
            Series(state, tuple(map(float, range(len(by_token[token])))), tuple(100 * v for v in by_token[token]))
            for state, by_token in effects.indirect.items()
        )
        panels.append(
            Panel(
                f"Trace: {token}",
                "restored layer",
                series,
                "indirect effect (points)" if token == tokens[0] else None,
                log=False,
                y_limits=(min(lowest, 0.0) - margin, highest + margin),
                x_limits=x_limits,
            )
        )
    return panels


# -- the table --------------------------------------------------------------------------------------------------------


def as_markdown(trials: Sequence[Trial]) -> str:
    """A line for each row and layer: the best step and its figures."""
    headings = ("row", "layer", "step", "teacher-forced", "mean", "generation-prefix", "mean")
    body = []
    best = best_steps(trials)
    for row in dict.fromkeys(trial.row for trial in trials):
        for layer in sorted({trial.layer for trial in trials if trial.row == row}):
            trial = best.get(row, {}).get(layer)
            if trial is None:
                body.append([row, str(layer), "-", "could not edit here", "-", "-", "-"])
                continue
            judged = [getattr(trial, protocol) for protocol in PROTOCOLS]
            texts = [text for scores in judged for text in (triple([scores]), f"{harmonic_mean(scores):.1f}")]
            body.append([row, str(layer), f"{trial.step:g}", *texts])
    return markdown(headings, body)
