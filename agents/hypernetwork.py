"""The policy of RLEdit: from a batch's gradient factors to low-rank parameter deltas.

The form is MALMEN's (Tan et al. 2024, section 4), which RLEdit (Li et al. 2025, section 3.3 and appendix A.5) takes over.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from editenv.deltas import LowRank, ridge_regression
from editenv.dynamics import Gradient


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """Shape and starting point of a policy."""

    blocks: int = 4
    """Residual blocks."""
    rank: int = 64
    """Rank of each block's linear map."""
    step_size: float = 1.0
    """Start of lr_m: the change asked of a module's output for a typical gradient, relative to a typical output."""
    ridge: float = 0.1
    """Start of lambda_m, relative to the mean squared norm of a key."""


class Normalizer(nn.Module):
    """Running mean and standard deviation per feature; frozen while acting, moved only by :meth:`observe`."""

    mean: torch.Tensor
    square: torch.Tensor
    count: torch.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("square", torch.zeros(size))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def observe(self, values: torch.Tensor) -> None:
        """Takes in ``(tokens, size)`` values (Chan's parallel update of mean and sum of squared deviations)."""
        if len(values) == 0:
            return
        total = self.count + len(values)
        shift = values.mean(0) - self.mean
        self.square += (values - values.mean(0)).square().sum(0) + shift.square() * self.count * len(values) / total
        self.mean += shift * len(values) / total
        self.count.copy_(total)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        deviation = (self.square / (self.count - 1).clamp(min=1)).sqrt()
        return (values - self.mean) / (deviation + 1e-6 * deviation.mean() + 1e-20)


