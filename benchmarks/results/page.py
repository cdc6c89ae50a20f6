"""One self-contained page: the leaderboard's data as JSON in ``page.html``, which draws it and asks no network for
anything. Its links are followed only when a reader chooses them.
"""

import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from agents.rows import Row, row_of
from benchmarks.results import published
from benchmarks.results.leaderboard import (
    MEAN,
    RANKED,
    Entry,
    FailedCell,
    Leaderboard,
    Task,
    curve,
    is_reference,
)
from benchmarks.results.records import Record
from benchmarks.results.statistics import Estimate, harmonic_mean
from benchmarks.results.styles import FAMILIES, style_of
from benchmarks.results.tables import changed
from benchmarks.results.texts import printable
from editenv.evaluation.metrics import METRICS

CHECKED = (
    "Replayed: the deltas give the figures (`python -m benchmarks.validate`). Verified by re-running: the agent's source, "
    "run on streams with new seeds, did as well. Names, settings, commits, versions, hardware, seconds and memory are "
    "what the records say."
)
"""What the statuses of rows mean."""

PLACEHOLDER = "{{data}}"
"""What the template has in the data's place."""

PAPER = "https://arxiv.org/abs/2502.05759"
ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")

DOCUMENTS = {
    "Repository": "../README.md",
    "Methods": "reference/methods.md",
    "Rows and suffixes": "reference/rows.md",
    "How the numbers are made": "reference/statistics.md",
    "All results": "results/README.md",
}
"""What the page links to, from the folder of the documentation."""
METHOD = "reference/methods.md#the-methods"
SUFFIX = "reference/rows.md#suffixes"
OWN = "reference/rows.md#names-of-your-own"
OTHER = "reference/rows.md#names-that-are-not-a-method-with-suffixes"
OTHER_NAMES = (
    "no-edit", "joint-fine-tune", "untrained", "rledit-packaged", "demo-", "online-", "reinforce", "evolution", "sb3-",
)  # fmt: skip
"""What names begin with that are not a method with suffixes."""


def page(
    entries: Sequence[Entry],
    boards: dict[str, Leaderboard],
    failed: Sequence[FailedCell],
    docs: str | None = None,
    left_out: Sequence[str] = (),
    statuses: Sequence[tuple[str, str, str]] = (),
) -> str:
    """The page's HTML.

    Args:
        entries: All rows.
        boards: By protocol.
        failed: Cells that came to nothing.
        docs: The folder of the documentation, from the page; without one names of rows link to their papers.
        left_out: A line for each record or file that is not in it.
        statuses: Of each row its suite, its agent and what was found out about it.
    """
    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    before, placeholder, after = template.partition(PLACEHOLDER)
    if not placeholder:
        raise ValueError(f"benchmarks/results/page.html has no {PLACEHOLDER}")
    return before + embedded(page_data(entries, boards, failed, docs, left_out, statuses)) + after


