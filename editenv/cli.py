"""The console script ``editenv``; also ``python -m editenv``."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from editenv.data.records import BadRecordError


@dataclass
class Inspect:
    """Reads a file of edits from end to end and reports what is in it: counts, duplicates, contradictions, lengths, what a
    model believes already, overlap with a training file, and the traps that published files are known for.

    editenv inspect corrections.csv
    editenv inspect counterfact-edit.json --train counterfact-train.json --json
    """

    file: tyro.conf.Positional[str]
    """A .json, .jsonl or .csv file of edits; its format is found by its fields, or named before a colon, as in
    zsre:edits.json."""
    train: Path | None = None
    """A training file to compare with."""
    model: str = "atlas"
    """Embedded model, Hugging Face folder or hub id: its tokens are counted, and it is asked what it believes."""
    sample: int = 200
    """How many edits the model is asked about; 0 for none."""
    json: bool = False
    """Print one JSON object."""


def _inspect(args: Inspect) -> None:
    from rich.console import Console
    from rich.table import Table

    from editenv.inspection import inspect

    found = inspect(args.file, args.train, args.model, args.sample)
    if args.json:
        print(json.dumps(asdict(found)))
        return
    console = Console(soft_wrap=True)
    table = Table(
        show_header=False, box=None, padding=(0, 2, 0, 0), title=f"{found.file} ({found.format})", title_justify="left"
    )
    table.add_row("records", f"{found.records:,}")
    table.add_row("usable edits", f"{found.edits:,}")
    for kind, count in found.left_out.items():
        table.add_row(f"  left out: {kind}", f"{count:,}")
    table.add_row("subjects", f"{found.subjects:,}")
    table.add_row("rephrases, locality prompts", f"{found.rephrases:,}, {found.locality_prompts:,}")
    if found.target_tokens:
        low, middle, high, top = found.target_tokens
        table.add_row("tokens of a target", f"{low:.0f} to {top:.0f}, median {middle:.0f}, 90% up to {high:.0f}")
        table.add_row("targets of one token", f"{found.one_token_targets}%")
    if found.already_believed is not None:
        table.add_row(f"{args.model} says the target already", f"{found.already_believed}% of {found.asked} asked")
    if found.old_answer_known is not None:
        table.add_row(f"{args.model} says the old answer", f"{found.old_answer_known}%")
    if found.overlap is not None:
        text = "{prompts:,} prompts ({contradicting:,} with another target), {subjects:,} edits' subjects"
        table.add_row(f"also in {args.train.name if args.train else ''}", text.format(**found.overlap))
    console.print(table)
    for note in found.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    for kind, example in found.examples.items():
        console.print(f"first {kind}: {example}", markup=False, highlight=False)


def main() -> None:
    """Entry point; errors about the input go to stderr, in one line, with exit status 1."""
    commands = Annotated[Inspect, tyro.conf.subcommand("inspect")]
    nothing = Annotated[None, tyro.conf.subcommand("version", description="Print the version.")]
    args = tyro.cli(commands | nothing, prog="editenv", description="Lifelong editing of language models.")
    try:
        if args is None:
            from editenv import __version__

            print(__version__)
        else:
            _inspect(args)
    except (BadRecordError, FileNotFoundError, ValueError) as error:
        print(f"editenv: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
