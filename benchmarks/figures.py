"""Draws the figures of docs/results from the records there.

    python -m benchmarks.figures                    # all of them, and the leaderboard page
    python -m benchmarks.figures atlas-50x20.png    # one
    python -m benchmarks.figures --check            # only says which are older than their records

:func:`figures_in` says what each is made of. A figure's file carries a digest of what it shows; --check makes the digest
anew from the records and compares. The page is compared as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks import capacity, learning_curves, rl, rl_report
from benchmarks.report import by_task
from benchmarks.results import figures, leaderboard, place, records
from benchmarks.results.charts import Chart, digest, save, saved_digest
from benchmarks.results.leaderboard import RANKED, Entry, Leaderboard, entries
from benchmarks.results.page import page
from editenv.atomic_files import atomic_write_text

RESULTS = Path(__file__).parents[1] / "docs" / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    """What a figure is made of.

    Attributes:
        name: Its file in the folder of results.
        kind: A key of :data:`KINDS`.
        source: The file with its records, in the same folder.
        agents: Those in colour, with spaces between; the others are grey. The first ones if empty.
        suites: Likewise; all of the file if empty.
    """

    name: str
    kind: str
    source: str
    agents: str = ""
    suites: str = ""


FIGURES = (
    Figure(
        "atlas-50x20.png",
        "retention",
        "atlas-50x20.jsonl",
        "joint-fine-tune fine-tune rledit rledit-fixed untrained-p rledit-p rledit-p-fixed rledit-p-k4",
    ),
    Figure(
        "atlas-400x20.png",
        "retention",
        "atlas-400x20.jsonl",
        "joint-fine-tune fine-tune rledit untrained-p-long rledit-p-long memit memit-seq-long alphaedit",
    ),
    Figure(
        "methods-50x20.png",
        "retention",
        "methods-50x20.jsonl",
        "lte-gated rome memit memit-seq alphaedit mend mend-rledit ultraedit",
    ),
    Figure(
        "by-length.png",
        "by edits",
        "paper.jsonl",
        "joint-fine-tune ft-l rome memit memit-seq alphaedit rledit rledit-p",
        "atlas-20x100 capability-30x100 atlas-50x100 atlas-80x100",
    ),
    Figure(
        "by-batch-size.png",
        "by batch size",
        "paper.jsonl",
        "untrained rledit rledit-p",
        "atlas-10x500 atlas-25x200 atlas-50x100 atlas-100x50 atlas-200x25 atlas-500x10 atlas-1000x5",
    ),
    Figure(
        "real-model.png",
        "retention",
        "real-model.jsonl",
        agents="lte-gated@smollm2-135m lte@smollm2-135m rag@smollm2-135m "
        "memit-reworded@smollm2-135m-six-layers memit-rehearsed@smollm2-135m "
        "untrained-p@smollm2-135m rledit-p@smollm2-135m no-edit",
    ),
    Figure("capacity.png", "capacity", "capacity.jsonl"),
    Figure("rl.png", "learning by reinforcement", "rl.jsonl"),
    Figure("learning_curves.png", "learning curves", "learning_curves.jsonl"),
)


PLACE = Figure("place.png", "place", place.TRIALS)
"""Of ``benchmarks.place``; see :func:`figures_in`."""

PAGE = "leaderboard/index.html"
PAGE_SOURCES = (
    "atlas-50x20.jsonl",
    "methods-50x20.jsonl",
    "atlas-400x20.jsonl",
    "base-400x20.jsonl",
    "atlas-50x20-ends.jsonl",
    "ablations-20x100.jsonl",
    "paper.jsonl",
    "real.jsonl",
    "real-model.jsonl",
)
"""Records of the leaderboard page."""
DOCS = "../../"
"""The folder of the documentation, from the page."""


def figures_in(folder: Path = RESULTS) -> tuple[Figure, ...]:
    """Those that a folder has the records of: all, and the place of an edit once it was measured."""
    return (*FIGURES, PLACE) if (folder / PLACE.source).is_file() else FIGURES


def _rows(figure: Figure, folder: Path) -> list[Entry]:
    """The rows of the figure's suites.

    Raises:
        ValueError: If a suite is not there.
    """
    rows = entries(records.read(folder / figure.source))
    suites = figure.suites.split() or [row.task.suite for row in rows]
    if missing := set(suites) - {row.task.suite for row in rows}:
        raise ValueError(f"{figure.name}: {figure.source} holds no record of {', '.join(sorted(missing))}")
    return [row for row in rows if row.task.suite in suites]


def _retention(figure: Figure, folder: Path) -> Chart:
    return figures.retention(_rows(figure, folder), figure.agents.split())


def _by_edits(figure: Figure, folder: Path) -> Chart:
    tasks = list(by_task(_rows(figure, folder)).values())
    return figures.by_size(tasks, figures.PROTOCOL, "edits", figure.agents.split())


def _by_batch_size(figure: Figure, folder: Path) -> Chart:
    tasks = list(by_task(_rows(figure, folder)).values())
    return figures.by_size(tasks, figures.PROTOCOL, "batch size", figure.agents.split())


def _capacity(figure: Figure, folder: Path) -> Chart:
    return capacity.chart(capacity.curves(records.read(folder / figure.source)))


def _learning(figure: Figure, folder: Path) -> Chart:
    return rl_report.chart(rl.read(folder / figure.source), figure.agents.split())


def _learning_curves(figure: Figure, folder: Path) -> Chart:
    return learning_curves.chart(learning_curves.read(folder / figure.source))


def _place(figure: Figure, folder: Path) -> Chart:
    return place.chart(place.read_trials(folder / figure.source), place.read_effects(folder / place.TRACE))


KINDS: dict[str, Callable[[Figure, Path], Chart]] = {
    "retention": _retention,
    "by edits": _by_edits,
    "by batch size": _by_batch_size,
    "capacity": _capacity,
    "learning by reinforcement": _learning,
    "learning curves": _learning_curves,
    "place": _place,
}


def chart_of(figure: Figure, folder: Path = RESULTS) -> Chart:
    """What the figure shows, by the records in the folder.

    Raises:
        ValueError: If a row or a suite is not in the records, or more rows are to be in colour than can be told apart.
    """
    return KINDS[figure.kind](figure, folder)


def leaderboard_page(folder: Path = RESULTS) -> str:
    """The page's HTML, by the records in the folder."""
    rows = entries(leaderboard.read([folder / name for name in PAGE_SOURCES]))
    return page(rows, {protocol: Leaderboard(rows, protocol) for protocol in RANKED}, [], DOCS)