class Block(nn.Module):
    """``x + scale_m * relu(x A B + b) + shift_m``: zero at the start, so that a fresh policy passes gradients on."""

    def __init__(self, size: int, rank: int, modules: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(size, rank) / math.sqrt(size))
        self.up = nn.Parameter(torch.zeros(rank, size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.scale = nn.Parameter(torch.ones(modules, size))
        self.shift = nn.Parameter(torch.zeros(modules, size))

    def forward(self, x: torch.Tensor, module: int) -> torch.Tensor:
        # clamp, unlike torch.relu, has slope 1 at exactly 0, where every unit starts: relu would never leave it.
        return x + self.scale[module] * (x @ self.down @ self.up + self.bias).clamp(min=0) + self.shift[module]


class HyperNetwork(nn.Module):
    """One network for all modules of a shape: ``(u, delta) -> (pseudo-key, pseudo-gradient)``."""

    def __init__(self, shape: tuple[int, int], modules: int, config: PolicyConfig) -> None:
        super().__init__()
        size = sum(shape)
        self.split = shape
        self.normalizer = Normalizer(size)
        self.blocks = nn.ModuleList(Block(size, config.rank, modules) for _ in range(config.blocks))

    def forward(self, gradient: Gradient, module: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.normalizer(torch.cat([gradient.keys, gradient.value_grads], 1))
        for block in self.blocks:
            x = block(x, module)
        key, value = x.split(self.split, 1)
        return key, value


class Policy(nn.Module):
    """Gradients to deltas: a hypernetwork per weight shape, then ridge regression over the batch's tokens.

    Args:
        shapes: ``(d_in, d_out)`` of each edited module.
        config: Size and starting point.
    """

    key_scale: torch.Tensor
    value_scale: torch.Tensor

    def __init__(self, shapes: Mapping[str, tuple[int, int]], config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.shapes = dict(shapes)
        self.names = list(self.shapes)
        members: dict[tuple[int, int], list[str]] = {}
        for name, shape in self.shapes.items():
            members.setdefault(shape, []).append(name)
        self._place = {name: (_key(s), group.index(name)) for s, group in members.items() for name in group}
        self.networks = nn.ModuleDict({_key(s): HyperNetwork(s, len(group), config) for s, group in members.items()})
        self.log_step_size = nn.Parameter(torch.full((len(self.names),), math.log(config.step_size)))
        self.log_ridge = nn.Parameter(torch.full((len(self.names),), math.log(config.ridge)))
        self.register_buffer("key_scale", torch.ones(len(self.names)))
        self.register_buffer("value_scale", torch.ones(len(self.names)))

    @torch.no_grad()
    def observe(self, gradients: Mapping[str, Gradient]) -> None:
        """Lets the normalizers see a batch's gradients."""
        for name, gradient in gradients.items():
            self._network(name).normalizer.observe(torch.cat([gradient.keys, gradient.value_grads], 1))

    @torch.no_grad()
    def set_scales(self, key_scale: Mapping[str, float], value_scale: Mapping[str, float]) -> None:
        """Units for lambda and lr: the mean squared norm of each module's inputs, and of its outputs."""
        self.key_scale.copy_(torch.tensor([key_scale[name] for name in self.names]))
        self.value_scale.copy_(torch.tensor([value_scale[name] for name in self.names]))

    def ridge(self, name: str, preconditioned: bool) -> torch.Tensor:
        """lambda_m; keys are already in unit scale once a preconditioner has been applied."""
        i = self.names.index(name)
        ridge = self.log_ridge[i].exp()
        return ridge if preconditioned else ridge * self.key_scale[i]

    def forward(
        self, gradients: Mapping[str, Gradient], projected: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, LowRank]:
        """The delta of each module.

        Args:
            gradients: ``keys`` (r, d_in) and ``value_grads`` (r, d_out) of the batch's r tokens.
            projected: ``P U^T`` (d_in, r) where there is a preconditioner.

        Returns:
            For each module ``U^T (U U^T + lambda I)^-1 V``, solved in token space (r x r) and left in factors; row i of
            V is ``-lr (u_i . u~_i) d~_i``, with lr in units of a typical output's length and u_i . u~_i in units of a typical
            key's.
        """
        deltas = {}
        for name in self.names:
            left = None if projected is None else projected[name]
            keys, ridge = gradients[name].keys, self.ridge(name, projected is not None)
            deltas[name] = ridge_regression(keys, self.values(name, gradients[name]), ridge, left)
        return deltas

    def values(self, name: str, gradient: Gradient) -> torch.Tensor:
        """V, ``(r, d_out)``: the change asked of a module's output at each token."""
        i = self.names.index(name)
        network_key, place = self._place[name]
        pseudo_keys, pseudo_grads = self.networks[network_key](gradient, place)
        d_in, d_out = self.shapes[name]
        # Normalised keys have entries near 1: measured in typical key lengths, the product is a gate near 1.
        gate = (gradient.keys * pseudo_keys).sum(1, keepdim=True) / (self.key_scale[i] * d_in).sqrt()
        length = (self.value_scale[i] / d_out).sqrt()
        return -self.log_step_size[i].exp() * length * gate * pseudo_grads

    def _network(self, name: str) -> HyperNetwork:
        network = self.networks[self._place[name][0]]
        assert isinstance(network, HyperNetwork)
        return network


def _key(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def save_policy(policy: Policy, folder: Path, extra: Mapping[str, object]) -> None:
    """Writes ``policy.safetensors`` and ``policy.json``, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "policy.safetensors.partial"
    save_file({key: value.contiguous() for key, value in policy.state_dict().items()}, partial)
    os.replace(partial, folder / "policy.safetensors")
    record = {"policy": asdict(policy.config), "shapes": policy.shapes, **extra}
    partial = folder / "policy.json.partial"
    partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / "policy.json")


def load_policy(folder: Path) -> tuple[Policy, dict[str, object]]:
    """A policy as it was saved, and the rest of its ``policy.json``.

    Raises:
        FileNotFoundError: If the folder holds no policy.
    """
    for name in ("policy.json", "policy.safetensors"):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder} holds no {name}; train one with: python -m agents.rledit --output {folder}"
            )
    record = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
    shapes = {name: (int(shape[0]), int(shape[1])) for name, shape in record.pop("shapes").items()}
    policy = Policy(shapes, PolicyConfig(**record.pop("policy")))
    policy.load_state_dict(load_file(folder / "policy.safetensors"))
    return policy.eval(), record
