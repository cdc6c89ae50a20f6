"""``portability`` against plain generation, and against ``generation_prefix`` where both ask the same."""

import re
from dataclasses import replace

import pytest
import torch

from editenv.data import Question
from editenv.evaluation.batch import encode_evaluation
from editenv.evaluation.portability import TOKENS_WITHOUT_ANSWER, evenly_spread, portability
from editenv.evaluation.prefix import generation_prefix


@torch.no_grad()
def plain_tokens(model, tokenizer, text, limit):
    """Token by token, without a cache or a batch; up to and with the end."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    length = ids.shape[1]
    while ids.shape[1] < length + limit and (ids.shape[1] == length or ids[0, -1] != tokenizer.eos_token_id):
        ids = torch.cat([ids, model(ids).logits[0, -1].argmax().view(1, 1)], 1)
    return ids[0, length:].tolist()


def begins(model, tokenizer, prompt, answer):
    text = tokenizer.decode(plain_tokens(model, tokenizer, prompt, 20), skip_special_tokens=True).strip()
    return re.match(re.escape(answer) + r"($|[^\w])", text) is not None


def test_each_kind_is_judged_by_how_plain_generation_begins(taught_lm, taught, tokenizer, edits):
    others = [edits[i - 1].target for i in range(len(edits))]
    asked = [
        replace(edit, portability=(Question("same", edit.prompt, edit.target), Question("other", edit.prompt, other)))
        for edit, other in zip(edits, others, strict=True)
    ]
    figures = portability(taught_lm, asked)
    assert list(figures) == ["same", "other"]
    for kind, answers in (("same", [edit.target for edit in edits]), ("other", others)):
        right = [begins(taught, tokenizer, edit.prompt, answer) for edit, answer in zip(edits, answers, strict=True)]
        assert figures[kind] == {
            "right": pytest.approx(100 * sum(right) / len(right), abs=1e-3),
            "questions": len(edits),
        }
    assert figures["same"]["right"] > figures["other"]["right"]


def test_a_paraphrase_is_what_generalization_asks(taught_lm, edits):
    asked = [replace(edit, portability=tuple(Question("p", t, edit.target) for t in edit.rephrases)) for edit in edits]
    scores = generation_prefix(taught_lm, encode_evaluation(taught_lm, asked))
    counts = [len(edit.rephrases) for edit in edits]
    right = sum(n * g for n, g in zip(counts, scores.generalization, strict=True) if n)
    assert portability(taught_lm, asked) == {
        "p": {"right": pytest.approx(100 * right / sum(counts), abs=1e-3), "questions": sum(counts)}
    }


def test_without_an_answer_the_model_says_what_it_said_before(make_lm, base, tokenizer, edits):
    lm = make_lm()
    prompts = [item.prompt for edit in edits for item in edit.locality]
    asked = [replace(edit, portability=tuple(Question("else", p.prompt) for p in edit.locality)) for edit in edits]
    assert portability(lm, asked) == {"else": {"right": 100.0, "questions": len(prompts)}}
    torch.manual_seed(1)
    lm.apply({name: 0.05 * torch.randn_like(lm.weight(name)) for name in lm.modules})
    before, after = (
        [plain_tokens(model, tokenizer, prompt, TOKENS_WITHOUT_ANSWER) for prompt in prompts]
        for model in (base, lm.model)
    )
    same = [a == b for a, b in zip(before, after, strict=True)]
    assert set(same) == {True, False}
    assert portability(lm, asked)["else"]["right"] == pytest.approx(100 * sum(same) / len(same), abs=1e-3)


def test_kinds_and_edits_may_be_missing(make_lm, edits):
    assert portability(make_lm(), [replace(edit, portability=()) for edit in edits]) == {}
    one = replace(edits[0], portability=(Question("a", edits[0].prompt, "none of it"), Question("b", edits[0].prompt)))
    assert portability(make_lm(), [one, edits[1]]) == {
        "a": {"right": 0.0, "questions": 1},
        "b": {"right": 100.0, "questions": 1},
    }


def test_edits_are_drawn_from_the_whole_stream():
    assert evenly_spread(range(10), 4) == [0, 3, 6, 9]
    assert evenly_spread(range(3), 4) == [0, 1, 2]
    assert len(set(evenly_spread(range(2000), 200))) == 200
