"""The transition: a language model whose edited modules can be read (gradients), changed (deltas) and restored.

Everything here is differentiable torch. No weight ever requires grad: gradients are taken with respect to the *outputs*
of the edited modules, which gives the two factors ``keys`` and ``value_grads`` and nothing of the size of a weight.

**What never changes is computed once.** The layers below the first edited one are frozen for the whole life of a
run, so :meth:`EditableLM.encode` runs them once per prompt and keeps their output; every later forward starts
there. When the first edited module sits in the MLP of its layer, that layer's attention is frozen too; and when
that layer is the last one, tokens no longer see each other and only the answer positions are kept at all. If
moreover the MLP's output projection is all that is edited, as by default, its inputs never change and are kept too: a
forward is then that module, the last norm and the head. Whether a model's layers have the form this needs is not
assumed but checked, at construction, against the whole model (:mod:`editenv.language_model.cut`). A model whose layers
have another form is run whole each time.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from editenv import contexts
from editenv.arguments import check
from editenv.contexts import (
    CONTEXT,
    Context,
    context_of,
    put_before,
    reading,
    set_context,
    window_of,
    without_context,
)
from editenv.deltas import LowRank
from editenv.language_model.activation_cache import ActivationCache, CacheKey, without_last
from editenv.language_model.cut import Cut, cut_model
from editenv.language_model.hooks import hooked
from editenv.language_model.packing import can_pack, longest_row, packs_of, run_packs
from editenv.language_model.prompts import Prompts, ranges_of_length, token_ids
from editenv.memories import Change, Memory, attach, deltas_of, detach, merged
from editenv.models.modules import attention_and_mlp, find_modules, layer_number, layer_stack, shared_with

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


FORWARD_OVERHEAD = {"cpu": 32}
"""What one more forward costs, in tokens, by type of device: rough, but little depends on it."""

FORWARD_OVERHEAD_OF_OTHERS = 1024
"""The same of any other device: a GPU waits for its kernels to be started."""

TEXTS_KEPT = 2**16
"""Texts whose tokens are kept, about 40 MB of them."""

ObservedTokens = Literal["answers", "all", "subject"]
"""Which tokens of a batch a gradient's factors are kept of."""


@dataclass(frozen=True, slots=True)
class Gradient:
    """A weight gradient in factors: ``keys^T value_grads``, ``(d_in, d_out)``.

    Attributes:
        keys: ``(tokens, d_in)`` inputs of the module, float32.
        value_grads: ``(tokens, d_out)`` gradient of the loss at the module's outputs.
    """

    keys: torch.Tensor
    value_grads: torch.Tensor

    def dense(self) -> torch.Tensor:
        """``(d_in, d_out)``."""
        return self.keys.T @ self.value_grads

    def __getitem__(self, name: str) -> torch.Tensor:
        """Refused, with what to write instead: before version 0.2 agents were given numpy arrays in a dictionary."""
        raise TypeError(
            f"observation[module][{name!r}]: an agent observes the factors as tensors, without padding or token_mask: "
            "observation[module].keys and .value_grads (docs/guides/write_a_policy.md)"
        )


class Snapshot(dict[str, torch.Tensor]):
    """The edited weights by module, in float32 and the module's own layout, and what is beside them.

    Attributes:
        memories: The side memories by module.
        context: The context; None if there is none.
    """

    def __init__(
        self, weights: Mapping[str, torch.Tensor], memories: Mapping[str, Memory], context: Context | None = None
    ) -> None:
        super().__init__(weights)
        self.memories, self.context = dict(memories), context

    def __reduce__(self) -> tuple[Any, ...]:
        return Snapshot, (dict(self), self.memories, self.context)


