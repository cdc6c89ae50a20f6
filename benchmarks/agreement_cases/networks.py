"""Public MALMEN networks as this project's policies, with the same weights and statistics."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from agents.hypernetwork.config import PolicyConfig
from agents.hypernetwork.networks import GradientPolicy, HyperNetwork, MalmenPolicy

STEP_SIZE = 0.003
"""The public networks' lr: large enough that a batch's delta changes the tiny model's outputs."""


@torch.no_grad()
def shaken(network: torch.nn.Module) -> None:
    """Moves all of a fresh network's parameters: as they are made, its blocks pass everything on."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in network.named_parameters():
        if not name.endswith(("lr.weight", "lamda.weight")):
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


@torch.no_grad()
def malmen_policy(public: Mapping[str, Any], modules: Sequence[str], gradient_scale: float) -> MalmenPolicy:
    """The policy that a public network for modules of one shape is.

    Args:
        public: Their ``net``: a single network by its shape.
        modules: Names of the edited modules, in order.
        gradient_scale: This project's gradient over theirs: they take the mean over tokens, where here is the sum.
    """
    ((_, network),) = public.items()
    shape = (network.key_size, network.value_size)
    config = PolicyConfig(blocks=len(network.blocks), rank=network.blocks[0].A.shape[1])
    policy = MalmenPolicy(dict.fromkeys(modules, shape), config)
    policy.log_ridge.copy_(network.lamda.weight[:, 0])
    load_network(policy, network, gradient_scale)
    return policy


@torch.no_grad()
def load_network(policy: GradientPolicy, network: Any, gradient_scale: float) -> None:
    """Gives a policy the blocks, statistics and step sizes of a public network; see :func:`malmen_policy`."""
    in_public_units(policy, network.lr.weight[:, 0])
    ours = next(iter(policy.networks.values()))
    assert isinstance(ours, HyperNetwork)
    for block, theirs in zip(ours.blocks, network.blocks, strict=True):
        weights = {"down": theirs.A, "up": theirs.B, "bias": theirs.bias}
        weights |= {"scale": theirs.scale.weight, "shift": theirs.shift.weight}
        block.load_state_dict(weights)
    statistics = network.normalizer
    load_statistics(ours, statistics.mean, statistics.std, float(statistics.n), gradient_scale)


@torch.no_grad()
def in_public_units(policy: GradientPolicy, step_sizes: torch.Tensor) -> None:
    """Makes a policy's step sizes the model's own, as public code has them; so is the ridge."""
    d_in, d_out = next(iter(policy.shapes.values()))
    policy.set_scales(dict.fromkeys(policy.names, 1.0), dict.fromkeys(policy.names, float(d_in * d_out)))
    policy.log_step_size.copy_(step_sizes.abs().log())


@torch.no_grad()
def load_statistics(
    ours: HyperNetwork, mean: torch.Tensor, deviation: torch.Tensor, tokens: float, gradient_scale: float
) -> None:
    """Gives a network mean and deviation of ``[u; delta]``."""
    scale = torch.ones_like(mean)
    scale[ours.split[0] :] = gradient_scale
    ours.normalizer.mean.copy_(mean * scale)
    ours.normalizer.square.copy_((deviation * scale).square() * (tokens - 1))
    ours.normalizer.count.fill_(tokens)


def public_gradients(public: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Gradients of a public network by this project's names, those of lr as of its logarithm."""
    ((_, network),) = public.items()
    gradients = {"log_step_size": (network.lr.weight.grad * network.lr.weight)[:, 0]}
    if network.lamda.weight.grad is not None:  # of a network without ridge regression
        gradients["log_ridge"] = network.lamda.weight.grad[:, 0]
    for i, block in enumerate(network.blocks):
        named = {"down": block.A, "up": block.B, "bias": block.bias}
        named |= {"scale": block.scale.weight, "shift": block.shift.weight}
        gradients |= {f"blocks.{i}.{name}": parameter.grad for name, parameter in named.items()}
    return {name: gradient.detach().clone() for name, gradient in gradients.items()}


def our_gradients(policy: GradientPolicy, factor: float = 1.0) -> dict[str, torch.Tensor]:
    """Gradients of a policy with one network, times a factor, by the same names."""
    named = {
        name.split(".", 2)[2] if name.startswith("networks.") else name: p for name, p in policy.named_parameters()
    }
    return {name: factor * p.grad for name, p in named.items() if p.grad is not None}
