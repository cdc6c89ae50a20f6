"""Tries methods on some of the corrections, on the model itself, and says which one it would take."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agents.editing import corrections, unrelated
from agents.editing.arguments import AdviseArgs, EditArgs
from agents.editing.choice import WITHOUT_SUBJECTS, Choice, choose_method
from agents.editing.editor import LifelongEditor
from agents.editing.guard import HELD_OUT, Guard
from agents.editing.reading import edits_for
from agents.editing.valid_json import valid_json
from editenv.data import Edit
from editenv.data.text import printable
from editenv.evaluation import metrics

NEEDS_TEN = "ultraedit"
"""Takes its statistics from the edits themselves."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a method made of the corrections that were tried.

    Attributes:
        method: Its name.
        modules: That it edited.
        tried: Corrections.
        said: How many the model says afterwards.
        asked: Unrelated questions.
        changed: Answers to them that changed, as :class:`agents.editing.unrelated.Answer` has it.
        perplexity: Of held-out text, as a factor of the unedited model's.
        prepared: Seconds before the first correction.
        seconds: For each correction.
        refused: Why it could not be tried, or its batch was taken back; the rest is 0 then.
    """

    method: str
    modules: tuple[str, ...] = ()
    tried: int = 0
    said: int = 0
    asked: int = 0
    changed: int = 0
    perplexity: float = 0.0
    prepared: float = 0.0
    seconds: float = 0.0
    refused: str = ""

    @property
    def rank(self) -> tuple[bool, int, int, float]:
        """The smaller the better: what is not said counts first, then what else has changed, then time."""
        return bool(self.refused), self.tried - self.said, self.changed, self.seconds


def advise(args: AdviseArgs) -> None:
    """Prints a line a method, and which one it would take.

    Raises:
        ValueError: If the file, the model or an argument cannot be used, or if no method could be tried.
    """
    edits = list(edits_for(args.edits, "error", args.model, args.device, args.dtype))
    count = min(args.corrections, len(edits))
    chosen = [edits[i * len(edits) // count] for i in range(count)]
    console = Console(stderr=True)
    trials = []
    for choice in candidates(args, edits):
        with console.status(f"trying {choice.method} on {count} of {len(edits)} corrections"):
            trials.append(try_method(args, choice, chosen))
    best = min(trials, key=lambda trial: trial.rank)
    if best.refused:
        raise ValueError("\n".join(f"{trial.method}: {trial.refused}" for trial in trials))
    if args.json:
        for trial in trials:
            print(valid_json(asdict(trial)))
        return
    show(trials)
    print(printable(f"would take: --method {best.method} --modules {' '.join(best.modules)}"))


def candidates(args: AdviseArgs, edits: Sequence[Edit]) -> list[Choice]:
    """The methods that are tried."""
    if args.methods:
        return [Choice(method, (), "named") for method in args.methods]
    first = choose_method(EditArgs(args.edits, Path(), args.model, device=args.device, dtype=args.dtype), edits)
    others = [WITHOUT_SUBJECTS, *([NEEDS_TEN] if len(edits) >= 10 else [])]
    return [first, *(Choice(method, (), "for comparison") for method in others if method != first.method)]


def try_method(args: AdviseArgs, choice: Choice, edits: Sequence[Edit]) -> Trial:
    """Makes the corrections in one batch, in memory, and asks the model."""
    started = time.perf_counter()
    try:
        editor = LifelongEditor(
            args.model,
            choice.method,
            modules=choice.modules or None,
            training=args.training,
            text=args.text,
            to_come=edits,
            guard=Guard(on_bad="roll-back"),
            device=args.device,
            dtype=args.dtype,
            seed=args.seed,
            target_end=None,
        )
        prepared = time.perf_counter() - started
        result = editor.edit(edits)
    except ValueError as error:
        return Trial(choice.method, choice.modules, len(edits), refused=str(error))
    if not result.applied:
        return Trial(choice.method, tuple(editor.lm.modules), len(edits), refused=f"taken back: {result.reason}")
    said = corrections.says_now(editor.lm, edits)
    answers = unrelated.answers(editor.lm, edits)
    drift = metrics.drift(editor.lm, HELD_OUT)
    return Trial(
        choice.method,
        tuple(editor.lm.modules),
        len(edits),
        sum(corrections.holds(edit, text) for edit, text in zip(edits, said, strict=True)),
        len(answers),
        sum(answer.changed for answer in answers),
        drift["perplexity"] / drift["perplexity_before"],
        prepared,
        result.seconds / len(edits),
    )


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
