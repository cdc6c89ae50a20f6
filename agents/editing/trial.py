"""Methods tried on some of the corrections, on the model itself, in memory, and what follows for a run."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agents.editing import corrections, unrelated
from agents.editing.arguments import EditArgs
from agents.editing.choice import WITHOUT_SUBJECTS, Choice
from agents.editing.editor import LifelongEditor
from agents.editing.guard import HELD_OUT, Guard
from agents.editing.summary import CHANGED, PERPLEXITY
from editenv.data import Edit, edits_digest
from editenv.evaluation import metrics
from editenv.models.modules import modules_of
from editenv.sealed_json import read_sealed, write_sealed

NEEDS_TEN = "ultraedit"
"""Takes its statistics from the edits themselves."""

CORRECTIONS = 8
"""Corrections on which each method is tried before a run."""

SHARE = 0.1
"""Of a run's corrections, as many at most are made in the trial, all methods together; a smaller file has none."""

MARGIN = 0.25
"""Share of the tried corrections that another method must say besides those that the rule's says."""

FILE = "trial.json"
"""In a run's folder: what was tried, and what was chosen."""


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

    @property
    def breaks(self) -> bool:
        """Whether the report of a run would warn of what else has changed."""
        return self.changed > CHANGED * self.asked or not self.perplexity <= PERPLEXITY

    def in_words(self) -> str:
        """For people."""
        if self.refused:
            return f"{self.method} made none ({self.refused.splitlines()[0]})"
        return (
            f"{self.method} says {self.said} of {self.tried} ({self.changed} of {self.asked} unrelated answers changed)"
        )


