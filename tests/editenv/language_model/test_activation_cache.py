import pytest
import torch
from safetensors.torch import save_file

from editenv.language_model.activation_cache import ActivationCache
from editenv.language_model.cut import CutModel
from editenv.language_model.editable_lm import EditableLM

PROMPTS = ["The capital of Tovaria is", "Who wrote this book? It was", "A"]
ANSWERS = ["Lumen City", "Ada", "long answer of some words"]
IDENTITY = {"suite": "smoke", "seed": 0}


def models(base, tokenizer, *kept):
    """One layer's projection, and two layers of which the first is not the last."""
    for modules in (["layers.2.mlp.down_proj"], ["layers.1.mlp.down_proj", "layers.2.mlp.down_proj"]):
        yield [EditableLM(base, tokenizer, modules, activation_cache=outputs) for outputs in kept]


def test_what_was_saved_takes_the_place_of_the_frozen_layers(base, tokenizer, tmp_path, monkeypatch):
    for which in range(2):
        kept, loaded = ActivationCache(), ActivationCache()
        one, other = list(models(base, tokenizer, kept, loaded))[which]
        expected = one.logits(one.encode(PROMPTS, ANSWERS))
        kept.save(tmp_path / "kept", IDENTITY)
        assert loaded.load(tmp_path / "kept", IDENTITY)
        with monkeypatch.context() as patch:
            patch.delattr(CutModel, "frozen_output")
            prompts = other.encode(PROMPTS, ANSWERS)
        assert torch.equal(other.logits(prompts), expected)


def test_a_file_of_something_else_is_not_taken(base, tokenizer, tmp_path):
    kept = ActivationCache()
    kept.save(tmp_path / "empty", IDENTITY)
    assert ActivationCache().load(tmp_path / "empty", IDENTITY)
    EditableLM(base, tokenizer, ["layers.2.mlp.down_proj"], activation_cache=kept).encode(PROMPTS, ANSWERS)
    kept.save(tmp_path / "kept", IDENTITY)
    whole = (tmp_path / "kept").read_bytes()
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text").write_text("no tensors")
    save_file({"outputs": torch.zeros(1)}, tmp_path / "foreign")
    assert not ActivationCache().load(tmp_path / "kept", IDENTITY | {"seed": 1})
    for name in ("half", "text", "foreign", "none"):
        loaded = ActivationCache()
        assert not loaded.load(tmp_path / name, IDENTITY)
        assert not loaded._outputs


def test_a_file_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        ActivationCache().save(tmp_path / "file" / "kept", IDENTITY)


def test_what_is_looked_up_is_copied_and_nothing_else(base, tokenizer):
    source, cache = ActivationCache(), ActivationCache()
    lm = EditableLM(base, tokenizer, ["layers.2.mlp.down_proj"], activation_cache=source)
    lm.encode(PROMPTS, ANSWERS)
    before = dict(source._outputs)
    lm.activation_cache = cache
    with cache.copying_from(source):
        encoded = lm.encode([PROMPTS[0], "Another"], [ANSWERS[0], "one"])
    assert len(cache._outputs) == 2
    assert set(cache.token_ids) == {(PROMPTS[0], ANSWERS[0]), ("Another", "one")}
    copied = next(piece for key, piece in cache._outputs.items() if key in before)
    assert copied.equal(next(before[key] for key in cache._outputs if key in before))
    assert copied._base is None, "not a view into what the source has of other prompts"
    assert encoded.pieces[0].equal(copied)
    assert list(source._outputs) == list(before)
    with pytest.raises(KeyError):
        cache[next(key for key in before if key not in cache)]


def test_what_the_unedited_model_writes_is_kept_with_the_outputs(tmp_path):
    kept, loaded = ActivationCache(), ActivationCache()
    kept.written = {("A", 5): "one two", ("A", 6): None, ("Ä “B”", 5): "three ..."}
    kept.save(tmp_path / "kept", IDENTITY)
    assert loaded.load(tmp_path / "kept", IDENTITY)
    assert loaded.written == kept.written


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_kept_of_a_whole_answer_is_there_for_its_beginnings(base, tokenizer, monkeypatch, which):
    """And for what follows it: an end, or the same answer with one word more."""
    kept, other = ActivationCache(), ActivationCache()
    kept.whole_answers = True
    lm, alone = list(models(base, tokenizer, kept, other))[which]
    lm.encode(PROMPTS, ANSWERS)
    asked = [
        lambda lm: lm.encode(PROMPTS, ANSWERS),
        lambda lm: lm.encode(PROMPTS, ANSWERS, append_eos=True),
        lambda lm: lm.encode_tokens([(head, tail[:1]) for head, tail in lm.tokenize(PROMPTS, ANSWERS)]),
    ]
    expected = [alone.logits(ask(alone)) for ask in asked]
    with monkeypatch.context() as patch:
        patch.delattr(CutModel, "frozen_output")
        for ask, logits in zip(asked, expected, strict=True):
            torch.testing.assert_close(lm.logits(ask(lm)), logits)
    with pytest.raises(KeyError):
        kept[1, (1, 2, 3)]


def test_what_is_dropped_is_not_there_for_its_beginnings_either():
    cache = ActivationCache(limit=3 * 4 * 2)
    cache.put({(1, (1, 2, 3)): torch.arange(6.0).view(3, 2)})
    assert torch.equal(cache[1, (1,)], torch.tensor([[0.0, 1.0]]))
    assert torch.equal(cache[1, (1, 2)], torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    cache.put({(2, (1, 4)): torch.ones(1, 2)})
    assert (2, (1, 4)) in cache
    for tokens in ((1,), (1, 2), (1, 2, 3)):
        assert (1, tokens) not in cache
    cache.clear()
    assert (2, (1, 4)) not in cache


def test_no_prompt_is_run_beyond_what_the_model_can_read(base, tokenizer, monkeypatch):
    lm = EditableLM(base, tokenizer, ["layers.2.mlp.down_proj"])
    lm.activation_cache.whole_answers = True
    head, tail = lm.tokenize(PROMPTS[:1], ANSWERS[:1])[0]
    monkeypatch.setattr(base.config, "max_position_embeddings", len(head) + len(tail) - 1)
    monkeypatch.setattr(lm.model.config, "max_position_embeddings", len(head) + len(tail) - 1)
    lm.encode(PROMPTS[:1], ANSWERS[:1])
    assert list(lm.activation_cache._outputs) == [(len(head), tuple(head + tail[:-1]))]
