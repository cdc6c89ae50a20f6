"""Types and ranges: checked against an independent reading of each annotation."""

import json
import math
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from editenv.arguments import PositiveFloat, PositiveInt, above, at_least, check, check_fields, checked_arguments
from editenv.data.options import FileOptions
from editenv.rewards import RewardConfig


@pytest.mark.parametrize(
    ("hint", "right", "wrong", "words"),
    [
        (int, (0, -3, np.int64(4)), (1.0, True, "1", None, math.nan, 10**400, -(10**400)), "a whole number"),
        (float, (0, -3.5, np.float32(4)), (math.nan, math.inf, True, "1", 1j, 10**400), "a finite number"),
        (bool, (True, False), (0, 1, "yes", None), "True or False"),
        (str, ("", "a"), (b"a", 1, None), "a text"),
        (PositiveInt, (1, 10**30), (0, -1, 1.5), "a whole number of at least 1"),
        (Annotated[float, above(0, infinite=True)], (math.inf, 1e-9), (0, math.nan, -math.inf), "a finite number above 0"),
        (PositiveInt | None, (None, 2), (0, "None"), "a whole number of at least 1 or None"),
        (Literal["a", "b"], ("a",), ("c", ["a"], None), "one of 'a', 'b'"),
        (Literal[1, 2], (1,), (True, 1.0), "one of 1, 2"),
        (tuple[str, ...], (("a",), ["a", "b"], ()), ("ab", (1,), None), "a list, each entry a text"),
        (dict[str, Any], ({}, {"a": 1}), ([], {1: 2}, None), "an object (a dictionary)"),
    ],
)  # fmt: skip
def test_what_fits_an_annotation(hint, right, wrong, words):
    for value in right:
        check("it", hint, value)
    for value in wrong:
        with pytest.raises(ValueError, match="it must be") as error:
            check("it", hint, value)
        assert str(error.value).startswith(f"it must be {words}, not ")


def test_a_function_checks_what_it_was_given_and_nothing_else():
    @checked_arguments
    def make(steps: PositiveInt = -1, *rest: int, rate: PositiveFloat = 0.1, **more: int) -> tuple[Any, ...]:
        return steps, rest, rate, more

    assert make() == (-1, (), 0.1, {})  # a default is the function's own affair
    assert make(2, "x", rate=1, other="y") == (2, ("x",), 1, {"other": "y"})
    for arguments, keywords in (((1.5,), {}), ((), {"steps": 0}), ((), {"rate": math.nan})):
        with pytest.raises(ValueError, match=r"(steps|rate) must be"):
            make(*arguments, **keywords)

    @checked_arguments
    def strict(steps: PositiveInt) -> int:
        return steps

    with pytest.raises(TypeError, match="missing 1 required"):
        strict()
    with pytest.raises(TypeError, match="unexpected keyword argument 'stepps'"):
        strict(stepps=1)


def test_fields_of_a_subclass_are_checked_by_its_own_annotations():
    @dataclass(frozen=True)
    class Config:
        steps: PositiveInt = 1

        def __post_init__(self) -> None:
            check_fields(self)

    @dataclass(frozen=True)
    class Longer(Config):
        steps: Annotated[int, at_least(10)] = 10

    assert Config(5).steps == 5
    with pytest.raises(ValueError, match="steps must be a whole number of at least 10, not 5"):
        Longer(5)


def test_a_long_value_is_not_printed_whole():
    with pytest.raises(ValueError, match="not ") as error:
        check("it", int, "x" * 10_000)
    assert len(str(error.value)) < 120


WRONG = st.sampled_from(
    [None, True, 0, -1, 1.5, -0.5, math.nan, math.inf, 1j, "x", b"x", [], {}, [1], {"a": 1}, object]
)


@pytest.mark.parametrize("kind", [RewardConfig, FileOptions])
@given(data=st.data())
def test_a_field_of_an_environments_options_takes_what_it_is_made_for_and_nothing_else(kind, data):
    field = data.draw(st.sampled_from(fields(kind)))
    value = data.draw(WRONG)
    types = {float: (int, float), int: (int,)}.get(int if field.name == "limit" else type(field.default), ())
    usable = type(value) in types and math.isfinite(value) and value >= 0  # right for some of them
    optional = ("limit", "apart_from", "only", "columns")
    if usable or (value is None and field.name in optional):
        value = -1 - (value or 0)
    if isinstance(value, str) and field.name in ("apart_from", "only", "columns"):
        value = len(value)
    with pytest.raises(ValueError, match=rf"^{field.name} must be "):
        kind(**{field.name: value})


@given(value=WRONG, name=st.sampled_from(["edits_per_step", "actions_per_batch", "locality", "regularization",
       "memory_decay", "modules", "train_eos", "redraw", "observed_tokens", "reference", "split", "dataset_options"]))  # fmt: skip
def test_an_environment_names_the_argument_that_is_wrong(name, value):
    """Before anything is loaded. None are the defaults of some, and numbers are right for others."""
    from editenv.env import LifelongEditEnv

    numbers = ("locality", "regularization", "memory_decay")
    if value is None and name in ("modules", "dataset_options"):
        return
    if isinstance(value, bool) and name in ("train_eos", "redraw"):
        return
    if name in numbers and type(value) in (int, float) and math.isfinite(value) and value >= 0:
        value = -1 - value
    if (name, value) in (("modules", []), ("split", "x"), ("dataset_options", {})):
        return
    with pytest.raises(ValueError, match=name.replace("dataset_options", "(dataset_options|dataset options)")):
        LifelongEditEnv(model="no such model", **{name: value})


def test_a_hint_of_a_dataclass_says_so():
    assert is_dataclass(RewardConfig)
    with pytest.raises(ValueError, match=r"reward must be a RewardConfig, not \{.locality.: 1\}"):
        check("reward", RewardConfig, json.loads('{"locality": 1}'))
