"""How often a context is right about what a question is about, for each retriever; no language model is asked.

    python -m benchmarks.retrieval --suite atlas-50x20-validation
    python -m benchmarks.retrieval --suite real-counterfact-50x20-validation --data DATA --thresholds 0.4 0.5 0.6

The suite's edits come into contexts of so many each (a last smaller one is left out), in the order of a seed. A rephrase
should find its own edit, and a locality prompt none. Which words are rare is told by the edits alone, by the package's
texts, or by the suite's training edits, from which the classifier learns, too.
Prints a line for each number of edits and threshold, with both in percent for each retriever.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from agents.baselines.rag import package_background
from agents.baselines.scope import trained_scope
from benchmarks.results.tables import markdown
from benchmarks.running.progress import console_progress
from benchmarks.suites import find
from editenv.arguments import PositiveInt, between, check_fields
from editenv.atomic_files import atomic_write_text
from editenv.context_retrieval import SCOPE, TERMS, Background, Retriever, check_retriever, make_retriever, nearest
from editenv.data import Edit, load_edits

WITH_PACKAGE = " with the package's texts"
"""After a retriever's name, of the background that needs no training edits."""

WITH_TRAINING = " with training edits"
"""After a retriever's name, of the background that they are."""


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        suite: Whose edits are asked about, a name (`python -m benchmarks.suites` lists them) or FILE.json; one of
            validation, if anything is to be chosen by the figures.
        data: Folder of the data sets, for a suite of real records.
        edits: So many edits a context, in turn.
        thresholds: How alike a question and a key must be, in turn; the probability of scope is a threshold of its own,
            and one half in any case.
        retrievers: What tells how alike they are; words and characters are measured with each background, too.
        seed: Of the order of the edits.
        out: Write the figures to this JSON file, too.
    """

    suite: str
    data: Path | None = None
    edits: tuple[PositiveInt, ...] = (10, 100, 1000)
    thresholds: tuple[Annotated[float, between(-1, 1)], ...] = (0.5,)
    retrievers: tuple[Literal["words", "characters", "scope"], ...] = ("words", "characters", "scope")
    seed: int = 0
    out: Path | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("edits", "thresholds", "retrievers"):
            if not getattr(self, name):
                raise ValueError(f"{name}: name one at least")


@dataclass(frozen=True)
class Found:
    """How often contexts were right.

    Attributes:
        retriever: With what it has besides.
        edits: In a context.
        threshold: Of the likeness.
        rephrases: In %, those that find their own edit; None if there are none.
        locality: In %, locality prompts that find no edit; None if there are none.
    """

    retriever: str
    edits: int
    threshold: float
    rephrases: float | None
    locality: float | None


@dataclass(frozen=True)
class Learned:
    """What training edits give the retrievers.

    Attributes:
        backgrounds: By retriever, and what stands after its name.
        scope: The classifier's weights, if it is asked for.
    """

    backgrounds: dict[str, dict[str, Background]]
    scope: tuple[float, ...]

    @classmethod
    def of(cls, edits: Sequence[Edit], retrievers: Sequence[str]) -> "Learned":
        """From edits.

        Raises:
            ValueError: If scope is asked for, and they have no rephrases or no locality prompts.
        """
        prompts = [edit.prompt for edit in edits]
        backgrounds = {
            name: {WITH_PACKAGE: package_background(name), WITH_TRAINING: Background(prompts, name)}
            for name in retrievers
            if name in TERMS
        }
        return cls(backgrounds, trained_scope(edits) if SCOPE in retrievers else ())

    def retrievers(self, names: Sequence[str], keys: Sequence[str]) -> Iterator[tuple[str, Retriever]]:
        """Each of them over a context's keys, and words and characters with their backgrounds as well."""
        for name in names:
            yield name, make_retriever(name, keys, self.scope)
            for suffix, background in self.backgrounds.get(name, {}).items():
                yield name + suffix, make_retriever(name, keys, (), background.of(keys), background.texts)


def found(contexts: Sequence[Sequence[Edit]], learned: Learned, args: Args) -> list[Found]:
    """How often contexts of one size are right, for each retriever and threshold."""
    rephrases: dict[tuple[str, float], list[bool]] = {}
    locality: dict[tuple[str, float], list[bool]] = {}
    for edits in contexts:
        owners = [(own, text) for own, edit in enumerate(edits) for text in edit.rephrases]
        outside = [item.prompt for edit in edits for item in edit.locality]
        for name, retriever in learned.retrievers(args.retrievers, [edit.prompt for edit in edits]):
            for threshold in (0.5,) if name == SCOPE else args.thresholds:
                chosen = nearest(retriever, [text for _, text in owners], 1, threshold)
                right = [one == [own] for one, (own, _) in zip(chosen, owners, strict=True)]
                rephrases.setdefault((name, threshold), []).extend(right)
                none = [one == [] for one in nearest(retriever, outside, 1, threshold)]
                locality.setdefault((name, threshold), []).extend(none)
    return [
        Found(name, len(contexts[0]), threshold, _percent(right), _percent(locality[name, threshold]))
        for (name, threshold), right in rephrases.items()
    ]


def _percent(right: Sequence[bool]) -> float | None:
    return 100 * float(np.mean(right)) if right else None


def as_markdown(figures: Sequence[Found]) -> str:
    """A row for each number of edits and threshold, a column for each retriever."""
    retrievers = list(dict.fromkeys(one.retriever for one in figures))
    cells = {(one.edits, one.threshold, one.retriever): one for one in figures}
    rows = []
    for edits, threshold in dict.fromkeys((one.edits, one.threshold) for one in figures):
        row = (cells.get((edits, threshold, name)) for name in retrievers)
        rows.append([f"{edits:,}", str(threshold), *("-" if one is None else _pair(one) for one in row)])
    return markdown(["edits", "threshold", *retrievers], rows)


def _pair(one: Found) -> str:
    return " / ".join("-" if value is None else f"{value:.1f}" for value in (one.rephrases, one.locality))


def measure(args: Args) -> list[Found]:
    """All figures of the command.

    Raises:
        ValueError: For a suite that is not there or has too few edits.
        FileNotFoundError: If its data is not there.
    """
    for name in args.retrievers:
        check_retriever(name)
    suite = find(args.suite).at(None, args.data)
    edited, training = (
        load_edits(of["dataset"], of["split"], None, of.get("dataset_options"))
        for of in (suite.environment(), suite.environment(training=True))
    )
    if (most := max(args.edits)) > len(edited):
        raise ValueError(f"edits: {most:,} are asked for in a context, and {suite.id} has {len(edited):,}")
    order = np.random.default_rng(args.seed).permutation(len(edited))
    stream = [edited[i] for i in order]
    figures = []
    with console_progress(suite.id) as progress:
        progress("learning", 0, len(args.edits))
        learned = Learned.of(training, args.retrievers)
        for done, size in enumerate(args.edits):
            progress(f"asking contexts of {size}", done, len(args.edits))
            whole = range(0, len(stream) - size + 1, size)
            figures += found([stream[start : start + size] for start in whole], learned, args)
    return figures


def main(args: Args) -> None:
    """Prints the table.

    Raises:
        SystemExit: For wrong arguments, with a message.
    """
    try:
        figures = measure(args)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    print("rephrases that find their own edit / locality prompts that find none, in %:\n")
    print(as_markdown(figures))
    if args.out is not None:
        atomic_write_text(args.out, json.dumps([asdict(one) for one in figures], indent=2) + "\n")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
