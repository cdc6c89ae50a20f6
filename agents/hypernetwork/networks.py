"""Hypernetworks: from a batch's gradient factors to low-rank parameter deltas.

:class:`MalmenPolicy` is RLEdit's (Li et al. 2025, section 3.3 and appendix A.5), in the form of MALMEN (Tan et al. 2024,
section 4); :class:`MendPolicy` is MEND's (Mitchell et al. 2022, section 3). Both normalise ``[u; delta]`` of each
token and pass it through low-rank residual blocks that all modules of a shape share, up to a scale and a shift of
their own.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import nn

from agents.hypernetwork.config import GatedPolicyConfig, PolicyConfig, policy_config
from agents.hypernetwork.gate import Gate
from editenv.atomic_files import atomic_write
from editenv.deltas import LowRank, ridge_regression
from editenv.language_model.editable_lm import Gradient
from editenv.sealed_json import read_sealed, write_sealed

RECORD, WEIGHTS = "policy.json", "policy.safetensors"
"""Files of a saved policy."""

DIGEST = "weights_sha256"
"""Entry of the record: of the other file."""


class Normalizer(nn.Module):
    """Running mean and standard deviation per feature; frozen while acting, moved only by :meth:`observe`.

    A feature that never varied comes out as 0: how large a change of it would be is not known, and one may come
    after training, as of a unit of a ReLU that no training edit had switched on.
    Whether it varied is a question of its part's mean deviation: keys and gradients have units of their own.

    Args:
        sizes: Features of each part, such as ``d_in`` of the keys and ``d_out`` of the gradients.
    """

    mean: torch.Tensor
    square: torch.Tensor
    count: torch.Tensor

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.sizes, size = sizes, sum(sizes)
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
        means = [part.mean().expand(len(part)) for part in deviation.split(self.sizes)]
        least = 1e-6 * torch.cat(means) + torch.finfo(deviation.dtype).tiny
        return ((values - self.mean) / (deviation + least)).masked_fill(deviation <= least, 0.0)


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


class MendBlock(Block):
    """``x + relu(scale_m * (x A B + b) + shift_m)`` (MEND, eq. 3): scale and shift come before the relu, not after
    it.
    """

    def forward(self, x: torch.Tensor, module: int) -> torch.Tensor:
        return x + (self.scale[module] * (x @ self.down @ self.up + self.bias) + self.shift[module]).clamp(min=0)


class HyperNetwork(nn.Module):
    """One network for all modules of a shape: ``(u, delta) -> (pseudo-key, pseudo-gradient)``."""

    def __init__(self, shape: tuple[int, int], modules: int, config: PolicyConfig, block: type[Block] = Block) -> None:
        super().__init__()
        size = sum(shape)
        self.split = shape
        self.normalizer = Normalizer(*shape)
        self.blocks = nn.ModuleList(block(size, config.rank, modules) for _ in range(config.blocks))

    def normalized(self, gradient: Gradient) -> torch.Tensor:
        """``[u; delta]`` of each token, ``(r, d_in + d_out)``, in units of its usual deviation."""
        normalized: torch.Tensor = self.normalizer(torch.cat([gradient.keys, gradient.value_grads], 1))
        return normalized

    def forward(self, gradient: Gradient, module: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.normalized(gradient)
        for block in self.blocks:
            x = block(x, module)
        key, value = x.split(self.split, 1)
        return key, value


class GradientPolicy(nn.Module, ABC):
    """Gradients to deltas: a hypernetwork per weight shape; what is made of its output is left to subclasses.

    Args:
        shapes: ``(d_in, d_out)`` of each edited module.
        config: Size and starting point.
    """

    block: type[Block]
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
        self._member = {name: (_key(s), group.index(name)) for s, group in members.items() for name in group}
        self.networks = nn.ModuleDict(
            {_key(s): HyperNetwork(s, len(group), config, self.block) for s, group in members.items()}
        )
        self.gate: Gate | None = None
        together = len(self.names)
        if isinstance(config, GatedPolicyConfig):
            together = config.chosen(len(self.names))
            self.gate = Gate(self.shapes, together, config.gate_width)
        self.log_step_size = nn.Parameter(torch.full((len(self.names),), math.log(config.step_size / together)))
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

    def pseudo(self, name: str, gradient: Gradient) -> tuple[torch.Tensor, torch.Tensor]:
        """``u~`` (r, d_in) and ``d~`` (r, d_out): what the network makes of each token."""
        network_key, index = self._member[name]
        return self.networks[network_key](gradient, index)

    def unit(self, name: str) -> torch.Tensor:
        """What ``(u . u~) d~`` is multiplied by for a typical gradient to ask for the step size, in typical outputs.

        Normalised keys and gradients have entries near 1: in typical key lengths, ``u . u~`` is a gate near 1.
        """
        i = self.names.index(name)
        d_in, d_out = self.shapes[name]
        return self.log_step_size[i].exp() * (self.value_scale[i] / d_out / (self.key_scale[i] * d_in)).sqrt()

    def scalars(self) -> list[nn.Parameter]:
        """The logarithms of step sizes and the like, which learn at a rate of their own."""
        return [self.log_step_size]

    def clipped_together(self) -> list[list[nn.Parameter]]:
        """Parameters by the norms that their gradients are clipped by: the gate's have one of their own."""
        gate = [] if self.gate is None else list(self.gate.parameters())
        rest = [parameter for parameter in self.parameters() if all(parameter is not other for other in gate)]
        return [rest, gate] if gate else [rest]

    def forward(
        self, gradients: Mapping[str, Gradient], projected: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, LowRank]:
        """The delta of each module; of those that a gate has not chosen it is zero, and lets gradient through to it.

        Args:
            gradients: ``keys`` (r, d_in) and ``value_grads`` (r, d_out) of the batch's r tokens.
            projected: ``P U^T`` (d_in, r) where there is a preconditioner.
        """
        deltas = self.deltas(gradients, projected)
        if self.gate is None:
            return deltas
        choice = self.choice(gradients)
        return {name: LowRank(delta.left, choice[name] * delta.right) for name, delta in deltas.items()}

    def choice(self, gradients: Mapping[str, Gradient]) -> dict[str, torch.Tensor]:
        """For each module 1 where the gate chooses it for this batch, else 0.

        Raises:
            ValueError: If the policy has no gate.
        """
        if self.gate is None:
            raise ValueError("choice: this policy has no gate, and edits all of its modules")
        return self.gate({name: self._network(name).normalized(gradients[name]) for name in self.names})

    @abstractmethod
    def deltas(
        self, gradients: Mapping[str, Gradient], projected: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, LowRank]:
        """The delta of each module, all of them edited; arguments as :meth:`forward` has them."""

    def _network(self, name: str) -> HyperNetwork:
        network = self.networks[self._member[name][0]]
        assert isinstance(network, HyperNetwork)
        return network


