"""HiEdit's gate (Wang et al. 2026, ACL; after the public code): which of the edited modules a batch is written into.

Its gradient is straight-through: the choice counts as its scores, so that a score answers for what its module's whole
delta would do, chosen or not. The policy gradient of a trajectory then reaches the gate like any other part of the
policy (:meth:`agents.hypernetwork.training.Trainer.backward`): with S_i of :mod:`agents.rledit.trainer`, a score of
step i gets ``<S_i, D_i>`` of its module.
"""

from collections.abc import Mapping

import torch
from torch import nn


class Encoder(nn.Module):
    """``scale_m * relu(x W + b) + shift_m``: features of a token, for all modules of a shape."""

    def __init__(self, size: int, width: int, modules: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, width)
        self.scale = nn.Parameter(torch.ones(modules, width))
        self.shift = nn.Parameter(torch.zeros(modules, width))

    def forward(self, x: torch.Tensor, module: int) -> torch.Tensor:
        return self.scale[module] * self.linear(x).clamp(min=0) + self.shift[module]


class Gate(nn.Module):
    """The modules with the highest scores, which a linear map gives from the mean features of all modules' tokens.

    Args:
        shapes: ``(d_in, d_out)`` of each edited module.
        chosen: How many are chosen for each batch.
        width: Features of each module.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], chosen: int, width: int) -> None:
        super().__init__()
        self.names, self.chosen = list(shapes), chosen
        members: dict[tuple[int, int], list[str]] = {}
        for name, shape in shapes.items():
            members.setdefault(shape, []).append(name)
        self._member = {n: (f"{s[0]}x{s[1]}", i) for s, group in members.items() for i, n in enumerate(group)}
        self.encoders = nn.ModuleDict(
            {f"{s[0]}x{s[1]}": Encoder(sum(s), width, len(group)) for s, group in members.items()}
        )
        self.scoring = nn.Linear(width * len(self.names), len(self.names))

    def scores(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """``(modules,)`` from the normalised ``[u; delta]`` of each module's tokens, ``(r, d_in + d_out)``."""
        features = []
        for name in self.names:
            shape, module = self._member[name]
            features.append(self.encoders[shape](tokens[name], module).mean(0))
        scores: torch.Tensor = self.scoring(torch.cat(features))
        return scores

    def forward(self, tokens: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """For each module 1 if it is chosen, else 0, exactly; with the gradient of its score."""
        scores = self.scores(tokens)
        choice = torch.zeros_like(scores)
        choice[scores.topk(self.chosen).indices] = 1
        choice = choice + (scores - scores.detach())
        return dict(zip(self.names, choice, strict=True))
