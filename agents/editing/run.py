"""What a run's journal says of each correction: that it was made, refused, undone, or has to be made again."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from editenv.data import Edit
from editenv.data.chat import IN_CHAT
from editenv.data.edit_file import digest
from editenv.data.edits import as_json, of_json
from editenv.journal import UNDONE, standing

BATCH = {"batch", "edits", "applied", "reason", "efficacy", "ids", "content"}
"""What a batch's line in a journal has."""

BY_FILE = "by_file"
"""Entry of a line by which corrections are undone, true if that was because their file does not have them any more."""

Key = str
"""What a correction is, apart from its id, in which its file's name may stand, and from what is only asked afterwards."""


def key_of(content: Mapping[str, Any]) -> Key:
    """Of a correction as :func:`editenv.data.edits.as_json` has it; of one in chat form it is what is asked and what was
    said before, both without the template, which may write today's date.
    """
    kept = {name: value for name, value in content.items() if name not in ("id", "portability")}
    if (span := kept.pop("question_span", None)) is not None:
        turns = kept.pop("earlier_turns", "").strip()
        kept |= {"prompt": kept["prompt"][slice(*span)], "chat": True} | ({"earlier_turns": turns} if turns else {})
        del kept["rephrases"], kept["locality"]  # those of the plain form are compared
    return json.dumps(kept, sort_keys=True)


def key_of_edit(edit: Edit) -> Key:
    return key_of(as_json(edit))


PromptKey = tuple[bool, bytes]
"""What a correction asks, apart from the answer: whether in a chat, and a digest of the prompt without the template."""


def prompt_key(edit: Edit) -> PromptKey:
    """By which two corrections have one prompt, as those of a file do."""
    return edit.question_span is not None, digest(f"{edit.earlier_turns}\n{edit.question}")


def put_last(last: dict[PromptKey, Edit], edits: Iterable[Edit]) -> None:
    """Adds edits, in their order, to those that the model is to hold: each takes the place of one of the same prompt."""
    for edit in edits:
        last.pop(prompt_key(edit), None)
        last[prompt_key(edit)] = edit


