"""Tries methods on some of the corrections, on the model itself, and says which one it would take."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agents.editing.arguments import AdviseArgs, EditArgs
from agents.editing.choice import Choice, choose_method
from agents.editing.reading import edits_for
from agents.editing.trial import Trial, candidates, spread, try_method
from agents.editing.valid_json import valid_json
from editenv.data import Edit
from editenv.data.text import printable


def advise(args: AdviseArgs) -> None:
    """Prints a line a method, and which one it would take.

    Raises:
        ValueError: If the file, the model or an argument cannot be used, or if no method could be tried.
    """
    edits = list(edits_for(args.edits, "error", args.model, args.device, args.dtype, taught_end=None))
    chosen = spread(edits, args.corrections)
    console = Console(stderr=True)
    options = {name: getattr(args, name) for name in ("training", "text", "device", "dtype", "seed")}
    trials = []
    for choice in _choices(args, edits):
        with console.status(f"trying {choice.method} on {len(chosen)} of {len(edits)} corrections"):
            trials.append(try_method(choice, chosen, args.model, **options))
    best = min(trials, key=lambda trial: trial.rank)
    if best.refused:
        raise ValueError("\n".join(f"{trial.method}: {trial.refused}" for trial in trials))
    if args.json:
        for trial in trials:
            print(valid_json(asdict(trial)))
        return
    show(trials)
    print(printable(f"would take: --method {best.method} --modules {' '.join(best.modules)}"))


def _choices(args: AdviseArgs, edits: Sequence[Edit]) -> list[Choice]:
    """The methods that are tried."""
    if args.methods:
        return [Choice(method, (), "named") for method in args.methods]
    options = {name: getattr(args, name) for name in ("training", "device", "dtype")}
    first = choose_method(EditArgs(args.edits, Path(), args.model, **options), edits, new=True)
    return candidates(first, len(edits))


def show(trials: Sequence[Trial]) -> None:
    """The trials as a table."""
    table = Table(title="tried, and taken back")
    table.add_column("method", no_wrap=True)
    for column in ("said", "unrelated\nchanged", "perplexity", "prepare\n(s)", "each\n(s)"):
        table.add_column(column, justify="right")
    for trial in trials:
        if trial.refused:
            table.add_row(trial.method, "none")
            continue
        table.add_row(
            trial.method,
            f"{trial.said} of {trial.tried}",
            f"{trial.changed} of {trial.asked}",
            f"{100 * (trial.perplexity - 1):+.0f}%",
            f"{trial.prepared:.0f}",
            f"{trial.seconds:.1f}",
        )
    Console().print(table)
    for trial in trials:
        if trial.refused:
            print(printable(f"{trial.method} made none: {trial.refused}"))
