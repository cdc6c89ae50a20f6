"""A row run again, from its agent's source, on streams that nobody could know when the source was written."""

import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.results.leaderboard import Entry
from benchmarks.results.records import Record, disagreements
from benchmarks.run import run_here
from benchmarks.running.cells import Cell, Failure
from benchmarks.running.progress import cells_progress
from benchmarks.suites import Suite
from editenv.evaluation.metrics import METRICS

COMPARED = ("teacher_forced", "generation")
"""Protocols that every record has."""

STANDARD_ERRORS = 3.0
"""How far two means of runs may be apart, in standard errors of their difference."""


def problems(row: Entry, suite: Suite, streams: int) -> list[str]:
    """Why a row is not what its agent does, as far as new streams tell; nothing if it is.

    Each stream has a seed drawn now: another order, and other records where the suite edits a part of its split.

    Args:
        row: The records of one agent on one suite.
        suite: With the model and data of this machine.
        streams: How many.
    """
    fingerprints, seeds = suite.check_fingerprints(), [secrets.randbelow(2**31) for _ in range(streams)]
    with tempfile.TemporaryDirectory() as folder, cells_progress(streams) as progress:
        todo = [Cell(suite, fingerprints, row.agent, seed, Path(folder)) for seed in seeds]
        outcomes = []
        for _, outcome in run_here(todo, progress.report):
            outcomes.append(outcome)
            progress.finished()
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    if failures:
        return [f"it could not be run: {failure.error}" for failure in failures]
    new = [outcome for outcome in outcomes if isinstance(outcome, Record)]
    return _other_settings(row.records, new[0]) + _other_figures(row.records, new)


def _other_settings(submitted: Sequence[Record], new: Record) -> list[str]:
    """Whether the source here is that of the records."""
    here = (new.configuration or {}).get("settings") or {}
    differing: set[str] = set()
    for record in submitted:
        said = (record.configuration or {}).get("settings") or {}
        differing |= {*disagreements(said, here), *(said.keys() ^ here.keys())}
    return [f"settings: {', '.join(sorted(differing))} are not those of the source here"] if differing else []


def _other_figures(submitted: Sequence[Record], new: Sequence[Record]) -> list[str]:
    """Figures whose means are further apart than runs of one agent are."""
    lines = []
    for protocol in COMPARED:
        for metric in METRICS:
            old_values, new_values = (
                [value for record in records if (value := getattr(record, protocol)[metric]) is not None]
                for records in (submitted, new)
            )
            if not old_values or not new_values:
                continue
            allowed = allowed_difference(old_values, new_values, submitted[0].edits)
            old, now = float(np.mean(old_values)), float(np.mean(new_values))
            if not abs(old - now) <= allowed:
                lines.append(
                    f"{protocol}.{metric} is {old:.1f} in the records and {now:.1f} on the new streams; the spread of "
                    f"seeds allows {allowed:.1f}"
                )
    return lines


def allowed_difference(first: Sequence[float], second: Sequence[float], edits: int) -> float:
    """How far the means of two sets of runs of one agent may be apart.

    Three standard errors of the difference of the means. A run's variance is the pooled one of the two sets, and at
    least that of a share of ``edits`` independent edits, which is all that is known of a single run.

    Args:
        first: Percentages, one a run.
        second: Likewise.
        edits: In a run.
    """
    sizes = len(first), len(second)
    edits = max(edits, 2)
    share = min(max(float(np.mean([*first, *second])) / 100, 1 / edits), 1 - 1 / edits)
    variance = 100**2 * share * (1 - share) / edits
    if sum(sizes) > 2:
        squares = sum(float(np.square(np.asarray(values) - np.mean(values)).sum()) for values in (first, second))
        variance = max(variance, squares / (sum(sizes) - 2))
    return float(STANDARD_ERRORS * np.sqrt(variance * (1 / sizes[0] + 1 / sizes[1])))