def embedded(data: Any) -> str:
    """JSON that cannot end the script element it lies in, and whose texts can be shown, whatever a name holds."""
    text = json.dumps(_printable(data), allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _printable(data: Any) -> Any:
    """The same data with all of its texts, names included, as they can be shown."""
    if isinstance(data, dict):
        return {printable(key): _printable(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_printable(value) for value in data]
    return printable(data) if isinstance(data, str) else data


def page_data(
    entries: Sequence[Entry],
    boards: dict[str, Leaderboard],
    failed: Sequence[FailedCell],
    docs: str | None = None,
    left_out: Sequence[str] = (),
    statuses: Sequence[tuple[str, str, str]] = (),
) -> dict[str, Any]:
    """What ``page.html`` reads."""
    tasks = list(dict.fromkeys(entry.task for entry in entries))
    agents = list(dict.fromkeys(entry.agent for entry in entries))
    return {
        "links": {"paper": PAPER, "docs": docs and f"{docs.rstrip('/')}/", "documents": DOCUMENTS},
        "tasks": [_task(task, entries) for task in tasks],
        "agents": {agent: _agent(agent) for agent in agents},
        "protocols": [protocol for protocol in RANKED if boards[protocol].rows],
        "rows": [_row(entry, tasks.index(entry.task), boards) for entry in entries],
        "boards": {protocol: _board(board) for protocol, board in boards.items()},
        "failed": [
            {"suite": cell.suite, "agent": cell.agent, "seed": cell.seed, "error": cell.error} for cell in failed
        ],
        "left_out": list(left_out),
        "checked": {"about": CHECKED, "rows": list(statuses)},
        "paper": {
            "source": published.SOURCE,
            "tables": [_comparison(table) for table in published.comparisons(entries)],
        },
        "made": _made(entries),
    }


def _task(task: Task, entries: Sequence[Entry]) -> dict[str, Any]:
    record = next(entry for entry in entries if entry.task == task).records[0]
    return {"suite": task.suite, "model": task.model, "edits": record.edits, "dataset": record.dataset}


def _agent(agent: str) -> dict[str, Any]:
    """How it looks, and what it is: in words, with its paper and a page of the documentation where there are any."""
    style = style_of(agent)
    row = row_of(agent)
    return {
        "colour": style.colour,
        "dashes": list(style.dashes),
        "reference": is_reference(agent),
        "about": row.about if row else None,
        "changes": changed(row) if row else None,
        "paper": row.paper if row else None,
        "arxiv": _arxiv(row) if row else None,
        "document": _document(agent) if row else None,
    }


def _arxiv(row: Row) -> str | None:
    number = ARXIV.search(row.paper)
    return f"https://arxiv.org/abs/{number[1]}" if number else None


def _document(agent: str) -> str:
    """Where a name of the registry, or a method with the settings of another folder, is explained."""
    if "@" in agent:
        return OWN
    if agent.startswith(OTHER_NAMES):
        return OTHER
    return METHOD if agent in FAMILIES and not agent.endswith("-p") else SUFFIX


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
        "setup": round(entry.median("setup_seconds"), 3),
        "floors": [round(entry.floors(setup), 4) for setup in (False, True)],
        "memory": round(entry.median("peak_memory_bytes") / 1e9, 3),
        "failures": entry.failures,
        "curve": [_point(point) for point in curve(entry)],
        "runs": [_run(record) for record in entry.records],
    }


def _point(point: dict[str, Any]) -> dict[str, Any]:
    """A point of the curve: for each metric mean, lowest and highest of the seeds."""
    return {
        name: [round(number, 4) for number in value] if isinstance(value, tuple) else value
        for name, value in point.items()
    }


def _run(record: Record) -> dict[str, Any]:
    by_protocol = {protocol: getattr(record, protocol) for protocol in RANKED}
    return {
        "seed": record.seed,
        "scores": {
            protocol: [*(scores[metric] for metric in METRICS), round(harmonic_mean(scores), 4)]
            for protocol, scores in by_protocol.items()
            if scores is not None
        },
        "setup": round(record.setup_seconds, 3),
        "milliseconds": round(1000 * record.edit_seconds, 4),
        "failures": record.failures,
    }


def _board(board: Leaderboard) -> dict[str, Any]:
    """The comparisons of agents; of each pair one direction, as the other is its complement."""
    order = {agent: i for i, agent in enumerate(board.agents)}
    return {
        "compared": [str(task) for task in board.compared()],
        "overall": {agent: _estimate(score) for agent, score in board.overall().items()},
        "improvements": [
            [a, b, _estimate(better), board.streams_in_common(a, b)]
            for (a, b), better in board.improvements().items()
            if order[a] < order[b]
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


def _estimate(estimate: Estimate | None) -> list[float] | None:
    """The value, and the interval's ends where there is one."""
    return None if estimate is None else [round(number, 4) for number in (estimate.value, *(estimate.interval or ()))]
