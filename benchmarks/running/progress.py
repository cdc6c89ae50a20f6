"""Progress bars: for one rollout, and for the cells of a table."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def console_progress(label: str) -> Iterator[Callable[[str, int, int], None]]:
    """A rich bar, on a terminal only; yields the callback that :func:`benchmarks.running.rollout.run` takes."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task(label)
        yield lambda what, done, total: bars.update(bar, description=f"{label}: {what}", completed=done, total=total)


class CellsProgress:
    """How many cells of a table are done, with the time that is left, and how far the running one is."""

    def __init__(self, bars: "Progress", total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._bars, self._total, self._clock = bars, total, clock
        self._started = self._last = clock()
        self._done = 0
        self._cells = bars.add_task("cells", total=total, left=self.left)
        self._cell = bars.add_task("", visible=False, left=str)

    def left(self) -> str:
        """The mean time of a cell so far, for those that are left; nothing before the first has finished."""
        if not self._done:
            return ""
        each = (self._last - self._started) / self._done
        seconds = each * (self._total - self._done) - (self._clock() - self._last)
        return f"left: {timedelta(seconds=round(max(0.0, seconds)))}"

    def report(self, what: str, done: int, total: int) -> None:
        """What the running cell is at."""
        self._bars.update(self._cell, description=what, completed=done, total=total, visible=True)

    def finished(self) -> None:
        """One more cell is done."""
        self._done += 1
        self._last = self._clock()
        self._bars.advance(self._cells)
        self._bars.reset(self._cell, visible=False)


@contextmanager
def cells_progress(total: int) -> Iterator[CellsProgress]:
    """Bars on a terminal only; what is printed meanwhile appears above them."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.text import Text

    class Left(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(task.fields["left"]())

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), Left())
    console = Console()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        yield CellsProgress(bars, total)
