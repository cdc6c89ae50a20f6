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
            raise ValueError(f"{name} must be {self.expected}, not {value!r}")
        if self.check_parts is not None and value is not None:
            self.check_parts(name, value)


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
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


anything = Rule("anything", lambda value: True)
any_object = Rule("an object", lambda value: isinstance(value, dict))
text = Rule("a text that UTF-8 can hold", _is_text)
nonempty_text = Rule("a text that is not empty and that UTF-8 can hold", lambda value: _is_text(value) and value != "")
sha256 = Rule(
    "64 hexadecimal digits (SHA-256)",
    lambda value: _is_text(value) and re.fullmatch(r"[0-9a-f]{64}", value) is not None,
)
boolean = Rule("true or false", lambda value: isinstance(value, bool))
finite_number = Rule("a finite number", _is_number)
percentage = Rule("a percentage from 0 to 100", lambda value: _is_number(value) and 0 <= value <= 100)
positive_number = Rule("a number above 0", lambda value: _is_number(value) and value > 0)


def number(least: float) -> Rule:
    """A finite number that is not smaller."""
    return Rule(f"a number from {least:g} on", lambda value: _is_number(value) and value >= least)


def whole_number(least: int) -> Rule:
    """An integer that is not smaller."""
    return Rule(
        f"a whole number from {least} on",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
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
