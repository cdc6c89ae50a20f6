"""Greedy generation with a natural stop."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from editenv.contexts import generate_with_context
from editenv.language_model.prompts import asked

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ELLIPSIS = " ..."
"""Stands at the end of a text that the model did not finish."""

MIN_BATCH = 16
"""Prompts that are continued together whatever padding they need."""


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
    written: list[str | None] = []
    for tokens in continuations(model, tokenizer, texts, limit, batch_size):
        if tokenizer.eos_token_id in tokens:
            written.append(tokenizer.decode(tokens[: tokens.index(tokenizer.eos_token_id)]).strip())
        else:
            written.append(tokenizer.decode(tokens).strip() + ELLIPSIS if unfinished else None)
    return written


@torch.no_grad()
def continuations(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    limit: int,
    batch_size: int = 256,
    decided: Callable[[int, list[int]], bool] | None = None,
) -> list[list[int]]:
    """The tokens of each prompt's greedy continuation, up to and including an end-of-sequence token.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        texts: Prompts.
        limit: New tokens at most.
        batch_size: Prompts of like length that are continued together.
        decided: Given a prompt's number and its new tokens so far, whether enough is known: generation stops there.
    """
    prompts: list[list[int]] = tokenizer([asked(text) for text in texts])["input_ids"] if texts else []
    # What stands before a prompt is masked: any token will do.
    pad = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    written: list[list[int]] = [[] for _ in prompts]
    for rows in _batches([len(prompt) for prompt in prompts], batch_size, limit, context):
        width = len(prompts[rows[-1]])
        ids = torch.full((len(rows), width), pad)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for row, i in enumerate(rows):
            ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, width - len(prompts[i]) :] = 1
        with _default_generation_config(model):
            batch = generate_with_context(
                model,
                tokenizer,
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                # The last token is written, not read: it needs no room.
                max_new_tokens=limit if context is None else max(1, min(limit, context - width + 1)),
                do_sample=False,
                pad_token_id=pad,
                eos_token_id=tokenizer.eos_token_id,
                stopping_criteria=None if decided is None else [_stop_when(decided, rows, width)],
            )[:, width:].tolist()
        for i, tokens in zip(rows, batch, strict=True):
            # What follows where a prompt stopped before others is padding.
            ends = next(
                (
                    n
                    for n in range(1, len(tokens))
                    if tokens[n - 1] == tokenizer.eos_token_id or (decided is not None and decided(i, tokens[:n]))
                ),
                len(tokens),
            )
            written[i] = tokens[:ends]
    return written


def _stop_when(
    decided: Callable[[int, list[int]], bool], rows: Sequence[int], width: int
) -> Callable[..., torch.Tensor]:
    """What transformers asks after each token: which rows need no more."""

    def stop(input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        new = input_ids[:, width:].tolist()
        return torch.tensor([decided(i, tokens) for i, tokens in zip(rows, new, strict=True)], device=input_ids.device)

    return stop


def _batches(lengths: Sequence[int], batch_size: int, limit: int, context: int | None) -> Iterator[list[int]]:
    """Which prompts are continued together, in order of their lengths.

    A batch ends where its shortest prompt would be a fifth padding, once it is large enough to be run well.
    A prompt near the end of the model's context has less room than the limit, and a shorter one, which has more, must
    not share it: each is continued as far as if it were alone.

    Args:
        lengths: Tokens of each prompt.
        batch_size: Prompts continued together at most.
        limit: New tokens at most.
        context: Tokens that the model can read, if that is limited.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    batch: list[int] = []
    for i in order:
        if batch:
            same_length = lengths[i] == lengths[batch[0]]
            has_room = context is None or lengths[i] + limit - 1 <= context
            mostly_padding = len(batch) >= MIN_BATCH and lengths[i] > 1.25 * lengths[batch[0]]
            if len(batch) == batch_size or mostly_padding or not (same_length or has_room):
                yield batch
                batch = []
        batch.append(i)
    if batch:
        yield batch


@contextmanager
def _default_generation_config(model: "PreTrainedModel") -> Iterator[None]:
    """Without what else a model's folder asks for: a penalty on repetition, say, which is no greedy choice any more."""
    from transformers import GenerationConfig

    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
