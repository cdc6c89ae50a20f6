"""Weights that hold only for questions with a text before them: against two plain models, in every way a model is asked."""

import copy
import json

import pytest
import torch

from editenv.contexts import CONTEXT, Context, beside, reading, rows_with_text
from editenv.delta_files import read_delta_file, write_delta_file
from editenv.identity import fingerprint
from editenv.language_model.editable_lm import EditableLM
from editenv.memories import Memory, apply, load_memories, no_memory, save_memories
from editenv.models import load_model, with_memory

LAST = "layers.2.mlp.down_proj"
EARLIER = "layers.1.mlp.down_proj"
PLACES = pytest.mark.parametrize("modules", [(LAST,), (EARLIER, LAST)], ids=["keys frozen", "two layers"])


@pytest.fixture
def context(edits):
    """Of the edits of odd numbers; rephrases do not find it."""
    return Context({edit.prompt: f"{edit.prompt} {edit.target}.\n" for edit in edits[1::2]}, threshold=0.9)


def second_weights(lm, seed=0, parts=2):
    """For each module a memory of some matrices."""
    generator = torch.Generator().manual_seed(seed)
    memories = {}
    for name in lm.modules:
        values = 0.1 * torch.randn(parts, *lm.shape(name), generator=generator)
        memories[name] = Memory("context", torch.zeros(parts, 0), values, torch.zeros(parts))
    return memories


def reader(base, memories):
    """A plain model whose weights are the sums."""
    plain = copy.deepcopy(base)
    for name, memory in memories.items():
        plain.get_submodule(name).weight.data += memory.values.sum(0).T
    return plain


def questions(edits):
    """All prompts, rephrases and locality prompts with their answers."""
    return [
        (text, edit.target) for edit in edits for text in (edit.prompt, *edit.rephrases)
    ] + [(item.prompt, item.answer) for edit in edits for item in edit.locality]  # fmt: skip


def by_plain_models(base, memories, context, tokenizer, pairs):
    """Logits at the answers, question by question: of the reader behind a text, of the base model without."""
    second, rows = reader(base, memories), []
    for prompt, answer in pairs:
        (texts,) = context.before([prompt])
        head = tokenizer("".join(texts) + prompt)["input_ids"]
        tail = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = (second if texts else base)(torch.tensor([head + tail[:-1]])).logits[0, len(head) - 1 :]
        rows.append(logits)
    return torch.cat(rows)


def test_which_rows_have_a_text_before_them():
    assert rows_with_text(4) is None
    with reading(torch.tensor([True, False])):
        assert rows_with_text(2).tolist() == [True, False]
        assert rows_with_text(6).tolist() == [True, True, True, False, False, False], "beams, or tokens"
        for rows in (0, 1, 5):  # some of the prompts, whose rows cannot be told
            with pytest.raises(ValueError, match=f"{rows} rows are not those of 2 prompts"):
                rows_with_text(rows)
        with reading(None):
            assert rows_with_text(2) is None
        with pytest.raises(KeyError), reading(torch.tensor([True])):
            raise KeyError
        assert rows_with_text(2).tolist() == [True, False]
    assert rows_with_text(2) is None


def test_the_gate_is_its_formula():
    memory = Memory("context", torch.zeros(2, 0), torch.randn(2, 4, 3), torch.zeros(2))
    assert memory.shape == (4, 3)
    x, y = torch.randn(3, 5, 4), torch.randn(3, 5, 3)
    assert apply(memory, x, y) is y
    expected = y + torch.einsum("bta,mao->bto", x, memory.values)
    for rows in ([True] * 3, [True, False, True], [False] * 3):
        chosen = torch.tensor(rows)
        with reading(chosen):
            said = apply(memory, x, y)
            flat = apply(memory, x.flatten(0, 1), y.flatten(0, 1))
        torch.testing.assert_close(said, torch.where(chosen[:, None, None], expected, y))
        assert torch.equal(flat.view(3, 5, 3), said), "some models give a module all tokens in one dimension"
        assert torch.equal(said[~chosen], y[~chosen])


@PLACES
def test_logits_are_those_of_two_plain_models(make_lm, base, tokenizer, edits, context, modules):
    lm, pairs = make_lm(*modules), questions(edits)
    memories = second_weights(lm)
    prompts = lm.encode(*map(list, zip(*pairs, strict=True)))
    lm.apply(memories | {CONTEXT: context})
    logits = lm.logits(prompts)
    told = [bool(texts) for texts in context.before([prompt for prompt, _ in pairs])]
    assert 0 < sum(told) < len(told)
    torch.testing.assert_close(logits, by_plain_models(base, memories, context, tokenizer, pairs), rtol=1e-3, atol=1e-3)
    only_text = make_lm(*modules)
    only_text.apply({CONTEXT: context})
    moved = (logits - only_text.logits(prompts)).abs().amax(-1) > 0.1
    assert moved.tolist() == [one for one, (_, answer) in zip(told, pairs, strict=True)
                              for _ in tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]]  # fmt: skip


