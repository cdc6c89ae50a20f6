"""Conflicts between corrections, resolved over a run's journal: what a new one contradicts is undone before it is made.

The front end of OneEdit (Zhang et al. 2024) for any method: :class:`agents.baselines.oneedit.OneEdit` is the same
where an edit is an entry of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from agents.baselines.oneedit import slot_of
from agents.editing.editor import BatchResult, LifelongEditor
from agents.editing.preparation import batch_of
from editenv.data import Edit
from editenv.data.text import comparable


def conflicts(made: Sequence[Edit], edits: Sequence[Edit]) -> list[Edit]:
    """Which corrections have the subject and the relation of a new one, and another target."""
    new = {slot_of(edit): comparable(edit.target) for edit in edits}
    return [edit for edit in made if slot_of(edit) in new and comparable(edit.target) != new[slot_of(edit)]]


def edit_resolved(
    editor: LifelongEditor,
    edits: Edit | Mapping[str, Any] | Sequence[Edit | Mapping[str, Any]],
    edits_per_step: int = 20,
) -> tuple[BatchResult, list[Edit]]:
    """Undoes what the corrections contradict, makes again what went with it, and then makes them, as one batch.

    Each step is durable by itself: interrupted between them, the journal says what is still to be made again.

    Args:
        editor: With an output folder.
        edits: As :meth:`agents.editing.editor.LifelongEditor.edit` takes them.
        edits_per_step: Corrections in a batch of those that are made again.

    Returns:
        What became of the batch, and the corrections that were undone.

    Raises:
        ValueError: If there is a conflict and the editor keeps no journal; and as that method.
    """
    batch = batch_of(edits)
    undone = conflicts(editor.edits, batch)
    again = editor.undo(undone) if undone else []
    for start in range(0, len(again), edits_per_step):
        editor.edit(again[start : start + edits_per_step])
    return editor.edit(batch), undone
