"""Rules of fields that are read from files, declared beside the field and checked when the object is made::

@dataclass(frozen=True)
class Point:
    edits: Annotated[int, rules.whole_number(least=1)]
    note: Annotated[str | None, rules.text | None] = None

    def __post_init__(self) -> None:
        rules.check_fields(self)
"""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, get_type_hints

from benchmarks.results.texts import LONGEST_NAME, is_name

LARGEST = 1e15
"""Bound of what is counted or timed: sums and means of such numbers are finite, and a float holds each exactly."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What the value of a field must be; ``rule | None`` allows null, too.

    Attributes:
        expected: What it must be, in words that follow "must be".
        holds: Whether a value is that.
        check_parts: Called with the field's name and a value that holds, to check what the value consists of; raises
            ValueError, naming the part as in ``teacher_forced.efficacy``.
    """

    expected: str
    holds: Callable[[Any], bool]
    check_parts: Callable[[str, Any], None] | None = None

    def __or__(self, null: None) -> "Rule":
        return Rule(f"{self.expected} or null", lambda value: value is None or self.holds(value), self.check_parts)

    def check(self, name: str, value: Any) -> None:
        """Checks a value of the field of this name.

        Raises:
            ValueError: If it breaks the rule; names the field, or the part of it, and the value.
        """
        if not self.holds(value):
            raise ValueError(f"{name} must be {self.expected}, not {_shortened(repr(value))}")
        if self.check_parts is not None and value is not None:
            self.check_parts(name, value)


def _shortened(text: str, length: int = 100) -> str:
    return text if len(text) <= length else f"{text[:length]} ..."


def check_fields(instance: Any, prefix: str = "") -> None:
    """Checks the fields of a dataclass that are annotated with a :class:`Rule`.

    Args:
        instance: The object.
        prefix: What stands before the fields' names in messages.

    Raises:
        ValueError: If a value breaks its rule; names the field and the value.
    """
    for name, hint in get_type_hints(type(instance), include_extras=True).items():
        for annotation in getattr(hint, "__metadata__", ()):
            if isinstance(annotation, Rule):
                annotation.check(prefix + name, getattr(instance, name))


# -- texts and numbers --------------------------------------------------------------------------------------------


def _is_text(value: Any) -> bool:
    # JSON may hold halves of surrogate pairs, which no file can be written with.
    return isinstance(value, str) and value == value.encode(errors="replace").decode()


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


anything = Rule("anything", lambda value: True)
any_object = Rule("an object", lambda value: isinstance(value, dict))
text = Rule("a text that UTF-8 can hold", _is_text)
name = Rule(f"a text of 1 to {LONGEST_NAME} characters, all of which are visible", is_name)
sha256 = Rule(
    "64 hexadecimal digits (SHA-256)",
    lambda value: _is_text(value) and re.fullmatch(r"[0-9a-f]{64}", value) is not None,
)
boolean = Rule("true or false", lambda value: isinstance(value, bool))
finite_number = Rule("a finite number", _is_number)
percentage = Rule("a percentage from 0 to 100", lambda value: _is_number(value) and 0 <= value <= 100)
positive_number = Rule(
    f"a number above 0, from {1 / LARGEST:g} to {LARGEST:g}",
    lambda value: _is_number(value) and 1 / LARGEST <= value <= LARGEST,
)


def number(least: float) -> Rule:
    """A number that is not smaller, and not beyond :data:`LARGEST`."""
    return Rule(
        f"a number from {least:g} to {LARGEST:g}", lambda value: _is_number(value) and least <= value <= LARGEST
    )


def whole_number(least: int) -> Rule:
    """An integer that is not smaller, and not beyond :data:`LARGEST`."""
    return Rule(
        f"a whole number from {least} to {LARGEST:g}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST,
    )


def one_of(choices: Collection[str]) -> Rule:
    """One of some texts."""
    return Rule(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


# -- lists and objects --------------------------------------------------------------------------------------------


def list_of(entry: Rule, kind: type[list[Any]] | type[tuple[Any, ...]] = list) -> Rule:
    """A list each entry of which keeps a rule; ``kind`` is the class that holds a file's list in memory."""

    def check_entries(name: str, values: Any) -> None:
        for i, value in enumerate(values):
            entry.check(f"{name}[{i}]", value)

    return Rule("a list", lambda value: isinstance(value, kind), check_entries)


def object_of(
    required: Mapping[str, Rule] = MappingProxyType({}),
    optional: Mapping[str, Rule] = MappingProxyType({}),
    others: Rule | None = None,
    one_known: Collection[str] = (),
) -> Rule:
    """An object (a dict) each entry of which keeps the rule of its key.

    Args:
        required: Rules of the keys that it must have.
        optional: Rules of the keys that it may have.
        others: The rule of entries with any other key; None if it must not have any.
        one_known: Keys of which one at least must not be null.
    """

    def has_keys(value: Any) -> bool:
        if not isinstance(value, dict) or not required.keys() <= value.keys():
            return False
        return others is not None or value.keys() <= required.keys() | optional.keys()

    def check_entries(name: str, values: Any) -> None:
        for key, value in values.items():
            rule = required.get(key) or optional.get(key) or others
            assert rule is not None
            rule.check(f"{name}.{key}", value)
        if one_known and all(values[key] is None for key in one_known):
            raise ValueError(f"{name} has none of {', '.join(one_known)}")

    expected = "an object"
    if required:
        expected += f" with {', '.join(required)}"
    if optional:
        expected += f" (and perhaps {', '.join(optional)})"
    return Rule(expected, has_keys, check_entries)
