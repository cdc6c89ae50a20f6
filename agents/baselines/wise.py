"""WISE (Wang et al. 2024): a side copy of one weight in shards, which are merged, and a margin that says when it is used."""

from typing import Any

import torch

from agents.base import Agent, Observation, ProgressCallback
from agents.baselines.side_memory import SMALLEST, memory_beside, one_module, queries, queries_of_text
from agents.baselines.target_loss import edit_prompts, negative_log_likelihood
from editenv.arguments import NonNegativeFloat, PositiveFloat, PositiveInt, PositiveShare
from editenv.env import Action, LifelongEditEnv
from editenv.language_model.prompts import Prompts
from editenv.memories import Memory, no_memory, update


class WISE(Agent):
    """Edits a side copy ``W + D`` of the one edited module's weight, and leaves the weight as it is.

    A token whose input x has ``|x D|`` above a threshold gets ``x (W + D)``, any other ``x W``. The edits fill shards, one
    after the other: ``edits_per_shard`` edits in one matrix D, of which a share of entries, drawn anew for each shard,
    may change. A batch's edits are made by Adam on the loss of their targets with the side copy in use, plus the margin
    losses (eq. 4 of the paper) over the tokens x that predict an answer and tokens z of text,

        max(0, |z D| - alpha) + max(0, beta - |x D|) + max(0, gamma - (|x D| - |z D|))

    with the margins in units of the mean length of the module's outputs for text. A shard's threshold is the smallest
    ``|x D|`` of any batch of it, at the end of the batch, times ``ratio``. When ``shards`` are full they are merged by
    :func:`ties` into one D, whose threshold is the smallest of theirs; of several D the one with the longest ``x D`` is
    used. Precomputes the module's inputs at tokens of text.

    Args:
        steps: Adam steps on each batch.
        learning_rate: Adam's, as a share of the root mean square of W.
        mask: Share of D's entries that a shard may change.
        alpha, beta, gamma: Margins.
        ratio: Of the threshold.
        edits_per_shard: Edits after which the next shard is begun; a batch of more has a shard for itself.
        shards: Shards that are merged.
        density: Share of a shard's entries, the largest, that go into a merge.
        tokens: Of text.
    """

    looks_at_model = True
    reads_text = True
    changes = ("side memory",)

    def __init__(
        self,
        steps: PositiveInt = 100,
        learning_rate: PositiveFloat = 0.1,
        mask: PositiveShare = 0.2,
        alpha: NonNegativeFloat = 0.2,
        beta: NonNegativeFloat = 0.8,
        gamma: NonNegativeFloat = 0.4,
        ratio: PositiveFloat = 0.88,
        edits_per_shard: PositiveInt = 500,
        shards: PositiveInt = 2,
        density: PositiveShare = 0.53,
        tokens: PositiveInt = 500,
    ) -> None:
        self.steps, self.learning_rate, self.mask, self.tokens = steps, learning_rate, mask, tokens
        self.alpha, self.beta, self.gamma, self.ratio = alpha, beta, gamma, ratio
        self.edits_per_shard, self.shards, self.density = edits_per_shard, shards, density

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        lm = env.language_model
        name = one_module(lm, "wise")
        progress("queries of text", 0, 1)
        self._seed = seed
        self._text = queries_of_text(env, self.text, self.tokens, seed)
        weight = lm.initial_weight(name).float()
        self._unit = max(SMALLEST, float((self._text @ weight).norm(dim=1).mean()))
        self._rate = self.learning_rate * float(weight.square().mean().sqrt())

    def begin(self, env: LifelongEditEnv) -> None:
        self._env = env
        self._module = one_module(env.language_model, "wise")
        self._text = self._text.to(env.language_model.device)
        self._edits = self._edits_before = 0

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        lm, prompts = self._env.language_model, edit_prompts(self._env.training_targets)
        self._edits_before = self._edits
        before = memory_beside(lm, self._module)
        done, current, threshold = self._shard(before)
        delta, least = self._trained(current, prompts)
        # A batch that no shard has room for fills one: otherwise shards would be counted that were never made.
        self._edits += min(len(self._env.batch), self.edits_per_shard)
        thresholds = torch.cat([done.thresholds, threshold.clamp(max=least)[None]])
        after = _side_weights(torch.cat([done.values, delta[None]]), thresholds)
        return {self._module: update(before, after)}

    def _shard(self, memory: Memory) -> tuple[Memory, torch.Tensor, torch.Tensor]:
        """The side weights that are done, merged where that is due; and D and threshold of the shard to be edited."""
        inside = self._edits % self.edits_per_shard
        if inside and inside + len(self._env.batch) <= self.edits_per_shard:
            done = _side_weights(memory.values[:-1], memory.thresholds[:-1])
            return done, memory.values[-1], memory.thresholds[-1]
        self._edits += -inside % self.edits_per_shard  # what room is left is too small for the batch
        shape = self._env.language_model.shape(self._module)
        values, thresholds = memory.values.view(-1, *shape), memory.thresholds
        if self._number and self._number % self.shards == 0:
            earlier, last = slice(-self.shards), slice(-self.shards, None)
            values = torch.cat([values[earlier], ties(values[last], self.density)[None]])
            thresholds = torch.cat([thresholds[earlier], thresholds[last].amin()[None]])
        return _side_weights(values, thresholds), values.new_zeros(shape), thresholds.new_tensor(torch.inf)

    @property
    def _number(self) -> int:
        """Of the shard to be edited, from 0."""
        return self._edits // self.edits_per_shard

    def _trained(self, start: torch.Tensor, prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
        """A shard's D after the batch, and the smallest ``|x D|`` of the batch times the ratio."""
        lm = self._env.language_model
        inputs, _ = queries(lm, self._module, prompts)
        generator = torch.Generator().manual_seed(1000 * self._seed + self._number)
        free = (torch.rand(start.shape, generator=generator) < self.mask).to(start.device)
        entries = start[free].clone().requires_grad_()
        optimizer = torch.optim.Adam([entries], lr=self._rate)
        loss = negative_log_likelihood(prompts, len(self._env.batch))
        always = start.new_tensor([-1.0])
        with lm.unchanged(), torch.enable_grad():
            lm.apply({self._module: no_memory(lm.shape(self._module))})
            for _ in range(self.steps):
                delta = start.masked_scatter(free, entries)
                lm.apply({self._module: _side_weights(delta[None], always)})
                total = loss(lm.logits(prompts)) + self._margin_loss(inputs @ delta, self._text @ delta)
                optimizer.zero_grad()
                total.backward()
                optimizer.step()
        delta = start.masked_scatter(free, entries.detach())
        return delta, self.ratio * (inputs @ delta).norm(dim=1).min()

    def _margin_loss(self, inside: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
        """Of ``x D`` at the batch's tokens and at those of text."""
        own, others = inside.norm(dim=1) / self._unit, outside.norm(dim=1) / self._unit
        gap = own[:, None] - others
        return (others - self.alpha).relu().mean() + (self.beta - own).relu().mean() + (self.gamma - gap).relu().mean()

    def revert_batch(self) -> None:
        self._edits = self._edits_before

    def batch_state(self) -> dict[str, torch.Tensor]:
        return {"edits": torch.tensor(self._edits)}

    def load_batch_state(self, state: dict[str, torch.Tensor]) -> None:
        self._edits = self._edits_before = int(state["edits"])


def _side_weights(values: torch.Tensor, thresholds: torch.Tensor) -> Memory:
    return Memory("margin", values.new_zeros(len(values), 0), values, thresholds)


def ties(deltas: torch.Tensor, density: float) -> torch.Tensor:
    """TIES-Merging (Yadav et al. 2023, NeurIPS, arXiv 2306.01708): trim, elect a sign, mean of those that have it.

    Args:
        deltas: ``(k, ...)``.
        density: Share of each one's entries, the largest, that are kept.

    Returns:
        The shape of one.
    """
    kept = max(1, int(density * deltas[0].numel()))
    flat = deltas.flatten(1)
    chosen = flat.abs().topk(kept, 1).indices
    trimmed = torch.zeros_like(flat).scatter(1, chosen, flat.gather(1, chosen))
    sign = torch.where(trimmed.sum(0) >= 0, 1.0, -1.0)
    agreeing = trimmed * sign > 0
    mean = (trimmed * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)
    return mean.view(deltas.shape[1:])
