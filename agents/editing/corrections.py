"""A file of corrections against a run that may have begun: where it goes on, and what became of each of them."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from agents.editing.editor import LifelongEditor
from editenv.atomic_files import atomic_write_text
from editenv.data import Edit
from editenv.data.edit_file import EditFile, given_id
from editenv.data.edits import as_json
from editenv.data.text import same_text
from editenv.evaluation import metrics
from editenv.evaluation.greedy import ELLIPSIS
from editenv.evaluation.prefix import begins_with
from editenv.journal import JournalError
from editenv.language_model.editable_lm import EditableLM
from editenv.language_model.prompts import token_ids

LONGEST_SAID = 24
"""Tokens of what the model says that are shown, if the targets are no longer."""


def done_already(editor: LifelongEditor, edits: Sequence[Edit]) -> int:
    """How many of the file's edits the editor's journal has: the first ones. More may have been added since.

    Raises:
        JournalError: If the file's first edits are not the journal's; names the first that differs.
    """
    entries = editor.journal.entries if editor.journal is not None else []
    contents = [content for entry in entries for content in entry["content"]]
    for i, content in enumerate(contents):
        edit = edits[i] if i < len(edits) else None
        if edit is None or _as_edited(as_json(edit)) != _as_edited(content):
            in_file = repr(edit.prompt) if edit is not None else "nothing"
            raise JournalError(
                f"the journal's edit {i + 1} was {content['prompt']!r} -> {content['target']!r}, the file has {in_file} "
                "there. Corrections may be added at the file's end; for other ones choose another folder"
            )
    return len(contents)


def _as_edited(content: dict[str, Any]) -> dict[str, Any]:
    """All but the id, in which the file's name may stand, and what is only asked afterwards; as JSON has it. Of a prompt
    in chat form what is asked: a template may write today's date before it."""
    kept = {key: value for key, value in content.items() if key not in ("id", "portability")}
    if (span := kept.pop("question_span", None)) is not None:
        kept |= {"prompt": kept["prompt"][slice(*span)], "chat": True}
        kept |= {
            "rephrases": len(kept["rephrases"]),
            "locality": len(kept["locality"]),
        }  # those of the plain form say more
    return json.loads(json.dumps(kept))


def not_applied(editor: LifelongEditor, edits: Sequence[Edit]) -> list[tuple[Edit, str]]:
    """The edits of batches that were taken back, each with the reason."""
    refused, start = [], 0
    for result in editor.results:
        end = start + result.edits
        if not result.applied:
            refused += [(edit, str(result.reason)) for edit in edits[start:end]]
        start = end
    return refused


def says_now(lm: EditableLM, edits: Sequence[Edit]) -> list[str | None]:
    """What the model writes at each correction's prompt, at the weights as they are."""
    prompts = [edit.prompt for edit in edits]
    pairs = token_ids(lm.tokenizer, prompts, [edit.target for edit in edits])
    limit = max(LONGEST_SAID, 2 + max((len(target) for _, target in pairs), default=0))
    return metrics.generate(lm, prompts, limit, unfinished=True)


def holds(edit: Edit, said: str | None) -> bool:
    """Whether what the model says begins with the correction's target."""
    return bool(begins_with(str(said).removesuffix(ELLIPSIS), edit.target, ended=True))


def holding(editor: LifelongEditor, edits: Sequence[Edit]) -> set[str]:
    """The ids of the corrections that were made before this run goes on, and that hold then."""
    made = edits[: done_already(editor, edits)]
    if not made:
        return set()
    return {edit.id for edit, said in zip(made, says_now(editor.lm, made), strict=True) if holds(edit, said)}


def outcomes(editor: LifelongEditor, edits: Sequence[Edit], held: Collection[str] = ()) -> list[dict[str, Any]]:
    """Of each correction: whether it was applied, and what the model said before and says now at its prompt.

    Args:
        editor: After all of them.
        edits: The corrections.
        held: The ids of those that held when this run went on with an earlier one.
    """
    reasons = {edit.id: reason for edit, reason in not_applied(editor, edits)}
    with editor.lm.at_initial_weights():
        before = says_now(editor.lm, edits)
    rows = []
    for edit, old, text in zip(edits, before, says_now(editor.lm, edits), strict=True):
        row = {
            "id": edit.id,
            "prompt": edit.prompt,
            "target": edit.target,
            **({} if edit.question_span is None else {"form": "chat", "question": edit.question}),
            "applied": edit.id not in reasons,
            "said_before": old,
            "said": text,
            "right": text is not None and same_text(text, edit.target),
            "begins_right": holds(edit, text),
            "lost": edit.id in held and not holds(edit, text),
        }
        rows.append(row | ({"reason": reasons[edit.id]} if edit.id in reasons else {}))
    return rows


def refused_records(editor: LifelongEditor, edits: EditFile) -> list[dict[str, Any]]:
    """The records of corrections of which a form was taken back, as they were read, each once."""
    refused = {edit.id for edit, _ in not_applied(editor, edits)}
    as_read = (edits.as_read(i) for i, edit in enumerate(edits) if edit.id in refused)
    records = {edit.id: as_record(edit, edits.report.source) for edit in as_read}
    return list(records.values())


def as_record(edit: Edit, source: str) -> dict[str, Any]:
    """An edit as a line of a file of edits; with its id if it has one in its own file, whose name is ``source``."""
    left_out = {"id"} if given_id(edit.id, source) is None else set()
    left_out |= {"prompt"} if edit.messages else set()  # which is their plain text
    return {key: value for key, value in as_json(edit).items() if value and key not in left_out}


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A JSON object a line; whole or not at all."""
    atomic_write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
