"""Prompts with their answers, as a model sees them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING

import torch
from torch import nn

from editenv.data.text import joined
from editenv.language_model.activation_cache import CacheKey

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(slots=True)
class Prompts:
    """Prompts with their answers, run through the frozen part of the model.

    ``B`` prompts of at most ``T`` tokens have ``A`` answer tokens altogether. What the frozen part made of a prompt is
    the very tensor of the cache (:class:`editenv.language_model.activation_cache.ActivationCache`): however many sets
    a prompt is in, there is one copy of it. The pieces are put together, in :attr:`hidden`, only for as long as a
    forward takes.

    Attributes:
        pieces: ``B`` tensors, ``(tokens, d)``: of all tokens, or of those before an answer token.
        starts: ``(B,)`` the row of each piece that predicts the first answer token; None if there are no other rows.
        labels: ``(A,)`` the answer tokens.
        lengths: ``(B,)`` answer tokens per prompt.
        tokens: Of each of the ``B`` prompts with its answer how many tokens are the prompt's, and those that are read: all
            but the last.
        with_text: ``(B,)`` bool: which are asked with a text of the model's context before them; None if none is.
    """

    pieces: Sequence[torch.Tensor]
    starts: torch.Tensor | None
    labels: torch.Tensor
    lengths: torch.Tensor
    tokens: Sequence[CacheKey]
    with_text: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def prompt_index(self) -> torch.Tensor:
        """``(A,)`` the prompt each answer token belongs to."""
        return torch.arange(len(self), device=self.lengths.device).repeat_interleave(self.lengths)

    @property
    def hidden(self) -> torch.Tensor:
        """``(A, 1, d)`` if only answer positions are kept (``(A, 1, d + d_in)`` if the edited module's inputs are,
        too), otherwise ``(B, T, d)``, right-padded; a copy. Of a model that is run whole, token ids, ``(B, T, 1)``.
        """
        if not self.pieces:
            return torch.zeros(0, 1, 0, device=self.labels.device)
        if self.starts is None:
            return torch.cat(list(self.pieces))[:, None]
        return nn.utils.rnn.pad_sequence(list(self.pieces), batch_first=True)

    @property
    def rows(self) -> torch.Tensor:
        """``(A,)`` the row of :attr:`hidden` in which the token before each answer token lies."""
        return (
            self.prompt_index if self.starts is not None else torch.arange(len(self.labels), device=self.labels.device)
        )

    @property
    def columns(self) -> torch.Tensor:
        """``(A,)`` the column of :attr:`hidden` in which it lies."""
        if self.starts is None:
            return torch.zeros_like(self.labels)
        # Token k of a prompt's answer is predicted k columns after the prompt's start.
        answer_token = torch.arange(len(self.labels), device=self.labels.device)
        first_answer_token = self.lengths.cumsum(0) - self.lengths
        return answer_token + (self.starts - first_answer_token).repeat_interleave(self.lengths)

    def as_hidden(self, vectors: torch.Tensor) -> torch.Tensor:
        """What a module was given or gave for these prompts, with the rows and columns of :attr:`hidden`.

        Some models (OPT, mixtures of experts) give their MLPs all tokens of a batch in one dimension.
        """
        rows = len(self.labels) if self.starts is None else len(self)
        return vectors.reshape(rows, -1, vectors.shape[-1])

    def select(self, chosen: torch.Tensor) -> "Prompts":
        """Some of the prompts, in the order they have here.

        Args:
            chosen: ``(B,)`` bool.
        """
        return Prompts(
            pieces=list(compress(self.pieces, chosen.tolist())),
            starts=None if self.starts is None else self.starts[chosen],
            labels=self.labels[chosen.repeat_interleave(self.lengths)],
            lengths=self.lengths[chosen],
            tokens=list(compress(self.tokens, chosen.tolist())),
            with_text=None if self.with_text is None else self.with_text[chosen.to(self.with_text.device)],
        )

    def until(self, last: torch.Tensor) -> "Prompts":
        """The prompts up to one token of each, asked for one token after it.

        Args:
            last: ``(B,)`` column of that token.
        """
        ends = [column + 1 for column in last.tolist()]
        return Prompts(
            pieces=[piece[:end] for piece, end in zip(self.pieces, ends, strict=True)],
            starts=last,
            labels=torch.zeros_like(last),
            lengths=torch.ones_like(last),
            tokens=[(end, ids[:end]) for (_, ids), end in zip(self.tokens, ends, strict=True)],
            with_text=self.with_text,
        )

    def groups_of_like_length(self, overhead: int) -> list[torch.Tensor]:
        """Which prompts are run together, so that all of them cost least: one ``(B,)`` bool for each group.

        Args:
            overhead: As :func:`ranges_of_length` takes it.
        """
        if self.starts is None or not self.pieces:  # no padding
            return [torch.ones_like(self.lengths, dtype=torch.bool)]
        sizes = torch.tensor([len(piece) for piece in self.pieces])
        ranges = ranges_of_length(sizes, overhead)
        return [((low <= sizes) & (sizes <= high)).to(self.lengths.device) for low, high in ranges]

    @staticmethod
    def join(parts: "Sequence[Prompts]") -> "Prompts":
        """One set out of several of the same model."""
        starts = [part.starts for part in parts if part.starts is not None]
        without = [torch.zeros(len(part), dtype=torch.bool) for part in parts]
        with_text = [no if part.with_text is None else part.with_text for no, part in zip(without, parts, strict=True)]
        return Prompts(
            pieces=[piece for part in parts for piece in part.pieces],
            starts=torch.cat(starts) if starts else None,
            labels=torch.cat([part.labels for part in parts]),
            lengths=torch.cat([part.lengths for part in parts]),
            tokens=[tokens for part in parts for tokens in part.tokens],
            with_text=torch.cat(with_text) if any(part.with_text is not None for part in parts) else None,
        )


def ranges_of_length(sizes: torch.Tensor, overhead: int) -> list[tuple[int, int]]:
    """The shortest and the longest of each group of texts that are run together, so that all of them cost least.

    Together, the texts of a group cost as many tokens as if all were as long as the longest, the others being padded,
    and each group costs a forward more. The groups of the smallest sum follow from those of all shorter texts (dynamic
    programming over the distinct lengths).

    Args:
        sizes: ``(n,)`` tokens of each text.
        overhead: What a forward costs besides its tokens, in tokens.
    """
    distinct, counts = sizes.unique(return_counts=True)
    lengths, up_to = distinct.tolist(), [0, *counts.cumsum(0).tolist()]
    costs, firsts = [0], [0]
    for end in range(1, len(lengths) + 1):
        widest = lengths[end - 1]
        options = [costs[first] + overhead + widest * (up_to[end] - up_to[first]) for first in range(end)]
        firsts.append(min(range(end), key=options.__getitem__))
        costs.append(options[firsts[-1]])
    ranges = []
    end = len(lengths)
    while end:
        first = firsts[end]
        ranges.append((lengths[first], lengths[end - 1]))
        end = first
    return ranges


def token_ids(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], answers: Sequence[str]
) -> list[tuple[list[int], list[int]]]:
    """Token ids of each prompt, and of each answer as it follows its prompt.

    Decoded one after the other they are the text of :func:`editenv.data.text.joined`. The prompt's tokens are those
    with which a model is asked (:func:`asked`). The answer's begin with what stands between the two: tokenizers have
    tokens for a space and a word, not for a word and a space, so one space at the end of a prompt goes there, too.

    That is what tokenizing the whole text gives, unless a token would reach across the border; then the tokens are
    those of the two parts, for whoever asks a model has the prompt's tokens alone (:func:`reaches_across` tells).

    Raises:
        ValueError: If the tokenizer puts a space before every text and no way around it is known.
    """
    heads: list[list[int]] = tokenizer([asked(prompt) for prompt in prompts])["input_ids"] if prompts else []
    tails = [_tail(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return list(zip(heads, _tail_ids(tokenizer, tails), strict=True))


def answer_ids(tokenizer: "PreTrainedTokenizerBase", answers: Sequence[str]) -> list[list[int]]:
    """Token ids of each answer after a word, with a space between."""
    return _tail_ids(tokenizer, [answer if answer[:1].isspace() else f" {answer}" for answer in answers])


def longest_answer(tokenizer: "PreTrainedTokenizerBase", pairs: Iterable[tuple[str, str]]) -> int:
    """Tokens of the longest answer as it follows its prompt.

    Args:
        tokenizer: The model's.
        pairs: One or more, each a prompt and its answer.
    """
    tails = {_tail(prompt, answer) for prompt, answer in pairs}
    return max(map(len, _tail_ids(tokenizer, sorted(tails))))


def asked(prompt: str) -> str:
    """The part of a prompt that is tokenized by itself: one space at its end goes with the answer."""
    return prompt.removesuffix(" ")


def reaches_across(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Whether the tokens of a prompt and its answer as one text are others than those of the two parts."""
    whole = tokenizer([joined(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)])["input_ids"]
    parts = token_ids(tokenizer, prompts, answers)
    # Some tokenizers add an end token to every text; of a prompt's own tokens nothing is left out.
    return [head + tail != ids[: len(head) + len(tail)] for (head, tail), ids in zip(parts, whole, strict=True)]