def with_earlier_turns(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A journal's lines; of a correction in chat form that an earlier version wrote, which did not say what was said before
    the question, with what its plain form has there.
    """
    plain: dict[str, Mapping[str, Any]] = {}  # by id, the last that came
    known = []
    for line in lines:
        if "content" in line:
            plain |= {content["id"]: content for content in line["content"] if content.get("question_span") is None}
            line = {**line, "content": [_with_earlier_turns(content, plain) for content in line["content"]]}
        known.append(dict(line))
    return known


def _with_earlier_turns(content: Mapping[str, Any], plain: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    span, twin = content.get("question_span"), plain.get(content["id"].removesuffix(IN_CHAT))
    if span is None or twin is None or "earlier_turns" in content:
        return content
    before, question = content["prompt"][: span[0]], content["prompt"][slice(*span)]
    turns = earlier_turns(before, question, twin["prompt"])
    return {**content, "earlier_turns": turns} if turns else content


def earlier_turns(before: str, question: str, plain: str) -> str:
    """What was said before a question, without the template.

    Args:
        before: What stands before it in chat form.
        question: Without the template.
        plain: All turns as plain text (:func:`editenv.data.chat.plain_text`).

    Returns:
        Nothing if it is the first turn, or if the plain text is of something else.
    """
    turns, found, after = plain.rstrip().rpartition(question.strip())
    turns = turns.strip()
    is_of_it = found and not after and all(line.strip() in before for line in turns.split("\n"))
    return turns if is_of_it else ""


@dataclass(frozen=True)
class Run:
    """Each correction of a journal is made, refused, pending or undone; each of these in the order in which it came there.

    Attributes:
        entries: The lines of the batches that have not been undone.
        made: It is in the model.
        refused: Its batch was bad; with the reason.
        pending: Its batch was undone with another correction of it, or with an earlier one: to be made again.
        undone: With the time (UTC) at which it was.
        by_file: Which of those undone went because the file did not have them any more.
    """

    entries: list[dict[str, Any]] = field(default_factory=list)
    made: dict[Key, Edit] = field(default_factory=dict)
    refused: dict[Key, tuple[Edit, str]] = field(default_factory=dict)
    pending: dict[Key, Edit] = field(default_factory=dict)
    undone: dict[Key, tuple[Edit, str]] = field(default_factory=dict)
    by_file: set[Key] = field(default_factory=set)

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, Any]]) -> Self:
        """The run of a journal's lines without the header."""
        lines = with_earlier_turns(lines)
        run = cls(standing(lines))
        for entry in run.entries:
            for content in entry["content"]:
                if entry["applied"]:
                    if not entry.get("rehearsal"):
                        run.made.pop(key_of(content), None)  # it goes where it was made last
                    run.made[key_of(content)] = of_json(content)
                elif not entry.get("rehearsal"):
                    run.refused[key_of(content)] = (of_json(content), str(entry["reason"]))
        contents = {line["batch"]: line["content"] for line in lines if "batch" in line and not line.get("rehearsal")}
        for line in lines:
            if "batch" in line:
                continue
            for content in (c for number in line[UNDONE] for c in contents.get(number, ())):
                run.pending.pop(key_of(content), None)  # it goes where it stood last
                run.pending[key_of(content)] = of_json(content)
                run.undone.pop(key_of(content), None)
            for content in line["content"]:
                run.pending.pop(key_of(content), None)
                run.undone[key_of(content)] = (of_json(content), line["time"])
                (run.by_file.add if line.get(BY_FILE) else run.by_file.discard)(key_of(content))
        for key in (*run.made, *run.refused):
            run.pending.pop(key, None)
            run.undone.pop(key, None)
        run.by_file.intersection_update(run.undone)
        for key in run.made:
            run.refused.pop(key, None)
        return run

    @property
    def to_hold(self) -> dict[Key, Edit]:
        """Those that were made and have not been edited again since, to another target."""
        last: dict[PromptKey, Edit] = {}
        put_last(last, self.made.values())
        kept = {id(edit) for edit in last.values()}
        return {key: edit for key, edit in self.made.items() if id(edit) in kept}

    def batches_with(self, keys: Collection[Key], independent: bool) -> list[dict[str, Any]]:
        """The batches that go if these corrections are undone.

        Args:
            keys: Of corrections.
            independent: Whether a batch stays as it is without those before it
                (:attr:`agents.base.Agent.independent_batches`).

        Returns:
            Their entries: of every step that has one of the corrections, and unless they are independent of all steps
            after the first of these.
        """
        steps = steps_of(self.entries)
        affected = [any(key_of(c) in keys for entry in step for c in entry["content"]) for step in steps]
        if not independent and any(affected):
            first = affected.index(True)
            affected[first:] = [True] * (len(steps) - first)
        return [entry for step, goes in zip(steps, affected, strict=True) if goes for entry in step]


def steps_of(entries: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The entries of each batch of the file: one, or of a bad batch also those of the smaller ones it was tried again in."""
    steps: list[list[dict[str, Any]]] = []
    left = 0
    for entry in entries:
        if left == 0:
            steps.append([])
        steps[-1].append(entry)
        left = left_to_retry(left, entry.get("retried", 0), entry["edits"])
    return steps


def left_to_retry(left: int, retried: int, edits: int) -> int:
    """How many edits of a bad batch are still to be tried again in smaller ones, after one more batch.

    Args:
        left: Before it.
        retried: Its edits, if they will be tried again in smaller batches.
        edits: Its edits otherwise.
    """
    return (left or retried) if retried else max(0, left - edits)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A journal's lines without its header and without one that is being written, as :func:`with_earlier_turns` has them;
    their hashes are not checked.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is no journal; names the line.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: {path.parent} is no folder of `editenv edit`")
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    lines = []
    for number, text in enumerate(whole.split("\n"), start=1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict) or not ("journal" in line or UNDONE in line or line.keys() >= BATCH):
            raise ValueError(f"{path}, line {number}: not a line of a journal")
        if "journal" not in line:  # as the header has
            lines.append(line)
    return with_earlier_turns(lines)
