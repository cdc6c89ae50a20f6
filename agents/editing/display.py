"""What a long command says while it runs: a bar on a terminal, and lines where there is none."""

import sys
from threading import Event, Thread
from time import monotonic
from typing import Self

from rich.console import Console
from rich.progress import TimeRemainingColumn

from agents.editing.undoing import duration
from agents.progress import progress_bars
from editenv.data.text import printable

INTERVAL = 30.0
"""Seconds between two lines where stderr is no terminal."""


def tell(text: str) -> None:
    """Prints a note where no :class:`Display` is open."""
    print(printable(text), file=sys.stderr)


class Display:
    """Notes on stderr; below them a progress bar on a terminal, and a line now and then elsewhere.

    Args:
        edits: What is counted up to.
    """

    def __init__(self, edits: int) -> None:
        self._console = Console(stderr=True, soft_wrap=True)
        self._bars = progress_bars(TimeRemainingColumn(), console=self._console, transient=True)
        self._bar = self._bars.add_task("preparing", total=edits)
        self._activity, self._done, self._edits = "preparing", 0, edits
        self._started, self._ended = monotonic(), Event()

    def __enter__(self) -> Self:
        self._bars.start()
        if not self._console.is_terminal:
            Thread(target=self._say_now_and_then, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._bars.stop()

    def _say_now_and_then(self) -> None:
        """Also in the middle of a batch that takes long."""
        while not self._ended.wait(INTERVAL):
            after = duration(monotonic() - self._started)
            self.say(f"after {after}: {self._done} of {self._edits} edits, {self._activity}")

    def pause(self) -> None:
        """Takes the bar away, for something that is printed or asked."""
        self._bars.stop()

    def resume(self) -> None:
        self._bars.start()

    def say(self, text: str) -> None:
        self._console.print(printable(text), markup=False, highlight=False)

    def show(self, activity: str, edits_done: int | None = None) -> None:
        self._activity, self._done = activity, self._done if edits_done is None else edits_done
        self._bars.update(self._bar, description=activity, completed=edits_done)
