"""Prompts run again and again from one token of each on: what comes before that token is computed once.

Where only a module's output at one token changes, as when ROME and MEMIT search for a value, all earlier tokens stay as
they are, and so does everything below the module's layer. Attention is causal: a run needs the tokens from there to the
end, the layers from there up, and the earlier tokens' attention keys and values, which are kept.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from editenv.language_model.editable_lm import EditableLM
from editenv.language_model.hooks import hooked
from editenv.language_model.prompts import Prompts


class _Recorded(DynamicCache):
    """Keeps the attention keys and values of every layer that is run; as if nothing had come before."""

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.states[layer_idx] = key_states, value_states
        return key_states, value_states


class _Past(DynamicCache):
    """The attention keys and values of ``length`` tokens, which a run is put behind and does not add to."""

    def __init__(self, states: dict[int, tuple[torch.Tensor, torch.Tensor]], length: int) -> None:
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
        changed: Makes the context in which whole prompts are run: what stays changed at tokens before.

    Raises:
        SuffixError: If the model's layers do not allow it: the logits are not those of whole prompts.
    """

    @torch.no_grad()
    def __init__(
        self,
        lm: EditableLM,
        prompts: Prompts,
        columns: torch.Tensor,
        module: nn.Module,
        changed: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        if prompts.starts is None:
            raise SuffixError("only the tokens that predict an answer are run already")
        self.lm = lm
        self._cut = lm.cut_model
        self._layer = self._cut.layer_with(module)
        sizes = torch.tensor([len(piece) for piece in prompts.pieces], device=lm.device)
        try:
            with changed():
                layer_inputs, states, logits = self._run_whole(prompts)
            self._keep(prompts, columns, sizes, layer_inputs, states)
            from_token = self.logits()
        except (SuffixError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # layers that take or return something else than other models' fail in many ways
            raise SuffixError(str(error)) from error
        tolerance = 1e-4 if lm.model.dtype == torch.float32 else 5e-2
        if not bool((from_token - logits).abs().max() <= tolerance * logits.abs().max()):
            raise SuffixError("the logits are not those of whole prompts")

    def _keep(
        self,
        prompts: Prompts,
        columns: torch.Tensor,
        sizes: torch.Tensor,
        layer_inputs: torch.Tensor,
        states: dict[int, tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        """What every run needs: the layer's inputs from each prompt's token on, and what was kept of those before."""
        device = self.lm.device
        layer_inputs = layer_inputs.to(device)
        # Right-padded: each prompt's tokens before its column, and those from there on.
        past, length = int(columns.max()), int((sizes - columns).max())
        steps = torch.arange(length, device=device)
        self.positions = columns[:, None] + steps
        index = self.positions.clamp(max=layer_inputs.shape[1] - 1)[..., None].expand(-1, -1, layer_inputs.shape[2])
        self.hidden = layer_inputs.gather(1, index)
        self.mask = torch.cat(
            [torch.arange(past, device=device) < columns[:, None], self.positions < sizes[:, None]], 1
        ).long()
        self.past = {layer: (keys[:, :, :past], values[:, :, :past]) for layer, (keys, values) in states.items()}
        self.past_length = past
        self.rows, self.columns = prompts.rows, prompts.columns - columns[prompts.prompt_index]

    def _run_whole(
        self, prompts: Prompts
    ) -> tuple[torch.Tensor, dict[int, tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
        """The layer's input ``(B, T, d)``, each layer's attention keys and values, and the logits ``(A, vocabulary)``."""
        inputs: list[torch.Tensor] = []

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs.append(args[0] if args else kwargs["hidden_states"])

        recorded = _Recorded()
        layer = self._cut.layers[self._layer]
        with hooked(layer.register_forward_pre_hook(keep, with_kwargs=True)):
            logits = self._cut.logits(prompts, past_key_values=recorded, use_cache=True)
        if not recorded.states:
            raise SuffixError("the layers keep no attention keys and values")
        # The first edited layer is given the hidden states at the cut, whatever reaches it from below.
        at_cut = self._layer == self._cut.first
        return prompts.hidden if at_cut else inputs[0], recorded.states, logits

    def logits(self) -> torch.Tensor:
        """``(A, vocabulary)`` logits at the answer positions, in float32; the token is the first of each row's."""
        head = self.lm.model.get_output_embeddings()

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
            stack.enter_context(hooked(head.register_forward_pre_hook(select)))
            output = self._cut.run_from(self._layer, self.hidden, **options)
        logits: torch.Tensor = output.logits.float()
        return logits


class SuffixError(ValueError):
    """Prompts cannot be run from one of their tokens on: run them whole."""
