"""How texts are put together, compared and shown."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from editenv.data.text import border, end_of, joined, printable, same_text, separator, without_invisible

NFD = unicodedata.normalize("NFD", "Zoë Müller")


@pytest.mark.parametrize(
    ("prompt", "answer", "text"),
    [
        ("The capital is", "Paris", "The capital is Paris"),
        ("<|im_start|>assistant\n", "Paris", "<|im_start|>assistant\nParis"),
        ("The capital is", "\nParis", "The capital is\nParis"),
        ("The capital is ", "Paris", "The capital is Paris"),
        ("It costs $", "5", "It costs $5"),
        ("It costs US$", "5", "It costs US$5"),
        ("Ein Haus für 5 \u20ac", "gibt es", "Ein Haus für 5 \u20ac gibt es"),
        ('He said "', "Hi", 'He said "Hi'),
        ('The word "tea"', "is", 'The word "tea" is'),
        ("Er sagte \u201e", "Hallo", "Er sagte \u201eHallo"),
        ("Das Wort \u201eTee\u201c", "ist", "Das Wort \u201eTee\u201c ist"),
        ("Il dit \u00ab", "oui", "Il dit \u00aboui"),
        ("\u00ab Paris \u00bb", "est", "\u00ab Paris \u00bb est"),
        ("the dogs\u2019", "owner", "the dogs\u2019 owner"),
        ("f(", "x", "f(x"),
        ("中国的首都是", "北京", "中国的首都是北京"),
        ("他出生于1990", "年", "他出生于1990年"),
        ("日本の首都は「", "東京", "日本の首都は「東京"),
        ("เมืองหลวงคือ", "ลอนดอน", "เมืองหลวงคือลอนดอน"),
        ("수도는", "서울", "수도는 서울"),
        ("The Chinese name is", "北京", "The Chinese name is 北京"),
        (NFD, "wrote", f"{NFD} wrote"),
    ],
)
def test_what_stands_between_prompt_and_answer(prompt, answer, text):
    assert joined(prompt, answer) == text


@given(st.text(max_size=6), st.text(max_size=6))
def test_a_text_of_its_own_is_never_changed(prompt, answer):
    assert separator(prompt, answer) in ("", " ")
    assert joined(prompt, answer).startswith(prompt)
    assert joined(prompt, answer).endswith(answer)
    if prompt.strip() and answer.strip():
        assert joined(prompt, answer) == prompt.rstrip() + border(prompt, answer) + answer.lstrip()


def test_texts_are_the_same_in_every_normal_form_and_nowhere_else():
    assert same_text(NFD, unicodedata.normalize("NFC", NFD))
    assert same_text(" Paris\n", "Paris")
    for other in ("zoë müller", "Zoe Muller", "Zoë Muller"):
        assert not same_text(NFD, other)
    assert not same_text("H\u2082O", "H2O")


@given(
    st.text(alphabet="ae\u0301\u00e9\u0327 ", max_size=8), st.text(alphabet="ae\u0301\u00e9", min_size=1, max_size=3)
)
def test_a_subject_is_found_in_every_normal_form(text, part):
    for form in ("NFC", "NFD"):
        end = end_of(unicodedata.normalize(form, part), text)
        if end is not None:
            nfd = [unicodedata.normalize("NFD", each) for each in (text[:end], part)]
            assert nfd[0].endswith(nfd[1])
        else:
            composed = unicodedata.normalize("NFC", part)
            assert not any(unicodedata.normalize("NFC", text[:i]).endswith(composed) for i in range(len(text) + 1))


def test_a_letter_with_marks_of_its_own_is_another_one_where_there_is_a_choice():
    assert end_of("é", "é́ é") == 6
    assert end_of("é", "é́") == 2
    assert end_of("e", "é") is None


def test_what_shows_nothing_goes_and_what_joins_stays():
    assert without_invisible("\ufeffPa\u200bris\u00ad\u200d") == "Paris"
    assert without_invisible("\u0645\u06cc\u200c\u062e") == "\u0645\u06cc\u200c\u062e"  # Persian


@given(st.text())
def test_nothing_printed_controls_a_terminal(text):
    shown = printable(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in shown if c not in "\n\t")
    assert "\u202e" not in shown
    if text.isprintable():
        assert shown == text