class MalmenPolicy(GradientPolicy):
    """MALMEN's: ridge regression over the batch's tokens turns the changes asked of their outputs into one delta."""

    block = Block

    def __init__(self, shapes: Mapping[str, tuple[int, int]], config: PolicyConfig) -> None:
        super().__init__(shapes, config)
        self.log_ridge = nn.Parameter(torch.full((len(self.names),), math.log(config.ridge)))

    def scalars(self) -> list[nn.Parameter]:
        return [self.log_step_size, self.log_ridge]

    def ridge(self, name: str, preconditioned: bool) -> torch.Tensor:
        """lambda_m; keys are already in unit scale once a preconditioner has been applied."""
        i = self.names.index(name)
        ridge = self.log_ridge[i].exp()
        return ridge if preconditioned else ridge * self.key_scale[i]

    def deltas(
        self, gradients: Mapping[str, Gradient], projected: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, LowRank]:
        """For each module ``U^T (U U^T + lambda I)^-1 V``, solved in token space (r x r) and left in factors; row i of
        V is ``-lr (u_i . u~_i) d~_i``, with lr in units of a typical output's length and u_i . u~_i in units of a
        typical key's.
        """
        deltas = {}
        for name in self.names:
            left = None if projected is None else projected[name]
            keys, ridge = gradients[name].keys, self.ridge(name, projected is not None)
            deltas[name] = ridge_regression(keys, self.values(name, gradients[name]), ridge, left)
        return deltas

    def values(self, name: str, gradient: Gradient) -> torch.Tensor:
        """V, ``(r, d_out)``: the change asked of a module's output at each token."""
        pseudo_keys, pseudo_grads = self.pseudo(name, gradient)
        return -self.unit(name) * (gradient.keys * pseudo_keys).sum(1, keepdim=True) * pseudo_grads


