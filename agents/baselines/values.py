"""Where a fact is looked up, and the value that would make the model say something else there.

The first half of ROME (Meng et al. 2022, section 3.1, steps 1 and 2, eq. 4) and of MEMIT (Meng et al. 2023, section
4.3.1, eq. 16),
which RECT, PRUNE and AlphaEdit take over: at one token of the prompt a vector is added to a module's output, and
gradient steps look for the vector that makes the target likely.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from editenv.data import Edit
from editenv.env import LifelongEditEnv
from editenv.language_model.editable_lm import EditableLM
from editenv.language_model.prompts import Prompts


@dataclass(frozen=True)
class ValueConfig:
    """Steps, learning rate, clamp and KL are those of ROME for Llama-3-8B in AlphaEdit's public code; see
    docs/methods.md.
    """

    token: Literal["subject_last", "last"] = "subject_last"
    """Where the fact is looked up: the subject's last token (the papers), or the prompt's last token (a strategy of
    MEMIT's public code), which needs no subject. From the last layer's MLP only the latter can change an answer.
    """
    steps: int = 25
    """Adam steps on the value."""
    learning_rate: float = 0.5
    """Adam's."""
    clamp: float = 4.0
    """Longest change of the value, relative to the value's length."""
    weight_decay: float = 1e-3
    """Weight of |change| / |value|^2, the form of both public codes. ROME's has 1e-3 for Llama-3-8B and 0.5 for
    GPT-2 XL.
    """
    kl: float = 0.0625
    """Weight of the KL divergence of what is said after "{subject} is a" (eq. 4); only at the subject's last token."""
    enough: float = 0.05
    """Loss at which an edit's search ends."""
    prefixes: int = 20
    """Texts that the model wrote itself, put before the prompt (x_j of eq. 4): the value must not depend on what
    came before. 20 in ROME's public code, 5 in MEMIT's.
    """
    prefix_tokens: int = 10
    """Length of each."""


@dataclass(frozen=True)
class LayerValueConfig(ValueConfig):
    """For a value that is a layer's output, in the residual stream, which is longer than what one MLP adds to it."""

    clamp: float = 0.75
    """As in :class:`ValueConfig`; this is MEMIT's, for GPT-J and for Llama-3-8B."""
    weight_decay: float = 0.5
    """As in :class:`ValueConfig`; this is MEMIT's."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """Some edits' prompts (each with every prefix) and the token at which each is looked up.

    Attributes:
        prompts: ``n * p`` prompts, the p of an edit one after the other; the first is without a prefix.
        rows: ``(n p,)`` row of ``prompts.hidden`` in which the token lies.
        columns: ``(n p,)`` likewise its column.
        owner: ``(n p,)`` the edit.
    """

    prompts: Prompts
    rows: torch.Tensor
    columns: torch.Tensor
    owner: torch.Tensor

    @property
    def plain(self) -> torch.Tensor:
        """``(n,)`` where among the ``n * p`` the prompts without a prefix are."""
        return torch.arange(0, len(self.owner), len(self.owner) // (int(self.owner[-1]) + 1), device=self.owner.device)


def refuse_train_eos(env: LifelongEditEnv) -> None:
    """For methods that write one value, at one token: what is said after the answer lies beyond their reach.

    Raises:
        ValueError: If the environment teaches the end of an answer.
    """
    if env.train_eos:
        raise ValueError(
            "train_eos: this method searches a value for the target's own tokens and cannot teach their end"
        )


def look_up(lm: EditableLM, edits: Sequence[Edit], token: str, prefixes: Sequence[str] = ()) -> Lookup:
    """Encodes the prompts and finds the token.

    Args:
        lm: The model.
        edits: ``n`` edits.
        token: As in :class:`ValueConfig`.
        prefixes: ``p - 1`` texts.

    Raises:
        ValueError: At the subject's last token: if an edit has no subject or its prompt does not contain it, or if
            only the last layer's MLP is edited, behind which no token sees another.
    """
    starts = ["", *(f"{prefix} " for prefix in prefixes)]
    texts = [start + edit.prompt for edit in edits for start in starts]
    targets = [edit.target for edit in edits for _ in starts]
    prompts = lm.encode(texts, targets)
    device = lm.device
    first = prompts.lengths.cumsum(0) - prompts.lengths  # the token that predicts the answer's first one
    rows, columns = prompts.rows[first], prompts.columns[first]
    if token == "subject_last":
        if lm.answer_positions_only:
            raise ValueError(
                "token: the subject's last token cannot change the answer from the last layer's MLP, behind which no token sees "
                "another; edit earlier layers (modules), or look facts up at the prompt's last token (token='last')"
            )
        ends = [len(start) + end_of_subject(edit) for edit in edits for start in starts]
        columns = torch.tensor([_token_at(lm, text, end) for text, end in zip(texts, ends, strict=True)], device=device)
    return Lookup(prompts, rows, columns, torch.arange(len(edits), device=device).repeat_interleave(len(starts)))


def end_of_subject(edit: Edit) -> int:
    """Where the subject ends in the prompt, in characters.

    Raises:
        ValueError: If there is none, or it does not stand there.
    """
    if not edit.subject:
        raise ValueError(
            f"{edit.id} has no subject, at whose last token facts are looked up; give it one, or set token='last'"
        )
    place = edit.prompt.find(edit.subject)
    if place < 0:
        raise ValueError(f"{edit.id}: the subject {edit.subject!r} does not stand in the prompt {edit.prompt!r}")
    return place + len(edit.subject)


def _token_at(lm: EditableLM, text: str, end: int) -> int:
    """The token that holds the last of the first ``end`` characters."""
    spans = lm.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return max(i for i, (start, stop) in enumerate(spans) if start < end and stop > start)


@torch.no_grad()
def read_token(lm: EditableLM, module: nn.Module, lookup: Lookup) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and output of a module, or of a whole layer, at the lookup tokens: ``(n p, d_in)`` and ``(n p, d_out)``.

    At the current weights.
    """
    found: list[torch.Tensor] = []

    def keep(_: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        found.extend(part.to(lm.device)[lookup.rows, lookup.columns].float() for part in (given, _tensor_of(output)))

    handle = module.register_forward_hook(keep, with_kwargs=True)
    try:
        lm.logits(lookup.prompts)
    finally:
        handle.remove()
    return found[0], found[1]


def _tensor_of(output: Any) -> torch.Tensor:
    """Layers of some models return more than the hidden states."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def mean_keys(keys: torch.Tensor, lookup: Lookup) -> torch.Tensor:
    """``(n, d_in)``: the mean of an edit's keys over its prefixes (ROME's eq. 3, MEMIT's eq. 19)."""
    edits = int(lookup.owner[-1]) + 1
    return keys.view(edits, -1, keys.shape[1]).mean(1)


def optimise_values(
    lm: EditableLM, module: nn.Module, edits: Sequence[Edit], lookup: Lookup, config: ValueConfig
) -> torch.Tensor:
    """The change of a module's output at each edit's lookup token that makes its target likely.

    Minimises, for each edit by itself, the mean over prefixes of the token mean of ``-log p(target)``, plus ``kl``
    times the divergence of what follows "{subject} is a", plus the weight decay, by Adam within a ball.

    Args:
        lm: The model, at the weights as they are.
        module: Whose output is changed: a projection (ROME), or a whole layer (MEMIT).
        edits: ``n`` edits.
        lookup: Of these edits.
        config: Search.

    Returns:
        ``(n, d_out)``.
    """
    prompts = lookup.prompts
    essence = None
    if config.kl > 0 and config.token == "subject_last":
        about = [Edit(edit.id, f"{edit.subject} is a", "thing", subject=edit.subject) for edit in edits]
        essence = look_up(lm, about, config.token)
        with torch.no_grad():
            usual = _first_token(lm.logits(essence.prompts), essence.prompts).log_softmax(-1)
    _, outputs = read_token(lm, module, lookup)
    length = outputs[lookup.plain].norm(dim=1)
    owner = lookup.owner[prompts.prompt_index]
    # Each answer token's share in its edit's mean.
    share = (len(edits) / (prompts.lengths * len(prompts)))[prompts.prompt_index]
    change = torch.zeros(len(edits), outputs.shape[1], device=lm.device, requires_grad=True)
    optimizer = torch.optim.Adam([change], lr=config.learning_rate)
    for _ in range(config.steps):
        with torch.enable_grad():
            with _changed(module, lookup, change):
                nll = F.cross_entropy(lm.logits(prompts), prompts.labels, reduction="none")
            loss = torch.zeros(len(edits), device=lm.device).index_add(0, owner, nll * share)
            if essence is not None:
                with _changed(module, essence, change):
                    now = _first_token(lm.logits(essence.prompts), essence.prompts).log_softmax(-1)
                loss = loss + config.kl * (usual.exp() * (usual - now)).sum(-1)
            loss = loss + config.weight_decay * _length(change) / length.square()
            optimizer.zero_grad()
            loss.sum().backward()
        with torch.no_grad():
            before = change.clone()
            optimizer.step()
            change.mul_((config.clamp * length / _length(change)).clamp(max=1)[:, None])
            done = loss < config.enough
            change[done] = before[done]
            if done.all():
                break
    return change.detach()


def _length(vectors: torch.Tensor) -> torch.Tensor:
    """Norm of each row, with a gradient at zero too."""
    return (vectors.square().sum(1) + 1e-20).sqrt()


def _first_token(logits: torch.Tensor, prompts: Prompts) -> torch.Tensor:
    return logits[prompts.lengths.cumsum(0) - prompts.lengths]


@contextmanager
def _changed(module: nn.Module, lookup: Lookup, change: torch.Tensor) -> Iterator[None]:
    """Within the context the module's output at each lookup token is larger by its edit's change."""

    def add(_: nn.Module, args: tuple[torch.Tensor, ...], output: Any) -> Any:
        hidden = _tensor_of(output)
        place = lookup.rows.to(hidden.device), lookup.columns.to(hidden.device)
        larger = hidden.index_put(place, change[lookup.owner].to(hidden), accumulate=True)
        return (larger, *output[1:]) if isinstance(output, tuple) else larger

    handle = module.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def sample_prefixes(lm: EditableLM, config: ValueConfig, seed: int) -> list[str]:
    """Texts that theta_0 writes by itself, each ended by a full stop; always the same for a seed."""
    if not config.prefixes:
        return []
    tokenizer = lm.tokenizer
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = torch.full((config.prefixes, 1), start, device=lm.device)
    devices = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(devices), lm.at_initial_weights():
        torch.manual_seed(seed)
        written = lm.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=config.prefix_tokens,
            do_sample=True,
            top_k=5,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )
    return [f"{text.strip().rstrip('.')}." for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
