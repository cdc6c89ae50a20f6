"""LoRA-Merge (Thede et al. 2025) against the public code of WikiBigEdit."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from agents.baselines.lora_merge import LoRAMerge
from agents.baselines.weight_training import draws_seed
from benchmarks.agreement_cases.comparison import Comparison, compared
from benchmarks.agreement_cases.public_code import Repository, imported, without_init
from benchmarks.agreement_cases.tiny_model import LAYERS, TinyModel, prepared, total_delta

SOURCE = Repository("ExplainableML/WikiBigEdit", "66b428560254c38755ab70068cb0b0179aa442e1")
EDITS, ANSWER_TOKENS = 6, 2
MODULES = tuple(f"model.layers.{LAYERS - 1}.self_attn.{name}" for name in ("q_proj", "v_proj"))
"""Others its interpolation leaves out."""


class CopiedToCPU(TorchFunctionMode):
    """What goes to the CPU is a copy, as from a GPU: the weights before the adapter are kept there."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        return result.clone() if func is torch.Tensor.to and args[1:] == ("cpu",) else result


def compare(clone: Path, tiny: TinyModel) -> Iterator[Comparison]:
    root = clone / "EasyEdit_Experiments"
    for package in ("easyeditor", "easyeditor.models", "easyeditor.models.lora", "easyeditor.util"):
        without_init(package, root / package.replace(".", "/"))
    public = imported(root, "easyeditor.models.lora.lora_main")
    equal = "rank, alpha, rate and share equal; one mini-batch, answers of equal length"
    yield run(public, tiny, LoRAMerge(epochs=8, learning_rate=1e-2), 8, f"8 epochs, {equal}")
    why = "its first epoch of ten has a rate of zero, and still counts in Adam's means"
    yield run(public, tiny, LoRAMerge(epochs=9, learning_rate=1e-2), 10, f"9 epochs, 10 there, {equal}", why)


def run(
    public: Any, tiny: TinyModel, agent: LoRAMerge, num_steps: int, options: str, why: str = "rounding"
) -> Comparison:
    """The delta of a batch on both sides."""
    edits = tiny.edits(EDITS, ANSWER_TOKENS)
    model, tokenizer = tiny.model(), tiny.tokenizer
    before = {name: model.get_submodule(name).weight.detach().clone() for name in MODULES}
    settings = public.LoRAHyperParams(
        lora_type="lora",
        layers=[LAYERS - 1],
        num_steps=num_steps,
        lr=agent.learning_rate * 256 / EDITS,
        weight_decay=0,
        kl_factor=0,
        norm_constraint=False,
        target_modules=[name.rpartition(".")[2] for name in MODULES],
        rank=agent.rank,
        lora_alpha=agent.alpha,
        lora_dropout=0.0,
        device=0,
        alg_name="LoRA",
        model_name="tiny",
        fp16=False,
        merge=True,
        merge_alpha=agent.share,
        batch_size=EDITS,
    )
    torch.manual_seed(random.Random(draws_seed(0, 0, edits)).getrandbits(63))  # A is drawn from the batch
    tokenizer.padding_side = "left"
    try:
        requests = [{"prompt": edit.prompt, "target_new": edit.target} for edit in edits]
        with CopiedToCPU():
            merged, _ = public.apply_lora_to_model(model, tokenizer, requests, settings)
    finally:
        tokenizer.padding_side = "right"
    theirs = {name: (merged.get_submodule(name).weight.detach() - start).T for name, start in before.items()}
    env = tiny.environment(edits, MODULES, edits_per_step=EDITS)
    with torch._C.DisableTorchFunction():  # the CPU in the place of a GPU is for public code alone
        ours = total_delta(env, prepared(agent, env, tiny.text))
    return compared("lora-merge", "a batch's delta, two projections of attention", theirs, ours, options, why)
