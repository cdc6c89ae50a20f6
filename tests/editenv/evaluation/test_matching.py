import copy
import unicodedata
from functools import cache

import pytest
from plain import greedy, tokens
from tokenizers import normalizers

from editenv.evaluation import matching, metrics
from editenv.evaluation.matching import GreedyMatcher, Verdict, generate_from_guesses


@pytest.fixture
def prompts(edits):
    return [e.prompt for e in edits] + [text for e in edits for text in e.rephrases]


def variants(written):
    """Targets for what was written: the text, a part of it, more of it, another, and unfinished ones."""
    return (
        written,
        [f"{text} {text}" for text in written],
        [text[:-1] for text in written],
        [text.removesuffix(" ...") for text in written],
        written[::-1],
        [None] * len(written),
    )


@pytest.fixture(scope="module")
def greedily():
    """Greedy generation token by token, each text once."""
    return cache(greedy)


@pytest.mark.parametrize(
    ("limit", "batch_size", "encode"), [(2, 256, True), (3, 256, False), (9, 256, True), (9, 256, False), (9, 4, True)]
)
def test_a_match_is_what_is_written(
    greedily, make_lm, base, tokenizer, prompts, taught_lm, taught, limit, batch_size, encode
):
    """A model that stops and one that does not, against greedy generation token by token."""
    for lm, plain in ((taught_lm, taught), (make_lm(), base)):
        finished = [greedily(plain, tokenizer, text, limit) for text in prompts]
        written = metrics.generate(lm, prompts, limit, unfinished=True)
        assert finished == [text if text and not text.endswith(" ...") else None for text in written]
        for unfinished, texts in ((False, finished), (True, written)):
            for targets in variants(written):
                encoded = lm.encode(prompts, [text or "" for text in targets]) if encode else None
                matches = GreedyMatcher(lm, limit, batch_size, unfinished).matches(prompts, targets, encoded)
                assert matches.tolist() == [a == b is not None for a, b in zip(texts, targets, strict=True)]
        for guesses in ([text or "" for text in finished], written[::-1]):
            encoded = lm.encode(prompts, guesses) if encode else None
            assert generate_from_guesses(lm, prompts, guesses, limit, encoded) == written


@pytest.mark.parametrize("limit", [3, 9])
def test_verdicts_are_right_where_they_decide(make_lm, prompts, taught_lm, limit):
    verdicts = set()
    for lm in (taught_lm, make_lm()):
        written = metrics.generate(lm, prompts, limit, unfinished=True)
        for targets in variants(written):
            comparisons = GreedyMatcher(lm, limit, unfinished=True).compare(prompts, targets)
            for text, target, comparison in zip(written, targets, comparisons, strict=True):
                verdicts.add(comparison.verdict)
                if comparison.verdict is not Verdict.UNDECIDED:
                    assert (comparison.verdict is Verdict.MATCH) == (text == target)
                if comparison.beginning is not None:
                    assert comparison.verdict is Verdict.DIFFERS
                    assert text.startswith(comparison.beginning.rstrip("\ufffd"))
    assert verdicts == set(Verdict)


def test_the_text_counts_whatever_tokens_it_is_in(taught_lm, tokenizer, edits, monkeypatch):
    """Forced to spell, the model would begin otherwise: what it writes decides, and that is the same text."""

    def spelled(texts):
        letters = [
            tokenizer([f" {answer[:1]}", *answer[1:]], add_special_tokens=False)["input_ids"] for _, answer in texts
        ]
        heads = tokenizer([prompt for prompt, _ in texts])["input_ids"]
        return [(head, [token for part in row for token in part]) for head, row in zip(heads, letters, strict=True)]

    prompts, targets = [e.prompt for e in edits], [e.target for e in edits]
    matcher = GreedyMatcher(taught_lm, 9)
    expected = matcher.matches(prompts, targets)
    assert set(expected) == {True, False}
    monkeypatch.setattr(taught_lm, "_tokens_of", spelled)
    labels = taught_lm.encode(prompts, targets).labels
    assert len(labels) > sum(len(tokens(tokenizer, "", text)[1]) for text in targets)
    assert matcher.matches(prompts, targets).tolist() == expected.tolist()


def test_nothing_is_generated_where_the_greedy_tokens_decide(taught_lm, prompts, edits, monkeypatch):
    generated_for = []

    def continuations(model, tokenizer, texts, limit, decided):
        generated_for.extend(texts)
        return [[] for _ in texts]

    monkeypatch.setattr(matching, "continuations", continuations)
    matcher, written = GreedyMatcher(taught_lm, 16), [e.target for e in edits[:5]]
    assert matcher.matches(prompts[:5], written).all()
    assert written[0] == "Rome"  # and not in a first token of nothing but white space, which would decide nothing
    assert not matcher.matches(prompts[:1], ["Nowhere at all"]).any()
    assert generated_for == []
    assert not GreedyMatcher(taught_lm, 1).matches(prompts[:1], written[:1]).any()  # the limit comes before the end
    assert generated_for == []


def test_nothing_is_generated_where_the_limit_comes_first(taught_lm, prompts, monkeypatch):
    """What the model has not ended by then is known from its greedy tokens; another text is, too."""
    limit = 2
    texts = metrics.generate(taught_lm, prompts, limit, unfinished=True)
    unended = [i for i, text in enumerate(texts[:5]) if text.endswith(" ...")]
    assert unended
    monkeypatch.setattr(matching, "generate", lambda model, tokenizer, texts, *_, **__: [None] * len(texts))
    for end, expected in (("", True), ("~", False)):
        targets = [f"{texts[i].removesuffix(' ...')}{end} ..." for i in unended]
        matcher = GreedyMatcher(taught_lm, limit, unfinished=True)
        assert (matcher.matches([prompts[i] for i in unended], targets) == expected).all()


def test_without_an_end_of_sequence_nothing_matches(taught_lm, edits, monkeypatch):
    endless = copy.deepcopy(taught_lm.tokenizer)
    endless.eos_token = None
    monkeypatch.setattr(taught_lm, "tokenizer", endless)
    assert not GreedyMatcher(taught_lm, 9).matches([edits[1].prompt], [edits[1].target]).any()


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_right_answer_is_right_in_every_normal_form(taught_lm, edits, monkeypatch, forms):
    """The file has one form, the tokenizer writes the other."""
    text, target = (unicodedata.normalize(form, "Zo\u00eb M\u00fcller") for form in forms)
    prompts = [edit.prompt for edit in edits[:2]]
    ids = taught_lm.tokenizer(f" {text}", add_special_tokens=False)["input_ids"]

    def says(self, prompts):
        return (([*ids, taught_lm.eos_token], False) for _ in range(len(prompts)))

    monkeypatch.setattr(GreedyMatcher, "_certain_tokens", says)
    matcher = GreedyMatcher(taught_lm, 32)
    assert matcher.matches(prompts, [target, target.replace("M", "N")]).tolist() == [True, False]
    for end in range(1, len(ids)):
        verdict = matcher._verdict(ids[:end], target)
        assert verdict is Verdict.UNDECIDED, taught_lm.tokenizer.decode(ids[:end])


def test_compatibility_characters_are_compared_as_the_tokenizer_writes_them(tokenizer):
    assert matching.normal_form(tokenizer) == "NFC"
    rewriting = copy.deepcopy(tokenizer)
    rewriting.backend_tokenizer.normalizer = normalizers.NFKC()
    assert matching.normal_form(rewriting) == "NFKC"
