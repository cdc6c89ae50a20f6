"""Corrections as the last report of a run has them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from editenv.data import Edit


def reported(output: Path, file: str = "results.jsonl") -> list[dict[str, Any]] | None:
    """The lines of a file of a run's last report; None if it was not made.

    Raises:
        ValueError: If it is not what the command wrote; names it.
    """
    path = output / file
    if not path.exists():
        return None
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError:
        rows = [None]
    if not all(isinstance(row, dict) and "prompt" in row for row in rows):
        raise ValueError(f"{path} is not what `editenv edit` wrote: remove it, and it is made again")
    return rows


def asked_in(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """What a line of a report is about: form, question and target."""
    return row.get("form", "plain"), row.get("question", row["prompt"]), row["target"]


def asked_by(edit: Edit) -> tuple[str, str, str]:
    """The same of a correction."""
    return "plain" if edit.question_span is None else "chat", edit.question, edit.target
