"""How a file of edits is read."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from editenv.arguments import PositiveInt, check_fields

OWN_FIELDS = (
    "id",
    "prompt",
    "target",
    "messages",
    "subject",
    "old_answer",
    "relation",
    "rephrases",
    "locality",
    "locality_prompt",
    "locality_answer",
    "portability",
)
"""Fields of one's own corrections."""


@dataclass(frozen=True, slots=True)
class FileOptions:
    """How a file of edits is read.

    Raises:
        ValueError: For a value that an option does not take; names the option.

    Attributes:
        bad_records: What a record that cannot be used does: stop with an error that names it, or be left out and
            counted. Records are bad if they are malformed, ask for what is there already, repeat or contradict an
            earlier one, are longer than the model's context, or (in the test split) edit a subject that the training
            split edits.
        rephrases: checked leaves out rephrases that end in none of the file's own prompt templates for such an
            answer (CounterFact's generation prompts); checked-first also moves records that keep one to the front,
            which matters with a limit.
        locality: checked leaves out locality prompts that some record of the split edits (in FEVER, all of them are
            edited).
        nq_prefix: Whether ZsRE's locality questions keep their prefix "nq question: ".
        apart_from: Another file of edits (``PATH`` or ``FORMAT:PATH``): edits about a subject that it edits are left
            out, or with a prompt that it edits where there is no subject. For what is learned before that file's edits
            are made.
        only: A text file of ids, one a line (``#`` begins a comment): all other edits are left out. For a part of a
            data set that a rule outside the data chose, such as what a model knows (``python -m benchmarks.known``).
        limit: Only the first so many edits.
        columns: Which column or field of a file is which of one's own corrections, as prompt=Question,target=Answer. A
            name with a comma stands in double quotes: prompt=Question,"target=Answer, short".
    """

    bad_records: Literal["error", "skip"] = "error"
    rephrases: Literal["as-is", "checked", "checked-first"] = "as-is"
    locality: Literal["as-is", "checked"] = "as-is"
    nq_prefix: Literal["keep", "strip"] = "keep"
    apart_from: str | None = None
    only: str | None = None
    limit: PositiveInt | None = None
    columns: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        columns_of(self.columns)

    @classmethod
    def of(cls, options: Mapping[str, Any] | None) -> "FileOptions":
        """From keyword arguments as JSON has them.

        Raises:
            ValueError: For an unknown option or value.
        """
        unknown = set(options or {}) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(
                f"unknown dataset options {sorted(unknown)}; known are {', '.join(cls.__dataclass_fields__)}"
            )
        return cls(**(options or {}))


def columns_of(text: str | None) -> dict[str, str]:
    """The file's names by those of one's own corrections, of what ``columns`` says.

    Raises:
        ValueError: If it is not of the form ``prompt=Question,target=Answer``.
    """
    columns: dict[str, str] = {}
    for pair in next(csv.reader([text], skipinitialspace=True)) if text else ():
        name, _, column = (part.strip() for part in pair.partition("="))
        if name not in OWN_FIELDS or not column:
            raise ValueError(
                f"columns: {pair!r} is not of the form FIELD=COLUMN, as in prompt=Question,target=Answer; a field is one of "
                f"{', '.join(OWN_FIELDS)}"
            )
        if name in columns or column in columns.values():
            raise ValueError(f"columns: {pair!r} names a field or a column a second time")
        columns[name] = column
    return columns
