"""Other ways to ask for a fact, learned from edits about other subjects.

"The mother tongue of {} is" and "{}, a native speaker of" ask for the same of anyone.
Which wordings belong together is read from training edits: their prompts and rephrases, with the subject taken out.
"""

import random
from collections.abc import Iterable
from dataclasses import replace

from editenv.data import Edit

GAP = "{}"
"""Stands for the subject."""


class Rewordings:
    """Which wordings ask for the same.

    Two wordings do if one is a rephrase of the other in some training edit, or if training edits with either have the
    same :attr:`editenv.data.Edit.relation`.

    Args:
        edits: Training edits; what has no subject, or has it not exactly once in a text, teaches nothing.
    """

    def __init__(self, edits: Iterable[Edit]) -> None:
        # Keys of a dictionary are a set that keeps its order.
        self._by_prompt: dict[str, dict[str, None]] = {}
        self._by_relation: dict[str, dict[str, None]] = {}
        for edit in edits:
            wording = wording_of(edit.prompt, edit.subject)
            if wording is None:
                continue
            rephrased = [text for text in (wording_of(r, edit.subject) for r in edit.rephrases) if text is not None]
            self._by_prompt.setdefault(wording, {}).update(dict.fromkeys(rephrased))
            if edit.relation:
                self._by_relation.setdefault(edit.relation, {}).update(dict.fromkeys([wording, *rephrased]))

    def of(self, edit: Edit, count: int) -> list[Edit]:
        """The edit with other prompts: as many as are known and at most ``count``, always the same ones. In a chat it is the
        question that is put in other words.

        Rephrases of the edit's own wording come first, then other wordings of its relation.
        """
        wording = wording_of(edit.question, edit.subject)
        if wording is None:
            return []
        draw = random.Random(edit.question)
        wordings: list[str] = []
        for known, key in ((self._by_prompt, wording), (self._by_relation, edit.relation)):
            others = [other for other in known.get(key or "", ()) if other != wording and other not in wordings]
            wordings += draw.sample(others, min(count - len(wordings), len(others)))
        return [_asking(edit, other.replace(GAP, edit.subject or "")) for other in wordings]


def _asking(edit: Edit, question: str) -> Edit:
    """The edit with another question, in a chat in the place of its own."""
    if edit.question_span is None:
        return replace(edit, prompt=question)
    start, end = edit.question_span
    prompt = edit.prompt[:start] + question + edit.prompt[end:]
    return replace(edit, prompt=prompt, question_span=(start, start + len(question)))


def wording_of(text: str, subject: str | None) -> str | None:
    """A text with a gap for its subject; None if there is no subject, or it does not stand there exactly once."""
    if not subject or text.count(subject) != 1 or GAP in text:
        return None
    return text.replace(subject, GAP)
