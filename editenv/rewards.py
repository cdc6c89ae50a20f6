"""The reward of one transition, equations 7 to 10 of RLEdit (Li et al. 2025), each term by name."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Literal

import torch

from editenv.deltas import Delta, squared_norm
from editenv.evaluation.batch import LOCALITY, PROMPT, REPHRASE, EvaluationBatch
from editenv.language_model.editable_lm import EditableLM, Gradient
from editenv.language_model.prompts import Prompts

TOGETHER = 4
"""Batches that are judged in one forward."""


@dataclass(frozen=True, slots=True)
class RewardConfig:
    """Coefficients of eq. 8 to 10, with the paper's symbols and values."""

    locality: float = 0.6
    """lambda_loc: weight of the locality loss."""
    memory_decay: float = 0.95
    """mu: how much a past batch counts for each step it lies back."""
    memory_batches: int = 10
    """k: how many past batches are looked back at; 0 turns memory backtracking off."""
    regularization: float = 1e-4
    """eta: weight of the squared norm of the delta."""
    reference: Literal["initial", "previous"] = "initial"
    """What the locality loss compares with: theta_0 (eq. 7), or the weights that the batch was first shown at,
    which are theta_{t-1}, as in the public code. A batch that is looked back at keeps them; no gradient goes
    through them.
    """

    def __post_init__(self) -> None:
        if self.reference not in ("initial", "previous"):
            raise ValueError(f"reference must be 'initial' or 'previous', not {self.reference!r}")
        if self.memory_batches < 0 or not 0 <= self.memory_decay <= 1:
            raise ValueError(
                f"memory_batches must be >= 0 and memory_decay in [0, 1], not {self.memory_batches}, {self.memory_decay}"
            )


@dataclass(frozen=True, slots=True)
class RewardTerms:
    """What one step's reward is made of; ``reward`` is minus their weighted sum (eq. 10)."""

    edit: float
    locality: float
    memory: float
    regularization: float
    reward: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(slots=True)
class RewardBatch:
    """One batch of edits, ready to be judged at any weights.

    Attributes:
        prompts: All rephrases, then all locality prompts, as one set.
        tokens: ``(A,)`` which of the questions' answer tokens theirs are.
        rephrase_tokens: How many of the answer tokens belong to rephrases.
        weights: ``(A,)``: each token's share in the mean over the batch's edits, so that both losses of eq. 7 are plain
            weighted sums.
        reference_log_probs: ``(A - rephrase_tokens, vocabulary)`` log-probabilities of theta_0 on the locality prompts
            (or of other weights, see :class:`RewardConfig`).
    """

    prompts: Prompts
    tokens: torch.Tensor
    rephrase_tokens: int
    weights: torch.Tensor
    reference_log_probs: torch.Tensor


@torch.no_grad()
def prepare(
    lm: EditableLM, questions: EvaluationBatch, reference: Literal["initial", "previous"] = "initial"
) -> RewardBatch:
    """Does everything about a batch that does not depend on what its edit will do to the weights.

    An edit without rephrases is judged on its own prompt, one without locality prompts has no locality loss.
    """
    edits = len(questions.edits)
    owner, kind = questions.edit_index, questions.kind
    rephrased = torch.bincount(owner[kind == REPHRASE], minlength=edits) > 0
    judged = (kind != PROMPT) | ~rephrased[owner]
    tokens = judged.repeat_interleave(questions.prompts.lengths).nonzero().squeeze(1)
    prompts = questions.prompts.select(judged)
    owner, is_locality = owner[judged], kind[judged] == LOCALITY
    group = owner + edits * is_locality
    per_prompt = 1 / (edits * torch.bincount(group, minlength=2 * edits)[group] * prompts.lengths)
    rephrase_tokens = int(prompts.lengths[~is_locality].sum())
    log_probs = questions.initial_log_probs if reference == "initial" else None
    if log_probs is None:
        with lm.at_initial_weights() if reference == "initial" else nullcontext():
            log_probs = lm.logits(prompts.select(is_locality)).log_softmax(-1)
    return RewardBatch(prompts, tokens, rephrase_tokens, per_prompt[prompts.prompt_index], log_probs)


