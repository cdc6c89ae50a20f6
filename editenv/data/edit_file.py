"""The edits of one file as they lie in an Arrow table, and what was found when the file was read."""

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from editenv.data.answer_ends import AnswerEnds
from editenv.data.chat import ChatTemplate, ChatTemplateError, in_both_forms
from editenv.data.edits import Edit, Locality, Message, Question
from editenv.data.options import FileOptions
from editenv.data.records import BadRecordError, place_of
from editenv.data.text import comparable, joined

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

MESSAGES_KEPT = 1000
"""Messages about bad records that a report keeps."""

REASONS_SHOWN = 3
"""Records that are named for each kind of fault."""

EDITS_AT_A_TIME = 1000

AS_READ, PLAIN, CHAT = 0, 1, 2
"""Forms of an edit."""


@dataclass(slots=True)
class ReadReport:
    """What was found in a file.

    Attributes:
        source: File or hub id.
        format: One of :data:`editenv.data.formats.FORMATS`.
        records: Records read.
        bad: How many of them were bad, by kind.
        first: The first messages of each kind, :data:`REASONS_SHOWN`.
        refused: The message about each of them, the first :data:`MESSAGES_KEPT`.
        notes: What is to be said about records that are good: of how many, and which is the first.
    """

    source: str
    format: str
    records: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    notes: dict[str, tuple[int, str]] = field(default_factory=dict)

    def refuse(self, error: BadRecordError, options: FileOptions) -> None:
        """Counts a bad record, or stops at it.

        Raises:
            BadRecordError: Unless bad records are to be skipped.
        """
        self.bad[error.kind] += 1
        messages = self.first.setdefault(error.kind, [])
        if len(messages) < REASONS_SHOWN:
            messages.append(str(error))
        if len(self.refused) < MESSAGES_KEPT:
            self.refused.append(str(error))
        if options.bad_records == "error":
            error.args = (f"{error} (the dataset option bad_records=skip leaves such records out and counts them)",)
            raise error

    def note(self, text: str, record: int, line: int | None) -> None:
        """Counts something that is to be said about a good record."""
        if text in self.notes or len(self.notes) < MESSAGES_KEPT:
            count, first = self.notes.get(text, (0, place_of(record, line)))
            self.notes[text] = (count + 1, first)

    @property
    def examples(self) -> dict[str, str]:
        """The first message of each kind."""
        return {kind: messages[0] for kind, messages in self.first.items()}

    def reasons(self) -> Iterator[str]:
        """Of each kind of fault how many records have it, and the first few of them."""
        for kind, count in self.bad.most_common():
            yield f"{count:,} {kind}:"
            yield from (f"  {message}" for message in self.first[kind])
            if count > len(self.first[kind]):
                yield f"  and {count - len(self.first[kind]):,} more"

    def remarks(self) -> Iterator[str]:
        """The notes, each in a line."""
        for text, (count, first) in self.notes.items():
            yield f"{text} ({count:,} records, from {first})" if count > 1 else f"{text} ({first})"

    def as_json(self) -> dict[str, Any]:
        """By field; :meth:`of_json` takes it back."""
        return asdict(self) | {"bad": dict(self.bad)}

    @classmethod
    def of_json(cls, fields: Mapping[str, Any]) -> "ReadReport":
        notes = {text: (count, first) for text, (count, first) in fields["notes"].items()}
        return cls(**{**fields, "bad": Counter(fields["bad"]), "notes": notes})

    def __str__(self) -> str:
        if not self.bad:
            return f"{self.source}: {self.records:,} records"
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.bad.most_common())
        return f"{self.source}: {self.records:,} records, {self.bad.total():,} of them left out ({kinds})"


