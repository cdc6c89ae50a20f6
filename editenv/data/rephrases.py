"""Which rephrases of a file are paraphrases, and which are not (CounterFact's generation prompts)."""

from collections.abc import Sequence

import numpy as np

from editenv.data.edit_file import EditFile, digest
from editenv.data.edits import Edit
from editenv.data.text import comparable


def true_rephrases(edits: Sequence[Edit]) -> np.ndarray:
    """``(n,)`` whether all rephrases of an edit are paraphrases, by the file's own prompts.

    A rephrase passes if it ends in a template that some prompt of the file was made from, filled with this edit's
    subject, and if that template occurs with this edit's target or old answer. That tells CounterFact's paraphrase
    prompts (lead-in and template) from its generation prompts.
    """
    answers_of_templates: dict[str, set[bytes]] = {}
    for edit in edits:
        subject, prompt = comparable(edit.subject or ""), comparable(edit.prompt)
        if subject and subject in prompt:
            template = prompt.replace(subject, "{}", 1)
            answers_of_templates.setdefault(template, set()).update(_answers(edit))
    # Templates by their last word: few have to be tried on each rephrase.
    templates_by_end: dict[str, list[str]] = {}
    for template in answers_of_templates:
        end = _last_word(template).replace("{}", "")
        templates_by_end.setdefault(end, []).append(template)

    def passes(text: str, edit: Edit) -> bool:
        if not edit.subject:
            return False
        text, subject = comparable(text), comparable(edit.subject)
        answers, last_word = _answers(edit), _last_word(text)
        ends = {last_word, last_word.replace(_last_word(subject), ""), ""}
        return any(
            text.endswith(template.replace("{}", subject)) and answers_of_templates[template] & answers
            for end in ends
            for template in templates_by_end.get(end, ())
        )

    return np.array(
        [bool(edit.rephrases) and all(passes(text, edit) for text in edit.rephrases) for edit in edits], dtype=bool
    )


def with_true_rephrases(edits: EditFile, first: bool) -> EditFile:
    """The edits without the rephrases of those of which one is no paraphrase.

    Args:
        edits: Of a file.
        first: Put the edits that keep their rephrases first.
    """
    kept = true_rephrases(edits)
    checked = edits.without_rephrases(~kept)
    return checked.where(np.argsort(~kept, kind="stable")) if first else checked


def _answers(edit: Edit) -> set[bytes]:
    return {digest(answer) for answer in (edit.target, edit.old_answer) if answer}


def _last_word(text: str) -> str:
    return text.rsplit(None, 1)[-1]
