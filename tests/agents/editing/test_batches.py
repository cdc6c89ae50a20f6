"""What Python code gives an editor as a batch: checked as the records of a file are."""

import unicodedata

import pytest

from agents.editing.preparation import batch_of
from editenv.data import Edit
from editenv.data.records import BadRecordError
from editenv.evaluation.prefix import begins_with

ROME = {"prompt": "The home of Ada is", "target": "Rome"}


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ("The home of Ada is Rome", "give a list of edits such as .*, not str 'The home"),
        (["The home of Ada is Rome"], "record 1 is str 'The home"),
        (3, "not int 3"),
        (None, "not NoneType"),
        ([ROME, ("a", "b")], "record 2 is tuple"),
    ],
)
def test_what_is_no_edit_is_named(edits, words):
    with pytest.raises(TypeError, match=words):
        batch_of(edits)


def test_a_single_edit_is_a_batch_of_one():
    edit = Edit("edit/1", ROME["prompt"], "Rome")
    assert batch_of(ROME) == batch_of([ROME]) == batch_of(edit) == batch_of(iter([edit])) == [edit]


@pytest.mark.parametrize("as_edit", [True, False])
def test_repeats_and_contradictions_are_refused_as_in_a_file(as_edit):
    def batch(*rows):
        return [Edit(f"x/{i}", **row) if as_edit else row for i, row in enumerate(rows)]

    with pytest.raises(BadRecordError, match="edit, record 3, field 'target': contradicts record 1, which has another"):
        batch_of(batch(ROME, {"prompt": "Tea is", "target": "hot"}, ROME | {"target": "Oslo"}))
    with pytest.raises(BadRecordError, match="edit, record 2, field 'prompt': repeats record 1"):
        batch_of(batch(ROME, ROME | {"prompt": "the home of  ada is"}))


def test_the_place_of_a_subject_is_filled_or_refused():
    (edit,) = batch_of({"prompt": "{} speaks", "target": "Latin", "subject": "Ada"})
    assert edit.prompt == "Ada speaks"
    with pytest.raises(BadRecordError, match=r"record 1, field 'prompt': has \{\} where the subject 'Ada'"):
        batch_of([Edit("x", "{} speaks", "Latin", subject="Ada")])


def test_a_beginning_is_one_in_every_normal_form():
    composed, apart = (unicodedata.normalize(form, "Zo\u00eb") for form in ("NFC", "NFD"))
    assert begins_with(f"{apart} and on", composed, ended=True)
    assert begins_with(f"{composed} and on", apart, ended=True)
    assert not begins_with("Zoe and on", composed, ended=True)
    assert not begins_with("19", "1", ended=True)
