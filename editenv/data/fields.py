"""A raw record's fields: checked as they are read, so that every error names file, record and field."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from editenv.data.records import BadRecordError


@dataclass(frozen=True, slots=True)
class Fields:
    """A raw record that knows where it comes from, so that every error names file, record and field.

    Attributes:
        file: Name of the file.
        number: Of the record, from 1.
        values: By field, as JSON has them.
        line: The line that the record begins in, if that is known.
        notes: What is to be said about a record that is good all the same, in words that fit other records, too.
        id: The record's own name, if it has one.
        taken_for: The format that the file was taken for by its first record's fields, if it is a published one.
    """

    file: str
    number: int
    values: Mapping[str, Any]
    line: int | None = None
    notes: list[str] = field(default_factory=list)
    id: str | None = None
    taken_for: str | None = None

    def bad(self, field: str | None, what: str, kind: str = "field") -> BadRecordError:
        """An error that names file, record and field; to be raised."""
        return BadRecordError(self.file, self.number, what, field, kind, line=self.line, id=self.id)

    def missing(self, field: str) -> BadRecordError:
        """An error about a field that is not there; to be raised. A format that was a guess may be the wrong one."""
        guess = f"; by its fields the file was taken for {self.taken_for}: own:FILE reads it as corrections of your own"
        return self.bad(field, "is missing" + (guess if self.taken_for is not None else ""))

    def of(self, values: Mapping[str, Any]) -> "Fields":
        """Other values of the same record."""
        return replace(self, values=values)

    def has(self, field: str) -> bool:
        """Whether a field is there and holds something."""
        return self.values.get(field) not in (None, "", [])

    def text(self, field: str) -> str:
        """A text that is there and is not blank, as it is written.

        Raises:
            BadRecordError: If it is not.
        """
        if field not in self.values:
            raise self.missing(field)
        return self.checked(field, self.values[field])

    def trimmed(self, field: str) -> str:
        """Likewise, without white space around it."""
        return self.text(field).strip()

    def optional(self, field: str) -> str | None:
        """Likewise, or None where the field is not there or holds nothing."""
        return self.trimmed(field) if self.has(field) else None

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of texts, or one text.

        Raises:
            BadRecordError: If the field is not there, or one of them is blank.
        """
        if field not in self.values:
            raise self.missing(field)
        value = self.values[field]
        return tuple(self.checked(field, item) for item in (value if isinstance(value, list) else [value]))

    def inside(self, field: str) -> "Fields":
        """The object in a field, whose fields go on with a dot (``target_new.str``).

        Raises:
            BadRecordError: If there is none.
        """
        value = self.values.get(field)
        if value is None:
            raise self.missing(field)
        if not isinstance(value, Mapping):
            raise self.bad(field, f"must be an object, not {shown(value)}")
        return self.of({f"{field}.{key}": item for key, item in value.items()})

    def objects(self, field: str) -> "Iterator[Fields]":
        """Each of a list of objects, whose fields go on with a dot.

        Raises:
            BadRecordError: If the field is not there, or something else.
        """
        value = self.values.get(field)
        if value is None:
            raise self.missing(field)
        if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
            raise self.bad(field, f"must be a list of objects, not {shown(value)}")
        for item in value:
            yield self.of({f"{field}.{key}": entry for key, entry in item.items()})

    def checked(self, field: str, value: Any) -> str:
        """A value of a field as a text, as it is written.

        Raises:
            BadRecordError: If it is no text, or blank.
        """
        if not isinstance(value, str):
            raise self.bad(field, f"must be text, not {shown(value)}")
        if not value.strip():
            raise self.bad(field, "is empty")
        return value


def shown(value: Any) -> str:
    """A value in an error message, cut if it is long."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 40 else f"{text[:40]} ..."
