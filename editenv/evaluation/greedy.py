"""Greedy generation with a natural stop."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ELLIPSIS = " ..."
"""Stands at the end of a text that the model did not finish."""


def _shares(shorter: int, longer: int, limit: int, context: int) -> bool:
    """Whether a text may be continued together with a shorter one, and both as far as if they were alone."""
    return longer == shorter or longer + limit - 1 <= context


@contextmanager
def _by_first_choice_alone(model: "PreTrainedModel") -> Iterator[None]:
    """Without what else a model's folder asks for: a penalty on repetition, say, which is no greedy choice any more."""
    from transformers import GenerationConfig

    usual, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = usual


@torch.no_grad()
def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    limit: int,
    batch_size: int = 256,
    unfinished: bool = False,
) -> list[str | None]:
    """Greedy continuation of every prompt; None where the model does not stop by itself within ``limit`` tokens.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        texts: Prompts.
        limit: New tokens at most.
        batch_size: Prompts of like length that are continued together.
        unfinished: Return what there is, with an ellipsis, where the model did not stop.
    """
    encoded = tokenizer(list(texts))["input_ids"] if texts else []
    # What stands before a text is masked: any token will do.
    pad = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    written: list[str | None] = [None] * len(encoded)
    lengths = [len(encoded[i]) for i in order]
    start = 0
    while start < len(order):
        end = min(start + batch_size, len(order))
        if context is not None:
            # Texts near the end of the context have less room than the limit; those of other lengths must not share it.
            end = next(
                (e for e in range(start + 1, end) if not _shares(lengths[start], lengths[e], limit, context)), end
            )
        chunk = order[start:end]
        start = end
        width = len(encoded[chunk[-1]])
        ids = torch.full((len(chunk), width), pad)
        mask = torch.zeros(len(chunk), width, dtype=torch.long)
        for j, i in enumerate(chunk):
            ids[j, width - len(encoded[i]) :] = torch.tensor(encoded[i])
            mask[j, width - len(encoded[i]) :] = 1
        with _by_first_choice_alone(model):
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                # The last token is written, not read: it needs no room.
                max_new_tokens=limit if context is None else max(1, min(limit, context - width + 1)),
                do_sample=False,
                pad_token_id=pad,
                eos_token_id=tokenizer.eos_token_id,
            )[:, width:].cpu()
        for i, row in zip(chunk, output.tolist(), strict=True):
            if tokenizer.eos_token_id in row:
                written[i] = tokenizer.decode(row[: row.index(tokenizer.eos_token_id)]).strip()
            elif unfinished:
                written[i] = tokenizer.decode(row).strip() + ELLIPSIS
    return written
