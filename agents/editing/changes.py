"""A file of corrections against what a run has made of it: what is to be made yet, and what is not in the file any more."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agents.editing.run import Run, key_of_edit
from editenv.data import Edit
from editenv.data.edit_file import digest, given_id
from editenv.data.edits import as_json
from editenv.data.text import one_line

SHOWN = 5
"""Corrections of a kind that a message names."""


@dataclass(frozen=True)
class Changes:
    """What a file says that a run has not done, and the other way round.

    Attributes:
        to_make: ``(n,)`` bool, which of the file's corrections are to be made yet.
        left_out: ``(n,)`` bool, which of them were undone, by a person and not to follow the file, and stay so.
        removed: What was made and is not in the file.
        changed: What was made and is otherwise in the file, under the same id or prompt; with what the file has.
    """

    to_make: np.ndarray
    left_out: np.ndarray
    removed: list[Edit]
    changed: list[tuple[Edit, Edit]]

    @property
    def to_undo(self) -> list[Edit]:
        """What is to be undone: the file does not have it any more."""
        return self.removed + [made for made, _ in self.changed]

    @property
    def added(self) -> int:
        """How many corrections are new in the file."""
        return int(self.to_make.sum()) - len(self.changed)

    def in_words(self) -> list[str]:
        """A line for each kind of change and for each of the first corrections of the kind."""
        changed = {id(made): _difference(made, now) for made, now in self.changed}
        kinds = [
            ("removed", [(edit.id, one_line(f"{edit.prompt} -> {edit.target}")) for edit in self.removed]),
            (
                "changed",
                [
                    (made.id, one_line(f"{made.prompt} -> {made.target}; {changed[id(made)]}"))
                    for made, _ in self.changed
                ],
            ),
        ]
        lines = []
        for kind, rows in kinds:
            lines += [f"  {kind} {id}: {words}" for id, words in rows[:SHOWN]]
            if len(rows) > SHOWN:
                lines.append(f"  and {len(rows) - SHOWN} more {kind}: {_ids([id for id, _ in rows[SHOWN:]])}")
        return [*lines, f"  added: {self.added}"] if self.added else lines


def compare(run: Run, edits: Sequence[Edit], source: str, make_undone: bool = False) -> Changes:
    """Compares by what a correction is, whatever its place in the file.

    Args:
        run: Of the journal.
        edits: Of the file.
        source: Its name, with which the ids begin that it does not give itself.
        make_undone: Make corrections again that were undone and are in the file.
    """
    keys = [key_of_edit(edit) for edit in edits]
    stays_undone = set() if make_undone else run.undone.keys() - run.by_file
    left_out = np.array([key in stays_undone for key in keys], dtype=bool)
    done = np.array([key in run.made or key in run.refused for key in keys], dtype=bool)
    to_make = ~done & ~left_out
    in_file = set(keys)
    gone = [edit for key, edit in (run.made | run.pending).items() if key not in in_file]
    by_id: dict[str, Edit] = {}
    by_prompt: dict[bytes, Edit] = {}
    if gone:
        new = [edit for edit, is_new in zip(edits, to_make, strict=True) if is_new]
        by_id = {edit.id: edit for edit in new if given_id(edit.id, source) is not None}
        by_prompt = {digest(edit.prompt): edit for edit in new}
    now = [(edit, by_id.get(edit.id) or by_prompt.get(digest(edit.prompt))) for edit in gone]
    return Changes(
        to_make,
        left_out,
        [edit for edit, other in now if other is None],
        [(edit, other) for edit, other in now if other is not None],
    )


def _difference(made: Edit, now: Edit) -> str:
    """What the file has in a correction's place, in words."""
    if (made.prompt, made.target) != (now.prompt, now.target):
        return f"now {now.prompt} -> {now.target}"
    before, after = as_json(made), as_json(now)
    return f"now with another {', '.join(name for name in before if before[name] != after.get(name) and name != 'id')}"


def _ids(ids: Sequence[str]) -> str:
    return ", ".join(ids[:20]) + (", ..." if len(ids) > 20 else "")
