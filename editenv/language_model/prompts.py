"""Prompts with their answers, as a model sees them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING

import torch
from torch import nn

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
    """

    pieces: Sequence[torch.Tensor]
    starts: torch.Tensor | None
    labels: torch.Tensor
    lengths: torch.Tensor

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
        )

    def groups_of_like_length(self, overhead: int) -> list[torch.Tensor]:
        """Which prompts are run together, so that all of them cost least: one ``(B,)`` bool for each group.

        Together, the prompts of a group cost as many tokens as if all were as long as the longest, the others being
        padded, and each group costs a forward more. The groups of the smallest sum follow from those of all shorter
        prompts (dynamic programming over the distinct lengths).

        Args:
            overhead: What a forward costs besides its tokens, in tokens.
        """
        if self.starts is None or not self.pieces:  # no padding
            return [torch.ones(len(self), dtype=torch.bool)]
        sizes = torch.tensor([len(piece) for piece in self.pieces])
        lengths, counts = sizes.unique(return_counts=True)
        up_to = [0, *counts.cumsum(0).tolist()]
        costs, firsts = [0], [0]
        for end in range(1, len(lengths) + 1):
            widest = int(lengths[end - 1])
            options = [costs[first] + overhead + widest * (up_to[end] - up_to[first]) for first in range(end)]
            firsts.append(min(range(end), key=options.__getitem__))
            costs.append(options[firsts[-1]])
        groups = []
        end = len(lengths)
        while end:
            first = firsts[end]
            groups.append((lengths[first] <= sizes) & (sizes <= lengths[end - 1]))
            end = first
        return groups

    @staticmethod
    def join(parts: "Sequence[Prompts]") -> "Prompts":
        """One set out of several of the same model."""
        starts = [part.starts for part in parts if part.starts is not None]
        return Prompts(
            pieces=[piece for part in parts for piece in part.pieces],
            starts=torch.cat(starts) if starts else None,
            labels=torch.cat([part.labels for part in parts]),
            lengths=torch.cat([part.lengths for part in parts]),
        )


def answer_ids(tokenizer: "PreTrainedTokenizerBase", answers: Sequence[str]) -> list[list[int]]:
    """Token ids of each answer as it follows a prompt, with a space between."""
    space = "" if _adds_a_space(tokenizer) else " "
    ids: list[list[int]] = tokenizer([space + answer for answer in answers], add_special_tokens=False)["input_ids"]
    return ids


def _adds_a_space(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a text by itself is tokenized as if a space stood before it (Llama 2, Mistral): one of our own would be a
    second one.
    """
    both, first, second, spaced = tokenizer(["A B", "A", "B", " B"], add_special_tokens=False)["input_ids"]
    return both == first + second and second != spaced
