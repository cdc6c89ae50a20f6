"""generation_prefix against plain generation and a regular expression."""

import re
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editenv.evaluation import metrics
from editenv.evaluation.batch import LOCALITY, encode_evaluation, greedy_tokens
from editenv.evaluation.prefix import (
    PrefixMatcher,
    beginnings_of_initial_model,
    begins_with,
    generation_prefix,
    prefix_limit,
)


@pytest.mark.parametrize(
    ("text", "target", "begins"),
    [
        (" Paris. The city is", "Paris", True),
        ("Paris", "Paris", True),
        ("\n\nParis, France", "Paris", True),
        (" Parisian", "Paris", False),
        (" paris", "Paris", False),
        (" the Paris", "Paris", False),
        (" Paris-based", "Paris", True),
        (" 1.5 metres", "1", False),
        (" 1. Then", "1", True),
        (" 12", "1", False),
        (" 1,000", "1", False),
        ("New \n York City", "New York", True),
        ("cafe\u0301 noir", "café", True),
        ("café noir", "cafe\u0301", True),
        ("cafe\u0301", "cafe", False),
        ("東京都にある", "東京", True),
        ("Par", "Paris", False),
        ("", "Paris", False),
    ],
)
def test_begins_with(text, target, begins):
    assert begins_with(text, target, ended=True) is begins


def test_texts_are_compared_in_the_form_that_the_tokenizer_writes():
    assert begins_with(" fish", "\ufb01sh", ended=True, form="NFKC") is True
    assert begins_with(" fish", "\ufb01sh", ended=True, form="NFC") is False


@given(st.text("ab1.,é\u0301 京\ufffd", max_size=8), st.text("ab1.,é\u0301 京", min_size=1, max_size=4))
def test_what_was_decided_early_stays(text, target):
    """Letter by letter: once it is decided, the whole text decides the same; it is always decided at the end."""
    whole = begins_with(text, target, ended=True)
    assert whole is not None
    for end in range(len(text) + 1):
        early = begins_with(text[:end], target, ended=False)
        # U+FFFD stands for half a character, which only the last one can be.
        if early is not None and "\ufffd" not in text:
            assert early is whole


def plain_continuation(model, tokenizer, text, limit):
    """Token by token, without a cache or a batch."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    length = ids.shape[1]
    for _ in range(limit):
        token = model(ids).logits[0, -1].argmax()
        if token == tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, token.view(1, 1)], 1)
    return ids[0, length:].tolist()


def expected_match(text, target):
    """ASCII words only, as the small world's are."""
    text, target = (re.sub(r"\s+", " ", unicodedata.normalize("NFC", one)).lstrip() for one in (text, target))
    return re.match(re.escape(target) + r"($|[^\w])", text) is not None


@pytest.mark.parametrize("batch_size", [256, 3])
def test_matches_are_those_of_plain_generation(taught_lm, taught, make_lm, base, tokenizer, edits, batch_size):
    prompts = [edit.prompt for edit in edits]
    outcomes = set()
    for lm, plain in ((taught_lm, taught), (make_lm(), base)):
        written = [tokenizer.decode(plain_continuation(plain, tokenizer, text, 20)) for text in prompts]
        cut = [" ".join(text.split()[:1]) or "x" for text in written]
        for targets in ([edit.target for edit in edits], cut, [text[:-1] or "x" for text in cut], written[::-1]):
            targets = [text if re.fullmatch(r"[\w ]+", text, re.ASCII) else "none of it" for text in targets]
            matches = PrefixMatcher(lm, 20, batch_size).matches(prompts, targets)
            assert matches.tolist() == [expected_match(*pair) for pair in zip(written, targets, strict=True)]
            outcomes |= set(matches.tolist())
    assert outcomes == {True, False}


def test_scores_are_means_of_plain_generations(taught_lm, taught, tokenizer, edits):
    batch = encode_evaluation(taught_lm, edits)
    limit = prefix_limit(batch)
    scores = generation_prefix(taught_lm, batch)
    for i, edit in enumerate(edits):

        def begins(prompt, target):
            return expected_match(tokenizer.decode(plain_continuation(taught, tokenizer, prompt, limit)), target)

        assert scores.efficacy[i] == begins(edit.prompt, edit.target)
        if edit.rephrases:
            assert scores.generalization[i] == pytest.approx(np.mean([begins(t, edit.target) for t in edit.rephrases]))
        if edit.locality:
            assert scores.locality_accuracy[i] == pytest.approx(
                np.mean([begins(item.prompt, item.answer) for item in edit.locality])
            )
    assert (scores.specificity == 1).all(), "nothing was edited"


def test_specificity_compares_as_many_tokens_as_the_answer_has(make_lm, base, tokenizer, edits):
    lm = make_lm()
    batch = encode_evaluation(lm, edits)
    initial = beginnings_of_initial_model(lm, batch)
    questions = [item for edit in edits for item in edit.locality]
    lengths = batch.prompts.lengths[(batch.kind == LOCALITY)].tolist()
    plain = [plain_continuation(base, tokenizer, item.prompt, n) for item, n in zip(questions, lengths, strict=True)]
    eos = tokenizer.eos_token_id
    assert [[t for t in tokens if t != eos] for tokens in initial] == plain
    torch.manual_seed(1)
    for weight in lm.snapshot().values():
        lm.apply({name: 0.05 * torch.randn_like(lm.weight(name)) for name in lm.modules})
        assert weight is not None
    moved = [
        metrics.greedy.continuations(lm.model, tokenizer, [item.prompt], n)[0]
        for item, n in zip(questions, lengths, strict=True)
    ]
    same = [a == b for a, b in zip(moved, initial, strict=True)]
    assert set(same) == {True, False}
    counts = np.array([len(edit.locality) for edit in edits])
    expected = np.bincount(np.repeat(np.arange(len(edits)), counts), weights=same, minlength=len(edits))
    scores = generation_prefix(lm, batch, initial)
    assert np.allclose(scores.specificity[counts > 0], (expected / counts.clip(1))[counts > 0])


def test_generation_stops_when_it_is_decided(make_lm, tokenizer, edits, monkeypatch):
    """The longest continuation is a token or two, not the limit."""
    lm = make_lm()
    lengths = []
    original = type(lm.model).generate

    def generate(model, **arguments):
        output = original(model, **arguments)
        lengths.append(output.shape[1] - arguments["input_ids"].shape[1])
        return output

    monkeypatch.setattr(type(lm.model), "generate", generate)
    written = metrics.greedy.continuations(
        lm.model, tokenizer, [edit.prompt for edit in edits], 50, decided=lambda _, tokens: len(tokens) >= 2
    )
    assert lengths == [2]
    assert {len(tokens) for tokens in written} <= {1, 2}


def test_tokens_that_are_known_change_no_score(taught_lm, edits):
    batch = encode_evaluation(taught_lm, edits)
    choices = greedy_tokens(taught_lm, batch.prompts)
    for judge in (metrics.generation, generation_prefix, metrics.teacher_forced):
        assert judge(taught_lm, batch, choices=choices).percentages() == judge(taught_lm, batch).percentages()
