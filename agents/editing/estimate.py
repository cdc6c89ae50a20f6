"""How much memory a run will take, told before it starts: from the model's sizes, the batch and what the method keeps."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agents.base import Agent
from editenv.data import Edit
from editenv.data.text import joined
from editenv.models.modules import find_modules, layer_number, layer_stack

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WORTH_SAYING = 2e9
"""Bytes from which on it is said how much memory a run takes."""

PYTHON = 0.5e9
"""Bytes of the interpreter and the libraries."""

COPIES = 7
"""Float32 copies of the edited weights, at most: as they are, before the batch and at the beginning; a dense update;
and for a method that trains them the gradient and Adam's two moments."""

STATISTICS = 3
"""Float32 matrices, d_in square, of each edited module, of a method that takes statistics of text."""

PER_LOGIT = 3
"""Float32 numbers for each logit: itself, its softmax, its gradient."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a run takes at its peak, roughly.

    Attributes:
        model: All weights.
        edited: Copies of the edited ones, and what is kept beside them.
        batch: Activations and logits of the prompts that go through the model together.
    """

    model: float
    edited: float
    batch: float

    @property
    def total(self) -> float:
        return PYTHON + self.model + self.edited + self.batch

    def in_words(self, free: float | None) -> str | None:
        """A line for people; None if it is not worth one.

        Args:
            free: Bytes that can be had besides the model, which is loaded; None if that is not known.
        """
        short = free is not None and self.edited + self.batch > free
        if self.total < WORTH_SAYING and not short:
            return None
        parts = ", ".join(f"{name} {_gigabytes(getattr(self, name))}" for name in ("model", "edited", "batch"))
        line = f"memory: about {_gigabytes(self.total)} GB at the peak ({parts})"
        if not short:
            return line
        return (
            f"warning: {line}, and {_gigabytes(free or 0)} GB are free beside the model; fewer --edits-per-step, fewer "
            "--modules or --dtype bfloat16 take less"
        )


def memory_of(
    agent: Agent | None,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    modules: Sequence[str],
    edits: Sequence[Edit],
    edits_per_step: int,
) -> Memory:
    """What editing takes.

    Args:
        agent: The method; None is one with a trained policy, which need not be loaded for this.
        model: Loaded.
        tokenizer: Its tokenizer.
        modules: Which are edited, as endings of dotted names.
        edits: Of the file.
        edits_per_step: Of a batch.
    """
    edited = find_modules(model, modules)
    weights = sum(module.get_parameter("weight").numel() for module in edited.values())
    kept = 4 * COPIES * weights
    if agent is not None and agent.reads_text:
        kept += sum(4 * STATISTICS * _inputs(module.get_parameter("weight").shape) ** 2 for module in edited.values())
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    first = list(edits[:edits_per_step])
    prompts = (len(first), len(first)) if agent is None else agent.prompts_together(len(first))
    return Memory(parameters, kept, _batch(prompts, model, tokenizer, list(edited), first))


def _inputs(shape: Sequence[int]) -> int:
    """d_in, or the larger side where a model may store its weights either way round."""
    return max(shape)


def _batch(
    prompts: tuple[int, int],
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    edited: Sequence[str],
    edits: Sequence[Edit],
) -> float:
    """Bytes of the prompts that go through the edited layers together: what a backward pass keeps of them, and what is
    looked at without one, layer by layer.
    """
    texts = [joined(edit.prompt, edit.target) for edit in edits]
    longest = max(map(len, tokenizer(texts)["input_ids"]))
    answers = max(len(ids) for ids in tokenizer([edit.target for edit in edits])["input_ids"])
    vocabulary, width = model.get_input_embeddings().get_parameter("weight").shape
    stack = layer_stack(model, edited)
    layers = len(list(model.get_submodule(stack).children())) - min(layer_number(stack, name) for name in edited)
    wide = getattr(model.config.get_text_config(), "intermediate_size", None)
    wide = wide if isinstance(wide, int) else 4 * width
    # Of each layer the residual stream, norms, projections of the attention, and the MLP's three wide vectors.
    activations = layers * longest * (10 * width + 3 * wide)
    with_gradient = prompts[0] * (activations + PER_LOGIT * answers * vocabulary)
    without = prompts[1] * (longest * 3 * wide + 2 * answers * vocabulary)
    return 4.0 * (with_gradient + without)


def free_memory(device: str) -> float | None:
    """Bytes that can be had on a device; None if it cannot be told."""
    if device.startswith("cuda"):
        import torch

        return float(torch.cuda.mem_get_info(device)[0])
    path = Path("/proc/meminfo")
    if device != "cpu" or sys.platform != "linux" or not path.exists():
        return None
    sizes = dict(line.split(":", 1) for line in path.read_text(encoding="ascii").splitlines())
    return 1024.0 * int(sizes["MemAvailable"].split()[0])


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f}"