@PLACES
def test_without_a_context_nothing_of_the_model_has_changed(make_lm, edits, modules):
    lm = make_lm(*modules)
    prompts = lm.encode(*map(list, zip(*questions(edits), strict=True)))
    before, unedited = lm.logits(prompts), fingerprint(lm)
    lm.apply(second_weights(lm))
    assert torch.equal(lm.logits(prompts), before)
    assert fingerprint(lm) != unedited, "it is part of the state"


@pytest.mark.parametrize("observed", ["all", "answers"])
def test_gradients_are_slopes(make_lm, edits, context, observed):
    """Of the loss along random directions of the weight, which all prompts have; at the last layer both are whole."""
    lm = make_lm(LAST)
    (name,) = lm.modules
    lm.apply(second_weights(lm) | {CONTEXT: context})
    prompts = lm.encode(*map(list, zip(*questions(edits), strict=True)))
    _, gradients = lm.gradients(prompts, lambda logits: logits.square().mean(), observed)
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        direction = torch.randn(lm.shape(name), generator=generator)
        values = []
        for step in (1e-3, -1e-3):
            with lm.unchanged():
                lm.apply({name: step * direction})
                values.append(float(lm.logits(prompts).double().square().mean()))
        slope = (values[0] - values[1]) / 2e-3
        assert float((gradients[name].dense() * direction).sum()) == pytest.approx(slope, rel=2e-2, abs=1e-2)


def written(model, rows, **options):
    """What plain transformers writes after prompts, one after the other."""
    found = []
    for ids in rows:
        out = type(model).generate(model, torch.tensor([ids]), max_new_tokens=6, do_sample=False, **options)
        found.append(out[:, len(ids) :].tolist())
    return found


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=["greedy", "beams"])
def test_a_saved_model_writes_what_two_plain_models_write(
    base, tokenizer, model_folder, edits, context, options, tmp_path
):
    """Questions with a text before them and others in one batch; the folder loaded by one call."""
    lm = EditableLM(base, tokenizer, [EARLIER, LAST])
    memories = second_weights(lm)
    lm.apply(memories | {CONTEXT: context})
    with_memory.write(tmp_path, lm.model, model_folder, lm.memories, lm.context)
    model, _ = load_model(str(tmp_path))
    texts = [edit.prompt for edit in edits[:4]]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    options = options | {"pad_token_id": 2, "eos_token_id": 1}
    out = model.generate(**batch, max_new_tokens=6, do_sample=False, **options)[:, batch["input_ids"].shape[1] :]
    second = reader(base, memories)
    expected = []
    for text, found in zip(texts, context.before(texts), strict=True):
        ids = tokenizer("".join(found) + text)["input_ids"]
        expected += written(second if found else base, [ids], **options)[0]
    width = max(map(len, expected))
    assert [row[:width] for row in out.tolist()] == [row + [2] * (width - len(row)) for row in expected]
    assert (
        written(second, [tokenizer(texts[0])["input_ids"]])[0] != written(base, [tokenizer(texts[0])["input_ids"]])[0]
    )
    assert json.loads((tmp_path / "base.json").read_text())["model"] == model_folder


def test_a_model_for_use_has_it_for_one_call_alone(base, tokenizer, edits, context):
    """Its plain forward afterwards is the base model's."""
    lm = EditableLM(base, tokenizer, [LAST])
    lm.apply(second_weights(lm))
    beside(lm.model, tokenizer, context)
    ids = tokenizer(edits[1].prompt, return_tensors="pt")
    lm.model.generate(**ids, max_new_tokens=2, do_sample=False, pad_token_id=2)
    with torch.no_grad():
        assert torch.equal(lm.model(**ids).logits, base(**ids).logits)


def test_files_give_it_back_and_no_memory_takes_it_away(make_lm, edits, context, tmp_path):
    lm = make_lm(EARLIER, LAST)
    prompts = lm.encode(*map(list, zip(*questions(edits), strict=True)))
    unedited = lm.logits(prompts)
    memories = second_weights(lm)
    lm.apply(memories | {CONTEXT: context})
    edited = lm.logits(prompts)
    save_memories(tmp_path / "memory.safetensors", lm.memories)
    loaded = load_memories(tmp_path / "memory.safetensors")
    write_delta_file(tmp_path / "delta.safetensors", [memories | {CONTEXT: context}], "0", "1")
    actions, _ = read_delta_file(tmp_path / "delta.safetensors")
    for action in (loaded | {CONTEXT: context}, *actions):
        lm.restore()
        lm.apply(action)
        assert torch.equal(lm.logits(prompts), edited)
    lm.apply(
        {name: no_memory(lm.shape(name)) for name in lm.modules}
        | {CONTEXT: Context(dict.fromkeys(context.entries, ""))}
    )
    assert torch.equal(lm.logits(prompts), unedited)
