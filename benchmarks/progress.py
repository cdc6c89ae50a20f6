"""A progress bar for one rollout."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
