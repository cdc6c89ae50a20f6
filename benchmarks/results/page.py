"""One self-contained page: the leaderboard's data as JSON in ``page.html``, which draws it and asks no network for
anything.
"""

import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from benchmarks.results import published
from benchmarks.results.leaderboard import (
    MEAN,
    RANKED,
    Entry,
    FailedCell,
    Leaderboard,
    curve,
    is_reference,
)
from benchmarks.results.records import Record
from benchmarks.results.statistics import Estimate, harmonic_mean
from editenv.evaluation.metrics import METRICS

PLACE = "{{data}}"
"""Where the template takes the data."""


def page(entries: Sequence[Entry], boards: dict[str, Leaderboard], failed: Sequence[FailedCell]) -> str:
    """The page's HTML.

    Args:
        entries: All rows.
        boards: By protocol.
        failed: Cells that came to nothing.
    """
    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    before, place, after = template.partition(PLACE)
    if not place:
        raise ValueError(f"benchmarks/results/page.html has no {PLACE}")
    return before + embedded(page_data(entries, boards, failed)) + after


def embedded(data: Any) -> str:
    """JSON that cannot end the script element it lies in, whatever a name holds."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def page_data(entries: Sequence[Entry], boards: dict[str, Leaderboard], failed: Sequence[FailedCell]) -> dict[str, Any]:
    """What ``page.html`` reads."""
    tasks = list(dict.fromkeys(entry.task for entry in entries))
    agents = list(dict.fromkeys(entry.agent for entry in entries))
    references = [agent for agent in agents if is_reference(agent)]
    return {
        "tasks": [
            {"suite": task.suite, "model": task.model, "edits": row.records[0].edits, "dataset": row.records[0].dataset}
            for task in tasks
            for row in [next(entry for entry in entries if entry.task == task)]
        ],
        "agents": agents,
        "references": references,
        "colours": [agent for agent in agents if agent not in references],
        "protocols": [protocol for protocol in RANKED if boards[protocol].rows],
        "rows": [_row(entry, tasks.index(entry.task), boards) for entry in entries],
        "boards": {protocol: _board(board) for protocol, board in boards.items()},
        "failed": [
            {"suite": cell.suite, "agent": cell.agent, "seed": cell.seed, "error": cell.error} for cell in failed
        ],
        "paper": {
            "source": published.SOURCE,
            "tables": [_comparison(table) for table in published.comparisons(entries)],
        },
        "made": _made(entries),
    }


def _row(entry: Entry, task: int, boards: dict[str, Leaderboard]) -> dict[str, Any]:
    return {
        "task": task,
        "agent": entry.agent,
        "scores": {
            protocol: {metric: _estimate(entry.estimate(protocol, metric)) for metric in (*METRICS, MEAN)}
            for protocol in RANKED
        },
        "normalized": {protocol: _estimate(boards[protocol].normalized(entry)) for protocol in RANKED},
        "front": {
            protocol: [entry.agent in boards[protocol].front(entry.task, setup) for setup in (False, True)]
            for protocol in RANKED
        },
        "milliseconds": [round(1000 * entry.seconds(setup), 4) for setup in (False, True)],
        "setup": round(entry.mean("setup_seconds"), 3),
        "floors": [round(entry.floors(setup), 4) for setup in (False, True)],
        "memory": round(entry.mean("peak_memory_bytes") / 1e9, 3),
        "failures": entry.failures,
        "curve": curve(entry),
        "runs": [_run(record) for record in entry.records],
    }


def _run(record: Record) -> dict[str, Any]:
    scores = {protocol: getattr(record, protocol) for protocol in RANKED}
    return {
        "seed": record.seed,
        "scores": {
            protocol: [*(found[metric] for metric in METRICS), round(harmonic_mean(found), 4)]
            for protocol, found in scores.items()
            if found is not None
        },
        "setup": round(record.setup_seconds, 3),
        "milliseconds": round(1000 * record.edit_seconds, 4),
        "failures": record.failures,
    }


def _board(board: Leaderboard) -> dict[str, Any]:
    improvements = board.improvements()
    return {
        "compared": [str(task) for task in board.compared()],
        "overall": {agent: _estimate(found) for agent, found in board.overall().items()},
        "improvements": [
            [a, b, _estimate(found), board.streams_in_common(a, b)] for (a, b), found in improvements.items()
        ],
    }


def _comparison(table: published.Comparison) -> dict[str, Any]:
    return {
        "title": table.title,
        "columns": [[column.owner, column.task, column.model] for column in table.columns],
        "rows": [[ours, theirs, texts] for ours, theirs, texts in table.rows],
    }


def _made(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """What the runs were made with, and how many of them."""
    counts: dict[str, int] = {}
    for record in (record for entry in entries for record in entry.records):
        parts = [f"{name} {version}" for name, version in record.versions.items()]
        parts += [str(part) for key in ("processor", "accelerator") if (part := (record.hardware or {}).get(key))]
        text = ", ".join([*parts, f"commit {record.commit}"] if record.commit else parts)
        counts[text] = counts.get(text, 0) + 1
    return [{"with": text, "runs": count} for text, count in counts.items()]


def _estimate(found: Estimate | None) -> list[float] | None:
    """The value, and the interval's ends where there is one."""
    return None if found is None else [round(number, 4) for number in (found.value, *(found.interval or ()))]
