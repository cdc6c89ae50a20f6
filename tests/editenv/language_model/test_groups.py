"""Prompts run in groups of like length: the cheapest groups, and the same numbers as one by one."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editenv.language_model import editable_lm
from editenv.language_model.cut import CutModel
from editenv.language_model.prompts import Prompts


def prompts_of(sizes):
    ones = torch.ones(len(sizes), dtype=torch.long)
    return Prompts([torch.zeros(size, 2) for size in sizes], torch.tensor(sizes) - 1, 0 * ones, ones, [])


def cost(groups, sizes, overhead):
    return sum(overhead + max(group) * len(group) for group in groups)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 60))
def test_no_other_groups_of_like_length_cost_less(sizes, overhead):
    groups = [torch.tensor(sizes)[chosen].tolist() for chosen in prompts_of(sizes).groups_of_like_length(overhead)]
    assert sorted(size for group in groups for size in group) == sorted(sizes)
    ordered = sorted(sizes)
    splits = [cuts for n in range(len(ordered)) for cuts in combinations(range(1, len(ordered)), n)]
    best = min(
        cost([ordered[a:b] for a, b in zip((0, *cuts), (*cuts, len(ordered)), strict=True)], ordered, overhead)
        for cuts in splits
    )
    assert cost(groups, sizes, overhead) == best


@pytest.mark.parametrize("modules", [["layers.0.mlp.down_proj", "layers.1.mlp.down_proj"], ["layers.1.mlp.down_proj"]])
@pytest.mark.parametrize("observed_tokens", ["answers", "all"])
def test_groups_change_no_number(make_lm, edits, monkeypatch, modules, observed_tokens):
    """One forward a prompt, groups, and all prompts at once: the same logits and factors, in the same order."""
    texts = [edit.prompt for edit in edits] + [text for edit in edits for text in edit.rephrases]
    answers = [edit.target for edit in edits] + [edit.target for edit in edits for _ in edit.rephrases]
    lm = make_lm(*modules)
    results = []
    for overhead in (0, 12, 10**6):
        monkeypatch.setattr(editable_lm, "FORWARD_OVERHEAD", {"cpu": overhead})
        prompts = lm.encode(texts, answers)
        results.append((lm.logits(prompts), *lm.gradients(prompts, lambda x: x.logsumexp(-1).sum(), observed_tokens)))
    assert len(prompts.groups_of_like_length(0)) > len(prompts.groups_of_like_length(12)) > 1
    logits, loss, gradients = results[-1]
    for other_logits, other_loss, other in results[:-1]:
        torch.testing.assert_close(other_logits, logits)
        torch.testing.assert_close(other_loss, loss)
        for name, gradient in gradients.items():
            torch.testing.assert_close(other[name].keys, gradient.keys)
            torch.testing.assert_close(other[name].value_grads, gradient.value_grads, rtol=1e-4, atol=1e-6)


def test_the_frozen_layers_are_not_run_over_padding(make_lm, monkeypatch):
    """Thirty short prompts and a long one are two forwards; by themselves they are the same numbers."""
    lm = make_lm("layers.2.mlp.down_proj")
    shapes = []

    def counted(model, ids, run=CutModel.frozen_output):
        shapes.append(tuple(ids.shape))
        return run(model, ids)

    monkeypatch.setattr(CutModel, "frozen_output", counted)
    pairs = [([5, 6, i], [7]) for i in range(30)] + [([8] * 40, [9])]
    prompts = lm.encode_tokens(pairs)
    assert sorted(shapes) == [(1, 40), (30, 3)]
    for piece, pair in zip(prompts.pieces, pairs, strict=True):
        torch.testing.assert_close(piece, lm.encode_tokens([pair], reuse=False).pieces[0])
