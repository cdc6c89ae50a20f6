"""``wild`` against transformers' own stop strings, one prompt at a time, and answers compared by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editenv.data import Locality
from editenv.evaluation.batch import encode_evaluation, greedy_tokens
from editenv.evaluation.matching import Verdict
from editenv.evaluation.wild import LIMIT, WildMatcher, answers_of_initial_model, may_become, normalise, wild
from editenv.language_model.prompts import asked


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (" The Eiffel  Tower\n", "eiffel tower"),
        ("A U.S. citizen", "us citizen"),
        ("don't!", "dont"),
        ("anthem of the Anna", "anthem of anna"),
        ("l\u2019a b", "l\u2019 b"),
        ("Éva — a", "éva —"),
        ("the", ""),
        ("1,000", "1000"),
    ],
)
def test_case_articles_and_ascii_punctuation_do_not_count(text, normal):
    assert normalise(text) == normal


@given(st.text("aetnhb ,T\n", max_size=12), st.text("aetnhb ,T", max_size=8))
def test_a_text_that_may_not_become_the_target_never_does(text, target):
    if normalise(text) == normalise(target):
        assert all(may_become(text[:end], target) for end in range(len(text) + 1))


def test_a_wrong_word_decides():
    assert not may_become("Rome is", "Paris")
    assert not may_become("Paris is ", "Paris")
    assert may_become("The Pa", "Paris")
    assert may_become("Paris is", "Paris")  # the last word may still turn out to be an article: "Paris a"


@torch.no_grad()
def as_transformers_stops(model, tokenizer, prompt):
    """The tokens of the continuation, the stop included."""
    ids = tokenizer(asked(prompt), return_tensors="pt").input_ids
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=LIMIT,
        stop_strings=[".", "\n"],
        tokenizer=tokenizer,
        do_sample=False,
        pad_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return output[0, ids.shape[1] :].tolist()


def as_text(tokenizer, tokens):
    return tokenizer.decode([token for token in tokens if token != tokenizer.eos_token_id])


@pytest.mark.parametrize("known", [True, False])
def test_right_is_what_plain_generation_writes_up_to_the_stop(
    taught_lm, taught, make_lm, base, tokenizer, edits, known
):
    outcomes = set()
    for lm, plain in ((taught_lm, taught), (make_lm(), base)):
        for edit in edits:
            tokens = as_transformers_stops(plain, tokenizer, edit.prompt)
            text = as_text(tokenizer, tokens)
            targets = [edit.target, f"The {text.strip()}!", text.upper(), f"{text} more"]
            targets = [target for target in targets if target.strip()]
            asked_edits = [replace(edit, target=target.strip(), rephrases=(), locality=()) for target in targets]
            batch = encode_evaluation(lm, asked_edits)
            choices = greedy_tokens(lm, batch.prompts) if known else None
            scores = wild(lm, batch, choices=choices)
            expected = [normalise(text) == normalise(target) for target in targets]
            assert scores.efficacy.tolist() == expected
            outcomes |= set(expected)
    assert outcomes == {True, False}


def test_the_text_ends_at_a_stop(make_lm, tokenizer):
    """Whatever a model would go on with: a full stop within the target cannot be reached."""
    matcher = WildMatcher(make_lm())
    for text, target, right in (
        ("Ada. She", "Ada", True),
        ("Ada\nQ:", "the ada", True),
        ("\nAda", "Ada", False),
        ("J. K. Ada", "J. K. Ada", False),
    ):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        verdicts = [matcher._verdict(tokens[:n], target) for n in range(1, len(tokens) + 1)]
        assert next(verdict.name for verdict in verdicts if verdict.name != "UNDECIDED") == (
            "MATCH" if right else "DIFFERS"
        )


@pytest.mark.parametrize("count", [LIMIT - 1, LIMIT, LIMIT + 1])
def test_a_target_as_long_as_the_limit_is_judged_alike_with_and_without_generating(make_lm, tokenizer, count):
    lm = make_lm()
    matcher = WildMatcher(lm)
    tokens = [*tokenizer("Ada is in" * 20, add_special_tokens=False)["input_ids"][:count], tokenizer.eos_token_id]
    target = tokenizer.decode(tokens[:count])
    written = tokens[:LIMIT]
    assert matcher._matches(written, target) == (count <= LIMIT)
    assert matcher._compare_text(tokens, target).verdict == (Verdict.MATCH if count <= LIMIT else Verdict.DIFFERS)


def test_locality_is_the_same_tokens_on_the_first_prompt(make_lm, base, tokenizer, edits):
    lm = make_lm()
    asked_edits = [edit for edit in edits if edit.locality]
    asked_edits = [replace(edit, locality=(*edit.locality, Locality("Never asked", "x"))) for edit in asked_edits]
    plain = replace(edits[0], locality=())
    batch = encode_evaluation(lm, [*asked_edits, plain])
    initial = answers_of_initial_model(lm, batch)
    prompts = [edit.locality[0].prompt for edit in asked_edits]
    assert initial == [as_transformers_stops(base, tokenizer, prompt) for prompt in prompts]
    scores = wild(lm, batch, initial)
    assert (scores.specificity[:-1] == 1).all(), "nothing was edited"
    assert np.isnan(scores.specificity[-1])
    assert np.isnan(scores.locality_accuracy).all()
    torch.manual_seed(1)
    lm.apply({name: 0.05 * torch.randn_like(lm.weight(name)) for name in lm.modules})
    same = [as_transformers_stops(lm.model, tokenizer, p) == tokens for p, tokens in zip(prompts, initial, strict=True)]
    assert set(same) == {True, False}
    assert wild(lm, batch, initial).specificity[:-1].tolist() == same
    assert wild(lm, batch).specificity[:-1].tolist() == same
