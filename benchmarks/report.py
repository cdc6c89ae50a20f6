"""The leaderboard of one or more result folders: LEADERBOARD.md, figures (PNG and SVG), and index.html.

    python -m benchmarks.run --suite smoke --agents no-edit fine-tune joint-fine-tune --seeds 0-2 --out runs/smoke
    python -m benchmarks.report runs/smoke
    python -m benchmarks.report runs/atlas runs/real --out runs/report

index.html is one file without any network: open it in a browser, send it, or put it on a server as it is. Rows are
interquartile means over seeds with 95% intervals; two rows are measures for the others if they were run: no-edit, and
joint-fine-tune, the ceiling. docs/reference/statistics.md says what each number means and what is not shown.
The same records give the same files.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.results import figures, leaderboard, published
from benchmarks.results import tables as table
from benchmarks.results.charts import Chart, save
from benchmarks.results.leaderboard import RANKED, Entry, FailedCell, Leaderboard, Task
from benchmarks.results.page import page
from benchmarks.results.statistics import Estimate
from benchmarks.suites import id_of
from editenv.atomic_files import atomic_write_text


@dataclass
class Args:
    results: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR [DIR ...]")]
    """Folders with a results.jsonl, as benchmarks.run writes it, or such files themselves; together they make one
    leaderboard.
    """
    out: Path | None = None
    """Where the report goes; the first folder by default."""


def main(args: Args) -> None:
    from rich.console import Console

    if not args.results:
        raise SystemExit("name at least one folder with a results.jsonl (or such a file)")
    failed: list[FailedCell] = []
    try:
        failed = leaderboard.read_failures(args.results)
        records = leaderboard.read(args.results)
    except ValueError as error:
        every = [f"failed: {cell.suite}, {cell.agent}, seed {cell.seed}: {cell.error}" for cell in failed]
        raise SystemExit("\n".join([str(error), *every])) from None
    failed = leaderboard.read_failures(args.results, {(id_of(r.suite), r.agent, r.seed) for r in records})
    found = leaderboard.entries(records)
    out = args.out or (args.results[0].parent if args.results[0].suffix == ".jsonl" else args.results[0])
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    with console.status("comparing runs ...") as status:
        boards = {protocol: Leaderboard(found, protocol) for protocol in RANKED}
        atomic_write_text(out / "index.html", page(found, boards, failed))
        drawn = draw(found, boards["generation"], out, lambda name: status.update(f"drawing {name} ..."))
        atomic_write_text(out / "LEADERBOARD.md", as_markdown(found, boards["generation"], failed, drawn))
    rows, runs = len(found), sum(len(entry.records) for entry in found)
    print(
        f"{rows} rows from {runs} runs: {out / 'index.html'}, {out / 'LEADERBOARD.md'} and {len(drawn)} figures (PNG, SVG)"
    )
    for cell in failed:
        print(f"failed: {cell.suite}, {cell.agent}, seed {cell.seed}: {cell.error}")


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure that has been written.

    Attributes:
        name: Of its files, without the ending.
        title: What it shows.
        task: What it belongs to; None if to several.
    """

    name: str
    title: str
    task: Task | None = None


def draw(
    entries: Sequence[Entry], board: Leaderboard, out: Path, progress: Callable[[str], None] = lambda name: None
) -> list[Drawn]:
    """All figures, as PNG and SVG.

    Args:
        entries: All rows.
        board: The rows under the protocol that quality is shown by.
        out: Folder.
        progress: Called with the name of each figure.
    """
    drawn: list[Drawn] = []
    for drawing, chart in all_charts(entries, board):
        progress(drawing.name)
        for ending in ("png", "svg"):
            save(chart, out / f"{drawing.name}.{ending}")
        drawn.append(drawing)
    return drawn


