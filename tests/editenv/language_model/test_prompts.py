"""A prompt's tokens and its answer's are the record's text, whatever stands between and whatever the tokenizer adds."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from editenv.data.text import joined
from editenv.language_model.prompts import answer_ids, asked, reaches_across, token_ids

PAIRS = [
    ("Who saw", "Paris"),
    ("Who saw ", "Paris"),
    ("Who saw", " Paris"),
    ("Who saw ", " Paris"),
    ("Who saw?\n", "Paris"),
    ("Who saw?\n\n", "  Paris"),
    ("Who saw", "\nParis"),
    ("a cow is $", "Paris"),
    ('Who saw "', "Paris"),
    ("\u4e2d\u56fd", "\u5317\u4eac"),
    ("\u4e2d\u56fd", " \u5317\u4eac"),
]
WORDS = ["Who", " saw", " Paris", "Paris", "saw", " is", " cow", " a", "a", "?", "$", '"', "\n"]  # none spans a space


def bytes_tokenizer():
    """Byte-level BPE, as of GPT-2, Llama-3 and Qwen."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(WORDS * 3, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)


def sentencepiece(metaspace):
    """SentencePiece's BPE, as of Llama-2 and Mistral, in the two ways that files of it have: a space is put first."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if metaspace:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    fallback = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>"], initial_alphabet=[*"\u2581WhosawPriscon"], show_progress=False
    )
    backend.train_from_iterator(["Who", "saw", "Paris", "is", "cow", "a"], trainer)
    backend.add_tokens(fallback)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=rebuilt(backend), unk_token="<unk>", clean_up_tokenization_spaces=False
    )


def rebuilt(backend):
    """The bytes in the vocabulary of the model itself, where byte fallback looks for them."""
    import json

    content = json.loads(backend.to_str())
    vocabulary = content["model"]["vocab"]
    for token in content["added_tokens"][1:]:
        vocabulary[token["content"]] = token["id"]
    content["added_tokens"] = content["added_tokens"][:1]
    return Tokenizer.from_str(json.dumps(content))


TOKENIZERS = {
    "bytes": bytes_tokenizer,
    "prepend": lambda: sentencepiece(metaspace=False),
    "metaspace": lambda: sentencepiece(metaspace=True),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(("prompt", "answer"), PAIRS)
def test_the_tokens_of_both_are_the_text(name, prompt, answer):
    tokenizer = TOKENIZERS[name]()
    ((head, tail),) = token_ids(tokenizer, [prompt], [answer])
    assert head == tokenizer(asked(prompt))["input_ids"], "what a model is asked with"
    assert tokenizer.decode(head + tail) == joined(prompt, answer)
    if not reaches_across(tokenizer, [prompt], [answer])[0]:
        assert tokenizer(joined(prompt, answer))["input_ids"] == head + tail


@pytest.mark.parametrize("name", TOKENIZERS)
def test_after_a_word_nothing_has_changed(name):
    """One space, before the answer or the tokenizer's own."""
    tokenizer = TOKENIZERS[name]()
    ((_, tail),) = token_ids(tokenizer, ["Who saw"], ["Paris"])
    assert [tail] == answer_ids(tokenizer, ["Paris"]) == answer_ids(tokenizer, [" Paris"])
    assert tokenizer.decode(tail).strip() == "Paris"
    assert not reaches_across(tokenizer, ["Who saw"], ["Paris"])[0] or name == "prepend"


def test_a_token_that_would_reach_across_is_told():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(["\u4e2d\u56fd"] * 9, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert reaches_across(tokenizer, ["\u4e2d", "a"], ["\u56fd", "b"]) == [True, False]
    ((head, tail),) = token_ids(tokenizer, ["\u4e2d"], ["\u56fd"])
    assert tokenizer.decode(head + tail) == "\u4e2d\u56fd"