class EditFile(Sequence[Edit]):
    """The edits of a file, each made when it is asked for.

    Args:
        table: One row for each edit of the file.
        rows: ``(n,)`` the rows of the edits that are in, in their order.
        report: What was found on reading.
        rows_without_rephrases: Rows whose rephrases are left out.
        edited: Digests of prompts; locality prompts among them are left out.

    Attributes:
        report: What was found on reading.
    """

    def __init__(
        self,
        table: "Dataset",
        rows: np.ndarray,
        report: ReadReport,
        rows_without_rephrases: frozenset[int] = frozenset(),
        edited: frozenset[bytes] = frozenset(),
    ) -> None:
        self._table, self._rows, self.report = table, rows, report
        self._rows_without_rephrases, self._edited = rows_without_rephrases, edited
        self._chat: ChatTemplate | None = None
        self._form = np.zeros(len(rows), dtype=int)  # of each edit: as read, or one of in_both_forms

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Edit: ...
    @overload
    def __getitem__(self, index: slice) -> "list[Edit]": ...
    def __getitem__(self, index: int | slice) -> "Edit | list[Edit]":
        if isinstance(index, slice):
            rows = self._rows[index]
            if len(rows) == 0:
                return []
            columns = self._table[rows.tolist()]
            return [
                self._in_form(self._edit(int(row), {name: values[i] for name, values in columns.items()}), form)
                for i, (row, form) in enumerate(zip(rows, self._form[index].tolist(), strict=True))
            ]
        return self._in_form(self.as_read(index), int(self._form[index]))

    def as_read(self, index: int) -> Edit:
        """The edit of the file that one of these is, or is one of the forms of."""
        row = int(self._rows[index])
        return self._edit(row, self._table[row])

    def _in_form(self, edit: Edit, form: int) -> Edit:
        return edit if form == AS_READ or self._chat is None else in_both_forms(edit, self._chat)[form - PLAIN]

    def __iter__(self) -> Iterator[Edit]:
        for start in range(0, len(self), EDITS_AT_A_TIME):
            yield from self[start : start + EDITS_AT_A_TIME]

    def _edit(self, row: int, values: Mapping[str, Any]) -> Edit:
        locality = zip(values["locality_prompts"], values["locality_answers"], strict=True)
        return Edit(
            id=values["id"],
            prompt=values["prompt"],
            target=values["target"],
            rephrases=() if row in self._rows_without_rephrases else tuple(values["rephrases"]),
            locality=tuple(
                Locality(prompt, answer)
                for prompt, answer in locality
                if not self._edited or digest(prompt) not in self._edited
            ),
            subject=values["subject"],
            old_answer=values["old_answer"],
            relation=values["relation"],
            portability=tuple(
                map(
                    Question,
                    values["portability_kinds"],
                    values["portability_prompts"],
                    values["portability_answers"],
                )
            ),
            messages=tuple(Message(**message) for message in json.loads(values["messages"] or "[]")),
        )

    def where(self, keep: np.ndarray) -> "EditFile":
        """The edits at which ``(n,)`` bools are true (or those at ``(m,)`` indices, in their order)."""
        kept = copy.copy(self)
        kept._rows, kept._form = self._rows[keep], self._form[keep]
        return kept

    def without_rephrases(self, where: np.ndarray) -> "EditFile":
        """The same edits, but those at which ``(n,)`` bools are true have no rephrases."""
        changed = copy.copy(self)
        changed._rows_without_rephrases = frozenset(self._rows[where].tolist())
        return changed

    def without_locality_among(self, edited: frozenset[bytes]) -> "EditFile":
        """The same edits without the locality prompts whose :func:`digest` is one of these, or was before."""
        changed = copy.copy(self)
        changed._edited = self._edited | edited
        return changed

    @property
    def has_conversations(self) -> bool:
        """Whether an edit was given as messages."""
        return any(messages is not None for messages in self.column("messages"))

    def in_chat(self, template: ChatTemplate, every: bool, options: FileOptions) -> "EditFile":
        """Each edit as plain text and, behind it, in chat form (:func:`editenv.data.chat.in_both_forms`).

        Args:
            template: The model's.
            every: Whether prompts are asked in a chat, too; else the edits that were given as messages are.
            options: What to do about an edit that the template does not take.

        Raises:
            BadRecordError: For the first such edit, unless bad records are to be skipped.
        """
        chosen = np.array([every or messages is not None for messages in self.column("messages")], dtype=bool)
        keep = np.ones(len(self), dtype=bool)
        for i in np.flatnonzero(chosen).tolist():
            try:
                template.in_chat_form(self[i])
            except ChatTemplateError as error:
                field = "messages" if self[i].messages else "prompt"
                self.report.refuse(self.bad(i, str(error), field, "chat"), options)
                keep[i] = False
        indices = np.repeat(np.flatnonzero(keep), 1 + chosen[keep])
        both = self.where(indices)
        both._chat = template
        is_second = np.append(False, indices[1:] == indices[:-1])
        both._form = np.where(is_second, CHAT, np.where(chosen[indices], PLAIN, AS_READ))
        return both

    def column(self, name: str) -> Iterator[Any]:
        """One field of every edit, without making the edits."""
        column = self._table.select_columns([name])
        for start in range(0, len(self), 10_000):
            yield from column[self._rows[start : start + 10_000].tolist()][name]

    def subjects(self) -> np.ndarray:
        """``(n,)`` 8-byte digests of what each edit is about: its subject, or its prompt."""
        pairs = zip(self.column("subject"), self.column("prompt"), strict=True)
        return np.array([digest(subject or prompt) for subject, prompt in pairs], dtype="S8")

    def place(self, index: int) -> tuple[int, int | None, str | None]:
        """The record that one of these edits was read from, its line if that is known, and its id if it has one."""
        values = self._table[int(self._rows[index])]
        return values["record"], values["line"], given_id(values["id"], self.report.source)

    def bad(self, index: int, what: str, field: str | None, kind: str) -> BadRecordError:
        """An error about one of these edits, with the place where it stands in the file."""
        number, line, id = self.place(index)
        return BadRecordError(self.report.source, number, what, field, kind, line=line, id=id)

    def check_lengths(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        context: int,
        options: FileOptions,
        ends: AnswerEnds | None = None,
    ) -> "EditFile":
        """Without the edits of which a prompt with its answer is longer than the model's context.

        Args:
            tokenizer: The model's.
            context: Tokens that the model can read.
            options: What to do about such an edit.
            ends: What is taught after targets; nothing by default.

        Raises:
            BadRecordError: For the first such edit, unless bad records are to be skipped.
        """
        keep = np.ones(len(self), dtype=bool)
        for i, edit in enumerate(self):
            prompts = {"prompt": edit.prompt}
            prompts |= {f"rephrase {j}": text for j, text in enumerate(edit.rephrases, start=1)}
            texts = {name: joined(text, edit.target) for name, text in prompts.items()}
            texts |= {
                f"locality prompt {j}": joined(item.prompt, item.answer)
                for j, item in enumerate(edit.locality, start=1)
            }
            texts |= {
                f"portability question {j}": joined(item.prompt, item.answer or "")
                for j, item in enumerate(edit.portability, start=1)
            }
            if max(len(text.encode()) for text in texts.values()) + (ends.longest if ends else 0) < context:
                continue  # a token is at least one byte, and there is one BOS
            if end := ends.after(edit) if ends else "":
                texts |= {name: joined(text, edit.target + end) for name, text in prompts.items()}
            lengths = dict(zip(texts, map(len, tokenizer(list(texts.values()))["input_ids"]), strict=True))
            longest = max(lengths, key=lengths.__getitem__)
            if lengths[longest] > context:
                form = "in chat form " if edit.question_span is not None else ""
                taught = f" and the {end!r} that is taught after it" if end and longest in prompts else ""
                what = (
                    f"{form}has {lengths[longest]} tokens with its answer{taught}; the model's context holds {context}"
                )
                self.report.refuse(self.bad(i, what, longest, "length"), options)
                keep[i] = False
        return self.where(keep) if not keep.all() else self

    def check_subjects(self, options: FileOptions) -> "EditFile":
        """Without the edits that a method cannot look up by their subject.

        Args:
            options: What to do about such an edit.

        Raises:
            BadRecordError: For the first such edit, unless bad records are to be skipped.
        """
        keep = np.ones(len(self), dtype=bool)
        for i, edit in enumerate(self):
            if not edit.subject:
                what = "is missing: the method looks facts up at the subject's last token"
            elif edit.end_of_subject is None:
                what = f"{edit.subject!r} does not stand in the prompt {edit.question!r}, where the method looks it up"
            else:
                continue
            self.report.refuse(self.bad(i, what, "subject", "subject"), options)
            keep[i] = False
        return self.where(keep) if not keep.all() else self


