"""DAFNet's network: attention within an edit, attention over the edits before it, and what each of them counts for."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from agents.baselines.dafnet.config import DAFNetConfig
from agents.hypernetwork.networks import Normalizer
from editenv.deltas import LowRank
from editenv.language_model.editable_lm import EditableLM, Gradient


class FusionLayer(nn.Module):
    """One layer over the tokens of n edits; m earlier ones are known by what this layer made of them."""

    def __init__(self, size: int, modules: int, config: DAFNetConfig) -> None:
        super().__init__()
        heads, width, score = config.heads, config.attention_width, config.score_width
        self.heads = heads
        self.value = nn.Sequential(nn.Linear(size, config.token_width), nn.ReLU(), nn.Linear(config.token_width, size))
        self.weight = nn.Sequential(nn.Linear(size, config.token_width), nn.ReLU(), nn.Linear(config.token_width, 1))
        self.query, self.key, self.fact_value = (nn.Linear(size, heads * width) for _ in range(3))
        self.output = nn.Linear(heads * width, size)
        self.score_query, self.score_key = (nn.Linear(size, heads * score) for _ in range(2))
        self.feed_forward = nn.Sequential(
            nn.Linear(size, config.feed_forward), nn.ReLU(), nn.Linear(config.feed_forward, size)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(3))
        # Branches that start at zero: a fresh layer passes normalised gradients on.
        for branch in (self.value[-1], self.output, self.feed_forward[-1]):
            assert isinstance(branch, nn.Linear)
            nn.init.zeros_(branch.weight)
            nn.init.zeros_(branch.bias)
        self.scale = nn.Parameter(torch.ones(modules, size))
        self.shift = nn.Parameter(torch.zeros(modules, size))

    def forward(
        self, x: torch.Tensor, owner: torch.Tensor, past: torch.Tensor, module: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One layer.

        Args:
            x: ``(r, size)`` tokens.
            owner: ``(r,)`` the edit, 0 to n - 1, that each belongs to.
            past: ``(m, size)`` earlier edits' representations at this layer.
            module: Whose scale and shift.

        Returns:
            The tokens again, the representations ``(n, size)`` of the edits, and how much each attends to itself,
            ``(n,)``.
        """
        n = int(owner[-1]) + 1
        # Intra-editing: a softmax over each edit's own tokens.
        values = self.value(x)
        own_tokens = owner == torch.arange(n, device=x.device)[:, None]
        attention = self.weight(values).T.expand(n, -1).masked_fill(~own_tokens, -math.inf).softmax(1)
        facts = attention @ values
        x = self.norms[0](x + attention.sum(0)[:, None] * values)
        # Inter-editing: each edit over the earlier ones and itself.
        known = torch.cat([past, facts])
        over_edits = _attention(self.query(facts), self.key(known), self.heads)
        mixed = over_edits @ self.fact_value(known).view(len(known), self.heads, -1).transpose(0, 1)
        x = self.norms[1](x + self.output(mixed.transpose(0, 1).flatten(1))[owner])
        scores = _attention(self.score_query(facts), self.score_key(known), self.heads).mean(0).diagonal(len(past))
        x = self.norms[2](x + self.feed_forward(x))
        return x + (self.scale[module] * x + self.shift[module]).clamp(min=0), facts, scores


