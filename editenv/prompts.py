"""Prompts with their answers, as a model sees them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(slots=True)
class Prompts:
    """Prompts with their answers, run through the frozen part of the model.

    ``B`` prompts of at most ``T`` tokens have ``A`` answer tokens altogether.

    Attributes:
        hidden: ``(A, 1, d)`` if only answer positions are kept, otherwise ``(B, T, d)``, right-padded.
        rows: ``(A,)`` the row of ``hidden`` in which the token before each answer token lies.
        columns: ``(A,)`` likewise its column.
        labels: ``(A,)`` the answer tokens.
        prompt_index: ``(A,)`` the prompt each answer token belongs to.
        lengths: ``(B,)`` answer tokens per prompt.
    """

    hidden: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    labels: torch.Tensor
    prompt_index: torch.Tensor
    lengths: torch.Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, chosen: torch.Tensor) -> "Prompts":
        """Some of the prompts, in the order they have here.

        Args:
            chosen: ``(B,)`` bool.
        """
        tokens = chosen[self.prompt_index]
        kept, rows = self.rows[tokens].unique(return_inverse=True)
        renumbered = chosen.long().cumsum(0) - 1
        return Prompts(
            hidden=self.hidden[kept],
            rows=rows,
            columns=self.columns[tokens],
            labels=self.labels[tokens],
            prompt_index=renumbered[self.prompt_index[tokens]],
            lengths=self.lengths[chosen],
        )

    @staticmethod
    def join(parts: "Sequence[Prompts]") -> "Prompts":
        """One batch out of several, padded to the longest."""
        if len(parts) == 1:
            return parts[0]
        width = max(part.hidden.shape[1] for part in parts)
        row_offset = prompt_offset = 0
        hidden, rows, prompt_index = [], [], []
        for part in parts:
            missing = width - part.hidden.shape[1]
            hidden.append(nn.functional.pad(part.hidden, (0, 0, 0, missing)) if missing else part.hidden)
            rows.append(part.rows + row_offset)
            prompt_index.append(part.prompt_index + prompt_offset)
            row_offset += part.hidden.shape[0]
            prompt_offset += len(part)
        return Prompts(
            hidden=torch.cat(hidden),
            rows=torch.cat(rows),
            columns=torch.cat([part.columns for part in parts]),
            labels=torch.cat([part.labels for part in parts]),
            prompt_index=torch.cat(prompt_index),
            lengths=torch.cat([part.lengths for part in parts]),
        )