def given_id(id: str, source: str) -> str | None:
    """The id that an edit has in its file; None if it was made from the file's name and the record's number.

    Args:
        id: Of the edit.
        source: Name of the file.
    """
    return None if id.startswith(f"{source}/") else id


def digest(text: str) -> bytes:
    """8 bytes that stand for a text, whatever its case, white space and Unicode normal form."""
    return hashlib.blake2b(" ".join(comparable(text).casefold().split()).encode(), digest_size=8).digest()


def digest_as_written(text: str) -> bytes:
    """8 bytes that stand for a text, letter by letter."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def repeats(texts: Iterable[str], digest_of: Callable[[str], bytes] = digest) -> list[tuple[int, int]]:
    """The index of each text that an earlier one is the same as, and that one's.

    Args:
        texts: Prompts, say.
        digest_of: 8 bytes of a text; texts are the same if theirs are.
    """
    digests = np.array([digest_of(text) for text in texts], dtype="S8")
    order = np.argsort(digests, kind="stable")  # equal prompts side by side, in their order
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = digests[order[1:]] != digests[order[:-1]]
    first = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
    return sorted(zip(order[~is_first].tolist(), first[~is_first].tolist(), strict=True))


def repeat_error(target: str, earlier_target: str, earlier: str) -> tuple[str, str, str]:
    """What is wrong with an edit that has an earlier one's prompt: in words, its field, and the kind.

    Args:
        target: Of the edit.
        earlier_target: Of the earlier one.
        earlier: How that one is called.
    """
    if digest(target) == digest(earlier_target):
        return f"repeats {earlier}", "prompt", "duplicate"
    return f"contradicts {earlier}, which has another target for the same prompt", "target", "conflict"
