"""Texts that begin alike in one row: the numbers of rows of their own, for fewer tokens."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BloomConfig, BloomForCausalLM

from editenv.contexts import CONTEXT, Context
from editenv.language_model.cut import Cut, CutModel
from editenv.language_model.editable_lm import EditableLM
from editenv.language_model.packing import LEAST_SHARED, can_pack, longest_row, packs_of

LAST, EARLIER = "layers.2.mlp.down_proj", "layers.1.mlp.down_proj"


def tokens(count, seed):
    return torch.randint(3, 60, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@given(
    st.dictionaries(
        st.lists(st.integers(0, 1), min_size=LEAST_SHARED, max_size=LEAST_SHARED + 3).map(tuple),
        st.integers(0, LEAST_SHARED + 3),
        max_size=12,
    ),
    st.integers(1, 40),
)
def test_each_pack_is_whole_texts_that_share_their_beginning(shared, longest):
    packs = packs_of(shared, longest)
    texts = [(*pack.shared, *own) for pack in packs for own in pack.own]
    assert len(texts) == len(set(texts))
    assert set(texts) <= set(shared)
    for pack in packs:
        assert len(pack) <= longest
        assert len(pack.own) > 1
        assert all(own for own in pack.own)
        assert {shared[(*pack.shared, *own)] for own in pack.own} == {len(pack.shared)}


@pytest.mark.parametrize("modules", [(LAST,), (EARLIER, LAST)])
def test_packed_prompts_are_what_they_are_by_themselves(make_lm, modules, monkeypatch):
    lm = make_lm(*modules)
    one, other = tokens(12, 0), tokens(15, 1)
    heads = [one + tokens(5, 2), one + tokens(3, 3), tokens(4, 4), other + tokens(2, 5), other + tokens(7, 6), one]
    pairs = [(head, tokens(1 + i % 3, 7 + i)) for i, head in enumerate(heads)]
    expected = lm.logits(lm.encode_tokens(pairs, reuse=False))
    assert lm._can_pack
    sizes = []

    def counted(model, ids, run=CutModel.frozen_output, **options):
        sizes.append((ids.numel(), "attention_mask" in options))
        return run(model, ids, **options)

    monkeypatch.setattr(CutModel, "frozen_output", counted)
    logits = lm.logits(lm.encode_tokens(pairs, reuse=False, shared=[12, 12, 0, 15, 15, 12]))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert any(packed for _, packed in sizes)


def test_questions_about_the_same_edit_run_its_text_once(make_lm, monkeypatch):
    lm = make_lm(LAST)
    text = "It is a fact that the home of Ada is in Rome, as everybody knows who has been there.\n"
    questions = ["The home of Ada is", "Where is the home of Ada? It is", "Bo lives in"]
    prompts = lm.encode(questions, ["Rome", "Rome", "Oslo"])
    lm.apply({CONTEXT: Context({"home of Ada": text})})
    run = []
    original = CutModel.frozen_output

    def counted(model, ids, **options):
        run.append(ids.numel())
        return original(model, ids, **options)

    assert lm._can_pack
    monkeypatch.setattr(CutModel, "frozen_output", counted)
    longer = lm.in_context(prompts)
    sizes = [len(ids) for _, ids in longer.tokens[:2]]
    shared = len(lm.tokenizer(text, add_special_tokens=False)["input_ids"])
    assert run == [sum(sizes) - shared] or run == [sum(sizes) - shared - 1], (
        "a token of the beginning is shared as well"
    )


def test_layers_that_take_no_positions_are_given_rows_of_their_own():
    config = BloomConfig(vocab_size=64, hidden_size=32, n_layer=3, n_head=4)
    torch.manual_seed(0)
    model = BloomForCausalLM(config).eval()
    shapes = {"transformer.h.2.mlp.dense_4h_to_h": (128, 32)}
    assert not can_pack(CutModel(model, shapes, Cut.LAYERS))
    assert not can_pack(CutModel(model, shapes, Cut.WHOLE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_of_large_numbers_hides_no_wrong_one(base, monkeypatch, dtype):
    """Trained models have one in many texts, the first, whose hidden states are a thousand times the others'."""
    model = copy.deepcopy(base).to(dtype)
    embeddings = model.get_input_embeddings().weight
    first = torch.randint(0, len(embeddings), (1,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embeddings[first] *= 1000
    cut_model = CutModel(model, {f"model.{LAST}": (64, 32)}, Cut.LAYERS)
    assert can_pack(cut_model)
    run = cut_model.frozen_output
    monkeypatch.setattr(cut_model, "frozen_output", lambda ids, position_ids=None, **options: run(ids, **options))
    assert not can_pack(cut_model), "as if positions were no argument of the model's"


def test_no_row_is_longer_than_what_layers_look_back(base, tokenizer, monkeypatch):
    lm = EditableLM(base, tokenizer, [LAST])
    assert longest_row(lm.cut_model) == 256
    monkeypatch.setattr(lm.model.config, "sliding_window", 20, raising=False)
    assert longest_row(lm.cut_model) == 20
