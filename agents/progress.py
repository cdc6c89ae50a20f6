"""The one look of all progress bars: of editing, of training, and of benchmarks."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn


def silent(what: str, done: int, total: int) -> None:
    """A :data:`agents.base.ProgressCallback` that shows nothing."""


def progress_bars(
    *times: "ProgressColumn",
    console: "Console | None" = None,
    transient: bool = False,
    off_terminal: bool = False,
) -> "Progress":
    """Bars that show a description, how much is done of how much, and times.

    Args:
        times: Columns behind the count, such as ``rich.progress.TimeRemainingColumn()``.
        console: Where they are drawn; standard output by default.
        transient: Whether they vanish at the end.
        off_terminal: Whether their last state is printed where the console is no terminal (a log file, say).

    Returns:
        To be entered as a context manager.
    """
    # Commands import this module before they know whether they draw anything, and rich takes a while to import.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = console or Console()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *times,
        console=console,
        transient=transient,
        disable=not (console.is_terminal or off_terminal),
    )
