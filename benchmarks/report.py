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
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.results import figures, leaderboard, published, verdicts
from benchmarks.results import tables as table
from benchmarks.results.charts import Chart, save
from benchmarks.results.leaderboard import RANKED, Entry, FailedCell, Leaderboard, Task
from benchmarks.results.page import CHECKED, page
from benchmarks.results.statistics import interquartile_mean
from benchmarks.results.texts import printable
from benchmarks.running.cells import file_name
from benchmarks.suites import id_of
from editenv.atomic_files import atomic_write_text


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        results: Folders with a results.jsonl, as benchmarks.run writes it, or such files themselves; together they
            make one leaderboard.
        out: Where the report goes; the first folder by default.
        checked: What `benchmarks.validate --out FILE` found out about the records: files that you made or trust. Rows
            without one are shown as not verified.
        docs: The folder of the documentation from there, like ../../: the page's rows link to it, else to their
            papers.
    """

    results: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR [DIR ...]")]
    out: Path | None = None
    checked: tuple[Path, ...] = ()
    docs: str | None = None


def main(args: Args) -> int:
    """Writes the report; 1 if something of the folders had to be left out.

    Raises:
        SystemExit: If there are no records, with a message.
    """
    from rich.console import Console

    if not args.results:
        raise SystemExit("name at least one folder with a results.jsonl (or such a file)")
    entries, failed, left_out = read(args.results)
    try:
        statuses = verdicts.statuses(entries, verdicts.read(args.checked))
    except ValueError as error:
        raise SystemExit(printable(str(error))) from None
    out = args.out or (args.results[0].parent if args.results[0].suffix == ".jsonl" else args.results[0])
    out.mkdir(parents=True, exist_ok=True)
    with Console().status("comparing runs ...") as status:
        boards = {protocol: Leaderboard(entries, protocol) for protocol in RANKED}
        board = boards[figures.PROTOCOL]
        atomic_write_text(out / "index.html", page(entries, boards, failed, args.docs, left_out, statuses))
        drawn = draw(entries, board, out, lambda name: status.update(f"drawing {name} ..."))
        atomic_write_text(out / "LEADERBOARD.md", as_markdown(entries, board, failed, drawn, left_out, statuses))
    runs = sum(len(entry.records) for entry in entries)
    written = f"{out / 'index.html'}, {out / 'LEADERBOARD.md'} and {len(drawn)} figures (PNG, SVG)"
    print(f"{len(entries)} rows from {runs} runs: {written}")
    for cell in failed:
        print(printable(_in_words(cell)))
    for line in left_out:
        print(printable(line))
    return 1 if left_out else 0


def read(results: Sequence[Path]) -> tuple[list[Entry], list[FailedCell], list[str]]:
    """The rows of all folders, the cells that have come to nothing and have not been made since, and a line for each
    record or file that is left out.

    Raises:
        SystemExit: If there are no records; says what failed, too.
    """
    left_out: list[str] = []
    try:
        records = leaderboard.read(results, left_out)
    except ValueError as error:
        failures = map(_in_words, leaderboard.read_failures(results))
        raise SystemExit("\n".join(map(printable, [*str(error).split("\n"), *failures]))) from None
    made = {(id_of(record.suite), record.agent, record.seed) for record in records}
    failed = leaderboard.read_failures(results, made, left_out)
    return leaderboard.entries(records), failed, left_out


def _in_words(cell: FailedCell) -> str:
    return f"failed: {cell.suite}, {cell.agent}, seed {cell.seed}: {cell.error}"


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


def by_task(entries: Sequence[Entry]) -> dict[Task, list[Entry]]:
    """Rows of each task, in the order in which they come."""
    tasks: dict[Task, list[Entry]] = {}
    for entry in entries:
        tasks.setdefault(entry.task, []).append(entry)
    return tasks


def file_names(tasks: Sequence[Task]) -> list[str]:
    """A name for the files of each task: its suite, with the model or a number where that is not enough."""
    names: list[str] = []
    for task in tasks:
        alone = sum(other.suite == task.suite for other in tasks) == 1
        name = re.sub(r"[^\w.-]+", "-", task.suite if alone else f"{task.suite}-{task.model}").strip("-.")
        name = file_name(name or "suite")
        names.append(f"{name}-{names.count(name) + 1}" if name in names else name)
    return names


ORDINARY = {"order": "shuffled", "options": {}, "end_of_answer": False, "max_actions_per_batch": 4, "dtype": "float32"}
"""What records that do not say so were made with."""


def differing(tasks: Sequence[list[Entry]], along: str) -> list[list[list[Entry]]]:
    """Groups of suites that differ in one thing alone: data, model, modules, and the other size are the same.

    Only groups in which some row is in more than one suite.
    """
    groups: dict[str, list[list[Entry]]] = {}
    agents_of_stream: dict[str, set[str]] = {}
    for entries in tasks:
        # Of suites that are the same stream an agent's first one is shown.
        agents = agents_of_stream.setdefault(leaderboard.stream_of(entries), set())
        rows = [row for row in entries if row.agent not in agents]
        agents |= {row.agent for row in rows}
        if rows:
            groups.setdefault(_apart_from(rows[0], along), []).append(rows)
    return [group for group in groups.values() if _is_line(group, along)]


def _apart_from(row: Entry, along: str) -> str:
    """All that suites of one group have in common."""
    (other,) = set(figures.ALONG) - {along}
    record = row.records[0]
    suite = (record.configuration or {}).get("suite") or {}
    names = ("modules", "order", "options", "end_of_answer", "max_actions_per_batch", "dtype", "observed_tokens")
    settings = [suite.get(name, ORDINARY.get(name)) for name in names]
    return repr((record.dataset, record.model, settings, figures.size(row, other)))


def _is_line(group: Sequence[Sequence[Entry]], along: str) -> bool:
    """Whether the suites differ, and have a row in common."""
    agents = [row.agent for rows in group for row in rows]
    return len({figures.size(rows[0], along) for rows in group}) > 1 and len(agents) > len(set(agents))


def as_markdown(
    entries: Sequence[Entry],
    board: Leaderboard,
    failed: Sequence[FailedCell],
    drawn: Sequence[Drawn],
    left_out: Sequence[str] = (),
    statuses: Sequence[tuple[str, str, str]] = (),
) -> str:
    """LEADERBOARD.md."""
    parts = [
        "# Leaderboard\n",
        "Interquartile means over seeds with 95% stratified bootstrap intervals, where there are two seeds or more; "
        "`mean` is the harmonic mean of the three. docs/reference/statistics.md of LifelongEdit says "
        "how each number is made.\n",
    ]
    for task, rows in by_task(entries).items():
        parts += _suite(task, rows, failed)
        parts += [f"![{drawing.title}]({drawing.name}.png)\n" for drawing in drawn if drawing.task == task]
    for drawing in drawn:
        if drawing.task is None:
            title = table.escaped(drawing.title)
            parts.append(f"## {title}\n\n![{title}]({drawing.name}.png)\n")
    parts += _normalized(board) + _improvements(board) + _failures(failed)
    if left_out:
        parts += ["## Left out\n", *(f"* {table.escaped(line.removeprefix('left out: '))}" for line in left_out), ""]
    if statuses:
        body = [list(row) for row in statuses]
        parts += ["## What was checked\n", f"{CHECKED}\n", table.markdown(["suite", "agent", "status"], body)]
    parts += _paper(entries)
    return "\n".join(parts)


def _suite(task: Task, rows: Sequence[Entry], failed: Sequence[FailedCell]) -> list[str]:
    """The tables of one task."""
    records = [record for row in rows for record in row.records]
    of = f"{table.escaped(records[0].dataset)} in {table.escaped(task.model)}"
    parts = [f"## {table.escaped(task.suite)}\n", f"{records[0].edits:,} edits of {of}.\n", table.as_markdown(records)]
    if any(len(row.records) > 1 for row in rows):
        parts += ["Each figure with its interval:\n", table.as_intervals(records)]
    parts += _without_row(task, rows, failed) + _behind_the_best(rows)
    if any(record.drift for record in records):
        parts.append(table.as_details(records))
    if any(record.portability for record in records):
        parts += ["Portability questions that are right, by kind:\n", table.as_portability(records)]
    return parts


def _behind_the_best(rows: Sequence[Entry]) -> list[str]:
    """The best lifelong editor against each other row, on the streams that both have run; none of a single stream."""
    scores = {row.agent: row.values(figures.PROTOCOL, leaderboard.MEAN) for row in rows}
    editors = [agent for agent, values in scores.items() if len(values) > 1 and not leaderboard.is_reference(agent)]
    if not editors:
        return []
    best = max(editors, key=lambda agent: interquartile_mean(list(scores[agent].values())))
    others = [agent for agent in scores if agent != best and len(scores[agent].keys() & scores[best].keys()) > 1]
    records = [record for row in rows for record in row.records]
    return (
        [
            "The best row against the others on the same streams: means of the differences, with the 95% interval of the "
            "paired t-test. An interval that has 0 in it settles nothing.\n",
            table.as_differences(records, [(best, other) for other in others]),
        ]
        if others
        else []
    )


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
        f"Harmonic mean of the {board.protocol} figures, 0 for `no-edit` and 1 for `joint-fine-tune` on the same "
        "suite; only suites with both have it. `overall` is the interquartile mean over the runs on all of these, "
        "those that are the same stream counted once; a dash: not run on all.\n",
        table.markdown(["agent", *map(str, tasks), *(["overall"] if overall else [])], body),
    ]


def _improvements(board: Leaderboard) -> list[str]:
    improvements = board.improvements()
    if not improvements:
        return []

    def cell(a: str, b: str) -> str:
        if a == b or (a, b) not in improvements:
            return "" if a == b else "-"
        return f"{table.with_interval(improvements[a, b], 2)} n {board.streams_in_common(a, b)}"

    return [
        "## Probability of improvement\n",
        "How often the row is better than the column on the same stream, by the harmonic mean of the "
        f"{board.protocol} figures; a tie counts half. In brackets the interval, behind it the number of streams; "
        "pairs with few say little.\n",
        table.markdown(
            ["row better than", *board.agents], [[a, *(cell(a, b) for b in board.agents)] for a in board.agents]
        ),
    ]


def _without_row(task: Task, rows: Sequence[Entry], failed: Sequence[FailedCell]) -> list[str]:
    """The agents that have no row because they failed on this suite, each with the reason."""
    agents = {row.agent for row in rows}
    reasons = {cell.agent: cell.error for cell in failed if id_of(cell.suite) == id_of(task.suite)}
    lines = [f"* {table.escaped(a)}: - ({table.escaped(why)})" for a, why in reasons.items() if a not in agents]
    return ["\n".join(["No row, and why:\n", *lines, ""])] if lines else []


def _failures(failed: Sequence[FailedCell]) -> list[str]:
    if not failed:
        return []
    body = [[cell.suite, cell.agent, str(cell.seed), cell.error] for cell in failed]
    return ["## Failed\n", "Runs that ended in an error.\n", table.markdown(["suite", "agent", "seed", "error"], body)]


def _paper(entries: Sequence[Entry]) -> list[str]:
    parts = [
        "## The paper's numbers\n",
        f"Theirs are from {published.SOURCE}: their models, data and hardware. They stand beside ours to be read, not "
        "to be raced. Efficacy / generalization / specificity in percent, teacher-forced, and on CounterFact by the "
        "probability comparison. "
        "Their FT is FT-L (`ft-l`); `fine-tune` is ours without its constraint.\n",
    ]
    for comparison in published.comparisons(entries):
        headings = [f"{c.owner}: {c.task}, {c.model}" for c in comparison.columns]
        body = [[ours, theirs, *texts] for ours, theirs, texts in comparison.rows]
        parts += [f"### {comparison.title}\n", table.markdown(["ours", "theirs", *headings], body)]
    return parts


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
