"""AnyEdit (Jiang et al. 2025, ICML; arXiv 2502.05628): a long target is edited chunk by chunk."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from agents.baselines.alphaedit import AlphaEdit
from agents.baselines.lookup import Lookup, read_token, read_tokens
from agents.baselines.memit import MEMIT
from agents.baselines.values import EarlierChanges, ValueConfig, optimise_values
from editenv.arguments import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from editenv.data import Edit
from editenv.language_model.prompts import Prompts


@dataclass(frozen=True)
class ChunkValueConfig(ValueConfig):
    """Those of AnyEdit's public code for Llama-3-8B: at the token before a chunk, without prefixes or divergence.

    Attributes:
        token: The last token before a chunk; nothing else is offered.
        enough: Loss at which a chunk's search ends.
        prefixes: None are offered.
    """

    token: Literal["last"] = "last"
    enough: NonNegativeFloat = 1e-2
    prefixes: NonNegativeInt = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefixes:
            raise ValueError(f"prefixes: AnyEdit searches without, and was given {self.prefixes}")


class AnyEdit(MEMIT):
    """MEMIT that splits a target into chunks, and edits each at the token before it.

    Chunk after chunk, a change of the last edited layer's output at the token before the chunk is searched that makes
    the chunk likely after prompt and earlier chunks, with the changes that were found for those in place. All of them
    are written at once: with U the keys at these tokens, K_o those at all other tokens of prompts and targets, and R
    as MEMIT has it,

        D = (weight C + K_o^T K_o + U^T U)^-1 U^T R

    Needs: text for C; no subject. Precomputes: C and its inverse.

    Args:
        value: Search for the values.
        weight, samples, epsilon, cache_keys: As MEMIT has them.
        chunk: Tokens of a chunk; 40 in the public code.
    """

    def __init__(
        self,
        value: ChunkValueConfig | None = None,
        weight: PositiveFloat = 15_000.0,
        samples: PositiveInt = 100_000,
        epsilon: NonNegativeFloat = 1e-4,
        cache_keys: bool = False,
        chunk: PositiveInt = 40,
    ) -> None:
        MEMIT.__init__(self, value or ChunkValueConfig(), weight, samples, epsilon, cache_keys)
        self.chunk = chunk

    def _look_up(self, edits: Sequence[Edit]) -> Lookup:
        """Of each edit, a row for each of its chunks."""
        lm = self._env.language_model
        # A model reads an answer's last token only if one more is asked for.
        prompts = lm.encode_tokens([(head, [*tail, tail[-1]]) for head, tail in self._tokens(edits)])
        first = prompts.lengths.cumsum(0) - prompts.lengths
        asked = [
            int(first[edit]) + start
            for edit, (_, tail) in enumerate(self._tokens(edits))
            for start in range(0, len(tail), self.chunk)
        ]
        rows, columns = prompts.rows[asked], prompts.columns[asked]
        return Lookup(prompts, rows, columns, torch.arange(len(asked), device=lm.device))

    def _tokens(self, edits: Sequence[Edit]) -> list[tuple[list[int], list[int]]]:
        """Token ids of prompts and targets."""
        return self._env.language_model.tokenize([e.prompt for e in edits], [e.target for e in edits])

    def _target_output(self, edits: Sequence[Edit], lookup: Lookup) -> torch.Tensor:
        lm, layer = self._env.language_model, self._where_values_are
        tokens = self._tokens(edits)
        chunks = torch.tensor([-(-len(tail) // self.chunk) for _, tail in tokens], device=lm.device)
        first_row = chunks.cumsum(0) - chunks
        change = torch.zeros(len(lookup.owner), lm.width, device=lm.device)
        for number in range(int(chunks.max())):
            chosen = (chunks > number).nonzero()[:, 0]
            start, stop = number * self.chunk, (number + 1) * self.chunk
            prompts = lm.encode_tokens(
                [(tokens[i][0] + tokens[i][1][:start], tokens[i][1][start:stop]) for i in chosen]
            )
            earlier_rows = first_row[chosen, None] + torch.arange(number, device=lm.device)
            earlier = EarlierChanges(lookup.columns[earlier_rows], change[earlier_rows]) if number else None
            found = optimise_values(lm, layer, [edits[i] for i in chosen], _first_asked(prompts), self.value, earlier)
            change[first_row[chosen] + number] = found
        return read_token(lm, layer, lookup)[1] + change

    def _project(self, name: str, keys: torch.Tensor, lookup: Lookup) -> torch.Tensor:
        """``(P^-1 + K_o^T K_o)^-1 U^T`` by Woodbury's identity."""
        lm = self._env.language_model
        others = read_tokens(lm, lm.modules[name], lookup.prompts, *_other_tokens(lookup))[0]
        P_keys, P_others = (self._preconditioner.project(name, k) for k in (keys, others))
        gram = others @ P_others
        gram.diagonal().add_(1.0)
        return P_keys - P_others @ torch.linalg.solve(gram, others @ P_keys)


def _first_asked(prompts: Prompts) -> Lookup:
    """At the token that predicts each answer's first one."""
    first = prompts.lengths.cumsum(0) - prompts.lengths
    return Lookup(prompts, prompts.rows[first], prompts.columns[first], torch.arange(len(first), device=first.device))


def _other_tokens(lookup: Lookup) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of every token that is kept of the prompts and not looked up."""
    prompts = lookup.prompts
    if prompts.starts is None:
        is_other = torch.ones(len(prompts.labels), 1, dtype=torch.bool, device=lookup.rows.device)
    else:
        sizes = torch.tensor([len(piece) for piece in prompts.pieces], device=lookup.rows.device)
        is_other = torch.arange(int(sizes.max()), device=sizes.device) < sizes[:, None]
    is_other[lookup.rows, lookup.columns] = False
    rows, columns = is_other.nonzero().unbind(1)
    return rows, columns


class AlphaEditAnyEdit(AnyEdit, AlphaEdit):
    """The same as a plug-in to AlphaEdit: P is the projection onto the null space of the text's keys.

    Args:
        value: Search for the values.
        threshold, ridge, samples: As AlphaEdit has them.
        chunk: As :class:`AnyEdit` has it.
    """

    def __init__(
        self,
        value: ChunkValueConfig | None = None,
        threshold: PositiveFloat = 1e-2,
        ridge: PositiveFloat = 1.0,
        samples: PositiveInt = 100_000,
        chunk: PositiveInt = 40,
    ) -> None:
        AlphaEdit.__init__(self, value or ChunkValueConfig(), threshold, ridge, samples)
        self.chunk = chunk
