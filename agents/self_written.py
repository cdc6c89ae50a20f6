"""Text that a model writes by itself: for statistics of ordinary text where nobody has given any."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from editenv.language_model.editable_lm import EditableLM

SELF_WRITTEN = "self-written"
"""Names it where a text is asked for."""

MOST = 256
"""Texts, whatever a method asks for: writing takes much longer than reading."""

TOKENS = 40
"""Of each text."""

TOGETHER = 64
"""Texts that are written together; so that the same ones come at every call, it is not a setting."""

BEGINNINGS = (
    "The", "A", "In", "It", "This", "He", "She", "They", "We", "I", "When", "After", "For", "There", "As", "If", "On",
    "At", "One", "Some", "Many", "Most", "Each", "People", "What", "How", "Why", "Who", "Where", "My", "Our", "Last",
    "Once", "During", "Since", "While", "Although", "Because", "To", "From", "Today", "Yesterday", "In 19", "The first",
    "The name of", "The best", "A new", "The old", "Question:", "Dear", "The history of", "According to",
)  # fmt: skip
"""How they begin, in turn: a model that is given nothing but its first token writes few kinds of text."""


def written_texts(lm: EditableLM, count: int, seed: int = 0) -> Iterator[str]:
    """Texts sampled from the model at theta_0, at its own probabilities; always the same for a seed.

    Calibrating on text of the model's own is what data-free quantization does (Liu et al. 2023, LLM-QAT, arXiv
    2305.17888).

    Args:
        lm: The model, at any weights; the caller's generators are not touched.
        count: Texts.
        seed: Of the sampling and of the beginnings' order.
    """
    beginnings = list(BEGINNINGS)
    random.Random(seed).shuffle(beginnings)
    for start in range(0, count, TOGETHER):
        chosen = [beginnings[i % len(beginnings)] for i in range(start, min(start + TOGETHER, count))]
        yield from _written(lm, chosen, seed + start)


def _written(lm: EditableLM, beginnings: list[str], seed: int) -> list[str]:
    """One text for each beginning."""
    rows: list[list[int]] = lm.tokenizer(beginnings)["input_ids"]
    own_probabilities = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "eos_token_id": lm.tokenizer.eos_token_id}
    return [text.strip() for text in sample(lm, rows, TOKENS, seed, **own_probabilities)]


@torch.no_grad()
def sample(lm: EditableLM, rows: Sequence[list[int]], tokens: int, seed: int, **options: Any) -> list[str]:
    """What the model at theta_0 writes behind these beginnings, with them; always the same for a seed.

    Args:
        lm: The model, at any weights; the caller's generators are not touched.
        rows: Token ids of the beginnings.
        tokens: New tokens of each, at most.
        seed: Of the sampling.
        **options: More of transformers' ``generate``.
    """
    pad = next((t for t in (lm.tokenizer.pad_token_id, lm.tokenizer.eos_token_id) if t is not None), 0)
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=lm.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=lm.device)
    devices = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(devices), lm.at_initial_weights():
        torch.manual_seed(seed)
        written = lm.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=True, pad_token_id=pad, **options
        )
    texts: list[str] = lm.tokenizer.batch_decode(written, skip_special_tokens=True)
    return texts