def _tail(prompt: str, answer: str) -> str:
    """What follows :func:`asked` in the joined text; before an answer of nothing, a space."""
    return joined(prompt, answer)[len(asked(prompt)) :] or " "


def _tail_ids(tokenizer: "PreTrainedTokenizerBase", tails: Sequence[str]) -> list[list[int]]:
    """Token ids of texts as they go on after others, nothing added between."""
    if not tails:
        return []
    if not _adds_a_space(tokenizer):
        ids: list[list[int]] = tokenizer(list(tails), add_special_tokens=False)["input_ids"]
        return ids
    # One space is the tokenizer's own. Where none or more are to stand, the text is read after an anchor, whose tokens
    # go.
    anchor, anchor_ids = _anchor(tokenizer)
    one_space = [tail.startswith(" ") and not tail[1:2].isspace() for tail in tails]
    texts = [tail[1:] if spaced else anchor + tail for tail, spaced in zip(tails, one_space, strict=True)]
    rows: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for i, (tail, row, spaced) in enumerate(zip(tails, rows, one_space, strict=True)):
        if spaced:
            continue
        if row[: len(anchor_ids)] != anchor_ids:
            raise ValueError(f"the tokenizer puts a space before {tail!r}, and no way around it is known")
        rows[i] = row[len(anchor_ids) :]
    return rows


def _anchor(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, list[int]]:
    """A text whose tokens are the same whatever follows it, and these tokens."""
    anchors = ("\n", "\t", "(", "0")
    rows: list[list[int]] = tokenizer(list(anchors), add_special_tokens=False)["input_ids"]
    followed: list[list[int]] = tokenizer([f"{anchor}A" for anchor in anchors], add_special_tokens=False)["input_ids"]
    for anchor, row, more in zip(anchors, rows, followed, strict=True):
        if len(more) > len(row) > 0 and more[: len(row)] == row and tokenizer.unk_token_id not in row:
            return anchor, row
    return anchors[0], rows[0]


def _adds_a_space(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a text by itself is tokenized as if a space stood before it (Llama 2, Mistral): one of our own would be a
    second one, and none at all takes a way around.
    """
    both, first, second = tokenizer(["A B", "A", "B"], add_special_tokens=False)["input_ids"]
    return both == first + second