class EditableLM:
    """A causal language model with edited modules.

    The model given is not touched: all parameters but the edited weights are shared with it, those are copied. Its
    layers may lie on several devices (accelerate moves what goes between them). Whatever comes out of here,
    gradients and weights included, is on :attr:`device`, that of the model's first parameter; deltas are taken from
    anywhere.

    Args:
        model: A Hugging Face causal LM.
        tokenizer: Its tokenizer; its BOS is used if it adds one.
        modules: Patterns: a linear module is edited if its dotted name ends with one of them.
        cache_bytes: Room for the frozen layers' outputs of prompts met before.
        activation_cache: Shared with another model of the same frozen layers, in place of room of its own.

    Attributes:
        modules: The edited modules by their full dotted names, in the model's order.
        memories: The side memories by module, of those that have one; :meth:`apply` sets them.
        device: Where logits, gradients and weights come out.
        cut_model: The model from the first edited layer on, by which everything is run.
        width: d, numbers in a hidden state.

    Raises:
        ValueError: If a pattern matches nothing, or a module that is not linear, not in memory, not inside the stack
            of layers, not given every token once, or whose weight is another module's, too; if the model is not causal,
            or its logits are not finite.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        modules: Sequence[str],
        cache_bytes: int = 256 * 2**20,
        activation_cache: ActivationCache | None = None,
    ) -> None:
        check("modules", Sequence[str], modules)  # a text is a sequence of letters
        # A deep copy that takes parameters and buffers as they are: modules of its own, on the same memory.
        shared: dict[int, Any] = {id(p): p for p in model.parameters()} | {id(b): b for b in model.buffers()}
        self.model = copy.deepcopy(model, shared).eval()
        self.tokenizer = tokenizer
        self.device = next(model.parameters()).device
        self.activation_cache = activation_cache or ActivationCache(cache_bytes)
        self.modules: dict[str, nn.Module] = find_modules(self.model, modules)
        # GPT-2's Conv1D stores its weight as (d_in, d_out), nn.Linear the other way round.
        self._stored_in_by_out = {name: not isinstance(module, nn.Linear) for name, module in self.modules.items()}
        self._initial: dict[str, torch.Tensor] = {}
        # Edits add up in float32, whatever the model computes in: thousands of small ones would vanish in bfloat16.
        self._master: dict[str, torch.Tensor] = {}
        for name, module in self.modules.items():
            self._initial[name] = module.get_parameter("weight").detach()
            if self._initial[name].is_meta:
                raise ValueError(f"modules: {name} was moved out of memory (offloaded), and cannot be edited there")
            if others := shared_with(self.model, f"{name}.weight"):
                raise ValueError(
                    f"modules: the weight of {name} is also {', '.join(others)}; it cannot be edited alone"
                )
            module.weight = nn.Parameter(self._initial[name].clone(), requires_grad=False)
            self._master[name] = module.weight.data.float()  # the weight itself if it is float32
        self._weights = {name: module.get_parameter("weight") for name, module in self.modules.items()}
        self._stack_name = layer_stack(self.model, self.modules)
        self.cut_model = cut_model(self.model, {name: self.shape(name) for name in self.modules})
        self.width = self.cut_model.width
        # Memories that the model given has beside these modules, and its context, are part of theta_0.
        self.memories: dict[str, Memory] = detach(self.modules)
        self._initial_memories = dict(self.memories)
        self._initial_context = without_context(self.model)
        set_context(self.model, self._initial_context)
        self._coming: tuple[Context | None, Context, Context | None] | None = None
        # The hooks lie on modules of this model alone, whatever else shares the weights; they hold the dictionary and
        # not the model, which would then be freed late.
        attach(self.modules, self.memories)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy of a float32 weight and the copy of its master, which are one, are one again (``copy.deepcopy``,
        ``pickle``).
        """
        self.__dict__.update(state)
        for name, weight in self._weights.items():
            if weight.dtype == torch.float32:
                self._master[name] = weight.data

    # -- shapes and weights ---------------------------------------------------------------------------------------

    @property
    def cut(self) -> Cut:
        """What is frozen, and computed once for a prompt."""
        return self.cut_model.cut

    @property
    def answer_positions_only(self) -> bool:
        """Whether frozen outputs are kept at answer positions only (the last layer's MLP is all that is edited)."""
        return self.cut_model.answer_positions_only

    def shape(self, name: str) -> tuple[int, int]:
        """``(d_in, d_out)`` of an edited module."""
        rows, columns = self._weights[name].shape
        return (rows, columns) if self._stored_in_by_out[name] else (columns, rows)

    def layer_of(self, name: str) -> nn.Module:
        """The layer, one of the stack, that an edited module lies in."""
        return self.model.get_submodule(f"{self._stack_name}.{layer_number(self._stack_name, name)}")

    def attention_beside(self, name: str) -> nn.Module | None:
        """The attention of an edited module's layer, if the module lies in the layer's MLP; otherwise None."""
        number = layer_number(self._stack_name, name)
        return attention_and_mlp(self.layer_of(name), [name], self._stack_name, number)[0]

    def weight(self, name: str) -> torch.Tensor:
        """The current weight, ``(d_in, d_out)`` float32: to be read; :meth:`assign` sets it.

        A view; a copy on :attr:`device` if the module lies on another one.
        """
        return self._master_weight(name).to(self.device)

    def initial_weight(self, name: str) -> torch.Tensor:
        """theta_0's weight, ``(d_in, d_out)``, likewise; in the model's own precision."""
        initial = self._initial[name] if self._stored_in_by_out[name] else self._initial[name].T
        return initial.to(self.device)

    def _check_shapes(self, matrices: Mapping[str, Change]) -> None:
        """A smaller one would be repeated over the whole weight without a word."""
        for name, matrix in matrices.items():
            if isinstance(matrix, Context):
                continue
            if name not in self.modules:
                raise ValueError(f"unknown module {name!r}; the edited modules are {', '.join(self.modules)}")
            if tuple(matrix.shape) != self.shape(name):
                raise ValueError(f"module {name!r} expects shape {self.shape(name)}, was given {tuple(matrix.shape)}")

    def _master_weight(self, name: str) -> torch.Tensor:
        """The current weight, ``(d_in, d_out)`` float32, where it lies; a view."""
        return self._master[name] if self._stored_in_by_out[name] else self._master[name].T

    @torch.no_grad()
    def assign(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Sets weights, ``(d_in, d_out)``, of some modules.

        Raises:
            ValueError: If one is not of its module's shape, naming both; nothing is changed.
        """
        self._check_shapes(weights)
        for name, weight in weights.items():
            self._master_weight(name).copy_(weight)
            self._round(name)

    @torch.no_grad()
    def apply(self, deltas: Mapping[str, Change]) -> None:
        """theta <- theta + D, in float32; a memory takes the place of the module's, one without entries removes it, and
        entries with their rows are put into it; so are those of a context.

        Raises:
            ValueError: If a delta or a memory is not of its module's shape, or entries do not fit the memory that is
                there, naming both; nothing is changed.
        """
        self._check_shapes(deltas)
        memories = {
            name: merged(self.memories.get(name), delta) for name, delta in deltas.items() if isinstance(delta, Memory)
        }
        if memories:
            self._set_memories(self.memories | memories)
        if isinstance(entries := deltas.get(CONTEXT), Context):
            set_context(self.model, self.context_after(entries))
            self._coming = None
        for name, delta in deltas_of(deltas).items():
            weight = self._master_weight(name)
            if isinstance(delta, LowRank):
                weight.addmm_(delta.left.to(weight), delta.right.to(weight))
            else:
                weight += delta.to(weight)
            self._round(name)

    def restore(self, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Sets the edited weights to a :meth:`snapshot`, or to theta_0, bit for bit, and the memories and the context with
        them.

        Weights that are no snapshot have neither.
        """
        source = self._initial if weights is None else weights
        memories, context = (self._initial_memories, self._initial_context) if weights is None else _beside(weights)
        self._set_memories(memories)
        set_context(self.model, context)
        for name, master in self._master.items():
            master.copy_(source[name])
            self._round(name)

    def rebase(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Makes a :meth:`snapshot` the theta_0 that everything starts from and is compared with; the model goes
        there.
        """
        self._initial = {name: weights[name].to(initial, copy=True) for name, initial in self._initial.items()}
        memories, self._initial_context = _beside(weights)
        self._initial_memories = dict(memories)
        self.restore()

    def snapshot(self) -> Snapshot:
        """A copy of the edited weights, in float32 and the module's own layout, of the memories and the context."""
        return Snapshot({name: master.clone() for name, master in self._master.items()}, self.memories, self.context)

    @property
    def context(self) -> Context | None:
        """What is put before questions; None if nothing is. :meth:`apply` sets it."""
        return context_of(self.model)

    def context_after(self, action: Context, searched: bool = False) -> Context | None:
        """What an action's entries would make of the context; None if nothing is left in it.

        Args:
            action: As :meth:`apply` takes it.
            searched: Whether what it is searched with is made, too, which takes time with many entries; :meth:`apply` of
                the same action then does not do it again.

        Raises:
            ValueError: If it is to be made, and no key has a word.
        """
        if self._coming is None or self._coming[0] is not self.context or self._coming[1] is not action:
            self._coming = (self.context, action, contexts.merged(self.context, action))
        after = self._coming[2]
        if searched and after is not None:
            after.make_retriever()
        return after

    def _set_memories(self, memories: Mapping[str, Memory]) -> None:
        """In place: the hooks hold the dictionary."""
        kept = {name: memory.to(self._weights[name].device) for name, memory in memories.items() if len(memory)}
        self.memories.clear()
        self.memories.update(kept)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Whatever is done to the edited weights, to memories and context in here, they are as they were after it, also
        after an error.
        """
        before = self.snapshot()
        try:
            yield
        finally:
            self.restore(before)

    def _round(self, name: str) -> None:
        """Brings the module's own weight, in the model's precision, up to its master."""
        if self._weights[name].dtype != torch.float32:
            self._weights[name].data.copy_(self._master[name])

    @contextmanager
    def at_initial_weights(self) -> Iterator[None]:
        """Within the context the model is theta_0; nothing is copied."""
        current = {name: weight.data for name, weight in self._weights.items()}
        memories, context = dict(self.memories), self.context
        try:
            self._set_memories(self._initial_memories)
            set_context(self.model, self._initial_context)
            for name, weight in self._weights.items():
                weight.data = self._initial[name]
            yield
        finally:
            for name, weight in self._weights.items():
                weight.data = current[name]
            self._set_memories(memories)
            set_context(self.model, context)

    # -- prompts and the frozen part ------------------------------------------------------------------------------

    def tokenize(self, prompts: Sequence[str], answers: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """Token ids of each prompt and of each answer as it follows the prompt."""
        return token_ids(self.tokenizer, prompts, answers)

    @property
    def eos_token(self) -> int:
        """The tokenizer's end-of-sequence token.

        Raises:
            ValueError: If it has none.
        """
        token = self.tokenizer.eos_token_id
        if not isinstance(token, int):
            raise ValueError("the tokenizer has no end-of-sequence token, with which an answer could end")
        return token

    def _tokens_of(self, texts: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """:meth:`tokenize`, which takes as long as a product with an edited weight, once for a text."""
        cached = self.activation_cache.token_ids
        if missing := [text for text in dict.fromkeys(texts) if text not in cached]:
            cached |= zip(missing, self.tokenize(*map(list, zip(*missing, strict=True))), strict=True)
        token_ids = [cached[text] for text in texts]
        if len(cached) > TEXTS_KEPT:
            cached.clear()
        return token_ids

    @torch.no_grad()
    def encode(
        self,
        prompts: Sequence[str],
        answers: Sequence[str],
        batch_size: int = 48,
        reuse: bool = True,
        append_eos: bool = False,
    ) -> Prompts:
        """Tokenizes prompts with their answers and runs the frozen layers over them, once and for all.

        Prompts are processed in batches of like length; the result is in the order given. Frozen outputs are kept (up
        to ``cache_bytes``, oldest out first), so that a prompt met again costs nothing.

        Args:
            prompts: ``B`` texts.
            answers: Their continuations.
            batch_size: Prompts run together.
            reuse: False computes everything anew, for honest timings.
            append_eos: Let the end-of-sequence token follow each answer, as its last token.

        Raises:
            ValueError: If that token is to follow, and the tokenizer has none.
        """
        pairs = self._tokens_of(list(zip(prompts, answers, strict=True))) if reuse else self.tokenize(prompts, answers)
        if append_eos:
            pairs = [(prompt, [*answer, self.eos_token]) for prompt, answer in pairs]
        return self.encode_tokens(pairs, batch_size, reuse)

    @torch.no_grad()
    def encode_tokens(
        self,
        pairs: Sequence[tuple[list[int], list[int]]],
        batch_size: int = 48,
        reuse: bool = True,
        shared: Sequence[int] | None = None,
    ) -> Prompts:
        """:meth:`encode` of ``B`` prompts with their answers, both as token ids.

        Args:
            pairs: The prompts and the answers.
            batch_size: Prompts run together.
            reuse: As :meth:`encode` has it.
            shared: Of each prompt how many of its first tokens others of them may begin with, too: run once for all
                that do, if the model's layers allow it.
        """
        # The last answer token is predicted, never read.
        keys: list[CacheKey] = [(len(prompt), tuple(prompt + answer[:-1])) for prompt, answer in pairs]
        cache = self.activation_cache
        missing = {key: answer for key, (_, answer) in zip(keys, pairs, strict=True) if not (reuse and key in cache)}
        to_run = {key: self._as_run(key, answer, reuse and cache.whole_answers) for key, answer in missing.items()}
        beginnings = dict(zip(keys, shared or [0] * len(keys), strict=True))
        outputs = self._run_frozen_layers({run: beginnings[key] for key, run in to_run.items()}, batch_size)
        new = {key: without_last(outputs[run], len(run[1]) - len(key[1])) for key, run in to_run.items()}
        pieces = [new[key] if key in new else cache[key] for key in keys]
        if reuse:
            cache.put(outputs)
        starts = None
        if not self.answer_positions_only:
            starts = torch.tensor([len(prompt) - 1 for prompt, _ in pairs], dtype=torch.long, device=self.device)
        return Prompts(
            pieces=pieces,
            starts=starts,
            labels=torch.tensor([t for _, answer in pairs for t in answer], dtype=torch.long, device=self.device),
            lengths=torch.tensor([len(answer) for _, answer in pairs], dtype=torch.long, device=self.device),
            tokens=keys,
        )

    def in_context(self, prompts: Prompts) -> Prompts:
        """The prompts as the model is asked them now: with what its context puts before each, and the same answers.

        The very same without a context; a prompt to which nothing in it is alike is not run again.
        """
        if self.context is None or not len(prompts):
            return prompts
        heads = [ids[:length] for length, ids in prompts.tokens]
        window = window_of(self.model)
        longer = put_before(self.context, self.tokenizer, heads, [window - len(ids) for _, ids in prompts.tokens])
        changed = [i for i, head in enumerate(heads) if len(longer[i]) > len(head)]
        if not changed:
            return prompts
        answers = prompts.labels.cpu().split(prompts.lengths.tolist())
        asked = self.encode_tokens(
            [(longer[i], answers[i].tolist()) for i in changed],
            # The question follows its text; what may stand before that, a token of the beginning, is in both.
            shared=[len(longer[i]) - len(heads[i]) for i in changed],
        )
        pieces, tokens = list(prompts.pieces), list(prompts.tokens)
        for i, piece, read in zip(changed, asked.pieces, asked.tokens, strict=True):
            pieces[i], tokens[i] = piece, read
        starts = None if prompts.starts is None else prompts.starts.clone()
        if starts is not None and asked.starts is not None:
            starts[changed] = asked.starts
        with_text = torch.tensor([len(row) > len(head) for row, head in zip(longer, heads, strict=True)])
        return Prompts(pieces, starts, prompts.labels, prompts.lengths, tokens, with_text)

    def _as_run(self, key: CacheKey, answer: Sequence[int], whole: bool) -> CacheKey:
        """A prompt with its answer as the frozen layers are run over it: to the end of the answer if that is asked for,
        and the model can read as much.
        """
        prompt_tokens, tokens = key
        if not whole or len(tokens) >= window_of(self.model):
            return key
        return prompt_tokens, (*tokens, *answer[-1:])

    def _run_frozen_layers(self, keys: Mapping[CacheKey, int], batch_size: int) -> dict[CacheKey, torch.Tensor]:
        """What the frozen layers make of prompts: those of like length together, for most of a short one beside a long
        one would be padding.

        Args:
            keys: Each with how many of its first tokens others may begin with, too.
            batch_size: Prompts run together.
        """
        outputs = self._packed_outputs(keys, batch_size)
        ordered = sorted((key for key in keys if key not in outputs), key=lambda key: len(key[1]))
        for low, high in ranges_of_length(torch.tensor([len(tokens) for _, tokens in ordered]), self._overhead):
            group = [key for key in ordered if low <= len(key[1]) <= high]
            for start in range(0, len(group), batch_size):
                outputs |= self._frozen_outputs(group[start : start + batch_size])
        return outputs

    def _packed_outputs(self, keys: Mapping[CacheKey, int], batch_size: int) -> dict[CacheKey, torch.Tensor]:
        """The same of those that begin like another one."""
        by_text: dict[tuple[int, ...], list[CacheKey]] = {}
        for key in keys:
            by_text.setdefault(key[1], []).append(key)
        packs = packs_of({key[1]: shared for key, shared in keys.items()}, longest_row(self.cut_model))
        if not packs or not self._can_pack:
            return {}
        outputs: dict[CacheKey, torch.Tensor] = {}
        sizes = torch.tensor([len(pack) for pack in packs])
        for low, high in ranges_of_length(sizes, self._overhead):
            group = [pack for pack in packs if low <= len(pack) <= high]
            together = max(1, batch_size // max(len(pack.own) for pack in group))
            for start in range(0, len(group), together):
                texts = dict(run_packs(self.cut_model, group[start : start + together]))
                some = [key for text in texts for key in by_text[text]]
                outputs |= self._kept_outputs(some, [texts[tokens] for _, tokens in some])
        return outputs

    @cached_property
    def _can_pack(self) -> bool:
        return can_pack(self.cut_model)

    def _frozen_outputs(self, keys: Sequence[CacheKey]) -> dict[CacheKey, torch.Tensor]:
        """The same of a few, together."""
        width = max(len(tokens) for _, tokens in keys)
        # Attention is causal: no token of a prompt sees the padding on its right.
        ids = torch.tensor([[*tokens, *[0] * (width - len(tokens))] for _, tokens in keys])
        return self._kept_outputs(keys, self.cut_model.frozen_output(ids.to(self.device)))

    def _kept_outputs(
        self, keys: Sequence[CacheKey], hidden: Sequence[torch.Tensor] | torch.Tensor
    ) -> dict[CacheKey, torch.Tensor]:
        """What is kept of prompts' hidden states at the cut, ``(tokens, d)`` of each, and padding behind them."""
        kept = []
        for row, (prompt_length, tokens) in zip(hidden, keys, strict=True):
            first = prompt_length - 1 if self.answer_positions_only else 0
            kept.append(row[first : len(tokens)])
        rows = torch.cat(kept)  # a copy of what is kept and of nothing else
        if self.cut is Cut.KEYS:
            rows = self.cut_model.with_keys(rows)
        return dict(zip(keys, rows.split([len(piece) for piece in kept]), strict=True))

    def clear_cache(self) -> None:
        """Drops the kept outputs: their last bits depend on which prompts they were run with."""
        self.activation_cache.clear()

    # -- forward from the cut -------------------------------------------------------------------------------------

    def logits(self, prompts: Prompts) -> torch.Tensor:
        """``(A, vocabulary)`` logits at the answer positions, at the current weights, in float32.

        With a context the prompts are those of :meth:`in_context`.
        """
        prompts = self.in_context(prompts)
        return self._logits(prompts, self.groups(prompts))

    def _logits(self, prompts: Prompts, groups: Sequence[tuple[torch.Tensor, Prompts]]) -> torch.Tensor:
        if len(groups) == 1:
            return self._logits_together(prompts)
        rows = [group.to(self.device)[prompts.prompt_index].nonzero().squeeze(1) for group, _ in groups]
        order = torch.cat(rows).argsort()  # back to the prompts' own
        return torch.cat([self._logits_together(part) for _, part in groups])[order]

    def _logits_together(self, prompts: Prompts) -> torch.Tensor:
        """Of one group of :meth:`groups`, in one forward."""
        with reading(None if prompts.with_text is None else prompts.with_text[:1]):
            return self.cut_model.logits(prompts)

    @property
    def _overhead(self) -> int:
        """What one more forward costs, in tokens."""
        return FORWARD_OVERHEAD.get(self.device.type, FORWARD_OVERHEAD_OF_OTHERS)

    def groups(self, prompts: Prompts) -> list[tuple[torch.Tensor, Prompts]]:
        """Prompts that are run together, and which they are: a short one beside a long one would be mostly padding.

        Where a memory is for prompts with a text before them, those are run by themselves.
        """
        groups = prompts.groups_of_like_length(self._overhead)
        if prompts.with_text is not None and any(memory.gate == "context" for memory in self.memories.values()):
            with_text = prompts.with_text.to(self.device)
            parts = [group & kind for group in groups for kind in (with_text, ~with_text)]
            groups = [part for part in parts if part.any()]
        return [(group, prompts.select(group) if len(groups) > 1 else prompts) for group in groups]

    def gradients(
        self,
        prompts: Prompts,
        loss: Callable[[torch.Tensor], torch.Tensor],
        observed_tokens: ObservedTokens = "all",
        answer_positions: bool | None = None,
        subjects: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, Gradient]]:
        """A loss of the answer logits, and its weight gradient in factors.

        With a context the prompts are those of :meth:`in_context`; its tokens are then among ``"all"``.

        Args:
            prompts: ``A`` answer tokens.
            loss: From ``(A, vocabulary)`` logits to a scalar.
            observed_tokens: Which tokens are kept. ``"answers"``: the ``A`` that predict an answer token.
                ``"all"``: those, and every other one that has a gradient. That are the earlier tokens of prompt and
                answer wherever a later layer's attention reads them: ``keys^T value_grads`` is the whole weight
                gradient then. Padding is never among them. ``"subject"``: one of each prompt.
            answer_positions: What ``observed_tokens="answers"`` was called; it works for one more version.
            subjects: With ``"subject"``, ``(B,)`` the column of that token in each of the ``B`` prompts
                (:func:`editenv.language_model.subjects.subject_tokens`).

        Returns:
            The loss, and for each edited module ``keys`` and ``value_grads`` of the tokens kept, prompt after prompt.
            With ``"all"`` modules differ in the number of tokens.
        """
        if answer_positions is not None:
            observed_tokens = "answers" if answer_positions else "all"
            warnings.warn(
                f"gradients: answer_positions is now observed_tokens={observed_tokens!r}", FutureWarning, stacklevel=2
            )
        if (observed_tokens == "subject") != (subjects is not None):
            raise ValueError("gradients: subjects belong to observed_tokens='subject', and are needed for it")
        given, prompts = prompts, self.in_context(prompts)
        if subjects is not None:
            added = [now - before for (now, _), (before, _) in zip(prompts.tokens, given.tokens, strict=True)]
            subjects = subjects + torch.tensor(added, dtype=subjects.dtype, device=subjects.device)
        groups = self.groups(prompts)
        keys: dict[str, list[torch.Tensor]] = {name: [] for name in self.modules}
        outputs: dict[str, list[torch.Tensor]] = {name: [] for name in self.modules}

        def tap(name: str) -> Callable[..., torch.Tensor]:
            def hook(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
                keys[name].append(args[0].detach())
                # The graph starts here: below the first edited module nothing requires grad.
                outputs[name].append(output if output.requires_grad else output.detach().requires_grad_())
                return outputs[name][-1].clone()  # some models add to it in place (Falcon)

            return hook

        with ExitStack() as stack:
            for name, module in self.modules.items():
                # Before the memory's hook: the factors are then those of the weight, whatever is beside it.
                stack.enter_context(hooked(module.register_forward_hook(tap(name), prepend=True)))
            with torch.enable_grad():
                value = loss(self._logits(prompts, groups))
        flat = torch.autograd.grad(value, [output for name in self.modules for output in outputs[name]])
        grads = iter(flat)
        return value.detach(), {
            name: _in_order(
                [
                    _kept_tokens(
                        key.to(self.device),
                        next(grads).to(self.device),
                        part,
                        observed_tokens,
                        None if subjects is None else subjects[group.to(subjects.device)],
                    )
                    for key, (group, part) in zip(keys[name], groups, strict=True)
                ],
                [group for group, _ in groups],
            )
            for name in self.modules
        }


def _beside(weights: Mapping[str, torch.Tensor]) -> tuple[Mapping[str, Memory], Context | None]:
    """The memories and the context that belong to some weights."""
    return (weights.memories, weights.context) if isinstance(weights, Snapshot) else ({}, None)


def _kept_tokens(
    keys: torch.Tensor,
    grads: torch.Tensor,
    prompts: Prompts,
    observed_tokens: ObservedTokens,
    subjects: torch.Tensor | None = None,
) -> tuple[Gradient, torch.Tensor]:
    """The factors at the tokens that are kept of one forward, and which of its prompts each token is of.

    Args:
        keys: Inputs of a module, ``(B, T, d_in)`` or ``(B T, d_in)``: some models give their MLPs all tokens of a batch
            in one dimension.
        grads: Of the loss at its outputs.
        prompts: The forward's.
        observed_tokens: As :meth:`EditableLM.gradients` takes it.
        subjects: Likewise, of the forward's prompts.
    """
    keys, grads = keys.flatten(0, -2), grads.flatten(0, -2)
    if prompts.starts is None:  # there are no other tokens
        return Gradient(keys.float(), grads.float()), prompts.prompt_index
    width = len(keys) // len(prompts)
    kept = torch.zeros(len(keys), dtype=torch.bool, device=keys.device)
    if subjects is None:
        kept[prompts.rows * width + prompts.columns] = True
    else:
        kept[torch.arange(len(prompts), device=keys.device) * width + subjects.to(keys.device)] = True
    if observed_tokens == "all":
        kept |= grads.any(-1)
    prompt_of_row = torch.arange(len(kept), device=keys.device) // width
    return Gradient(keys[kept].float(), grads[kept].float()), prompt_of_row[kept]


def _in_order(parts: Sequence[tuple[Gradient, torch.Tensor]], groups: Sequence[torch.Tensor]) -> Gradient:
    """The tokens of several forwards, prompt after prompt as they were given.

    Args:
        parts: As :func:`_kept_tokens` gives them.
        groups: ``(B,)`` bool for each: which of the prompts it has.
    """
    if len(parts) == 1:
        return parts[0][0]
    prompt_of_token = torch.cat(
        [group.to(index.device).nonzero().squeeze(1)[index] for (_, index), group in zip(parts, groups, strict=True)]
    )
    order = prompt_of_token.argsort(stable=True)
    return Gradient(
        torch.cat([gradient.keys for gradient, _ in parts])[order],
        torch.cat([gradient.value_grads for gradient, _ in parts])[order],
    )
