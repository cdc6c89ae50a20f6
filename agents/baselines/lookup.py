"""Where a fact is looked up: one token of each prompt, and what a model's modules are given and give there.

The first step of ROME (Meng et al. 2022, section 3.1) and of MEMIT (Meng et al. 2023, section 4.3), which RECT, PRUNE
and AlphaEdit take over. What should be given there is the matter of :mod:`agents.baselines.values`.
"""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from editenv.data import Edit
from editenv.language_model.editable_lm import EditableLM
from editenv.language_model.hooks import StopForward, hooked
from editenv.language_model.prompts import Prompts
from editenv.language_model.subjects import end_of_subject, token_at


@dataclass(frozen=True, slots=True)
class Lookup:
    """Some edits' prompts (each with every prefix) and the token at which each is looked up.

    Attributes:
        prompts: ``n * p`` prompts, the p of an edit one after the other; the first is the edit's own, without a prefix.
        rows: ``(n p,)`` row of ``prompts.hidden`` in which the token lies.
        columns: ``(n p,)`` likewise its column.
        owner: ``(n p,)`` the edit.
    """

    prompts: Prompts
    rows: torch.Tensor
    columns: torch.Tensor
    owner: torch.Tensor

    def edits(self, numbers: Sequence[int]) -> "Lookup":
        """Of some of the edits, in ascending order."""
        kept = torch.tensor(numbers, device=self.owner.device)
        chosen = self._select(torch.isin(self.owner, kept))
        return replace(chosen, owner=torch.searchsorted(kept, chosen.owner))

    def by_form(self) -> "list[Lookup]":
        """The ``n`` plain prompts, those with the first prefix, and so on: ``p`` lookups of one prompt an edit."""
        edits = int(self.owner[-1]) + 1
        numbers = torch.arange(len(self.owner), device=self.owner.device) % (len(self.owner) // edits)
        return [self._select(numbers == form) for form in range(len(self.owner) // edits)]

    def of_plain(self) -> "Lookup":
        """The ``n`` prompts without a prefix."""
        return self if bool(self.is_plain.all()) else self._select(self.is_plain)

    def of_others(self) -> "Lookup":
        """The ``n * (p - 1)`` with one."""
        return self._select(~self.is_plain)

    @property
    def is_plain(self) -> torch.Tensor:
        """``(n p,)`` which of them that are."""
        return torch.zeros_like(self.owner, dtype=torch.bool).index_fill(0, self.plain, True)

    def _select(self, chosen: torch.Tensor) -> "Lookup":
        """Of ``(n p,)`` prompts those that are chosen; owners keep their numbers."""
        prompts = self.prompts.select(chosen)
        rows = prompts.rows[prompts.lengths.cumsum(0) - prompts.lengths]
        return Lookup(prompts, rows, self.columns[chosen], self.owner[chosen])

    @property
    def plain(self) -> torch.Tensor:
        """``(n,)`` where among the ``n * p`` the prompts without a prefix are."""
        return torch.arange(0, len(self.owner), len(self.owner) // (int(self.owner[-1]) + 1), device=self.owner.device)


def look_up(
    lm: EditableLM,
    edits: Sequence[Edit],
    token: str,
    prefixes: Sequence[str] = (),
    rewordings: Sequence[Sequence[Edit]] | None = None,
) -> Lookup:
    """Encodes the prompts and finds the token.

    Args:
        lm: The model.
        edits: ``n`` edits.
        token: As in :class:`agents.baselines.values.ValueConfig`.
        prefixes: ``p - 1`` texts.
        rewordings: Of each edit at most ``p - 1`` forms with another prompt, which stand in for as many of the prefixes.

    Raises:
        ValueError: At the subject's last token: if an edit has no subject or its prompt does not contain it, or if
            only the last layer's MLP is edited, behind which no token sees another.
    """
    forms: list[tuple[str, Edit]] = []  # what is put before a prompt, and whose prompt
    for i, edit in enumerate(edits):
        others = rewordings[i] if rewordings else ()
        forms += [("", edit), *(("", other) for other in others)]
        forms += [(f"{prefix} ", edit) for prefix in prefixes[len(others) :]]
    texts = [start + edit.prompt for start, edit in forms]
    prompts = lm.encode(texts, [edit.target for _, edit in forms])
    device = lm.device
    first = prompts.lengths.cumsum(0) - prompts.lengths  # the token that predicts the answer's first one
    rows, columns = prompts.rows[first], prompts.columns[first]
    if token == "subject_last":
        if lm.answer_positions_only:
            raise ValueError(
                "token: the subject's last token cannot change the answer from the last layer's MLP, behind which no token sees "
                "another; edit earlier layers (modules), or look facts up at the prompt's last token (token='last')"
            )
        ends = [len(start) + end_of_subject(edit) for start, edit in forms]
        columns = torch.tensor([token_at(lm, text, end) for text, end in zip(texts, ends, strict=True)], device=device)
    return Lookup(prompts, rows, columns, torch.arange(len(edits), device=device).repeat_interleave(1 + len(prefixes)))


@torch.no_grad()
def read_token(lm: EditableLM, module: nn.Module, lookup: Lookup) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and output of a module, or of a whole layer, at the lookup tokens and the current weights.

    Args:
        lm: The model.
        module: A projection or a layer of the model.
        lookup: ``n`` edits' prompts, each ``p`` times.

    Returns:
        ``(n p, d_in)`` and ``(n p, d_out)``, float32 on the model's device.
    """
    return read_tokens(lm, module, lookup.prompts, lookup.rows, lookup.columns)


@torch.no_grad()
def read_tokens(
    lm: EditableLM, module: nn.Module, prompts: Prompts, rows: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`read_token` at any tokens: ``(m,)`` rows and columns of ``prompts.hidden``."""
    (keys,), output = _read(lm, prompts, rows, columns, [module], module)
    assert output is not None
    return keys, output


def read_values(lm: EditableLM, module: nn.Module, lookup: Lookup) -> torch.Tensor:
    """``(n, d_out)`` what a module, or a layer, gives at the lookup tokens of the ``n`` plain prompts."""
    return read_token(lm, module, lookup.of_plain())[1]


@torch.no_grad()
def read_keys_and_values(
    lm: EditableLM, module: nn.Module, end: nn.Module, lookup: Lookup
) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys of a module at all prompts, and at the plain ones the output of another module.

    Args:
        lm: The model.
        module: Whose input, the keys.
        end: Whose output: the layer in which values are, which has the module or lies above it.
        lookup: ``n`` edits' prompts, each ``p`` times.

    Returns:
        ``(n p, d_in)`` and ``(n, d_out)``, float32 on the model's device.
    """
    plain = lookup.of_plain()
    (of_plain,), values = _read(lm, plain.prompts, plain.rows, plain.columns, [module], end)
    assert values is not None
    if plain is lookup:
        return of_plain, values
    others = lookup.of_others()
    (of_others,), _ = _read(lm, others.prompts, others.rows, others.columns, [module])
    keys = of_plain.new_empty(len(lookup.owner), of_plain.shape[1])
    keys[lookup.is_plain], keys[~lookup.is_plain] = of_plain, of_others
    return keys, values


@torch.no_grad()
def read_keys(lm: EditableLM, lookup: Lookup) -> dict[str, torch.Tensor]:
    """The input of every edited module at the lookup tokens.

    Args:
        lm: The model; its modules lie in layers one above the other.
        lookup: ``n`` edits' prompts, each ``p`` times.

    Returns:
        ``(n p, d_in)`` for each module, float32 on the model's device.
    """
    keys, _ = _read(lm, lookup.prompts, lookup.rows, lookup.columns, list(lm.modules.values()))
    return dict(zip(lm.modules, keys, strict=True))


def _read(
    lm: EditableLM,
    prompts: Prompts,
    rows: torch.Tensor,
    columns: torch.Tensor,
    inputs: Sequence[nn.Module],
    output: nn.Module | None = None,
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """What modules are given at some tokens, and what one gives.

    No token sees a later one: each prompt is run up to the last of its tokens, those of like length together, and no
    further than the last module.

    Args:
        lm: The model.
        prompts: The prompts.
        rows: ``(m,)`` of ``prompts.hidden``.
        columns: ``(m,)`` likewise.
        inputs: Whose inputs, in the order in which they are run.
        output: Whose output; the last of the inputs' own module, or one that is run later.
    """
    if prompts.starts is None:  # these are the tokens that predict an answer, and no others
        return _read_together(lm, prompts, rows, columns, inputs, output)
    last = columns.new_zeros(len(prompts)).scatter_reduce(0, rows, columns, "amax")
    parts, orders = [], []
    for of_part, part in lm.groups(prompts.until(last)):
        chosen = of_part.to(rows.device)[rows]
        if chosen.any():
            number = of_part.to(rows.device).cumsum(0) - 1  # of a prompt, among those of its group
            parts.append(_read_together(lm, part, number[rows[chosen]], columns[chosen], inputs, output))
            orders.append(chosen.nonzero().squeeze(1))
    order = torch.cat(orders).argsort()  # back to the tokens' own
    keys = [torch.cat(of_module)[order] for of_module in zip(*(part for part, _ in parts), strict=True)]
    given = [part for _, part in parts if part is not None]
    return keys, torch.cat(given)[order] if given else None


def _read_together(
    lm: EditableLM,
    prompts: Prompts,
    rows: torch.Tensor,
    columns: torch.Tensor,
    inputs: Sequence[nn.Module],
    output: nn.Module | None,
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """:func:`_read` in one forward."""
    keys: list[torch.Tensor] = []
    given: list[torch.Tensor] = []

    def at_tokens(hidden: torch.Tensor) -> torch.Tensor:
        return prompts.as_hidden(hidden).to(lm.device)[rows, columns].float()

    def keep_input(_: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> None:
        keys.append(at_tokens(args[0] if args else kwargs["hidden_states"]))
        if len(keys) == len(inputs) and output is None:
            raise StopForward  # what is above has no part in it

    def keep_output(_: nn.Module, args: tuple[torch.Tensor, ...], output: Any) -> None:
        given.append(at_tokens(hidden_states(output)))
        raise StopForward

    with ExitStack() as stack:
        for module in inputs:
            stack.enter_context(hooked(module.register_forward_pre_hook(keep_input, with_kwargs=True)))
        if output is not None:
            stack.enter_context(hooked(output.register_forward_hook(keep_output)))
        stack.enter_context(suppress(StopForward))
        lm.cut_model.logits(prompts)
    return keys, given[0] if given else None


def hidden_states(output: Any) -> torch.Tensor:
    """Layers of some models return more than the hidden states."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def mean_keys(keys: torch.Tensor, lookup: Lookup) -> torch.Tensor:
    """``(n, d_in)``: the mean of an edit's keys over its prefixes (ROME's eq. 3, MEMIT's eq. 19)."""
    edits = int(lookup.owner[-1]) + 1
    return keys.view(edits, -1, keys.shape[1]).mean(1)