def all_charts(entries: Sequence[Entry], board: Leaderboard) -> Iterator[tuple[Drawn, Chart]]:
    """Those of each task, and those of tasks that differ in one thing."""
    tasks = by_task(entries)
    for task, name in zip(tasks, file_names(list(tasks)), strict=True):
        rows = tasks[task]
        if any(leaderboard.curve(row) for row in rows):
            yield Drawn(f"retention-{name}", "What is kept along the stream", task), figures.retention(rows)
        yield Drawn(f"pareto-{name}", "Quality against time per edit", task), figures.pareto(board, task)
        yield Drawn(f"bars-{name}", "After the last edit", task), figures.bars(rows, board.protocol)
    for along in figures.ALONG:
        for number, group in enumerate(differing(list(tasks.values()), along), start=1):
            first = group[0][0]
            what = f"{first.records[0].dataset} in {first.task.model}, {figures.alike(first, along)}"
            drawing = Drawn(f"by-{along.replace(' ', '-')}-{number}", f"By {figures.ALONG[along]}: {what}")
            yield drawing, figures.by_size(group, board.protocol, along)


def by_task(found: Sequence[Entry]) -> dict[Task, list[Entry]]:
    """Rows of each task."""
    return {task: [row for row in found if row.task == task] for task in dict.fromkeys(row.task for row in found)}


def file_names(tasks: Sequence[Task]) -> list[str]:
    """A name for the files of each task: its suite, with the model or a number where that is not enough."""
    names: list[str] = []
    for task in tasks:
        alone = sum(other.suite == task.suite for other in tasks) == 1
        name = re.sub(r"[^\w.-]+", "-", task.suite if alone else f"{task.suite}-{task.model}").strip("-.")
        names.append(f"{name}-{names.count(name) + 1}" if name in names else name)
    return names


ORDINARY = {"order": "shuffled", "options": {}, "end_of_answer": False, "max_actions_per_batch": 4, "dtype": "float32"}
"""What records that do not say so were made with."""


def differing(tasks: Sequence[list[Entry]], along: str) -> list[list[list[Entry]]]:
    """Groups of suites that differ in one thing alone: data, model, modules, and the other size are the same.

    Only groups in which some row is in more than one suite.
    """
    (other,) = set(figures.ALONG) - {along}
    groups: dict[str, list[list[Entry]]] = {}
    streams: dict[str, set[str]] = {}
    for every in tasks:
        # Of suites that are the same stream an agent's first one is shown.
        shown = streams.setdefault(leaderboard.stream_of(every), set())
        rows = [row for row in every if row.agent not in shown]
        shown |= {row.agent for row in rows}
        if not rows:
            continue
        record = rows[0].records[0]
        setting = (record.configuration or {}).get("suite") or {}
        alike = ("modules", "order", "options", "end_of_answer", "max_actions_per_batch", "dtype")
        told = [setting.get(name, ORDINARY.get(name)) for name in alike]
        key = repr((record.dataset, record.model, told, figures.size(rows[0], other)))
        groups.setdefault(key, []).append(rows)
    return [
        group
        for group in groups.values()
        if len({figures.size(rows[0], along) for rows in group}) > 1
        and len(agents := [row.agent for rows in group for row in rows]) > len(set(agents))
    ]


def as_markdown(
    found: Sequence[Entry], board: Leaderboard, failed: Sequence[FailedCell], drawn: Sequence[Drawn]
) -> str:
    """LEADERBOARD.md."""
    parts = [
        "# Leaderboard\n",
        "Interquartile means over seeds with 95% stratified bootstrap intervals, where there are two seeds or more; `mean` is the "
        "harmonic mean of the three. docs/reference/statistics.md of LifelongEdit says how each number is made.\n",
    ]
    for task, rows in by_task(found).items():
        records = [record for row in rows for record in row.records]
        parts.append(f"## {table.escaped(task.suite)}\n")
        parts.append(
            f"{records[0].edits:,} edits of {table.escaped(records[0].dataset)} in {table.escaped(task.model)}.\n"
        )
        parts.append(table.as_markdown(records))
        if any(len(row.records) > 1 for row in rows):
            parts += ["Each figure with its interval:\n", table.as_intervals(records)]
        parts += _not_there(task, rows, failed)
        if any(record.drift for record in records):
            parts.append(table.as_details(records))
        parts += [f"![{drawing.title}]({drawing.name}.png)\n" for drawing in drawn if drawing.task == task]
    parts += [
        f"## {table.escaped(d.title)}\n\n![{table.escaped(d.title)}]({d.name}.png)\n" for d in drawn if d.task is None
    ]
    parts += _normalized(board) + _improvements(board) + _failures(failed) + _paper(found)
    return "\n".join(parts)


