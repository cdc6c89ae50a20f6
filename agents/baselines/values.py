"""The value that would make a model say something else, at the token where a fact is looked up.

The second step of ROME (Meng et al. 2022, section 3.1, eq. 4) and of MEMIT (Meng et al. 2023, section 4.3.1, eq. 16),
which RECT, PRUNE and AlphaEdit take over: at one token of the prompt (:mod:`agents.baselines.lookup`) a vector is added
to a module's output, and gradient steps look for the vector that makes the target likely.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from agents.baselines.lookup import Lookup, hidden_states, look_up, read_values
from agents.self_written import sample
from editenv.arguments import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, check_fields
from editenv.data import Edit
from editenv.env import LifelongEditEnv
from editenv.language_model.editable_lm import EditableLM
from editenv.language_model.hooks import StopForward, hooked
from editenv.language_model.suffix import SuffixError, SuffixRun

PROMPTS_TOGETHER = 64
"""Prompts that are searched together, prefixes counted: what a search keeps for its gradient grows with them."""


@dataclass(frozen=True)
class ValueConfig:
    """Steps, learning rate, clamp and KL are those of ROME for Llama-3-8B in AlphaEdit's public code; see
    docs/reference/methods.md.

    Attributes:
        token: Where the fact is looked up: the subject's last token (the papers), or the prompt's last token (a
            strategy of MEMIT's public code), which needs no subject. From the last layer's MLP only the latter can
            change an answer.
        steps: Steps on the value.
        optimizer: How a step goes: Adam's, as the papers have it; or as far as ``learning_rate`` along an edit's own
            gradient, whose length does not count. Adam moves each coordinate about as far as any other, also those
            that matter little: it comes to a longer change, which costs more of what else the model says.
        learning_rate: Adam's, or the length of a step; in the value's own units: a model of longer outputs needs a
            larger one.
        clamp: Longest change of the value, relative to the value's length.
        weight_decay: Weight of |change| / |value|^2, the form of both public codes. ROME's has 1e-3 for Llama-3-8B
            and 0.5 for GPT-2 XL.
        kl: Weight of KL(edited || original) of what is said after "{subject} is a" (eq. 4); only at the subject's last
            token.
        enough: Loss at which an edit's search ends.
        prefixes: Texts that the model wrote itself, put before the prompt (x_j of eq. 4): the value must not depend on
            what came before. 20 in ROME's public code, 5 in MEMIT's.
        prefix_tokens: Length of each.
        in_turn: Whether a step looks at one of an edit's prompts (the plain one, then one with each prefix, and so on)
            instead of all of them: a step then costs what it costs without prefixes.
    """

    token: Literal["subject_last", "last"] = "subject_last"
    steps: PositiveInt = 25
    optimizer: Literal["adam", "normalised"] = "adam"
    learning_rate: PositiveFloat = 0.5
    clamp: PositiveFloat = 4.0
    weight_decay: NonNegativeFloat = 1e-3
    kl: NonNegativeFloat = 0.0625
    enough: NonNegativeFloat = 0.05
    prefixes: NonNegativeInt = 20
    prefix_tokens: PositiveInt = 10
    in_turn: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class LayerValueConfig(ValueConfig):
    """For a value that is a layer's output, in the residual stream, which is longer than what one MLP adds to it.

    Attributes:
        clamp: As in :class:`ValueConfig`; this is MEMIT's, for GPT-J and for Llama-3-8B.
        weight_decay: As in :class:`ValueConfig`; this is MEMIT's.
    """

    clamp: PositiveFloat = 0.75
    weight_decay: NonNegativeFloat = 0.5


@dataclass(frozen=True)
class JointValueConfig(ValueConfig):
    """For a value of an MLP and one of its layer's attention, searched together (PMET's public code, for GPT-J).

    Once every token of a target is the most likely one, the divergence is what is left to bring down. Without one
    (``kl=0``, or ``token="last"``) the two settings for that have no effect.

    Attributes:
        certain_weight: Weight of the target's loss in a step after one in which all of its tokens were the most likely
            ones.
        kl_enough: Weighted divergence at which an edit's search ends if they are.
    """

    steps: PositiveInt = 30
    learning_rate: PositiveFloat = 0.2
    clamp: PositiveFloat = 0.75
    weight_decay: NonNegativeFloat = 0.5
    kl: NonNegativeFloat = 1.0
    certain_weight: NonNegativeFloat = 0.1
    kl_enough: NonNegativeFloat = 0.01


@dataclass(frozen=True, slots=True)
class EarlierChanges:
    """What has been added already, at tokens before those at which edits are looked up.

    Attributes:
        columns: ``(n, c)`` of ``prompts.hidden``.
        change: ``(n, c, d_out)``.
    """

    columns: torch.Tensor
    change: torch.Tensor

    def edits(self, numbers: Sequence[int]) -> "EarlierChanges":
        """Of some of the edits."""
        return EarlierChanges(self.columns[list(numbers)], self.change[list(numbers)])


def refuse_train_eos(env: LifelongEditEnv) -> None:
    """For methods that write one value, at one token: what is said after the answer lies beyond their reach.

    Raises:
        ValueError: If the environment teaches the end of an answer.
    """
    if env.train_eos:
        raise ValueError(
            "train_eos: this method searches a value for the target's own tokens and cannot teach their end"
        )


def prompts_together(config: ValueConfig, edits: int) -> tuple[int, int]:
    """How many prompts are searched together, and looked up (:meth:`agents.base.Agent.prompts_together`)."""
    forms = 1 + config.prefixes
    each = 1 if config.in_turn else forms
    return each * min(edits, max(1, PROMPTS_TOGETHER // each)), forms * edits


def optimise_values(
    lm: EditableLM,
    module: nn.Module | Sequence[nn.Module],
    edits: Sequence[Edit],
    lookup: Lookup,
    config: ValueConfig,
    earlier: EarlierChanges | None = None,
    sharing: Sequence[int] | None = None,
) -> torch.Tensor:
    """The change of a module's output at each edit's lookup token that makes its target likely.

    ROME's eq. 4 and MEMIT's eq. 16: for each edit by itself, Adam (or the config's optimizer) minimises

        mean over prefixes of the token mean of -log p(target)
        + kl * KL(edited || original) after "{subject} is a"  +  weight decay

    and is put back onto the ball of radius ``clamp * |value|`` after every step. An edit's search ends when its
    loss is below ``enough``. With ``in_turn`` a step looks at one prefix, and an edit stays
    where it is while that loss is below ``enough``; its search ends when all of them are.

    Args:
        lm: The model, at the weights as they are.
        module: Whose output is changed: a projection (ROME), or a whole layer (MEMIT). Or ``m`` of them, in one layer,
            whose changes are searched together (PMET); each has a weight decay and a ball of its own.
        edits: ``n`` edits.
        lookup: Of these edits.
        config: Search.
        earlier: What stays added to the output at tokens before; for one module, without prefixes (AnyEdit).
        sharing: ``n`` numbers; edits with the same one get the same change, searched for all of their targets together,
            on the ball of their mean radius. None: no two edits share one.

    Returns:
        ``(n, d_out)``, or ``(n, m, d_out)`` of several modules.

    Raises:
        ValueError: With the KL term, as :func:`look_up` does.
    """
    modules = (module,) if isinstance(module, nn.Module) else tuple(module)
    sharing = range(len(edits)) if sharing is None else sharing
    together = PROMPTS_TOGETHER if config.in_turn else max(1, PROMPTS_TOGETHER * len(edits) // len(lookup.owner))
    change: torch.Tensor | None = None
    for part in _parts(sharing, together):
        of_part = _optimise(
            lm,
            modules,
            [edits[i] for i in part],
            lookup.edits(part),
            config,
            earlier and earlier.edits(part),
            [sharing[i] for i in part],
        )
        if change is None:
            change = of_part.new_zeros(len(edits), *of_part.shape[1:])
        change[part] = of_part
    assert change is not None
    return change[:, 0] if isinstance(module, nn.Module) else change


def _parts(sharing: Sequence[int], together: int) -> list[list[int]]:
    """Numbers of the edits that are searched together, ascending: about so many, and all that share a change."""
    groups: dict[int, list[int]] = {}
    for edit, number in enumerate(sharing):
        groups.setdefault(number, []).append(edit)
    parts: list[list[int]] = []
    for group in groups.values():
        if not parts or len(parts[-1]) + len(group) > together:
            parts.append([])
        parts[-1] += group
    return [sorted(part) for part in parts]


def _optimise(
    lm: EditableLM,
    modules: Sequence[nn.Module],
    edits: Sequence[Edit],
    lookup: Lookup,
    config: ValueConfig,
    earlier: EarlierChanges | None,
    sharing: Sequence[int],
) -> torch.Tensor:
    """:func:`optimise_values` of edits whose prompts are run together, ``(n, m, d_out)``."""
    needs_essence = config.kl > 0 and config.token == "subject_last"
    essence = Essence.of(lm, modules, edits, config.token) if needs_essence else None
    values = torch.stack([_values(lm, module, edits, lookup) for module in modules], 1)
    value_lengths = values.norm(dim=2)
    owner = torch.tensor(sharing, device=lm.device).unique(return_inverse=True)[1]  # of each edit, its change
    sizes = owner.bincount()
    radius = config.clamp * _sums(value_lengths, owner, sizes) / sizes[:, None]
    lookups = lookup.by_form() if config.in_turn else [lookup]
    runs = [ChangedRun(lm, modules, part, earlier) for part in lookups]
    change = values.new_zeros(len(sizes), *values.shape[1:]).requires_grad_()
    algorithm = torch.optim.Adam if config.optimizer == "adam" else torch.optim.SGD
    optimizer = algorithm([change], lr=config.learning_rate)
    target_weight: torch.Tensor | float = 1.0
    idle = 0  # steps one after the other that no edit has taken
    for step in range(config.steps):
        with torch.enable_grad():
            of_edits = change[owner]
            target_losses, certain = _target_losses(runs[step % len(runs)], of_edits)
            losses = target_weight * target_losses
            weighted_divergence = None
            if essence is not None:
                weighted_divergence = config.kl * essence.divergence(of_edits)
                losses = losses + weighted_divergence
            losses = losses + config.weight_decay * (of_edits.norm(dim=2) / value_lengths.square()).sum(1)
            optimizer.zero_grad()
            losses.sum().backward()
        with torch.no_grad():
            before = change.clone()
            if config.optimizer == "normalised":
                assert change.grad is not None
                change.grad.copy_(F.normalize(change.grad.flatten(1)).view_as(change))
            optimizer.step()
            change.mul_((radius / change.norm(dim=2)).clamp(max=1)[..., None])
            # All edits take the step: those whose loss was low enough before it go back, and only Adam's moments move.
            low_enough = losses < config.enough
            if isinstance(config, JointValueConfig) and weighted_divergence is not None:
                target_weight = torch.where(certain, config.certain_weight, 1.0)
                low_enough |= certain & (weighted_divergence <= config.kl_enough)
            finished = _sums(low_enough, owner, sizes) == sizes
            change[finished] = before[finished]
            idle = idle + 1 if finished.all() else 0
            if idle == len(runs):
                break
    return change.detach()[owner]


def _sums(of_edits: torch.Tensor, owner: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Of the edits that share a change: ``(changes, ...)`` of ``(n, ...)``."""
    of_edits = of_edits.float()
    return of_edits.new_zeros(len(sizes), *of_edits.shape[1:]).index_add(0, owner, of_edits)


def _values(lm: EditableLM, module: nn.Module, edits: Sequence[Edit], lookup: Lookup) -> torch.Tensor:
    """``(n, d_out)`` what the module gives at the lookup tokens of the plain prompts."""
    if not lm.cut_model.has_frozen(module):
        return read_values(lm, module, lookup)
    # What a frozen attention gives is part of what is kept of a prompt: to see it by itself, it is run again.
    heads = [head for head, _ in lm.tokenize([edit.prompt for edit in edits], [edit.target for edit in edits])]
    columns = [len(head) - 1 for head in heads]
    if lookup.prompts.starts is not None:
        columns = lookup.columns[lookup.plain].tolist()
    width = max(map(len, heads))
    ids = torch.tensor([[*head, *[0] * (width - len(head))] for head in heads], device=lm.device)
    outputs: list[torch.Tensor] = []

    def keep_output(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        outputs.append(hidden_states(output).to(lm.device))
        raise StopForward

    with torch.no_grad(), hooked(module.register_forward_hook(keep_output)), suppress(StopForward):
        lm.model(input_ids=ids, use_cache=False)
    return outputs[0][torch.arange(len(heads)), columns].float()


class ChangedRun:
    """What a model says when a change is added to a module's output at the lookup tokens.

    Only what the change can reach is run, where the model allows it (:class:`editenv.language_model.suffix.SuffixRun`);
    otherwise whole prompts are, to the same result.

    Args:
        lm: The model, at the weights as they are.
        module: A projection or a layer of the model, or ``m`` modules of one layer.
        lookup: ``n`` edits' prompts; ``A`` answer tokens.
        earlier: What stays added at tokens before.
    """

    def __init__(
        self,
        lm: EditableLM,
        module: nn.Module | Sequence[nn.Module],
        lookup: Lookup,
        earlier: EarlierChanges | None = None,
    ) -> None:
        self.modules = (module,) if isinstance(module, nn.Module) else tuple(module)
        self.lookup, self.earlier = lookup, earlier
        self.cut_model, self.prompts = lm.cut_model, lookup.prompts
        if any(map(lm.cut_model.has_frozen, self.modules)):
            self.cut_model, self.prompts = lm.cut_model.with_mlp(lookup.prompts)
        self.suffix: SuffixRun | None = None
        if lookup.prompts.starts is None:  # only the tokens that predict an answer are run in any case
            return
        try:
            self.suffix = SuffixRun(lm, lookup.prompts, lookup.columns, self.modules[0], self._earlier_changed)
        except SuffixError as error:
            warnings.warn(f"values are searched with whole prompts, which takes longer: {error}", stacklevel=3)

    def logits(self, change: torch.Tensor) -> torch.Tensor:
        """``(A, vocabulary)`` of ``(n, d_out)``, or of ``(n, m, d_out)``; carries gradient."""
        lookup = self.lookup
        changes = change.reshape(len(change), len(self.modules), -1)[lookup.owner].unbind(1)
        with ExitStack() as stack:
            if self.suffix is not None:
                first = torch.zeros_like(lookup.columns)
                rows = torch.arange(len(first), device=first.device)
                for module, of_module in zip(self.modules, changes, strict=True):
                    stack.enter_context(_output_changed(module, len(rows), rows, first, of_module))
                return self.suffix.logits()
            height = len(self.prompts if self.prompts.starts is not None else self.prompts.labels)
            for module, of_module in zip(self.modules, changes, strict=True):
                stack.enter_context(_output_changed(module, height, lookup.rows, lookup.columns, of_module))
            stack.enter_context(self._earlier_changed(torch.ones(height, dtype=torch.bool)))
            return self.cut_model.logits(self.prompts)

    def _earlier_changed(self, chosen: torch.Tensor) -> AbstractContextManager[None]:
        """Within the context some of the prompts, ``(B,)`` bool, are run with what stays added."""
        if self.earlier is None or self.prompts.starts is None:  # behind the last layer no token sees another
            return nullcontext()
        chosen = chosen.to(self.earlier.columns.device)
        columns, change = self.earlier.columns[chosen], self.earlier.change[chosen]
        rows = torch.arange(len(columns), device=columns.device).repeat_interleave(columns.shape[1])
        return _output_changed(self.modules[0], len(columns), rows, columns.flatten(), change.flatten(0, 1))


def _target_losses(run: ChangedRun, change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """With the changes applied, ``(n,)`` each: the mean over an edit's prefixes of the token mean of ``-log p(target)``,
    and whether each token of the target is the most likely one after every prefix.
    """
    lookup, prompts = run.lookup, run.lookup.prompts
    logits = run.logits(change)
    nll = F.cross_entropy(logits, prompts.labels, reduction="none")
    # Each answer token's share in its edit's mean.
    share = (len(change) / (prompts.lengths * len(prompts)))[prompts.prompt_index]
    owner = lookup.owner[prompts.prompt_index]
    losses = torch.zeros(len(change), device=nll.device).index_add(0, owner, nll * share)
    missed = torch.zeros(len(change), device=nll.device).index_add(
        0, owner, (logits.argmax(-1) != prompts.labels).float()
    )
    return losses, missed == 0


@dataclass(frozen=True, slots=True)
class Essence:
    """What the model says after "{subject} is a", which a new value is to leave as it is (ROME, eq. 4).

    Attributes:
        run: Of the prompts "{subject} is a", one an edit, looked up at the subject's last token.
        log_probs: ``(n, vocabulary)`` of the next token, before any change.
    """

    run: ChangedRun
    log_probs: torch.Tensor

    @classmethod
    @torch.no_grad()
    def of(
        cls, lm: EditableLM, module: nn.Module | Sequence[nn.Module], edits: Sequence[Edit], token: str
    ) -> "Essence":
        """At the current weights; raises as :func:`look_up` does."""
        about = [Edit(edit.id, f"{edit.subject} is a", "thing", subject=edit.subject) for edit in edits]
        lookup = look_up(lm, about, token)
        return cls(ChangedRun(lm, module, lookup), _next_token_log_probs(lookup, lm.cut_model.logits(lookup.prompts)))

    def divergence(self, change: torch.Tensor) -> torch.Tensor:
        """``(n,)`` KL(with the change || before) of the next token, in nats, in the direction of eq. 4."""
        log_probs = _next_token_log_probs(self.run.lookup, self.run.logits(change))
        return F.kl_div(self.log_probs, log_probs, reduction="none", log_target=True).sum(-1)


def _next_token_log_probs(lookup: Lookup, logits: torch.Tensor) -> torch.Tensor:
    """``(prompts, vocabulary)`` log-probabilities of the token after each prompt."""
    lengths = lookup.prompts.lengths
    first = lengths.cumsum(0) - lengths  # row of the logits that predicts an answer's first token
    return logits[first].log_softmax(-1)


@contextmanager
def _output_changed(
    module: nn.Module, height: int, rows: torch.Tensor, columns: torch.Tensor, change: torch.Tensor
) -> Iterator[None]:
    """Within the context each row of ``change`` is added to the module's output at a token of ``height`` rows."""

    def hook(_: nn.Module, args: tuple[torch.Tensor, ...], output: Any) -> Any:
        hidden = hidden_states(output)
        position = rows.to(hidden.device), columns.to(hidden.device)
        vectors = hidden.reshape(height, -1, hidden.shape[-1])  # OPT gives its MLPs all tokens in one dimension
        changed = vectors.index_put(position, change.to(hidden), accumulate=True).view_as(hidden)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with hooked(module.register_forward_hook(hook)):
        yield


def sample_prefixes(lm: EditableLM, config: ValueConfig, seed: int) -> list[str]:
    """Texts that theta_0 writes by itself, each ended by a full stop; always the same for a seed.

    Args:
        lm: The model, at any weights.
        config: ``prefixes`` texts of ``prefix_tokens`` tokens; none if ``prefixes`` is 0.
        seed: Of the sampling (top-k of 5, as in ROME's public code); the caller's generators are not touched.
    """
    if not config.prefixes:
        return []
    tokenizer = lm.tokenizer
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    texts = sample(lm, [[start]] * config.prefixes, config.prefix_tokens, seed, top_k=5)
    return [f"{text.strip().rstrip('.')}." for text in texts]