def spread(edits: Sequence[Edit], count: int) -> list[Edit]:
    """So many corrections, evenly over the file; all if there are no more."""
    count = min(count, len(edits))
    return [edits[i * len(edits) // count] for i in range(count)]


def candidates(first: Choice, count: int) -> list[Choice]:
    """The methods that are tried.

    Args:
        first: What the rule takes.
        count: Corrections of the file.
    """
    others = [WITHOUT_SUBJECTS, *([NEEDS_TEN] if count >= 10 else [])]
    return [first, *(Choice(method, (), "for comparison") for method in others if method != first.method)]


def try_method(choice: Choice, edits: Sequence[Edit], model: str, **options: Any) -> Trial:
    """Makes the corrections in one batch, in memory, and asks the model.

    Args:
        choice: The method, and what it edits.
        edits: The corrections.
        model: As :class:`agents.editing.editor.LifelongEditor` takes it.
        options: More of its arguments; with ``modules`` for a choice that names none.
    """
    started = time.perf_counter()
    options = {"guard": Guard(on_bad="roll-back"), "target_end": None} | options
    options |= {"modules": choice.modules} if choice.modules else {}
    try:
        editor = LifelongEditor(model, choice.method, to_come=edits, **options)
        prepared = time.perf_counter() - started
        result = editor.edit(edits)
    except (ValueError, RuntimeError) as error:  # RuntimeError: memory that was not enough, say
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


# -- before a run -----------------------------------------------------------------------------------------------------------


def choose_by_trial(
    args: EditArgs,
    rule: Choice,
    edits: Sequence[Edit],
    say: Callable[[str], None],
    show: Callable[[str], None],
) -> Choice:
    """What the rule takes, or what a trial on this model shows to be clearly better, where there are enough corrections.

    The trial is kept in the run's folder, so that a run that was killed does not try again.

    Args:
        args: Of ``editenv edit``.
        rule: What :func:`agents.editing.choice.choose_method` says.
        edits: All corrections.
        say: Told what the trial costs, before it begins.
        show: Told what goes on.

    Raises:
        ValueError: If what is kept of an earlier trial was changed.
    """
    if rule.settled:
        return rule
    choices = candidates(rule, len(edits))
    if len(choices) * CORRECTIONS > SHARE * len(edits):
        return rule
    tried = spread(edits, CORRECTIONS)
    about = _about(args, rule, tried)
    path = args.output / FILE
    kept = read_sealed(path) if path.exists() else {}
    if kept.get("about") != about:
        work = len(choices) * len(tried)
        names = [choice.method for choice in choices]
        say(
            f"a trial first: {', '.join(names[:-1])} and {names[-1]} on {len(tried)} of {len(edits)} corrections, which is as "
            f"much work as {work} corrections of the run ({100 * work / len(edits):.0f}%) and what each method prepares; "
            "--method NAME goes without"
        )
        kept = {"about": about, "of": len(edits)} | _tried(args, choices, tried, show)
        args.output.mkdir(parents=True, exist_ok=True)
        write_sealed(path, kept)
    return Choice(kept["method"], tuple(kept["modules"]), kept["reason"], settled=True)


def _about(args: EditArgs, rule: Choice, tried: Sequence[Edit]) -> dict[str, Any]:
    """What the outcome of a trial depends on, as a file keeps it."""
    names = (
        "model",
        "modules",
        "preset",
        "text",
        "training",
        "dtype",
        "seed",
        "train_eos",
        "target_end",
        "observed_tokens",
    )
    options = {name: list(value) if isinstance(value := getattr(args, name), tuple) else value for name in names}
    return options | {"guard": asdict(args.guard), "rule": rule.method, "tried": edits_digest(tried)}


def _tried(
    args: EditArgs, choices: Sequence[Choice], edits: Sequence[Edit], show: Callable[[str], None]
) -> dict[str, Any]:
    """Tries them; what was chosen, why, and each trial."""
    trials = []
    for choice in choices:
        show(f"trying {choice.method}")
        trials.append(try_method(choice, edits, args.model, **_options(args)))
    chosen = preferred(trials)
    modules = choices[trials.index(chosen)].modules
    words = "; ".join(trial.in_words() for trial in trials)
    reason = f"of {len(trials)} methods tried on {len(edits)} corrections, {words}"
    if chosen is trials[0]:
        reason += "; none is clearly better than what the rule takes"
    return {
        "method": chosen.method,
        "modules": list(modules),
        "reason": reason,
        "trials": [asdict(trial) for trial in trials],
    }


def _options(args: EditArgs) -> dict[str, Any]:
    """What the run's editor is given that a trial's is given, too."""
    return {
        "modules": modules_of(args.modules, args.preset) or None,
        "training": args.training,
        "text": args.text,
        "guard": replace(args.guard, on_bad="roll-back"),
        "device": args.device,
        "dtype": args.dtype,
        "seed": args.seed,
        "train_eos": args.train_eos,
        "observed_tokens": args.observed_tokens,
        "target_end": args.taught_end,
    }


def preferred(trials: Sequence[Trial]) -> Trial:
    """The first, which is the rule's, unless another one is clearly better; then the best of those.

    The rule's comes from runs of up to a thousand corrections (docs/results/real-model.md), of which a trial of a few
    shows little: there, methods that are alike on twelve corrections are far apart after a thousand.
    """
    better = [trial for trial in trials[1:] if clearly_better(trial, trials[0])]
    return min(better, key=lambda trial: trial.rank, default=trials[0])


def clearly_better(other: Trial, first: Trial) -> bool:
    """Whether the one made corrections and the first none; or it says a share of :data:`MARGIN` more without breaking more
    than the first; or it says as many, and the first breaks the model where it does not.
    """
    if other.refused or first.refused:
        return bool(first.refused) and not other.refused
    if other.breaks and not first.breaks:
        return False
    if other.said >= first.said + MARGIN * first.tried:
        return True
    return first.breaks and not other.breaks and other.said >= first.said


def trial_of(output: Path, method: str) -> dict[str, Any] | None:
    """For a report: what a run's folder keeps of the trial that chose its method; None if there was none.

    Raises:
        ValueError: If it was changed after it was written.
    """
    path = output / FILE
    kept: Mapping[str, Any] = read_sealed(path) if path.exists() else {}
    if kept.get("method") != method:
        return None
    return {name: kept[name] for name in ("of", "reason", "trials")}