def _normalized(board: Leaderboard) -> list[str]:
    tasks, overall = board.referenced(), board.overall()
    if not tasks:
        return []
    rows = {(row.task, row.agent): table.with_interval(board.normalized(row), 2) for row in board.rows}
    body = [[agent, *(rows.get((task, agent), "-") for task in tasks)] for agent in board.agents]
    if overall:
        body = [[*line, table.with_interval(overall[line[0]], 2)] for line in body]
    return [
        "## Normalised score\n",
        f"Harmonic mean of the {board.protocol} figures, 0 for `no-edit` and 1 for `joint-fine-tune` on the same suite; only "
        "suites with both have it. `overall` is the interquartile mean over the runs on all of these, those that are the "
        "same stream counted once; a dash: not run on all.\n",
        table.markdown(["agent", *map(str, tasks), *(["overall"] if overall else [])], body),
    ]


def _improvements(board: Leaderboard) -> list[str]:
    found = board.improvements()
    if not found:
        return []
    body = [
        [a, *("" if a == b else _improvement(board, found.get((a, b)), a, b) for b in board.agents)]
        for a in board.agents
    ]
    return [
        "## Probability of improvement\n",
        f"How often the row is better than the column on the same stream, by the harmonic mean of the {board.protocol} figures; "
        "a tie counts half. In brackets the interval, behind it the number of streams; pairs with few say little.\n",
        table.markdown(["row better than", *board.agents], body),
    ]


def _improvement(board: Leaderboard, found: Estimate | None, a: str, b: str) -> str:
    return "-" if found is None else f"{table.with_interval(found, 2)} n {board.streams_in_common(a, b)}"


def _not_there(task: Task, rows: Sequence[Entry], failed: Sequence[FailedCell]) -> list[str]:
    """The agents that have no row because they failed on this suite, each with the reason."""
    there = {row.agent for row in rows}
    reasons = {cell.agent: cell.error for cell in failed if id_of(cell.suite) == id_of(task.suite)}
    lines = [
        f"* {table.escaped(agent)}: - ({table.escaped(why)})" for agent, why in reasons.items() if agent not in there
    ]
    return ["\n".join(["No row, and why:\n", *lines, ""])] if lines else []


def _failures(failed: Sequence[FailedCell]) -> list[str]:
    if not failed:
        return []
    body = [[cell.suite, cell.agent, str(cell.seed), cell.error] for cell in failed]
    return ["## Failed\n", "Runs that ended in an error.\n", table.markdown(["suite", "agent", "seed", "error"], body)]


def _paper(found: Sequence[Entry]) -> list[str]:
    parts = [
        "## The paper's numbers\n",
        f"Theirs are from {published.SOURCE}: their models, data and hardware. They stand beside ours to be read, not to be raced. "
        "Efficacy / generalization / specificity in percent, teacher-forced, and on CounterFact by the probability comparison. "
        "Their FT is FT-L (`ft-l`); `fine-tune` is ours without its constraint.\n",
    ]
    for comparison in published.comparisons(found):
        headings = [f"{c.owner}: {c.task}, {c.model}" for c in comparison.columns]
        body = [[ours, theirs, *texts] for ours, theirs, texts in comparison.rows]
        parts += [f"### {comparison.title}\n", table.markdown(["ours", "theirs", *headings], body)]
    return parts


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
