"""The edits of one file as they lie in an Arrow table, and what was found when the file was read."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from editenv.data.edits import Edit, Locality
from editenv.data.options import FileOptions
from editenv.data.records import BadRecordError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

MESSAGES_KEPT = 1000
"""Messages about bad records that a report keeps."""

EDITS_AT_A_TIME = 1000


@dataclass(slots=True)
class ReadReport:
    """What was found in a file.

    Attributes:
        source: File or hub id.
        format: One of :data:`editenv.data.formats.FORMATS`.
        records: Records read.
        bad: How many of them were bad, by kind.
        examples: The first message of each kind.
        refused: The message about each of them, the first :data:`MESSAGES_KEPT`.
    """

    source: str
    format: str
    records: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def refuse(self, error: BadRecordError, options: FileOptions) -> None:
        """Counts a bad record, or stops at it.

        Raises:
            BadRecordError: Unless bad records are to be skipped.
        """
        self.bad[error.kind] += 1
        self.examples.setdefault(error.kind, str(error))
        if len(self.refused) < MESSAGES_KEPT:
            self.refused.append(str(error))
        if options.bad_records == "error":
            error.args = (f"{error} (the dataset option bad_records=skip leaves such records out and counts them)",)
            raise error

    def as_json(self) -> dict[str, Any]:
        """By field; :meth:`of_json` takes it back."""
        return {
            "source": self.source,
            "format": self.format,
            "records": self.records,
            "bad": dict(self.bad),
            "examples": self.examples,
            "refused": self.refused,
        }

    @classmethod
    def of_json(cls, fields: Mapping[str, Any]) -> "ReadReport":
        return cls(**{**fields, "bad": Counter(fields["bad"])})

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
                self._edit(int(row), {name: values[i] for name, values in columns.items()})
                for i, row in enumerate(rows)
            ]
        row = int(self._rows[index])
        return self._edit(row, self._table[row])

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
        )

    def where(self, keep: np.ndarray) -> "EditFile":
        """The edits at which ``(n,)`` bools are true (or those at ``(m,)`` indices, in their order)."""
        return EditFile(self._table, self._rows[keep], self.report, self._rows_without_rephrases, self._edited)

    def without_rephrases(self, where: np.ndarray) -> "EditFile":
        """The same edits, but those at which ``(n,)`` bools are true have no rephrases."""
        rows = frozenset(self._rows[where].tolist())
        return EditFile(self._table, self._rows, self.report, rows, self._edited)

    def without_locality_among(self, edited: frozenset[bytes]) -> "EditFile":
        """The same edits without the locality prompts whose :func:`digest` is one of these."""
        return EditFile(self._table, self._rows, self.report, self._rows_without_rephrases, edited)

    def column(self, name: str) -> Iterator[Any]:
        """One field of every edit, without making the edits."""
        column = self._table.select_columns([name])
        for start in range(0, len(self), 10_000):
            yield from column[self._rows[start : start + 10_000].tolist()][name]

    def subjects(self) -> np.ndarray:
        """``(n,)`` 8-byte digests of what each edit is about: its subject, or its prompt."""
        pairs = zip(self.column("subject"), self.column("prompt"), strict=True)
        return np.array([digest(subject or prompt) for subject, prompt in pairs], dtype="S8")

    def check_lengths(self, tokenizer: "PreTrainedTokenizerBase", context: int, options: FileOptions) -> "EditFile":
        """Without the edits of which a prompt with its answer is longer than the model's context.

        Args:
            tokenizer: The model's.
            context: Tokens that the model can read.
            options: What to do about such an edit.

        Raises:
            BadRecordError: For the first such edit, unless bad records are to be skipped.
        """
        keep = np.ones(len(self), dtype=bool)
        for i, edit in enumerate(self):
            texts = {"prompt": f"{edit.prompt} {edit.target}"}
            texts |= {f"rephrase {j}": f"{text} {edit.target}" for j, text in enumerate(edit.rephrases, start=1)}
            texts |= {
                f"locality prompt {j}": f"{item.prompt} {item.answer}" for j, item in enumerate(edit.locality, start=1)
            }
            if max(len(text.encode()) for text in texts.values()) < context:
                continue  # a token is at least one byte, and there is one BOS
            lengths = dict(zip(texts, map(len, tokenizer(list(texts.values()))["input_ids"]), strict=True))
            longest = max(lengths, key=lengths.__getitem__)
            if lengths[longest] > context:
                what = f"has {lengths[longest]} tokens with its answer; the model's context holds {context}"
                self.report.refuse(BadRecordError(*record_of(edit), what, longest, "length"), options)
                keep[i] = False
        return self.where(keep) if not keep.all() else self


def record_of(edit: Edit) -> tuple[str, int]:
    """The file that an edit was read from, and the number of its record."""
    file, _, number = edit.id.rpartition("/")
    return file, int(number)


def digest(text: str) -> bytes:
    """8 bytes that stand for a text, whatever its case and white space."""
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=8).digest()