def _attention(queries: torch.Tensor, keys: torch.Tensor, heads: int) -> torch.Tensor:
    """``(heads, n, m + n)``: softmax of n edits over the m earlier ones and themselves, none over a later one."""
    n, known = len(queries), len(keys)
    q = queries.view(n, heads, -1).transpose(0, 1)
    k = keys.view(known, heads, -1).transpose(0, 1)
    later = torch.ones(n, known, dtype=torch.bool, device=queries.device).triu(known - n + 1)
    return (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(later, -math.inf).softmax(-1)


def shares(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What each edit's update counts for, ``s_i prod_{j>i} (1 - s_j)``, and everything before them, ``prod_j (1 -
    s_j)``.

    Args:
        scores: s, ``(n,)``: how much each edit attends to itself.
    """
    kept = (1 - scores).flip(0).cumprod(0).flip(0)
    return scores * torch.cat([kept[1:], torch.ones_like(kept[:1])]), kept[0]


class DAFNetwork(nn.Module):
    """Gradients of a sequence of edits to one delta; a network per weight shape.

    Args:
        shapes: ``(d_in, d_out)`` of each edited module.
        config: Widths and starting point.
    """

    units: torch.Tensor

    def __init__(self, shapes: Mapping[str, tuple[int, int]], config: DAFNetConfig) -> None:
        super().__init__()
        self.shapes, self.config = dict(shapes), config
        groups: dict[tuple[int, int], list[str]] = {}
        for name, shape in self.shapes.items():
            groups.setdefault(shape, []).append(name)
        # Of each module the network it shares with those of its shape, and its number among them.
        self._network_of: dict[str, tuple[str, int]] = {}
        self.normalizers, self.layers = nn.ModuleDict(), nn.ModuleDict()
        for (d_in, d_out), names in groups.items():
            key = f"{d_in}x{d_out}"
            self._network_of |= {name: (key, number) for number, name in enumerate(names)}
            self.normalizers[key] = Normalizer(d_in, d_out)
            self.layers[key] = nn.ModuleList(
                FusionLayer(d_in + d_out, len(names), config) for _ in range(config.layers)
            )
        self.log_step_size = nn.Parameter(torch.full((len(self.shapes),), math.log(config.step_size)))
        self.register_buffer("units", torch.ones(len(self.shapes)))

    @torch.no_grad()
    def observe(self, gradients: Mapping[str, Gradient], lm: EditableLM) -> None:
        """Takes normaliser statistics, and units, from a set of edits' gradients."""
        for i, (name, gradient) in enumerate(gradients.items()):
            normalizer = self.normalizers[self._network_of[name][0]]
            assert isinstance(normalizer, Normalizer)
            normalizer.observe(torch.cat([gradient.keys, gradient.value_grads], 1))
            outputs = gradient.keys @ lm.weight(name)
            self.units[i] = (outputs.square().mean() / gradient.keys.square().sum(1).mean() / lm.shape(name)[0]).sqrt()

    def nothing_past(self) -> dict[str, list[torch.Tensor]]:
        """The representations of no edits: for each module and layer ``(0, d_in + d_out)``."""
        empty = {name: self.units.new_zeros(0, sum(shape)) for name, shape in self.shapes.items()}
        return {name: [value] * self.config.layers for name, value in empty.items()}

    def forward(
        self, gradients: Mapping[str, Gradient], lengths: torch.Tensor, past: Mapping[str, list[torch.Tensor]]
    ) -> tuple[dict[str, LowRank], dict[str, torch.Tensor], dict[str, list[torch.Tensor]]]:
        """A delta for n edits that come after others.

        Args:
            gradients: ``keys`` (r, d_in) and ``value_grads`` (r, d_out) at theta_0 of the n edits' r tokens, in order.
            lengths: ``(n,)`` tokens of each edit.
            past: The earlier edits' representations.

        Returns:
            For each module the update ``-lr sum_i share_i / length_i sum over its tokens of u~^T d~``; what the
            total of all earlier updates is to be multiplied by; and the n edits' representations.
        """
        owner = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        deltas, keeps = {}, {}
        facts: dict[str, list[torch.Tensor]] = {}
        for i, (name, gradient) in enumerate(gradients.items()):
            key, module = self._network_of[name]
            x = self.normalizers[key](torch.cat([gradient.keys, gradient.value_grads], 1))
            layer_shares, layer_keeps, facts[name] = [], [], []
            layers = self.layers[key]
            assert isinstance(layers, nn.ModuleList)
            for layer, layer_past in zip(layers, past[name], strict=True):
                x, layer_facts, scores = layer(x, owner, layer_past, module)
                own, earlier = shares(scores)
                layer_shares.append(own)
                layer_keeps.append(earlier)
                facts[name].append(layer_facts)
            share = torch.stack(layer_shares).mean(0) / lengths
            pseudo_keys, pseudo_grads = x.split(self.shapes[name], 1)
            step = self.log_step_size[i].exp() * self.units[i]
            deltas[name] = LowRank(pseudo_keys.T, -step * share[owner, None] * pseudo_grads)
            keeps[name] = torch.stack(layer_keeps).mean(0)
        return deltas, keeps, facts
