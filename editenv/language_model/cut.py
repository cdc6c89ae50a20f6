"""A model cut in two: what comes before the first edited module, computed once for a prompt, and the rest.

The frozen part is never edited, so its output at a prompt is the same at any weights (:class:`Cut` says how much of a
model that can be). Both parts are run through the model's own forward pass, with some of its modules replaced, so that
masks, positions and norms are whatever the model makes of them; only where nothing but a sum, a norm and the head is
left, and these give the same bits (:meth:`CutModel.take_short_cut`), they are called by themselves. Whether a model's
layers have the form that a cut needs is not assumed but checked, against the whole model (:func:`cut_model`). Where
they have none of these forms, nothing is frozen, and the whole model is run.
"""

import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from editenv.language_model.hooks import StopForward, forward_replaced, hooked
from editenv.language_model.prompts import Prompts
from editenv.models.finite import first_three, not_finite
from editenv.models.modules import attention_and_mlp, layer_number, layer_stack

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Cut(IntEnum):
    """What is frozen, from the least to the most."""

    WHOLE = 0
    """Nothing: what is kept of a prompt is its token ids, and the whole model is run every time."""
    LAYERS = 1
    """The layers below the first edited one."""
    ATTENTION = 2
    """Those and the first edited layer's attention: of this layer, only modules of the MLP are edited."""
    KEYS = 3
    """All but the one edited module, the last norm and the head: the module is the projection out of the last layer's
    MLP, so that its inputs, the keys, never change."""


