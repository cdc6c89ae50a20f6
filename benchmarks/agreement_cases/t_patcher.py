"""T-Patcher's losses against ZeroYuHuang/Transformer-Patcher: its training is tied to BERT and BART."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from agents.baselines.t_patcher import TPatcher
from benchmarks.agreement_cases.comparison import Comparison, compared
from benchmarks.agreement_cases.public_code import Repository, imported, without_init
from benchmarks.agreement_cases.tiny_model import TinyModel

SOURCE = Repository("ZeroYuHuang/Transformer-Patcher", "93ff458699ed74e7455687e5b3ed7bcb5a229776")
MARGIN, WEIGHT, TOKENS = 3.0, 5.0, 50


def compare(clone: Path, tiny: TinyModel) -> Iterator[Comparison]:
    for package in ("src", "src.models"):
        without_init(package, clone / package.replace(".", "/"))
    public = imported(clone, "src.models.patch")
    generator = torch.Generator().manual_seed(0)
    key, own, text = (torch.randn(count, 16, generator=generator) / 4 for count in (1, 1, TOKENS))
    bias = torch.tensor([0.1])
    theirs, ours = ({"key": key.clone().requires_grad_(), "bias": bias.clone().requires_grad_()} for _ in range(2))
    at_own, at_text = (queries @ theirs["key"].T + theirs["bias"] for queries in (own, text))
    activation = public.calculate_act_loss(at_own, "top5_exp", 0.0)
    memory = public.calculate_memory_loss(
        at_text[:, None], at_own, "top1000_exp+top1000_exp", margin_val1=MARGIN, margin_val2=-MARGIN
    )
    (activation + WEIGHT * memory).backward()
    agent = TPatcher(hardest=TOKENS, memory=WEIGHT, margin=MARGIN)
    agent.losses(ours["key"], ours["bias"], own, text).backward()
    yield compared(
        "t-patcher",
        f"the gradient of a neuron's activation and memory losses over {TOKENS} tokens",
        gradients(theirs),
        gradients(ours),
        f"weights and margin equal, hardest={TOKENS}",
    )


def gradients(parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of each parameter."""
    return {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