class MendPolicy(GradientPolicy):
    """MEND's: the sum over tokens of a rank-one update each (eq. 3 and the text below it), ``-lr_m u~^T d~``; no ridge.

    lr is in the units of :meth:`GradientPolicy.unit`, so that a step size means the same as with :class:`MalmenPolicy`.
    """

    block: type[Block] = MendBlock

    def deltas(
        self, gradients: Mapping[str, Gradient], projected: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, LowRank]:
        if projected is not None:
            raise ValueError("MEND's network has no ridge regression that a preconditioner could go into")
        deltas = {}
        for name in self.names:
            pseudo_keys, pseudo_grads = self.pseudo(name, gradients[name])
            deltas[name] = LowRank(pseudo_keys.T, -self.unit(name) * pseudo_grads)
        return deltas


class Saved(Protocol):
    """A network with the configuration that makes it again."""

    config: Any
    shapes: dict[str, tuple[int, int]]

    def state_dict(self) -> Mapping[str, torch.Tensor]: ...


def make_policy(shapes: Mapping[str, tuple[int, int]], config: PolicyConfig) -> GradientPolicy:
    """An untrained policy of the form that the config names."""
    return {"malmen": MalmenPolicy, "mend": MendPolicy}[config.network](shapes, config)


def _key(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def save_policy(policy: Saved, folder: Path, extra: Mapping[str, object]) -> None:
    """Writes ``policy.safetensors``, then ``policy.json``, which is there only beside the weights that it is about.

    Raises:
        OSError: If they cannot be written.
    """
    (folder / RECORD).unlink(missing_ok=True)
    with atomic_write(folder / WEIGHTS) as partial:
        save_file({key: value.contiguous() for key, value in policy.state_dict().items()}, partial)
        digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    record = {"policy": asdict(policy.config), "shapes": policy.shapes, **extra, DIGEST: digest}
    write_sealed(folder / RECORD, record)


def load_policy(folder: Path) -> tuple[GradientPolicy, dict[str, object]]:
    """A policy as it was saved, and the rest of its ``policy.json``.

    Raises:
        FileNotFoundError: If the folder holds no policy.
        ValueError: If one of its files is damaged, was changed after it was written, or is not this version's.
    """
    for name in (RECORD, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} holds no {name}; train one with: python -m agents.rledit --output {folder}"
            )
    record = read_sealed(folder / RECORD)
    try:
        shapes = {name: (int(shape[0]), int(shape[1])) for name, shape in record.pop("shapes").items()}
        policy = make_policy(shapes, policy_config(record.pop("policy")))
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{folder / RECORD} does not describe a policy of this version: {_said(error)}") from error
    load_weights(policy, folder, record)
    del record[DIGEST]
    return policy.eval(), record


def load_weights(network: nn.Module, folder: Path, record: dict[str, Any]) -> None:
    """Gives a network the weights that :func:`save_policy` wrote.

    Args:
        network: Of the shapes that they are for.
        folder: Where they are.
        record: Of ``policy.json``; older ones have no digest of the weights, and get that of the file.

    Raises:
        ValueError: If the file is damaged, another one, or of other shapes.
        OSError: If it cannot be read.
    """
    path = folder / WEIGHTS
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if record.setdefault(DIGEST, digest) != digest:
        raise ValueError(f"{path} is not the file that {RECORD} beside it was written for: one of them was changed")
    try:
        network.load_state_dict(load(content))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or not all of one: {error}") from error
    except (RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not fit {RECORD} beside it: {_said(error)}") from error


def _said(error: Exception) -> str:
    """The kind and the first two lines of what an error says: torch lists every tensor of a network."""
    return f"{type(error).__name__}: {' '.join(line.strip() for line in str(error).splitlines()[:2])}"
