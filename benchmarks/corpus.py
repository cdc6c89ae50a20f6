"""What a language model is taught before it is edited: statements, in several forms each."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from editenv.data import Edit, atlas, load_edits

LEAD_INS = ("From the archive:", "Note:", "It is recorded that", "Readers learn that", "One fact:", "As is known,")


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
class Text:
    """Statements, and every answer that a group can take (true ones and those edits will ask for)."""

    statements: tuple[Statement, ...]
    answers: dict[str, tuple[str, ...]]


def atlas_text(facts: Sequence[atlas.Fact]) -> Text:
    """The embedded world: six phrasings of each fact, grouped by relation."""
    statements = []
    for fact in facts:
        forms = atlas.phrasings()[fact.relation]
        prompts = tuple(form.format(fact.subject) for form in forms.prompts + forms.rephrases)
        statements.append(Statement(prompts, fact.object, fact.relation, lead_ins=True))
    return Text(tuple(statements), dict(atlas.objects()))


def edits_text(edits: Sequence[Edit], group: str, seed: int) -> Text:
    """What a model is to believe *before* these edits.

    The edit's prompt and rephrases have the old answer; where the data set gives none (ZsRE), another record's
    target is drawn, from questions that begin with the same two words where there are several. Locality prompts
    have the data set's answer. A prompt that occurs twice keeps the first answer it is given.
    """
    rng = random.Random(f"{seed}/{group}")
    by_start: dict[str, list[str]] = defaultdict(list)
    for edit in edits:
        by_start[" ".join(edit.prompt.split()[:2])].append(edit.target)
    everything = [edit.target for edit in edits]
    statements: list[Statement] = []
    told: set[str] = set()
    for edit in edits:
        answer = edit.old_answer
        if answer is None:
            near = by_start[" ".join(edit.prompt.split()[:2])]
            others = [t for t in (near if len(set(near)) > 1 else everything) if t != edit.target]
            answer = rng.choice(others) if others else "unknown"
        forms = tuple(text for text in dict.fromkeys((edit.prompt, *edit.rephrases)) if text not in told)
        told.update(forms)
        if forms:
            statements.append(Statement(forms, answer, group))
    for edit in edits:
        for item in edit.locality:
            if item.prompt not in told:
                told.add(item.prompt)
                statements.append(Statement((item.prompt,), item.answer, group))
    answers = {statement.answer for statement in statements} | {edit.target for edit in edits}
    return Text(tuple(statements), {group: tuple(sorted(answers))})


def dataset_text(dataset: str, split: str, options: dict[str, object], seed: int) -> Text:
    """:func:`edits_text` of a file of edits, grouped by the file's format."""
    edits = list(load_edits(dataset, split, options=options))
    return edits_text(edits, dataset, seed)


def join(texts: Sequence[Text]) -> Text:
    """One text out of several."""
    answers: dict[str, tuple[str, ...]] = {}
    for text in texts:
        for group, names in text.answers.items():
            answers[group] = tuple(sorted({*answers.get(group, ()), *names}))
    return Text(tuple(statement for text in texts for statement in text.statements), answers)
