"""The transition: a language model whose edited modules can be read (gradients), changed (deltas) and restored.

Everything here is differentiable torch. No weight ever requires grad: gradients are taken with respect to the *outputs*
of the edited modules, which gives the two factors ``keys`` and ``value_grads`` and nothing of the size of a weight.

**What never changes is computed once.** The layers below the first edited one are frozen for the whole life of a
run, so :meth:`EditableLM.encode` runs them once per prompt and keeps their output; every later forward starts
there. When the first edited module sits in the MLP of its layer, that layer's attention is frozen too; and when
that layer is the last one, tokens no longer see each other and only the answer positions are kept at all. If
moreover the MLP's output
projection is all that is edited, as by default, its inputs never change and are kept too: a forward is then that
module, the last norm and the head. Whether a model's layers have the form this needs is not assumed but checked, at
construction, against the whole model.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from editenv.deltas import Delta, LowRank
from editenv.language_model.activation_cache import ActivationCache, CacheKey
from editenv.language_model.prompts import Prompts, answer_ids
from editenv.models.modules import attention_and_mlp, find_modules, layer_stack

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


TEXTS_KEPT = 2**16
"""Texts whose tokens are kept, about 40 MB of them."""


class _StopForward(Exception):  # noqa: N818 - a signal, not an error
    """Ends a forward pass once what it was for has been seen."""


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


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    hooked = module.__dict__.get("forward")  # accelerate puts its own there
    module.forward = forward  # an instance attribute shadows the method
    try:
        yield
    finally:
        if hooked is None:
            del module.forward
        else:
            module.forward = hooked


@contextmanager
def _hooked(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


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

    Raises:
        ValueError: If a pattern matches nothing, or a module that is not linear, not in memory or not inside the
            stack of layers.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        modules: Sequence[str],
        cache_bytes: int = 256 * 2**20,
        activation_cache: ActivationCache | None = None,
    ) -> None:
        shared: dict[int, Any] = {id(p): p for p in model.parameters()} | {id(b): b for b in model.buffers()}
        self.model = copy.deepcopy(model, shared).eval()
        self.tokenizer = tokenizer
        self.device = next(model.parameters()).device
        self.modules: dict[str, nn.Module] = find_modules(self.model, modules)
        self._transposed = {name: not isinstance(module, nn.Linear) for name, module in self.modules.items()}
        self._initial: dict[str, torch.Tensor] = {}
        # Edits add up in float32, whatever the model computes in: thousands of small ones would vanish in bfloat16.
        self._sums: dict[str, torch.Tensor] = {}
        self.activation_cache = activation_cache or ActivationCache(cache_bytes)
        for name, module in self.modules.items():
            self._initial[name] = module.get_parameter("weight").detach()
            if self._initial[name].is_meta:
                raise ValueError(f"modules: {name} was moved out of memory (offloaded), and cannot be edited there")
            module.weight = nn.Parameter(self._initial[name].clone(), requires_grad=False)
            self._sums[name] = module.weight.data.float()  # the weight itself if it is float32
        self._weights = {name: module.get_parameter("weight") for name, module in self.modules.items()}

        stack_name = self._stack_name = layer_stack(self.model, self.modules)
        self._layers: Sequence[nn.Module] = list(self.model.get_submodule(stack_name).children())
        self.first_layer = min(map(self._layer_number, self.modules))
        self._attention, self._mlp = attention_and_mlp(
            self._layers[self.first_layer], self.modules, stack_name, self.first_layer
        )
        self.frozen_attention = self._attention is not None
        self.frozen_keys = False
        """Whether the edited module's inputs are kept: it ends the last layer's MLP, and nothing else is edited."""
        if self.frozen_attention and not self._cut_is_exact():
            self.frozen_attention = False
        if not self.frozen_attention and not self._cut_is_exact():
            raise ValueError(f"{type(model).__name__}: the layers of {stack_name} cannot be run from the middle")
        self.width = self.model.get_output_embeddings().get_parameter("weight").shape[1]
        ends_the_mlp = len(self.modules) == 1 and self.shape(*self.modules)[1] == self.width
        if self.answer_positions_only and ends_the_mlp:
            self.frozen_keys = True
            self.frozen_keys = self._cut_is_exact()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy of a float32 weight and the copy of its sum, which are one, are one again (``copy.deepcopy``,
        ``pickle``).
        """
        self.__dict__.update(state)
        for name, weight in self._weights.items():
            if weight.dtype == torch.float32:
                self._sums[name] = weight.data

    # -- shapes and weights ---------------------------------------------------------------------------------------

    @property
    def answer_positions_only(self) -> bool:
        """Whether frozen outputs are kept at answer positions only (the last layer's MLP is all that is edited)."""
        return self.frozen_attention and self.first_layer == len(self._layers) - 1

    def shape(self, name: str) -> tuple[int, int]:
        """``(d_in, d_out)`` of an edited module."""
        rows, columns = self._weights[name].shape
        return (rows, columns) if self._transposed[name] else (columns, rows)

    def layer_of(self, name: str) -> nn.Module:
        """The layer, one of the stack, that an edited module lies in."""
        return self._layers[self._layer_number(name)]

    def _layer_number(self, name: str) -> int:
        return int(name[len(self._stack_name) + 1 :].split(".")[0])

    def weight(self, name: str) -> torch.Tensor:
        """The current weight, ``(d_in, d_out)`` float32: to be read; :meth:`assign` sets it.

        A view; a copy on :attr:`device` if the module lies on another one.
        """
        return self._sum(name).to(self.device)

    def initial_weight(self, name: str) -> torch.Tensor:
        """theta_0's weight, ``(d_in, d_out)``, likewise."""
        initial = self._initial[name] if self._transposed[name] else self._initial[name].T
        return initial.to(self.device)

    def _sum(self, name: str) -> torch.Tensor:
        """The current weight, ``(d_in, d_out)``, where it lies."""
        return self._sums[name] if self._transposed[name] else self._sums[name].T

    @torch.no_grad()
    def assign(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Sets weights, ``(d_in, d_out)``, of some modules."""
        for name, weight in weights.items():
            self._sum(name).copy_(weight)
            self._round(name)

    @torch.no_grad()
    def apply(self, deltas: Mapping[str, Delta]) -> None:
        """theta <- theta + D, in float32."""
        for name, delta in deltas.items():
            total = self._sum(name)
            if isinstance(delta, LowRank):
                total.addmm_(delta.left.to(total), delta.right.to(total))
            else:
                total += delta.to(total)
            self._round(name)

    def restore(self, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Sets the edited weights to a :meth:`snapshot`, or to theta_0, bit for bit."""
        source = self._initial if weights is None else weights
        for name, total in self._sums.items():
            total.copy_(source[name])
            self._round(name)

    def rebase(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Makes a :meth:`snapshot` the theta_0 that everything starts from and is compared with; the model goes
        there.
        """
        self._initial = {name: weights[name].to(initial, copy=True) for name, initial in self._initial.items()}
        self.restore()

    def snapshot(self) -> dict[str, torch.Tensor]:
        """A copy of the edited weights, in float32 and the module's own layout."""
        return {name: total.clone() for name, total in self._sums.items()}

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Whatever is done to the edited weights within the context, they are as they were after it, also after an
        error.
        """
        before = self.snapshot()
        try:
            yield
        finally:
            self.restore(before)

    def _round(self, name: str) -> None:
        """The sum of all edits, in the model's own precision."""
        if self._weights[name].dtype != torch.float32:
            self._weights[name].data.copy_(self._sums[name])

    @contextmanager
    def at_initial_weights(self) -> Iterator[None]:
        """Within the context the model is theta_0; nothing is copied."""
        current = {name: weight.data for name, weight in self._weights.items()}
        try:
            for name, weight in self._weights.items():
                weight.data = self._initial[name]
            yield
        finally:
            for name, weight in self._weights.items():
                weight.data = current[name]

    # -- prompts and the frozen part ------------------------------------------------------------------------------

    def tokenize(self, prompts: Sequence[str], answers: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """Token ids of each prompt and of each answer as it follows the prompt (with a space between)."""
        heads = self.tokenizer(list(prompts))["input_ids"]
        return list(zip(heads, answer_ids(self.tokenizer, answers), strict=True))

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
        known = self.activation_cache.token_ids
        if new := [text for text in dict.fromkeys(texts) if text not in known]:
            known |= zip(new, self.tokenize(*map(list, zip(*new, strict=True))), strict=True)
        found = [known[text] for text in texts]
        if len(known) > TEXTS_KEPT:
            known.clear()
        return found

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
        """
        pairs = self._tokens_of(list(zip(prompts, answers, strict=True))) if reuse else self.tokenize(prompts, answers)
        if append_eos:
            pairs = [(head, [*tail, self.eos_token]) for head, tail in pairs]
        # The last answer token is predicted, never read.
        texts = [(len(head), tuple(head + tail[:-1])) for head, tail in pairs]
        fresh = sorted(
            {text for text in texts if not (reuse and text in self.activation_cache)}, key=lambda text: len(text[1])
        )
        found: dict[CacheKey, torch.Tensor] = {}
        for start in range(0, len(fresh), batch_size):
            chunk = fresh[start : start + batch_size]
            width = len(chunk[-1][1])
            ids = torch.tensor([[*row, *[0] * (width - len(row))] for _, row in chunk])
            hidden = self._frozen_output(ids.to(self.device))
            pieces = [
                hidden[j, head - 1 if self.answer_positions_only else 0 : len(row)]
                for j, (head, row) in enumerate(chunk)
            ]
            rows = torch.cat(pieces)  # a copy of what is kept and of nothing else
            if self.frozen_keys:
                rows = self._with_keys(rows)
            pieces = list(rows.split([len(piece) for piece in pieces]))
            found.update(zip(chunk, pieces, strict=True))
        pieces = [found[text] if text in found else self.activation_cache[text] for text in texts]
        if reuse:
            self.activation_cache.put(found)
        starts = (
            None if self.answer_positions_only else torch.tensor([len(h) - 1 for h, _ in pairs], device=self.device)
        )
        labels = torch.tensor([token for _, tail in pairs for token in tail], dtype=torch.long, device=self.device)
        lengths = torch.tensor([len(tail) for _, tail in pairs], dtype=torch.long, device=self.device)
        return Prompts(pieces, starts, labels, lengths)

    def clear_cache(self) -> None:
        """Drops the kept outputs: their last bits depend on which prompts they were run with."""
        self.activation_cache.clear()

    def _frozen_output(self, ids: torch.Tensor) -> torch.Tensor:
        """``(B, T, d)``: the input of the first edited layer, or of its MLP half if its attention is frozen."""
        captured: list[torch.Tensor] = []
        layer = self._layers[self.first_layer]

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None) -> None:
            value = output if self.frozen_attention else (args[0] if args else kwargs["hidden_states"])
            captured.append(value[0] if isinstance(value, tuple) else value)
            raise _StopForward

        with ExitStack() as stack:
            if self.frozen_attention:
                assert self._mlp is not None
                stack.enter_context(_forward_replaced(self._mlp, lambda x, *_, **__: torch.zeros_like(x)))
                stack.enter_context(_hooked(layer.register_forward_hook(keep, with_kwargs=True)))
            else:
                stack.enter_context(_hooked(layer.register_forward_pre_hook(keep, with_kwargs=True)))
            with suppress(_StopForward):
                self.model(input_ids=ids, use_cache=False)
        return captured[0]

    # -- forward from the cut -------------------------------------------------------------------------------------

    def logits(self, prompts: Prompts) -> torch.Tensor:
        """``(A, vocabulary)`` logits at the answer positions, at the current weights, in float32."""

        rows, columns = prompts.rows, prompts.columns

        def select(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden = args[0]
            return (hidden[rows.to(hidden.device), columns.to(hidden.device)], *args[1:])

        if not len(prompts):
            head = self.model.get_output_embeddings().get_parameter("weight")
            return torch.zeros(0, len(head), device=self.device)
        hidden = prompts.hidden
        with ExitStack() as stack:
            if self.frozen_keys:
                assert self._mlp is not None
                hidden, keys = hidden[..., : self.width], hidden[..., self.width :]
                module = self.model.get_submodule(*self.modules)  # an adapter may stand in its place
                stack.enter_context(_forward_replaced(self._mlp, lambda *_, **__: module(keys)))
            stack.enter_context(_hooked(self.model.get_output_embeddings().register_forward_pre_hook(select)))
            return self._run_from_cut(hidden).logits.float()

    def _run_from_cut(self, hidden: torch.Tensor) -> Any:
        """The model's output, with the frozen layers passed through."""
        layer = self._layers[self.first_layer]

        def enter(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (hidden, *args[1:]), kwargs
            return args, kwargs | {"hidden_states": hidden}

        with ExitStack() as stack:
            for below in self._layers[: self.first_layer]:
                stack.enter_context(_forward_replaced(below, _passed_through(below)))
            if self.frozen_attention:
                assert self._attention is not None
                stack.enter_context(_forward_replaced(self._attention, _no_attention))
            stack.enter_context(_hooked(layer.register_forward_pre_hook(enter, with_kwargs=True)))
            ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=self.device)
            return self.model(input_ids=ids, use_cache=False)

    def _with_keys(self, hidden: torch.Tensor) -> torch.Tensor:
        """``(n, d)`` tokens at the cut with the edited module's inputs after them, ``(n, d + d_in)``."""
        found: list[torch.Tensor] = []

        def keep(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            found.append(args[0])
            raise _StopForward

        (module,) = self.modules.values()
        with _hooked(module.register_forward_pre_hook(keep)), suppress(_StopForward):
            self._run_from_cut(hidden[:, None])
        return torch.cat([hidden, found[0][:, 0]], 1)

    def gradients(
        self,
        prompts: Prompts,
        loss: Callable[[torch.Tensor], torch.Tensor],
        answer_positions: bool = False,
    ) -> tuple[torch.Tensor, dict[str, Gradient]]:
        """A loss of the answer logits, and its weight gradient in factors.

        Args:
            prompts: ``A`` answer tokens.
            loss: From ``(A, vocabulary)`` logits to a scalar.
            answer_positions: Keep only the tokens at answer positions (the observation does), not all of them.

        Returns:
            The loss, and for each edited module ``keys`` and ``value_grads`` of ``A`` or all tokens.
        """
        keys: dict[str, torch.Tensor] = {}
        outputs: dict[str, torch.Tensor] = {}

        def tap(name: str) -> Callable[..., torch.Tensor]:
            def hook(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
                keys[name] = args[0].detach()
                # The graph starts here: below the first edited module nothing requires grad.
                outputs[name] = output if output.requires_grad else output.detach().requires_grad_()
                return outputs[name]

            return hook

        with ExitStack() as stack:
            for name, module in self.modules.items():
                stack.enter_context(_hooked(module.register_forward_hook(tap(name))))
            with torch.enable_grad():
                value = loss(self.logits(prompts))
        grads = torch.autograd.grad(value, list(outputs.values()))
        found = {}
        rows, columns = prompts.rows, prompts.columns
        for (name, key), grad in zip(keys.items(), grads, strict=True):
            key, grad = key.to(self.device), grad.to(self.device)
            if answer_positions:
                key, grad = key[rows, columns], grad[rows, columns]
            found[name] = Gradient(key.flatten(0, -2).float(), grad.flatten(0, -2).float())
        return value.detach(), {name: found[name] for name in self.modules}

    # -- the check behind the cut ---------------------------------------------------------------------------------

    @torch.no_grad()
    def _cut_is_exact(self) -> bool:
        """Whether running from the cut gives the whole model's logits on a few tokens."""
        generator = torch.Generator().manual_seed(0)
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        ids = torch.randint(0, vocabulary, (2, 6), generator=generator).to(self.device)
        whole = self.model(input_ids=ids, use_cache=False).logits[:, -1].float()
        hidden = self._frozen_output(ids)
        if self.answer_positions_only:
            hidden = hidden[:, -1:]
        if self.frozen_keys:
            hidden = self._with_keys(hidden[:, 0])[:, None]
        ones = torch.ones(2, dtype=torch.long, device=self.device)
        starts = None if self.answer_positions_only else 5 * ones
        cut = self.logits(Prompts(list(hidden), starts, 0 * ones, ones))
        scale = whole.abs().max()
        tolerance = 1e-4 if self.model.dtype == torch.float32 else 5e-2
        return bool((whole - cut).abs().max() <= tolerance * scale)


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    hidden: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def _no_attention(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    return torch.zeros_like(_first(args, kwargs)), None


def _passed_through(layer: nn.Module) -> Callable[..., Any]:
    return lambda *args, **kwargs: _first(args, kwargs)
