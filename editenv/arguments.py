"""Arguments and settings: their types and ranges are declared beside them, and checked where they come in.

    @checked_arguments
    def make(steps: PositiveInt = 20, base: Annotated[float, above(1)] = 1.2): ...

    @dataclass(frozen=True)
    class Config:
        steps: PositiveInt = 20

        def __post_init__(self) -> None:
            check_fields(self)

``make(steps=1.5)`` is a ValueError: "steps must be a whole number of at least 1, not 1.5". Whether a value comes from
a file, a command line or Python, it is the same check and the same message.
"""

import math
import reprlib
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cache, wraps
from inspect import Parameter, signature
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Range:
    """Which numbers a number may be.

    Attributes:
        words: In words that follow "a number".
        holds: Whether a number is one of them.
        infinite: Whether infinity is; NaN never is.
    """

    words: str
    holds: Callable[[float], bool]
    infinite: bool = False


def at_least(low: float) -> Range:
    """That number and all above."""
    return Range(f"of at least {low:g}", lambda value: value >= low)


def above(low: float, infinite: bool = False) -> Range:
    """All numbers above that one."""
    return Range(f"above {low:g}", lambda value: value > low, infinite)


def between(low: float, high: float) -> Range:
    """Both numbers and all between them."""
    return Range(f"from {low:g} to {high:g}", lambda value: low <= value <= high)


PositiveInt = Annotated[int, at_least(1)]
NonNegativeInt = Annotated[int, at_least(0)]
PositiveFloat = Annotated[float, above(0)]
PositiveOrInfinite = Annotated[float, above(0, infinite=True)]
NonNegativeFloat = Annotated[float, at_least(0)]
Share = Annotated[float, between(0, 1)]
PositiveShare = Annotated[float, above(0), Range("and at most 1", lambda value: value <= 1)]


def check(name: str, hint: Any, value: Any) -> None:
    """Checks one value.

    Args:
        name: Of the argument.
        hint: Its type; ``Annotated`` with a :class:`Range` where not every number of that type will do.
        value: What was given.

    Raises:
        ValueError: If it is not of that type, or out of range; says what would be right.
    """
    if not _fits(hint, value):
        raise ValueError(f"{name} must be {in_words(hint)}, not {reprlib.repr(value)}")


def check_fields(instance: Any) -> None:
    """Checks all fields of a dataclass.

    Raises:
        ValueError: As :func:`check`, for the first that does not fit.
    """
    for name, hint in hints_of(type(instance)).items():  # type: ignore[arg-type] # classes are hashable
        check(name, hint, getattr(instance, name))


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Checks arguments of a function by its annotations; those of ``*args`` and ``**kwargs`` are left out.

    Raises:
        ValueError: As :func:`check`, for the first that does not fit.
    """
    hints = hints_of(function)
    for name, value in arguments.items():
        if name in hints:
            check(name, hints[name], value)


def checked_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which checks its arguments by their annotations when it is called."""

    @wraps(function)
    def checking(*args: P.args, **kwargs: P.kwargs) -> R:
        # Where arguments are missing or unknown the call itself says so.
        check_arguments(function, _signature(function).bind_partial(*args, **_known(function, kwargs)).arguments)
        return function(*args, **kwargs)

    return checking


@cache
def hints_of(kind: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of named parameters: of a function, or of what makes an object of a class.

    None where an annotation names what cannot be found, as what is imported for type checkers alone.
    """
    annotated = kind.__init__ if isinstance(kind, type) and not is_dataclass(kind) else kind  # type: ignore[misc]
    try:
        hints = get_type_hints(annotated, include_extras=True)
    except NameError:
        return {}
    variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    named = {name for name, parameter in _signature(kind).parameters.items() if parameter.kind not in variadic}
    return {name: hint for name, hint in hints.items() if name in named}


@cache
def _signature(function: Callable[..., Any]) -> Any:
    return signature(function)


def _known(function: Callable[..., Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    parameters = _signature(function).parameters
    return {name: value for name, value in keywords.items() if name in parameters}


def _fits(hint: Any, value: Any, ranges: Sequence[Range] = ()) -> bool:
    """Whether a value is of a type, and in all ranges if it is a number."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        return _fits(parts[0], value, [part for part in parts[1:] if isinstance(part, Range)])
    if origin in (Union, types.UnionType):
        return any(_fits(part, value) for part in parts)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in parts)
    if origin is Callable:
        return callable(value)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(parts[0], k) and _fits(parts[1], v) for k, v in value.items())
    if origin is not None and issubclass(origin, Sequence):
        is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        # The entries of what is read from a file as it is asked for are left to be.
        return is_list and (not isinstance(value, list | tuple) or all(_fits(parts[0], entry) for entry in value))
    if hint in (int, float):
        kind = Integral if hint is int else Real
        return isinstance(value, kind) and not isinstance(value, bool) and _in_ranges(_as_float(value), ranges)
    if isinstance(hint, type) and origin is None:
        return isinstance(value, hint)
    return value is None if hint is None else True


def _as_float(value: Real) -> float:
    """The number; not a number if it is beyond every float, as no setting is."""
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _in_ranges(value: float, ranges: Sequence[Range]) -> bool:
    finite = math.isfinite(value) or (not math.isnan(value) and any(range_.infinite for range_ in ranges))
    return finite and all(range_.holds(value) for range_ in ranges)


def in_words(hint: Any) -> str:
    """What a value of a type is, in words that follow "must be"."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return " ".join([in_words(parts[0]), *(part.words for part in parts[1:] if isinstance(part, Range))])
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(part) for part in parts)
    if origin is Literal:
        return f"one of {', '.join(map(repr, parts))}" if len(parts) > 1 else repr(parts[0])
    if origin is Callable:
        return "something to call"
    if origin is not None and issubclass(origin, Mapping):
        return "an object (a dictionary)"
    if origin is not None and issubclass(origin, Sequence):
        return f"a list, each entry {in_words(parts[0])}"
    words = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a text", Path: "a path"}
    if hint in words:
        return words[hint]
    if hint in (None, type(None)):
        return "None"
    name = getattr(hint, "__name__", str(hint))
    return f"an {name}" if name[0] in "AEIOU" else f"a {name}"
