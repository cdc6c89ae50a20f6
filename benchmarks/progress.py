"""Progress bars: for one rollout, and for the cells of a table."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def console_progress(label: str) -> Iterator[Callable[[str, int, int], None]]:
    """A rich bar, on a terminal only; yields the callback that :func:`benchmarks.rollout.run` takes."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task(label)
        yield lambda what, done, total: bars.update(bar, description=f"{label}: {what}", completed=done, total=total)


class CellsProgress:
    """How many cells of a table are done, with the time that is left, and how far the running one is."""

    def __init__(self, bars: "Progress", total: int) -> None:
        self._bars = bars
        self._cells = bars.add_task("cells", total=total)
        self._cell = bars.add_task("", visible=False)

    def report(self, what: str, done: int, total: int) -> None:
        """What the running cell is at."""
        self._bars.update(self._cell, description=what, completed=done, total=total, visible=True)

    def finished(self) -> None:
        """One more cell is done."""
        self._bars.advance(self._cells)
        self._bars.update(self._cell, visible=False)


@contextmanager
def cells_progress(total: int) -> Iterator[CellsProgress]:
    """Bars on a terminal only; what is printed meanwhile appears above them."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    console = Console()
    # The speed is taken over the whole run: a cell may take longer than rich's default of half a minute.
    period = float(10**9)
    with Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=period) as bars:
        yield CellsProgress(bars, total)
