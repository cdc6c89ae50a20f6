"""By which ids the corrections of a run are known, in ``editenv undo`` and ``editenv log``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agents.editing.reported import asked_by, asked_in, reported
from agents.editing.run import Key, Run, key_of
from editenv.data import Edit
from editenv.data.chat import IN_CHAT
from editenv.data.text import one_line, printable


@dataclass(frozen=True)
class Names:
    """What the corrections of a run are called, each otherwise.

    A correction has the id that the last report gave it, or else the journal's. Rows of a file may have been moved between
    two commands, so that the journal or the report has another correction under the same id; it may mean either then,
    and each is called by its id in the journal with the batch that this stands in: ``corrections.jsonl/3@2``.

    Attributes:
        run: Of the journal.
        edits: All corrections, each with the id that the last report gave it, or else the journal's.
        names: What each is called.
        with_batch: The same with the batch, which is understood in any case.
        meant: By id, which corrections it may mean: of those in the model, or to be made again, if it is one of these.
    """

    run: Run
    edits: dict[Key, Edit]
    names: dict[Key, str]
    with_batch: dict[Key, str]
    meant: dict[str, list[Key]]

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, Any]], output: Path) -> "Names":
        """Those of a run and of the report in its folder.

        Args:
            lines: Of the journal (:func:`agents.editing.run.read_lines`).
            output: The folder.

        Raises:
            ValueError: If the report is not what the command wrote.
        """
        run = Run.of(lines)
        live = run.made | run.pending
        edits = {key: edit for key, (edit, _) in (*run.undone.items(), *run.refused.items())} | live
        origins = _origins(lines)
        ids = {key: [edit.id] for key, edit in edits.items()}
        for key, (id, _) in origins.items():
            ids.setdefault(key, []).append(id)
        by_texts = {asked_by(edit): key for key, edit in edits.items()}
        for row in reported(output) or ():
            if (told_of := by_texts.get(asked_in(row))) is not None:
                ids[told_of].append(row["id"])
                edits[told_of] = replace(edits[told_of], id=row["id"])
        meant: dict[str, dict[Key, None]] = {}
        for key in (*live, *(key for key in edits if key not in live)):
            for id in ids[key]:
                others = meant.setdefault(id, {})
                if key in live or next(iter(others), key) not in live:
                    others[key] = None
        with_batch = {key: _with_batch(*origin) for key, origin in origins.items()}
        names = {}
        for key, edit in edits.items():
            stem = edit.id.removesuffix(IN_CHAT)
            both = (stem, stem + IN_CHAT)
            is_clear = key in meant[edit.id] and all(len(meant.get(form, ())) < 2 for form in both)
            names[key] = edit.id if is_clear else with_batch[key]
        return cls(run, edits, names, with_batch, {id: list(keys) for id, keys in meant.items()})

    def forms_of(self, id: str) -> list[Key]:
        """The correction of this id as plain text and, if it was made in a chat, in that form, too.

        Raises:
            ValueError: As :meth:`key_of` does.
        """
        key = self.key_of(id)
        stem = _plain_form(self.names[key])
        both = [other for name in (stem, stem + IN_CHAT) for other in self._called(name)]
        return [key for key in both if key not in self.run.refused] or [key]

    def key_of(self, id: str) -> Key:
        """The correction of this id, or of this number in its file.

        Raises:
            ValueError: If there is none or several, or if it is not in the model.
        """
        matches = (
            self._called(id)
            or [key for key, name in self.with_batch.items() if name == id]
            or self.meant.get(id)
            or self._numbered(id)
        )
        if not matches:
            raise ValueError(
                f"undo: the run has no correction {id!r}; editenv log OUT lists them, with --json by their ids"
            )
        if len(matches) > 1:
            which = ", ".join(one_line(f"{self.names[key]} ({self._in_words(key)})") for key in matches)
            raise ValueError(printable(f"undo: {id!r} may be any of {which}: write one of these"))
        (key,) = matches
        if key in self.run.refused:
            _, reason = self.run.refused[key]
            name = self.names[key]
            raise ValueError(printable(f"undo: {name} is not in the model: its batch was taken back ({reason})"))
        return key

    def _called(self, name: str) -> list[Key]:
        """The one of this name, if there is one."""
        return [key for key, called in self.names.items() if called == name]

    def _numbered(self, number: str) -> list[Key]:
        """Those that have this number in a file, or that are called so in a batch."""
        keys = [key for id, keys in self.meant.items() if _is_numbered(id, number) for key in keys]
        keys += [key for key, name in self.with_batch.items() if _is_numbered(name, number)]
        return list(dict.fromkeys(keys))

    def _in_words(self, key: Key) -> str:
        return f"{self.edits[key].question} -> {self.edits[key].target}"


def _origins(lines: Sequence[Mapping[str, Any]]) -> dict[Key, tuple[str, int]]:
    """The id of each correction in the batch that it was last in, and that batch's number; both forms of one have the same
    number, though a batch may end between them.
    """
    origins: dict[Key, tuple[str, int]] = {}
    of_plain_form: dict[str, int] = {}
    for line in lines:
        if "batch" not in line or line.get("rehearsal"):
            continue
        for content in line["content"]:
            id, number = content["id"], line["batch"]
            if content.get("question_span") is None:
                of_plain_form[id] = number
            origins[key_of(content)] = id, of_plain_form.get(id.removesuffix(IN_CHAT), number)
    return origins


def _with_batch(id: str, batch: int) -> str:
    stem = _plain_form(id)
    return f"{stem}@{batch}{id[len(stem) :]}"


def _plain_form(name: str) -> str:
    return name.removesuffix(IN_CHAT)


def _is_numbered(id: str, number: str) -> bool:
    return id.rpartition("/")[1:] == ("/", number)
