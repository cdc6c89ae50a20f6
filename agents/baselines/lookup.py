"""Where a fact is looked up: one token of each prompt, and what a model's modules are given and give there.

The first step of ROME (Meng et al. 2022, section 3.1) and of MEMIT (Meng et al. 2023, section 4.3), which RECT, PRUNE
and AlphaEdit take over. What should be given there is the matter of :mod:`agents.baselines.values`.
"""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
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
    return _read_until(lm, module, module, prompts, rows, columns)


@torch.no_grad()
def read_key_and_output(
    lm: EditableLM, module: nn.Module, end: nn.Module, lookup: Lookup
) -> tuple[torch.Tensor, torch.Tensor]:
    """A module's input and the output of another one, in the same layer or above, in one forward that ends there.

    Args:
        lm: The model.
        module: Whose input, the keys.
        end: Whose output: the layer in which values are.
        lookup: ``n`` edits' prompts, each ``p`` times.

    Returns:
        ``(n p, d_in)`` and ``(n p, d_out)`` as :func:`read_token` gives them.
    """
    return _read_until(lm, module, end, lookup.prompts, lookup.rows, lookup.columns)


@torch.no_grad()
def read_keys(lm: EditableLM, lookup: Lookup) -> dict[str, torch.Tensor]:
    """The input of every edited module at the lookup tokens, in one forward that ends at the last of them.

    Args:
        lm: The model; its modules lie in layers one above the other.
        lookup: ``n`` edits' prompts, each ``p`` times.

    Returns:
        ``(n p, d_in)`` for each module, float32 on the model's device.
    """
    keys: dict[str, torch.Tensor] = {}

    def keep_input(name: str, _: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> None:
        hidden = lookup.prompts.as_hidden(args[0] if args else kwargs["hidden_states"])
        keys[name] = hidden.to(lm.device)[lookup.rows, lookup.columns].float()
        if len(keys) == len(lm.modules):
            raise StopForward  # what is above has no part in it

    with ExitStack() as stack:
        for name, module in lm.modules.items():
            hook = partial(keep_input, name)
            stack.enter_context(hooked(module.register_forward_pre_hook(hook, with_kwargs=True)))
        stack.enter_context(suppress(StopForward))
        lm.cut_model.logits(lookup.prompts)
    return keys


def _read_until(
    lm: EditableLM, module: nn.Module, end: nn.Module, prompts: Prompts, rows: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A module's input, and the output of the one at which the forward ends."""
    read: dict[str, torch.Tensor] = {}

    def at_tokens(hidden: torch.Tensor) -> torch.Tensor:
        return prompts.as_hidden(hidden).to(lm.device)[rows, columns].float()

    def keep_input(_: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> None:
        read["input"] = at_tokens(args[0] if args else kwargs["hidden_states"])

    def keep_output(_: nn.Module, args: tuple[torch.Tensor, ...], output: Any) -> None:
        read["output"] = at_tokens(hidden_states(output))
        raise StopForward  # the layers above, and the head, have no part in it

    with ExitStack() as stack:
        stack.enter_context(hooked(module.register_forward_pre_hook(keep_input, with_kwargs=True)))
        stack.enter_context(hooked(end.register_forward_hook(keep_output)))
        stack.enter_context(suppress(StopForward))
        lm.cut_model.logits(prompts)  # in one forward, in which the tokens lie where the prompts say
    return read["input"], read["output"]


def hidden_states(output: Any) -> torch.Tensor:
    """Layers of some models return more than the hidden states."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def mean_keys(keys: torch.Tensor, lookup: Lookup) -> torch.Tensor:
    """``(n, d_in)``: the mean of an edit's keys over its prefixes (ROME's eq. 3, MEMIT's eq. 19)."""
    edits = int(lookup.owner[-1]) + 1
    return keys.view(edits, -1, keys.shape[1]).mean(1)
