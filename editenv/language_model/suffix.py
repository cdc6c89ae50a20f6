"""Prompts run again and again from one token of each on: what comes before that token is computed once.

Where only a module's output at one token changes, as when ROME and MEMIT search for a value, all earlier tokens stay as
they are, and so does everything below the module's layer. Attention is causal: a run needs the tokens from there to the
end, the layers from there up, and the earlier tokens' attention keys and values, which are kept.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from editenv.language_model.cut import CutModel
from editenv.language_model.editable_lm import EditableLM
from editenv.language_model.hooks import StopForward, hooked
from editenv.language_model.prompts import Prompts

States = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Attention keys and values of each layer."""

_RIGHT: WeakKeyDictionary[CutModel, dict[int, int]] = WeakKeyDictionary()
"""Of each model, by layer: the longest prompts whose logits were those of whole ones."""


class _Recorded(DynamicCache):
    """Keeps the attention keys and values of every layer that is run; as if nothing had come before."""

    def __init__(self) -> None:
        super().__init__()
        self.states: States = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.states[layer_idx] = key_states, value_states
        return key_states, value_states


class _Past(DynamicCache):
    """The attention keys and values of ``length`` tokens, which a run is put behind and does not add to."""

    def __init__(self, states: States, length: int) -> None:
        super().__init__()
        self.states, self.length = states, length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.states[layer_idx]
        return torch.cat([keys, key_states], -2), torch.cat([values, value_states], -2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.length + query_length, 0


class SuffixRun:
    """``B`` prompts from one token of each on, through the layers from one on.

    Args:
        lm: The model, at the weights as they are.
        prompts: ``A`` answer tokens.
        columns: ``(B,)`` the token, at or before the one that predicts the first answer token.
        module: What is going to be changed at that token: a layer, or a module of one. Its layer is the first run.
        changed: Makes the context in which some of the prompts, ``(B,)`` bool, are run up to that token: what stays
            changed at tokens before.

    Raises:
        SuffixError: If the model's layers do not allow it: the logits are not those of whole prompts. That is tried for
            prompts longer than all before in a layer.
    """

    @torch.no_grad()
    def __init__(
        self,
        lm: EditableLM,
        prompts: Prompts,
        columns: torch.Tensor,
        module: nn.Module,
        changed: Callable[[torch.Tensor], AbstractContextManager[None]] | None = None,
    ) -> None:
        if prompts.starts is None:
            raise SuffixError("only the tokens that predict an answer are run already")
        self.lm = lm
        self._cut = lm.cut_model
        self._layer = self._cut.layer_with(module)
        self._head = lm.model.get_output_embeddings()
        changed = changed or (lambda _: nullcontext())
        try:
            self._keep(prompts, columns, changed)
            is_right = self._is_right(prompts, changed)
        except (SuffixError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # layers that take or return something else than other models' fail in many ways
            raise SuffixError(str(error)) from error
        if not is_right:
            raise SuffixError("the logits are not those of whole prompts")

    def _keep(
        self, prompts: Prompts, columns: torch.Tensor, changed: Callable[[torch.Tensor], AbstractContextManager[None]]
    ) -> None:
        """What every run needs: the layer's inputs from each prompt's token on, and what was kept of those before."""
        device = self.lm.device
        layer_inputs = self._layer_inputs(prompts)
        sizes = torch.tensor([len(piece) for piece in prompts.pieces], device=device)
        # Right-padded: each prompt's tokens before its column, and those from there on.
        length = int((sizes - columns).max())
        self.past_length = int(columns.max())
        self.positions = columns[:, None] + torch.arange(length, device=device)
        index = self.positions.clamp(max=layer_inputs.shape[1] - 1)[..., None].expand(-1, -1, layer_inputs.shape[2])
        self.hidden = layer_inputs.gather(1, index)
        is_past = torch.arange(self.past_length, device=device) < columns[:, None]
        self.mask = torch.cat([is_past, self.positions < sizes[:, None]], 1).long()
        self.past = self._states(prompts.until((columns - 1).clamp(min=0)), layer_inputs, changed)
        self.rows, self.columns = prompts.rows, prompts.columns - columns[prompts.prompt_index]

    def _layer_inputs(self, prompts: Prompts) -> torch.Tensor:
        """``(B, T, d)``."""
        if self._layer == self._cut.first:
            return prompts.hidden  # it is given the hidden states at the cut, whatever reaches it from below
        inputs: list[torch.Tensor] = []

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs.append((args[0] if args else kwargs["hidden_states"]).to(self.lm.device))
            raise StopForward

        groups = self.lm.groups(prompts)
        with hooked(self._cut.layers[self._layer].register_forward_pre_hook(keep, with_kwargs=True)):
            for _, part in groups:
                with suppress(StopForward):
                    self._cut.logits(part)
        if len(groups) == 1:
            return inputs[0]
        together = inputs[0].new_zeros(len(prompts), max(part.shape[1] for part in inputs), inputs[0].shape[2])
        for (of_part, _), of_layer in zip(groups, inputs, strict=True):
            together[of_part.to(together.device), : of_layer.shape[1]] = of_layer
        return together

    def _states(
        self,
        before: Prompts,
        layer_inputs: torch.Tensor,
        changed: Callable[[torch.Tensor], AbstractContextManager[None]],
    ) -> States:
        """Each layer's attention keys and values of the tokens before the columns, ``(B, heads, past, d)``."""
        states: States = {}
        for of_part, part in self.lm.groups(before):
            width = max(len(piece) for piece in part.pieces)
            recorded = _Recorded()
            with changed(of_part), hooked(self._head.register_forward_pre_hook(_stop)), suppress(StopForward):
                hidden = layer_inputs[of_part.to(layer_inputs.device), :width]
                self._cut.run_from(self._layer, hidden, past_key_values=recorded, use_cache=True)
            if not recorded.states:
                raise SuffixError("the layers keep no attention keys and values")
            kept = min(width, self.past_length)
            for layer, of_layer in recorded.states.items():
                if layer not in states:
                    shapes = [(len(before), part.shape[1], self.past_length, part.shape[3]) for part in of_layer]
                    states[layer] = of_layer[0].new_zeros(shapes[0]), of_layer[1].new_zeros(shapes[1])
                for whole, of_group in zip(states[layer], of_layer, strict=True):
                    whole[of_part.to(whole.device), :, :kept] = of_group[:, :, :kept]
        return states

    def _is_right(self, prompts: Prompts, changed: Callable[[torch.Tensor], AbstractContextManager[None]]) -> bool:
        """Whether the logits are those of whole prompts; true without a look where shorter ones were right."""
        longest = _RIGHT.setdefault(self._cut, {})
        length = max(len(piece) for piece in prompts.pieces)
        if length <= longest.get(self._layer, 0):
            return True
        with changed(torch.ones_like(prompts.lengths, dtype=torch.bool)):
            logits = self._cut.logits(prompts)
        tolerance = 1e-4 if self.lm.model.dtype == torch.float32 else 5e-2
        is_right = bool((self.logits() - logits).abs().max() <= tolerance * logits.abs().max())
        if is_right:
            longest[self._layer] = length
        return is_right

    def logits(self) -> torch.Tensor:
        """``(A, vocabulary)`` logits at the answer positions, in float32; the token is the first of each row's."""

        def select(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            device = args[0].device
            return (args[0][self.rows.to(device), self.columns.to(device)], *args[1:])

        options: dict[str, Any] = {
            "attention_mask": self.mask,
            "past_key_values": _Past(self.past, self.past_length),
            "use_cache": True,
        }
        if "position_ids" in inspect.signature(self.lm.model.forward).parameters:
            options["position_ids"] = self.positions
        with ExitStack() as stack:
            stack.enter_context(hooked(self._head.register_forward_pre_hook(select)))
            output = self._cut.run_from(self._layer, self.hidden, **options)
        logits: torch.Tensor = output.logits.float()
        return logits


def _stop(_: nn.Module, args: tuple[Any, ...]) -> None:
    raise StopForward


class SuffixError(ValueError):
    """Prompts cannot be run from one of their tokens on: run them whole."""