def is_current(figure: Figure, folder: Path = RESULTS) -> bool:
    """Whether the figure in the folder shows what the records there say."""
    path = folder / figure.name
    return path.is_file() and saved_digest(path) == digest(chart_of(figure, folder))


def page_is_current(folder: Path = RESULTS) -> bool:
    """Whether the page in the folder is what the records there say."""
    path = folder / PAGE
    return path.is_file() and path.read_text(encoding="utf-8") == leaderboard_page(folder)


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        names: Files of figures, or leaderboard/index.html; all by default.
        folder: With the records; figures go there.
        check: Draw nothing; name the figures that do not show what the records say, and fail if there are any.
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    folder: Path = RESULTS
    check: bool = False


def main(args: Args) -> int:
    """Exit status: 1 if --check found a figure to be drawn anew."""
    by_name = {figure.name: figure for figure in figures_in(args.folder)}
    if unknown := set(args.names) - {*by_name, PAGE}:
        raise SystemExit(f"no figure {', '.join(sorted(unknown))}; there are {', '.join([*by_name, PAGE])}")
    stale = 0
    for name in args.names or [*by_name, PAGE]:
        figure, path = by_name.get(name), args.folder / name
        if args.check:
            current = is_current(figure, args.folder) if figure else page_is_current(args.folder)
            stale += not current
            print(f"{path}: {'is what its records say' if current else 'is not what its records say'}")
            continue
        if figure:
            save(chart_of(figure, args.folder), path)
        else:
            atomic_write_text(path, leaderboard_page(args.folder))
        print(f"{path}: drawn")
    return int(stale > 0)


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Args, description=__doc__)))
