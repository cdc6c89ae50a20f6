"""Edits of a record, with the white space, the subject and the characters that an edit has.

What a schema's parser reads (:mod:`editenv.data.formats`) goes through here, whatever the schema.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from editenv.data.chat import plain_text
from editenv.data.edits import Edit, Locality, Question
from editenv.data.fields import Fields, shown
from editenv.data.text import INVISIBLE, end_of, same_text, separator, without_invisible

Parser = Callable[[Fields, str], dict[str, Any] | list[dict[str, Any]]]
"""From a record, and what is done about ZsRE's prefix, to the fields of an edit, or of several."""


def to_edits(record: Fields, parse: Parser, nq_prefix: Literal["keep", "strip"]) -> list[Edit]:
    """The edits of one record.

    Texts stay as they are written, with these exceptions. White space after a target goes: nothing in a figure could
    see it. A single space between prompt and target is what stands there anyway, and is not kept
    (:func:`editenv.data.text.separator`). A ``{}`` in a prompt that lacks the subject is the subject's place.
    Characters that show nothing go from targets. The last two are noted in ``record.notes``.

    Args:
        record: The raw record.
        parse: What :func:`editenv.data.formats.detect` returned.
        nq_prefix: Whether ZsRE's locality questions keep their prefix.

    Raises:
        BadRecordError: If a field is missing, empty or of a wrong type, or if the edit would change nothing.
    """
    parsed = parse(record, nq_prefix)
    rows = parsed if isinstance(parsed, list) else [parsed]
    edits = []
    for i, row in enumerate(rows, start=1):
        own_id = row.pop("id", None)
        id = own_id or f"{record.file}/{record.number}" + (f".{i}" if i > 1 else "")
        edits.append(_checked(Edit(id=id, **row), replace(record, id=own_id)))
    return edits


def to_edit(record: Fields, parse: Parser, nq_prefix: Literal["keep", "strip"]) -> Edit:
    """The edit of a record that can have but one; as :func:`to_edits`."""
    (edit,) = to_edits(record, parse, nq_prefix)
    return edit


def _checked(edit: Edit, record: Fields) -> Edit:
    """An edit with its texts as :func:`to_edits` has them.

    Raises:
        BadRecordError: If nothing is left of the target, or if it is the old answer.
    """
    target = without_invisible(edit.target).rstrip()
    if target != edit.target.rstrip():
        record.notes.append("the target had characters that show nothing (zero-width, direction), which were removed")
    if not target.strip():
        raise record.bad("target", "is empty but for characters that show nothing")
    if any(INVISIBLE.search(text) for text in (edit.prompt, *edit.rephrases)):
        record.notes.append("the prompt or a rephrase has characters that show nothing (zero-width, direction)")
    prompt, *rephrases = (_filled(text, edit.subject, record) for text in (edit.prompt, *edit.rephrases))
    messages = edit.messages
    if messages:  # what stands between question and answer is the template's
        *earlier, last = messages
        messages = (*earlier, replace(last, content=_filled(last.content, edit.subject, record)))
        prompt = plain_text(messages)
    else:
        target, prompt, *rephrases = _without_usual_space(target, prompt, *rephrases)
    old_answer = edit.old_answer
    if old_answer is not None and same_text(target, without_invisible(old_answer)):
        what = f"equals the old answer, {shown(target)}: there is nothing to edit"
        raise record.bad("target", what, "unchanged")
    if old_answer is not None:  # it stands where the target stands
        old_answer = target[: len(target) - len(target.lstrip())] + old_answer.strip()
    pairs = (_without_usual_space(item.answer.rstrip(), item.prompt) for item in edit.locality)
    return replace(
        edit,
        prompt=prompt,
        target=target,
        rephrases=tuple(rephrases),
        locality=tuple(Locality(prompt, answer) for answer, prompt in pairs),
        old_answer=old_answer,
        portability=tuple(map(_with_usual_space, edit.portability)),
        messages=messages,
    )


def _filled(prompt: str, subject: str | None, record: Fields) -> str:
    """A prompt with the subject in the place of its ``{}``, unless it has the subject already."""
    if "{}" not in prompt:
        return prompt
    if not subject:
        record.notes.append("a prompt has {} and there is no subject to put there: it is kept as text")
        return prompt
    if end_of(subject, prompt) is not None:
        return prompt
    record.notes.append("the subject was put in the place of {} in a prompt")
    return prompt.replace("{}", subject)


def _with_usual_space(question: Question) -> Question:
    """A question and its answer without the one space between them that would be put there anyway."""
    if question.answer is None:
        return question
    answer, prompt = _without_usual_space(question.answer.rstrip(), question.prompt)
    return replace(question, prompt=prompt, answer=answer)


def _without_usual_space(answer: str, *prompts: str) -> list[str]:
    """An answer and its prompts without the one space between them that would be put there anyway."""
    bare = answer.removeprefix(" ")
    if bare != answer and all(separator(prompt, bare) == " " for prompt in prompts):
        return [bare, *prompts]
    shortened = (prompt.removesuffix(" ") for prompt in prompts)
    return [
        answer,
        *(
            short if separator(short, answer) == " " else prompt
            for prompt, short in zip(prompts, shortened, strict=True)
        ),
    ]