def _losses(batches: Sequence[RewardBatch], logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 7: edit and locality loss of each batch, two vectors of ``len(batches)``."""
    edit, locality = [], []
    start = 0
    for batch in batches:
        end = start + len(batch.weights)
        middle = start + batch.rephrase_tokens
        labels, weights = batch.prompts.labels, batch.weights
        nll = torch.nn.functional.cross_entropy(logits[start:middle], labels[: batch.rephrase_tokens], reduction="none")
        edit.append((weights[: batch.rephrase_tokens] * nll).sum())
        log_probs = logits[middle:end].log_softmax(-1)
        kl = (batch.reference_log_probs.exp() * (batch.reference_log_probs - log_probs)).sum(-1)
        locality.append((weights[batch.rephrase_tokens :] * kl).sum())
        start = end
    return torch.stack(edit), torch.stack(locality)


class Reward:
    """Eq. 10 along an episode: keeps the last k batches and judges each transition.

    Args:
        lm: The model the weights are taken from, as it stands when :meth:`step` is called.
        config: Coefficients.
    """

    def __init__(self, lm: EditableLM, config: RewardConfig) -> None:
        self.lm = lm
        self.config = config
        self.memory: list[RewardBatch] = []

    def _batches(self, current: RewardBatch, past: Sequence[int] | None) -> tuple[list[RewardBatch], torch.Tensor]:
        lags = range(1, len(self.memory) + 1) if past is None else past
        batches = [current] + [self.memory[-lag] for lag in lags]
        factors = [1.0] + [self.config.memory_decay**lag for lag in lags]
        if past is not None and past:
            # An unbiased estimate of the whole sum from the lags given: they were drawn uniformly.
            scale = len(self.memory) / len(past)
            factors = [1.0] + [factor * scale for factor in factors[1:]]
        return batches, torch.tensor(factors, device=self.lm.device)

    def _terms(
        self, edit: torch.Tensor, locality: torch.Tensor, factors: torch.Tensor, deltas: Mapping[str, Delta]
    ) -> RewardTerms:
        memory = (factors[1:] * (edit + self.config.locality * locality)[1:]).sum()
        norm = sum(float(squared_norm(delta)) for delta in deltas.values())
        loss = edit[0] + self.config.locality * locality[0] + memory + self.config.regularization * norm
        return RewardTerms(float(edit[0]), float(locality[0]), float(memory), norm, -float(loss))

    @torch.no_grad()
    def step(
        self, current: RewardBatch, deltas: Mapping[str, Delta], logits: torch.Tensor | None = None
    ) -> RewardTerms:
        """The reward of having applied ``deltas`` for the batch ``current``, at the model's weights now.

        Args:
            current: The batch just edited.
            deltas: What was applied.
            logits: ``(A, vocabulary)`` of the current batch, if they are known.
        """
        batches, factors = self._batches(current, None)
        if logits is None:
            logits = self.lm.logits(current.prompts)
        found = [_losses([current], logits)]
        # A few at a time: the logits of ten batches are large, and not faster than those of three.
        for start in range(1, len(batches), TOGETHER):
            part = batches[start : start + TOGETHER]
            found.append(_losses(part, self.lm.logits(Prompts.join([batch.prompts for batch in part]))))
        edit, locality = (torch.cat(column) for column in zip(*found, strict=True))
        return self._terms(edit, locality, factors, deltas)

    def step_with_gradient(
        self, current: RewardBatch, deltas: Mapping[str, Delta], lags: Sequence[int] | None = None
    ) -> tuple[RewardTerms, dict[str, Gradient]]:
        """Like :meth:`step`, and the gradient of the *loss* (minus the reward) with respect to the edited weights.

        The L2 term is left out of that gradient: it depends on the delta alone, not on where the weights are.

        Args:
            current: The batch just edited.
            deltas: What was applied.
            lags: Which past batches to look back at (1 is the last one); all of the last k by default. A subset must
                have been drawn uniformly; it is reweighted to estimate the whole sum.
        """
        batches, factors = self._batches(current, lags)
        losses: list[tuple[torch.Tensor, torch.Tensor]] = []
        parts: list[dict[str, Gradient]] = []
        # A few at a time: what the backward needs of a model of billions of parameters fills a GPU.
        for start in range(0, len(batches), TOGETHER):
            part, of_part = batches[start : start + TOGETHER], factors[start : start + TOGETHER]

            def loss(
                logits: torch.Tensor, part: Sequence[RewardBatch] = part, of: torch.Tensor = of_part
            ) -> torch.Tensor:
                edit, locality = _losses(part, logits)
                losses.append((edit.detach(), locality.detach()))
                return (of * (edit + self.config.locality * locality)).sum()

            parts.append(self.lm.gradients(Prompts.join([batch.prompts for batch in part]), loss)[1])
        edit, locality = (torch.cat(column) for column in zip(*losses, strict=True))
        gradients = {
            name: Gradient(
                torch.cat([part[name].keys for part in parts]), torch.cat([part[name].value_grads for part in parts])
            )
            for name in self.lm.modules
        }
        return self._terms(edit, locality, factors, deltas), gradients

    def add_to_memory(self, batch: RewardBatch) -> None:
        """Puts a batch that the stream has moved past into the memory of k."""
        self.memory = [*self.memory, batch][-self.config.memory_batches :] if self.config.memory_batches else []
