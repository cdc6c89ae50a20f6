from dataclasses import dataclass, replace
from typing import Annotated

import pytest

from benchmarks.results import rules


@dataclass(frozen=True)
class Sample:
    name: Annotated[str, rules.name] = "a"
    count: Annotated[int, rules.whole_number(least=1)] = 1
    size: Annotated[float, rules.number(least=0)] = 0.5
    note: Annotated[str | None, rules.text | None] = None
    kind: Annotated[str, rules.one_of(("red", "blue"))] = "red"
    flag: Annotated[bool, rules.boolean] = False
    words: Annotated[tuple[str, ...], rules.list_of(rules.text, tuple)] = ()
    scores: Annotated[
        dict[str, float | None] | None,
        rules.object_of(
            {"first": rules.percentage | None},
            optional={"second": rules.percentage | None},
            one_known=("first",),
        )
        | None,
    ] = None
    free: int = 0

    def __post_init__(self) -> None:
        rules.check_fields(self)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"name": "é", "count": 7, "size": 3, "note": "", "kind": "blue", "flag": True, "words": ("a", "b")},
        {"scores": {"first": 0}},
        {"scores": {"first": 100.0, "second": None}},
        {"free": "no rule says anything about it"},
    ],
)
def test_what_keeps_the_rules_is_taken(change):
    assert replace(Sample(), **change) == Sample(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "name must be a text of 1 to 300 characters, all of which are visible, not ''"),
        ({"name": "\ud800"}, "name must be a text"),
        ({"name": None}, "name must be a text"),
        ({"count": 0}, "count must be a whole number from 1 to 1e+15, not 0"),
        ({"count": True}, "count must be a whole number"),
        ({"count": 1.0}, "count must be a whole number"),
        ({"size": -0.1}, "size must be a number from 0 to 1e+15, not -0.1"),
        ({"size": float("nan")}, "size must be a number"),
        ({"size": "1"}, "size must be a number"),
        ({"note": 5}, "note must be a text that UTF-8 can hold or null, not 5"),
        ({"kind": "green"}, "kind must be one of red, blue, not 'green'"),
        ({"kind": ["red"]}, "kind must be one of"),
        ({"flag": 1}, "flag must be true or false, not 1"),
        ({"words": "ab"}, "words must be a list, not 'ab'"),
        ({"words": ("a", 1)}, "words[1] must be a text"),
        ({"scores": {}}, "scores must be an object with first (and perhaps second) or null, not {}"),
        ({"scores": {"first": 1, "third": 1}}, "scores must be an object with first"),
        ({"scores": {"first": 101}}, "scores.first must be a percentage from 0 to 100 or null, not 101"),
        ({"scores": {"first": 1, "second": "2"}}, "scores.second must be a percentage"),
        ({"scores": {"first": None, "second": 5}}, "scores has none of first"),
    ],
)
def test_what_breaks_a_rule_is_named_with_what_it_must_be(change, message):
    with pytest.raises(ValueError) as refusal:
        Sample(**change)
    assert str(refusal.value).startswith(message)


def test_an_object_may_have_other_entries_that_keep_a_rule_of_their_own():
    rule = rules.object_of({"edits": rules.whole_number(least=1)}, others=rules.text)
    rule.check("point", {"edits": 3, "note": "a"})
    with pytest.raises(ValueError, match=r"^point\.note must be a text"):
        rule.check("point", {"edits": 3, "note": 4})


def test_a_prefix_stands_before_the_names():
    sample = Sample()
    object.__setattr__(sample, "count", 0)
    with pytest.raises(ValueError, match=r"^row\.count must be"):
        rules.check_fields(sample, "row.")
