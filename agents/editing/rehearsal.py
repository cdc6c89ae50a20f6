"""Earlier corrections that new ones have undone are made again, once."""

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from agents.editing import corrections
from agents.editing.display import Display
from agents.editing.editor import BatchResult, LifelongEditor
from agents.editing.run import Key, key_of
from editenv.data import Edit


def rehearse(
    editor: LifelongEditor, output: Path, edits_per_step: int, held: Collection[Key], display: Display
) -> None:
    """Makes corrections again, once, that held at the last report and that what was made since has undone.

    A batch of them stays if more corrections hold with it than without. All it goes by is in the folder, so that a run
    that was killed goes on with the same batches.

    Args:
        editor: With all edits made.
        output: Folder of the run.
        edits_per_step: Edits of a batch.
        held: The corrections that held at the last report.
        display: Told what goes on.
    """
    journal, reported = editor.journal, corrections.last_reported_batch(output)
    since = [entry for entry in editor.run.entries if entry["batch"] > reported]
    if journal is None or not held or not since:
        return
    made = editor.run.to_hold
    while True:
        display.show("asking earlier corrections")
        now = corrections.holding(editor.lm, list(made.values()))
        rehearsed = {key_of(content) for entry in since if entry.get("rehearsal") for content in entry["content"]}
        lost = [edit for key, edit in made.items() if key in held and key not in now and key not in rehearsed]
        if not lost:
            return
        objection = partial(_no_gain, editor, list(made.values()), len(now))
        result = editor.edit(lost[:edits_per_step], rehearsal=True, objection=objection)
        since.append(journal.entries[-1])
        display.say(_of_rehearsal(result, len(lost)))


def _no_gain(editor: LifelongEditor, made: Sequence[Edit], before: int) -> str | None:
    after = len(corrections.holding(editor.lm, made))
    return None if after > before else f"{after} corrections would hold with them made again, {before} do without"


def _of_rehearsal(result: BatchResult, lost: int) -> str:
    made = "made again" if result.applied else f"not made again: {result.reason}"
    return f"{lost} earlier corrections did not hold any more; {result.edits} of them were {made}"
