"""Texts that begin alike, in one row: what they share is run once, and none sees what is another's own.

Questions that are asked with the same context share its text, which is mostly longer than they are. A row is the text,
then the first question with its answer, then the second; a mask lets each token see the text and its own question's
tokens before it, and positions go on from the text's end in each. Whether a model's layers take such masks and
positions is not assumed but checked, against rows of their own (:func:`can_pack`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from editenv.language_model.cut import Cut, CutModel

LEAST_SHARED = 8
"""Tokens: of fewer, a row of its own costs as little."""

LONGEST_ROW = 512
"""Tokens of a row of several texts, as far as that goes: attention in it is computed between all of them."""

Text = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pack:
    """One row.

    Attributes:
        shared: Tokens with which all of its texts begin.
        own: What follows in each, one token at least.
    """

    shared: Text
    own: tuple[Text, ...]

    def __len__(self) -> int:
        return len(self.shared) + sum(map(len, self.own))


def packs_of(shared: Mapping[Text, int], longest: int = LONGEST_ROW) -> list[Pack]:
    """Texts that share so much of their beginnings with another one, put together.

    Args:
        shared: Of each text how many of its first tokens others may begin with, too.
        longest: Tokens of a row at most, if it is more than one text.
    """
    alike: dict[Text, list[Text]] = {}
    for text, count in shared.items():
        if LEAST_SHARED <= count < len(text):
            alike.setdefault(text[:count], []).append(text[count:])
    packs = []
    for beginning, rests in alike.items():
        rows: list[list[Text]] = [[]]
        for rest in rests:
            if len(beginning) + sum(map(len, rows[-1])) + len(rest) > longest:
                rows.append([])
            rows[-1].append(rest)
        packs += [Pack(beginning, tuple(row)) for row in rows if len(row) > 1]
    return packs


def run_packs(cut_model: CutModel, packs: Sequence[Pack]) -> Iterator[tuple[Text, torch.Tensor]]:
    """Each text with its hidden states at the cut, ``(tokens, d)``; all packs in one forward."""
    width = max(map(len, packs))
    ids = torch.zeros(len(packs), width, dtype=torch.long)
    position = torch.arange(width).repeat(len(packs), 1)
    part = torch.full((len(packs), width), -1)  # 0: what is shared; then the texts; -1: padding
    for row, pack in enumerate(packs):
        start = len(pack.shared)
        ids[row, :start], part[row, :start] = torch.tensor(pack.shared), 0
        for number, own in enumerate(pack.own, start=1):
            end = start + len(own)
            ids[row, start:end], part[row, start:end] = torch.tensor(own), number
            position[row, start:end] = torch.arange(len(pack.shared), len(pack.shared) + len(own))
            start = end
    seen = (part[:, None] == part[:, :, None]) | (part[:, None] == 0)
    seen &= torch.ones(width, width, dtype=torch.bool).tril()
    dtype = cut_model.model.dtype
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
    device = cut_model.device
    options = {"attention_mask": mask.to(device), "position_ids": position.to(device)}
    hidden = cut_model.frozen_output(ids.to(device), **options)
    for row, pack in enumerate(packs):
        start = len(pack.shared)
        for own in pack.own:
            own_rows = hidden[row, start : start + len(own)]
            yield (*pack.shared, *own), torch.cat([hidden[row, : len(pack.shared)], own_rows])
            start += len(own)


@torch.no_grad()
def can_pack(cut_model: CutModel) -> bool:
    """Whether packed texts come out as by themselves, on a few random tokens.

    Not so where positions are no argument of the model's (ALiBi), or where layers keep a state in the place of attention
    (Mamba), or do not take a mask (flash attention); these fail in ways of their own, which come to the same. Where
    nothing is frozen there is nothing to run.
    """
    if cut_model.cut is Cut.WHOLE:
        return False
    generator = torch.Generator().manual_seed(0)
    vocabulary = cut_model.model.get_input_embeddings().weight.shape[0]
    tokens = torch.randint(0, vocabulary, (17,), generator=generator).tolist()
    pack = Pack(tuple(tokens[:8]), (tuple(tokens[8:10]), tuple(tokens[10:14]), tuple(tokens[14:])))
    try:
        packed = list(run_packs(cut_model, [pack]))
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return False
    # Rounding makes 2% of it in bfloat16 over 30 layers; wrong positions a third, and a wrong mask more.
    tolerance = 1e-4 if cut_model.model.dtype == torch.float32 else 0.1
    for text, hidden in packed:
        alone = cut_model.frozen_output(torch.tensor([text], device=cut_model.device))[0]
        # Token by token: the first of a text may have numbers a thousand times those of the others.
        off, size = (vectors.float().norm(dim=-1) for vectors in (hidden - alone, alone))
        if not bool((off <= tolerance * size).all()):
            return False
    return True


def longest_row(cut_model: CutModel) -> int:
    """Tokens of a row at most: layers that see the last so many tokens alone are given no mask of that here."""
    config = cut_model.model.config.get_text_config()
    windows = (getattr(config, name, None) for name in ("sliding_window", "max_position_embeddings"))
    return min([LONGEST_ROW, *(window for window in windows if window)])
