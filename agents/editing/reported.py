"""Corrections as the last report of a run has them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.editing.run import earlier_turns
from editenv.data import Edit
from editenv.data.chat import IN_CHAT


def reported(output: Path, file: str = "results.jsonl") -> list[dict[str, Any]] | None:
    """The lines of a file of a run's last report; None if it was not made.

    Raises:
        ValueError: If it is not what the command wrote; names it.
    """
    path = output / file
    if not path.exists():
        return None
    try:
        with path.open(encoding="utf-8") as lines:  # str.splitlines ends one at U+2028, too, which may stand in a text
            rows = [json.loads(line) for line in lines]
    except ValueError:
        rows = [None]
    if not all(isinstance(row, dict) and "prompt" in row for row in rows):
        raise ValueError(f"{path} is not what `editenv edit` wrote: remove it, and it is made again")
    return _with_earlier_turns(rows)


def _with_earlier_turns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a report; in chat form with what was said before the question, which earlier versions did not write."""
    plain = {row["id"]: row["prompt"] for row in rows if "id" in row and "form" not in row}
    for row in rows:
        twin = plain.get(str(row.get("id")).removesuffix(IN_CHAT))
        if row.get("form") == "chat" and "earlier_turns" not in row and twin is not None:
            row["earlier_turns"] = earlier_turns(row["prompt"], row["question"], twin)
    return rows


def asked_in(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """What a line of a report is about: form, what was said before, question and target."""
    turns = row.get("earlier_turns", "").strip()
    return row.get("form", "plain"), turns, row.get("question", row["prompt"]), row["target"]


def asked_by(edit: Edit) -> tuple[str, str, str, str]:
    """The same of a correction."""
    form = "plain" if edit.question_span is None else "chat"
    return form, edit.earlier_turns.strip(), edit.question, edit.target
