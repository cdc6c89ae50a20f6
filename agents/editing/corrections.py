"""What became of each correction of a run."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from agents.editing.reported import asked_by, asked_in, reported
from agents.editing.run import Key, Run, key_of_edit
from agents.editing.valid_json import valid_json
from editenv.atomic_files import atomic_write_text
from editenv.data import Edit
from editenv.data.chat import IN_CHAT
from editenv.data.edit_file import EditFile, given_id
from editenv.data.edits import as_json
from editenv.data.text import same_text
from editenv.evaluation import metrics
from editenv.evaluation.greedy import ELLIPSIS
from editenv.evaluation.prefix import begins_with
from editenv.language_model.editable_lm import EditableLM
from editenv.language_model.prompts import token_ids

LONGEST_SAID = 24
"""Tokens of what the model says that are shown, if the targets are no longer."""


def not_applied(run: Run, edits: Sequence[Edit]) -> list[tuple[Edit, str]]:
    """Those of these corrections whose batches were bad, each with the reason."""
    keys = {edit.id: key_of_edit(edit) for edit in edits} if run.refused else {}
    return [(edit, run.refused[keys[edit.id]][1]) for edit in edits if keys.get(edit.id) in run.refused]


def says_now(lm: EditableLM, edits: Sequence[Edit]) -> list[str | None]:
    """What the model writes at each correction's prompt, at the weights as they are."""
    prompts = [edit.prompt for edit in edits]
    pairs = token_ids(lm.tokenizer, prompts, [edit.target for edit in edits])
    limit = max(LONGEST_SAID, 2 + max((len(target) for _, target in pairs), default=0))
    return metrics.generate(lm, prompts, limit, unfinished=True)


def holds(edit: Edit, said: str | None) -> bool:
    """Whether what the model says begins with the correction's target."""
    return bool(begins_with(str(said).removesuffix(ELLIPSIS), edit.target, ended=True))


def holding(lm: EditableLM, edits: Sequence[Edit]) -> set[Key]:
    """Which of these corrections hold at the weights as they are."""
    if not edits:
        return set()
    return {key_of_edit(edit) for edit, said in zip(edits, says_now(lm, edits), strict=True) if holds(edit, said)}


def outcomes(lm: EditableLM, run: Run, edits: Sequence[Edit], held: Collection[Key] = ()) -> list[dict[str, Any]]:
    """Of each correction: whether it was applied, and what the model said before and says now at its prompt.

    Args:
        lm: The model after all of them.
        run: Of its journal.
        edits: The corrections.
        held: Those that held when this run went on with an earlier one.
    """
    reasons = {edit.id: reason for edit, reason in not_applied(run, edits)}
    rows = []
    for edit, old, text in _before_and_now(lm, edits):
        row = {
            "id": edit.id,
            "prompt": edit.prompt,
            "target": edit.target,
            **_form(edit),
            "applied": edit.id not in reasons,
            "said_before": old,
            "said": text,
            "right": text is not None and same_text(text, edit.target),
            "begins_right": holds(edit, text),
            "lost": bool(held) and key_of_edit(edit) in held and not holds(edit, text),
        }
        rows.append(row | ({"reason": reasons[edit.id]} if edit.id in reasons else {}))
    return rows


def _form(edit: Edit) -> dict[str, str]:
    """Of a correction in chat form, that it is one, and what is asked and was said before without the template."""
    if edit.question_span is None:
        return {}
    before = {"earlier_turns": edit.earlier_turns} if edit.earlier_turns else {}
    return {"form": "chat", "question": edit.question, **before}


def undone(lm: EditableLM, run: Run) -> list[dict[str, Any]]:
    """Of each correction that was undone: when, and what the model said before all of them and says now."""
    edits = [edit for edit, _ in run.undone.values()]
    times = [time for _, time in run.undone.values()]
    return [
        {
            "id": edit.id,
            "prompt": edit.prompt,
            "target": edit.target,
            **_form(edit),
            "undone": time,
            "said_before": old,
            "said": text,
        }
        for time, (edit, old, text) in zip(times, _before_and_now(lm, edits), strict=True)
    ]


def _before_and_now(lm: EditableLM, edits: Sequence[Edit]) -> list[tuple[Edit, str | None, str | None]]:
    """Each correction with what the unedited model says at its prompt, and what the edited one does."""
    if not edits:
        return []
    with lm.at_initial_weights():
        before = says_now(lm, edits)
    return list(zip(edits, before, says_now(lm, edits), strict=True))


def last_reported_batch(output: Path) -> int:
    """The number of the last batch that a run's report is about; 0 if there is none, or it does not say."""
    path = output / "report.json"
    return int(json.loads(path.read_text(encoding="utf-8")).get("last_batch", 0)) if path.exists() else 0


def held_in(output: Path, run: Run) -> set[Key] | None:
    """The corrections of a run that held when it was last reported; None if it was not."""
    if (rows := reported(output)) is None:
        return None
    held = {asked_in(row) for row in rows if row["begins_right"]}
    return {key for key, edit in (run.made | run.pending).items() if asked_by(edit) in held}


def refused_records(run: Run, edits: Sequence[Edit], source: str) -> list[dict[str, Any]]:
    """The records of corrections of which a form was taken back, each once: of a file as they were read, of a run as plain
    text.
    """
    refused = {edit.id for edit, _ in not_applied(run, edits)}
    if isinstance(edits, EditFile):
        originals = [edits.as_read(i) for i, edit in enumerate(edits) if edit.id in refused]
    else:
        plain = {edit.id: edit for edit in edits if edit.question_span is None}
        ids = [edit.id.removesuffix(IN_CHAT) for edit in edits if edit.id in refused]
        originals = [plain[id] for id in ids if id in plain]
    return list({edit.id: as_record(edit, source) for edit in originals}.values())


def as_record(edit: Edit, source: str) -> dict[str, Any]:
    """An edit as a line of a file of edits; with its id if it has one in its own file, whose name is ``source``."""
    left_out = {"id"} if given_id(edit.id, source) is None else set()
    left_out |= {"prompt"} if edit.messages else set()  # which is their plain text
    return {key: value for key, value in as_json(edit).items() if value and key not in left_out}


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A JSON object a line; whole or not at all."""
    atomic_write_text(path, "".join(valid_json(row, ensure_ascii=False) + "\n" for row in rows))
