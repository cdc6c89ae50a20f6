"""What :mod:`agents.progress` shows of one rollout, and of the cells of a table."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from agents.base import ProgressCallback
from agents.progress import progress_bars

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def console_progress(label: str) -> Iterator[ProgressCallback]:
    """A bar for one rollout, on a terminal only; yields what :func:`benchmarks.running.rollout.run` reports to."""
    from rich.progress import TimeElapsedColumn

    with progress_bars(TimeElapsedColumn(), transient=True) as bars:
        bar = bars.add_task(label)
        yield lambda what, done, total: bars.update(bar, description=f"{label}: {what}", completed=done, total=total)


class CellsProgress:
    """How many cells of a table are done, with the time that is left, and how far the running one is.

    Args:
        bars: With a column that shows the field ``left`` of a task, a function without arguments.
        total: How many cells there are.
        clock: In seconds.
    """

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
        seconds_per_cell = (self._last - self._started) / self._done
        seconds = seconds_per_cell * (self._total - self._done) - (self._clock() - self._last)
        return f"left: {timedelta(seconds=round(max(0.0, seconds)))}"

    def report(self, what: str, done: int, total: int) -> None:
        """What the running cell is at: a :data:`agents.base.ProgressCallback`."""
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
    from rich.progress import ProgressColumn, Task, TimeElapsedColumn
    from rich.text import Text

    class Left(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(task.fields["left"]())

    with progress_bars(TimeElapsedColumn(), Left()) as bars:
        yield CellsProgress(bars, total)