class CutModel:
    """A model that is run from a cut on.

    Args:
        model: A causal LM, shared and never changed.
        shapes: ``(d_in, d_out)`` of each edited module, by its full dotted name.
        cut: What is frozen. Whether it may be is for :meth:`is_allowed` and :meth:`is_exact` to say.

    Attributes:
        cut: What is frozen.
        layers: All layers of the stack that the edited modules lie in.
        first: The place of the first edited layer among them, from 0.
        width: d, numbers in a hidden state.

    Raises:
        ValueError: If the edited modules do not lie in one stack of layers.
    """

    def __init__(self, model: "PreTrainedModel", shapes: Mapping[str, tuple[int, int]], cut: Cut) -> None:
        self.model, self.cut = model, cut
        self.device = next(model.parameters()).device
        self.width: int = model.config.get_text_config().hidden_size
        self._shapes = dict(shapes)
        stack = layer_stack(model, shapes)
        self.layers: list[nn.Module] = list(model.get_submodule(stack).children())
        self.first = first = min(layer_number(stack, name) for name in shapes)
        self._first_layer = self.layers[first]
        self._first_is_last = first == len(self.layers) - 1
        self._attention, self._mlp = attention_and_mlp(self._first_layer, shapes, stack, first)
        # Of Cut.KEYS the only one. Both name and module: an adapter (peft) may later stand in its place, and call it.
        self._edited_name = next(iter(shapes))
        self._edited_module = model.get_submodule(self._edited_name)
        self._around_stack = model.get_submodule(stack.rpartition(".")[0])
        self._last_norm: nn.Module | None = None  # until it is known that nothing else is left
        within = set(self._edited_module.modules())
        around = (model, self._around_stack, *self._first_layer.modules())
        self._passed_by = [module for module in around if module not in within]  # by the short cut

    @property
    def answer_positions_only(self) -> bool:
        """Whether the frozen outputs are needed at answer positions only.

        Behind the last layer's attention no token sees another: those that predict nothing need not be run.
        """
        return self.cut >= Cut.ATTENTION and self._first_is_last

    def has_frozen(self, module: nn.Module) -> bool:
        """Whether a module of the first edited layer is frozen: its output is in the hidden states at the cut, and it
        adds nothing when the rest is run.
        """
        attention = self._attention if self.cut >= Cut.ATTENTION else None
        return attention is not None and any(module is part for part in attention.modules())

    def with_mlp(self, prompts: Prompts) -> "tuple[CutModel, Prompts]":
        """The model and prompts with which the MLP behind a frozen attention is run: for a change of what it is given.

        Only :attr:`Cut.KEYS` does not run it.
        """
        if self.cut is not Cut.KEYS:
            return self, prompts
        cut = CutModel(self.model, self._shapes, Cut.ATTENTION)
        pieces = [piece[:, : self.width] for piece in prompts.pieces]
        return cut, replace(prompts, pieces=pieces)

    # -- the frozen part ------------------------------------------------------------------------------------------

    def frozen_output(self, ids: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        """``(B, T, d)`` hidden states at the cut, of ``(B, T)`` token ids.

        That is the input of the first edited layer, or of its MLP half if its attention is frozen; if nothing is
        frozen, the ids themselves, ``(B, T, 1)``.

        Args:
            ids: The tokens.
            options: Of the model's forward: masks and positions, if not the usual ones.
        """
        if self.cut is Cut.WHOLE:
            return ids[..., None]
        captured: list[torch.Tensor] = []

        def keep_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured.append(_hidden_states(args, kwargs))
            raise StopForward

        def keep_output(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            captured.append(output[0] if isinstance(output, tuple) else output)
            raise StopForward

        layer = self._first_layer
        with ExitStack() as stack:
            if self.cut is Cut.LAYERS:
                stack.enter_context(hooked(layer.register_forward_pre_hook(keep_input, with_kwargs=True)))
            else:
                # The layer adds its attention to the residual stream, then its MLP. With an MLP that gives zeros, the
                # layer's output is what the MLP half starts from.
                assert self._mlp is not None
                stack.enter_context(forward_replaced(self._mlp, lambda x, *_, **__: torch.zeros_like(x)))
                stack.enter_context(hooked(layer.register_forward_hook(keep_output)))
            with suppress(StopForward):
                self.model(input_ids=ids, use_cache=False, **options)
        return captured[0]

    def with_keys(self, hidden: torch.Tensor) -> torch.Tensor:
        """Appends to ``(n, d)`` hidden states at the cut the edited module's inputs: ``(n, d + d_in)``."""
        captured: list[torch.Tensor] = []

        def keep_input(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            captured.append(args[0])
            raise StopForward

        with hooked(self._edited_module.register_forward_pre_hook(keep_input)), suppress(StopForward):
            self._run(hidden[:, None])
        return torch.cat([hidden, captured[0].reshape(len(hidden), -1)], 1)

    # -- the rest -------------------------------------------------------------------------------------------------

    def logits(self, prompts: Prompts) -> torch.Tensor:
        """``(A, vocabulary)`` logits at the answer positions, at the current weights, in float32.

        Args:
            prompts: ``A`` answer tokens.
        """
        head = self.model.get_output_embeddings()
        if not len(prompts):
            return torch.zeros(0, len(head.get_parameter("weight")), device=self.device)
        rows, columns = prompts.rows, prompts.columns
        if self._last_norm is not None and not self._somebody_listens():
            before, keys = prompts.hidden[..., : self.width], prompts.hidden[..., self.width :]
            hidden = self._last_norm(before + self.model.get_submodule(self._edited_name)(keys))
            logits: torch.Tensor = head(hidden[rows, columns]).float()
            return logits

        def select(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden = args[0]
            return (hidden[rows.to(hidden.device), columns.to(hidden.device)], *args[1:])

        hidden = prompts.hidden
        with ExitStack() as stack:
            if self.cut is Cut.KEYS:
                assert self._mlp is not None
                hidden, keys = hidden[..., : self.width], hidden[..., self.width :]
                module = self.model.get_submodule(self._edited_name)  # or the adapter that stands in its place
                stack.enter_context(forward_replaced(self._mlp, lambda *_, **__: module(keys)))
            # The head is by far the widest product: it is taken at the answer positions alone.
            stack.enter_context(hooked(head.register_forward_pre_hook(select)))
            return self._run(hidden).logits.float()

    def _somebody_listens(self) -> bool:
        """Whether a module has hooks that the short cut would pass by."""
        return any(module._forward_hooks or module._forward_pre_hooks for module in self._passed_by)

    def layer_with(self, module: nn.Module) -> int:
        """The place in the stack, from 0, of the layer that is this module or has it."""
        return next(i for i, layer in enumerate(self.layers) if any(module is part for part in layer.modules()))

    def _run(self, hidden: torch.Tensor) -> Any:
        """The model's output from ``(B, T, d)`` hidden states at the cut on."""
        return self.run_from(self.first, hidden)

    def run_from(self, layer: int, hidden: torch.Tensor, **options: Any) -> Any:
        """The model's output from a layer on, at or above the cut.

        Args:
            layer: Its place in the stack.
            hidden: ``(B, T, d)`` its inputs; of the first edited layer, hidden states at the cut.
            options: Of the model's forward.
        """
        options = {"use_cache": False, **options}
        if self.cut is Cut.WHOLE and layer == self.first:
            return self.model(input_ids=hidden[..., 0], **options)

        def enter(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (hidden, *args[1:]), kwargs
            return args, kwargs | {"hidden_states": hidden}

        with ExitStack() as stack:
            for below in self.layers[:layer]:
                stack.enter_context(forward_replaced(below, _pass_through))
            if self.cut >= Cut.ATTENTION and layer == self.first:
                # The hidden states contain the attention's part already.
                assert self._attention is not None
                stack.enter_context(forward_replaced(self._attention, _no_attention))
            stack.enter_context(hooked(self.layers[layer].register_forward_pre_hook(enter, with_kwargs=True)))
            # Which tokens they are no longer matters: their embeddings are replaced at the first edited layer. How many
            # there are does, for positions and masks.
            ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=self.device)
            return self.model(input_ids=ids, **options)

    # -- whether the cut is right -----------------------------------------------------------------------------------

    def is_allowed(self) -> bool:
        """Whether nothing that the cut freezes is edited, by where the edited modules lie."""
        if self.cut <= Cut.LAYERS:
            return True
        if self._attention is None:  # of the first edited layer, not only the MLP is edited
            return False
        if self.cut is Cut.ATTENTION:
            return True
        # One module of the MLP whose outputs are hidden states: the projection out of it.
        return self._first_is_last and [d_out for _, d_out in self._shapes.values()] == [self.width]

    @torch.no_grad()
    def is_exact(self, probe: "Probe | None" = None) -> bool:
        """Whether running from the cut gives the whole model's logits, on a few random tokens.

        It does not where a layer is not of the form "attention, then MLP, each added to the residual stream": Phi, say,
        whose attention and MLP read the same input. Layers that take or return something else than other models'
        (GPT-1's return a list, say) fail in ways of their own, which come to the same.
        """
        probe = probe or Probe.of(self.model)
        try:
            logits = self.logits(self._encoded(probe.ids))
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return False
        tolerance = probe.tolerance * probe.logits.abs().max()
        return bool((probe.logits[:, -1] - logits).abs().max() <= tolerance)

    @torch.no_grad()
    def take_short_cut(self, probe: "Probe") -> None:
        """Behind the keys there is often nothing left but a sum, the last norm and the head: then :meth:`logits` calls
        these, which takes half as long as the model's forward pass for a few prompts.

        Whether that is all is tried: the logits must be the same to the last bit, with one of the modules beside the
        layers as the norm. They are not where the MLP's output is scaled or normed (Gemma 2), or the logits are.
        """
        if self.cut is not Cut.KEYS:
            return
        prompts = self._encoded(probe.ids)
        expected = self.logits(prompts)
        for module in self._around_stack.children():
            self._last_norm = module
            try:
                if torch.equal(self.logits(prompts), expected):
                    return
            except torch.OutOfMemoryError:
                self._last_norm = None
                raise
            except Exception:  # most of them are no norms, and take or return something else
                continue
        self._last_norm = None

    def _encoded(self, ids: torch.Tensor) -> Prompts:
        """Prompts of ``(B, T)`` token ids, each with one answer token, which is never read."""
        hidden = self.frozen_output(ids)
        if self.answer_positions_only:
            hidden = hidden[:, -1:]
        if self.cut is Cut.KEYS:
            hidden = self.with_keys(hidden[:, 0])[:, None]
        ones = torch.ones(len(ids), dtype=torch.long, device=self.device)
        starts = None if self.answer_positions_only else (ids.shape[1] - 1) * ones
        tokens = [(len(row), tuple(row)) for row in ids.tolist()]
        return Prompts(list(hidden), starts, labels=0 * ones, lengths=ones, tokens=tokens)

    @torch.no_grad()
    def check_modules(self, probe: "Probe") -> None:
        """Whether each edited module is given every token once, so that its gradient is what its inputs say.

        Raises:
            ValueError: If one is given none (a vision tower), some (an expert), or all of them several times (shared
                by several layers).
        """
        prompts = self._encoded(probe.ids)
        tokens = prompts.hidden.shape[:2].numel()
        calls: dict[str, list[int]] = {name: [] for name in self._shapes}
        with ExitStack() as stack:
            for name, tokens_given in calls.items():
                handle = self.model.get_submodule(name).register_forward_pre_hook(_counted(tokens_given))
                stack.enter_context(hooked(handle))
            self.logits(prompts)
        for name, tokens_given in calls.items():
            if not tokens_given:
                raise ValueError(f"modules: {name} is not used when {type(self.model).__name__} reads text")
            if len(tokens_given) > 1:
                raise ValueError(
                    f"modules: {name} is called {len(tokens_given)} times for a text, as layers share it; only modules that are "
                    "called once can be edited"
                )
            if tokens_given != [tokens]:
                raise ValueError(
                    f"modules: {name} is given some of a text's tokens only, like an expert of a mixture, and cannot be edited"
                )


@dataclass(frozen=True, slots=True)
class Probe:
    """A few random tokens, and what the whole model makes of them.

    Attributes:
        ids: ``(B, T)``.
        logits: ``(B, T, vocabulary)``, float32.
        tolerance: By how much logits of the same prompts may differ, as a share of the largest.
    """

    ids: torch.Tensor
    logits: torch.Tensor
    tolerance: float

    @classmethod
    @torch.no_grad()
    def of(cls, model: "PreTrainedModel") -> "Probe":
        """Runs the model twice.

        Raises:
            ValueError: If its logits are not finite, or if those at a token change with the tokens behind it (BERT,
                say): the padding to the right of a prompt would change them, too.
        """
        generator = torch.Generator().manual_seed(0)
        vocabulary = model.get_input_embeddings().weight.shape[0]
        ids = torch.randint(0, vocabulary, (2, 6), generator=generator).to(next(model.parameters()).device)
        logits = model(input_ids=ids, use_cache=False).logits.float()
        if not logits.isfinite().all():
            raise ValueError(_why_not_finite(model))
        tolerance = 1e-4 if model.dtype == torch.float32 else 5e-2
        other_end = ids.clone()
        other_end[:, 4:] = (ids[:, 4:] + 1) % vocabulary
        others = model(input_ids=other_end, use_cache=False).logits.float()
        if (others - logits)[:, :4].abs().max() > tolerance * logits.abs().max():
            raise ValueError(
                f"{type(model).__name__} is no causal language model: what it predicts after a token changes with the tokens "
                "that follow (or from call to call)"
            )
        return cls(ids, logits, tolerance)


def cut_model(model: "PreTrainedModel", shapes: Mapping[str, tuple[int, int]]) -> CutModel:
    """The model behind the cut that freezes most, of those that are allowed and exact.

    Warns if nothing can be frozen.

    Args:
        model: A causal LM.
        shapes: ``(d_in, d_out)`` of each edited module, by its full dotted name.

    Raises:
        ValueError: If the model cannot be edited, or not these modules, as :class:`Probe` and
            :meth:`CutModel.check_modules` say; or if the modules do not lie in one stack of layers.
    """
    probe = Probe.of(model)
    candidates = (CutModel(model, shapes, cut) for cut in sorted(Cut, reverse=True))
    chosen = next(c for c in candidates if c.cut is Cut.WHOLE or (c.is_allowed() and c.is_exact(probe)))
    chosen.check_modules(probe)
    chosen.take_short_cut(probe)
    if chosen.cut is Cut.WHOLE:
        warnings.warn(
            f"{type(model).__name__}: the layers of {layer_stack(model, shapes)} cannot be run from the middle; the whole model "
            "is run for every prompt, which is as exact and takes longer",
            stacklevel=3,
        )
    return chosen


def _why_not_finite(model: "PreTrainedModel") -> str:
    if names := not_finite(model):
        return f"{type(model).__name__} has weights that are NaN or infinite: {first_three(names)}"
    return (
        f"{type(model).__name__} computes logits that are NaN or infinite in {model.dtype}, although all of its weights are "
        "finite: use another dtype (bfloat16 or float32)"
    )


def _counted(tokens_given: list[int]) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    """A hook that notes how many tokens a module was given."""

    def count(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        tokens_given.append(args[0].shape[:-1].numel())

    return count


def _hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """What a layer or its attention was called with: first in order, or by the name that transformers gives it."""
    hidden: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def _no_attention(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    """In place of an attention: adds nothing, and has no attention weights to return."""
    return torch.zeros_like(_hidden_states(args, kwargs)), None


def _pass_through(*args: Any, **kwargs: Any) -> torch.Tensor:
    """In place of a layer: its input."""
    return _hidden_states(args, kwargs)
