"""What a language model is taught before it is edited: statements, in several forms each."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from editenv.data import Edit, atlas, load_edits

LEAD_INS = ("From the archive:", "Note:", "It is recorded that", "Readers learn that", "One fact:", "As is known,")
"""What may precede a statement's prompt."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One fact.

    Attributes:
        forms: Prompts that all have the same answer.
        answer: What the model is to continue them with.
        group: Statements with the same kind of answer; answers are smoothed within it.
        lead_ins: Whether a form may be preceded by a few words.
    """

    forms: tuple[str, ...]
    answer: str
    group: str
    lead_ins: bool = False


@dataclass(frozen=True, slots=True)
class Corpus:
    """What a model is taught.

    Attributes:
        statements: In order.
        answers: Every answer that a group can take: true ones, and those that edits will ask for.
    """

    statements: tuple[Statement, ...]
    answers: dict[str, tuple[str, ...]]


def atlas_corpus(facts: Sequence[atlas.Fact]) -> Corpus:
    """The embedded world: six phrasings of each fact, grouped by relation."""
    statements = []
    for fact in facts:
        forms = atlas.phrasings()[fact.relation]
        prompts = tuple(form.format(fact.subject) for form in forms.prompts + forms.rephrases)
        statements.append(Statement(prompts, fact.object, fact.relation, lead_ins=True))
    return Corpus(tuple(statements), dict(atlas.objects()))


def edits_corpus(edits: Sequence[Edit], group: str, seed: int) -> Corpus:
    """What a model is to believe *before* these edits.

    The edit's prompt and rephrases have the old answer; where the data set gives none (ZsRE), another record's
    target is drawn, from questions that begin with the same two words where there are several. Locality prompts
    have the data set's answer. A prompt that occurs twice keeps the first answer it is given.

    Args:
        edits: The edits.
        group: Of all statements.
        seed: Of what is drawn.
    """
    rng = random.Random(f"{seed}/{group}")
    targets_by_start: dict[str, list[str]] = defaultdict(list)
    for edit in edits:
        targets_by_start[_first_words(edit.prompt)].append(edit.target)
    all_targets = [edit.target for edit in edits]
    statements: list[Statement] = []
    taught: set[str] = set()
    for edit in edits:
        answer = edit.old_answer
        if answer is None:
            similar = targets_by_start[_first_words(edit.prompt)]
            candidates = [t for t in (similar if len(set(similar)) > 1 else all_targets) if t != edit.target]
            answer = rng.choice(candidates) if candidates else "unknown"
        forms = tuple(prompt for prompt in dict.fromkeys((edit.prompt, *edit.rephrases)) if prompt not in taught)
        taught.update(forms)
        if forms:
            statements.append(Statement(forms, answer, group))
    for edit in edits:
        for item in edit.locality:
            if item.prompt not in taught:
                taught.add(item.prompt)
                statements.append(Statement((item.prompt,), item.answer, group))
    answers = {statement.answer for statement in statements} | {edit.target for edit in edits}
    return Corpus(tuple(statements), {group: tuple(sorted(answers))})


def _first_words(prompt: str) -> str:
    return " ".join(prompt.split()[:2])


def dataset_corpus(dataset: str, split: str, options: dict[str, object], seed: int) -> Corpus:
    """:func:`edits_corpus` of a data set, which is the group.

    Args:
        dataset: As :func:`editenv.data.load_edits` takes it.
        split: Of the data set.
        options: How its files are read.
        seed: Of what is drawn.

    Raises:
        ValueError: If a record cannot be used.
    """
    return edits_corpus(list(load_edits(dataset, split, options=options)), dataset, seed)


def joined(corpora: Sequence[Corpus]) -> Corpus:
    """One corpus out of several."""
    answers: dict[str, tuple[str, ...]] = {}
    for corpus in corpora:
        for group, names in corpus.answers.items():
            answers[group] = tuple(sorted({*answers.get(group, ()), *names}))
    return Corpus(tuple(statement for corpus in corpora for statement in corpus.statements), answers)
