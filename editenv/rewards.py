"""The reward of one transition, equations 7 to 10 of RLEdit (Li et al. 2025), each term by name.

For the batch edited at step t, at the weights after its edit::

    edit_t     mean over the edits of -log p(target | rephrase), by its token mean                             eq. 7
    locality_t mean over the edits of KL(p_theta0 || p_theta) at the locality prompts' answer positions         eq. 7
    loss_t   = edit_t + lambda_loc * locality_t                                                                eq. 8
    memory_t = sum over i = 1 .. k of mu^i * loss of the batch i steps back, at the weights of now              eq. 9
    reward_t = -(loss_t + memory_t + eta * |D_t|^2)                                                            eq. 10

The same as a share, :meth:`Reward.improvement`: 1 where nothing is lost, 0 where as much is lost as without any edit.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch

from editenv.arguments import NonNegativeFloat, NonNegativeInt, Share, check_fields
from editenv.deltas import Delta, squared_norm
from editenv.evaluation.batch import LOCALITY, PROMPT, REPHRASE, EvaluationBatch
from editenv.language_model.editable_lm import EditableLM, Gradient
from editenv.language_model.prompts import Prompts

BATCHES_PER_FORWARD = 4
"""Batches that are judged in one forward: the logits of ten are large, and not faster to come by than those of four;
and what the backward pass needs of a model of billions of parameters fills a GPU."""

LOWEST_IMPROVEMENT = -1.0
"""Below it a model counts as broken: more than twice as much is lost as without any edit."""

SMALLEST_INITIAL_LOSS = 1.0
"""Least loss of the unedited model that an improvement is measured in, in nats: what is known already says little."""


@dataclass(frozen=True, slots=True)
class RewardConfig:
    """Coefficients of eq. 8 to 10, with the paper's symbols and values.

    Raises:
        ValueError: For a coefficient out of range; names it.

    Attributes:
        locality: lambda_loc: weight of the locality loss.
        memory_decay: mu: how much a past batch counts for each step it lies back.
        memory_batches: k: how many past batches are looked back at; 0 turns memory backtracking off.
        regularization: eta: weight of the squared norm of the delta.
        reference: What the locality losses compare with: theta_0 (eq. 7), or theta_{t-1}, the weights before the
            batch, for this batch and all that are looked back at, as in the public code. No gradient goes through
            them.
    """

    locality: NonNegativeFloat = 0.6
    memory_decay: Share = 0.95
    memory_batches: NonNegativeInt = 10
    regularization: NonNegativeFloat = 1e-4
    reference: Literal["initial", "previous"] = "initial"

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True)
class RewardTerms:
    """What one step's reward is made of.

    Attributes:
        edit: Edit loss of the current batch (eq. 7), in nats.
        locality: Its locality loss (eq. 7), in nats.
        memory: The decayed losses of the batches looked back at (eq. 9).
        regularization: ``|D|^2``, over all edited modules.
        reward: Minus their weighted sum (eq. 10).
    """

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
        prompts: All rephrases, then all locality prompts, as one set; ``A`` answer tokens.
        tokens: ``(A,)`` which of the evaluation batch's answer tokens theirs are.
        rephrase_tokens: How many of the answer tokens belong to rephrases.
        weights: ``(A,)``: each token's share in the mean over the batch's edits, so that both losses of eq. 7 are plain
            weighted sums.
        reference_log_probs: ``(A - rephrase_tokens, vocabulary)`` log-probabilities of theta_0 on the locality
            prompts (or of other weights, see :meth:`Reward.open`).
        initial_loss: Theta_0's loss of eq. 8, in nats, if it was asked for: its edit loss, as its locality loss is 0.
    """

    prompts: Prompts
    tokens: torch.Tensor
    rephrase_tokens: int
    weights: torch.Tensor
    reference_log_probs: torch.Tensor
    initial_loss: float | None = None

    @property
    def locality_prompts(self) -> Prompts:
        """Those that :attr:`reference_log_probs` is about."""
        return self.prompts.select(self.prompts.lengths.cumsum(0) > self.rephrase_tokens)


@torch.no_grad()
def prepare(lm: EditableLM, batch: EvaluationBatch, initial_loss: bool = False) -> RewardBatch:
    """Does everything about a batch that does not depend on what its edit will do to the weights.

    An edit without rephrases is judged on its own prompt, one without locality prompts has no locality loss.

    Args:
        lm: The model.
        batch: The edits, encoded.
        initial_loss: Whether :meth:`Reward.improvement` will be asked for.
    """
    edits = len(batch.edits)
    has_rephrases = torch.bincount(batch.edit_index[batch.kind == REPHRASE], minlength=edits) > 0
    judged = (batch.kind != PROMPT) | ~has_rephrases[batch.edit_index]
    prompts = batch.prompts.select(judged)
    edit_index, is_locality = batch.edit_index[judged], batch.kind[judged] == LOCALITY
    # Eq. 7 takes means over an edit's prompts of one kind, over each prompt's tokens, and over the edits.
    group = edit_index + edits * is_locality
    prompts_in_group = torch.bincount(group, minlength=2 * edits)[group]
    prompt_weights = 1 / (edits * prompts_in_group * prompts.lengths)
    reference_log_probs = batch.initial_log_probs
    if reference_log_probs is None:
        with lm.at_initial_weights():
            reference_log_probs = lm.logits(prompts.select(is_locality)).log_softmax(-1)
    prepared = RewardBatch(
        prompts=prompts,
        tokens=judged.repeat_interleave(batch.prompts.lengths).nonzero().squeeze(1),
        rephrase_tokens=int(prompts.lengths[~is_locality].sum()),
        weights=prompt_weights[prompts.prompt_index],
        reference_log_probs=reference_log_probs,
    )
    if initial_loss:
        with lm.at_initial_weights():
            logits = lm.logits(prompts.select(~is_locality))
        prepared.initial_loss = float(_edit_loss(prepared, logits))
    return prepared


def _edit_loss(batch: RewardBatch, logits: torch.Tensor) -> torch.Tensor:
    """Eq. 7's edit loss from the ``(rephrase_tokens, vocabulary)`` logits at the rephrases; carries gradient."""
    targets = batch.prompts.labels[: batch.rephrase_tokens]
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return (batch.weights[: batch.rephrase_tokens] * nll).sum()


def _edit_and_locality_losses(
    batches: Sequence[RewardBatch], logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 7: edit and locality loss of each batch, two vectors of ``len(batches)``; carries gradient.

    Args:
        batches: Of ``A`` answer tokens altogether.
        logits: ``(A, vocabulary)`` at them.
    """
    edit, locality = [], []
    start = 0
    for batch in batches:
        end = start + len(batch.weights)
        middle = start + batch.rephrase_tokens
        edit.append(_edit_loss(batch, logits[start:middle]))
        log_probs, reference = logits[middle:end].log_softmax(-1), batch.reference_log_probs
        kl = (reference.exp() * (reference - log_probs)).sum(-1)
        locality.append((batch.weights[batch.rephrase_tokens :] * kl).sum())
        start = end
    return torch.stack(edit), torch.stack(locality)


def _parts(batches: Sequence[RewardBatch]) -> Iterator[Sequence[RewardBatch]]:
    """In order, as many at a time as go through the model together."""
    for start in range(0, len(batches), BATCHES_PER_FORWARD):
        yield batches[start : start + BATCHES_PER_FORWARD]


class Reward:
    """Eq. 10 along an episode: keeps the last k batches and judges each transition.

    Args:
        lm: The model the weights are taken from, as it stands when :meth:`step` is called.
        config: Coefficients.

    Attributes:
        memory: The last k batches that the stream has moved past, the latest one last.
    """

    def __init__(self, lm: EditableLM, config: RewardConfig) -> None:
        self.lm = lm
        self.config = config
        self.memory: list[RewardBatch] = []

    @torch.no_grad()
    def open(self, current: RewardBatch) -> None:
        """The stream has come to a batch.

        With ``reference="previous"`` the model as it stands is what this batch and those looked back at are compared
        with until the next one is opened.
        """
        if self.config.reference == "initial":
            return
        for part in _parts([current, *self.memory]):
            prompts = [batch.locality_prompts for batch in part]
            log_probs = self.lm.logits(Prompts.join(prompts)).log_softmax(-1)
            tokens = [len(p.labels) for p in prompts]
            for batch, reference in zip(part, log_probs.split(tokens), strict=True):
                batch.reference_log_probs = reference

    def add_to_memory(self, batch: RewardBatch) -> None:
        """Keeps a batch that the stream has moved past, and drops the one k steps before it."""
        self.memory = [*self.memory, batch][-self.config.memory_batches :] if self.config.memory_batches else []

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
        batches, factors = self._batches_and_factors(current, lags=None)
        if logits is None:
            logits = self.lm.logits(current.prompts)
        losses = [_edit_and_locality_losses([current], logits)]
        for part in _parts(batches[1:]):
            part_logits = self.lm.logits(Prompts.join([batch.prompts for batch in part]))
            losses.append(_edit_and_locality_losses(part, part_logits))
        edit, locality = (torch.cat(column) for column in zip(*losses, strict=True))
        return self._terms(edit, locality, factors, deltas)

    def improvement(self, current: RewardBatch, terms: RewardTerms) -> float:
        """The reward as a share of what is lost without any edit: ``1 - reward_t / reward_t of theta_0``.

        1 where nothing is lost, 0 for a model that is never edited, negative where editing did harm. The memory term
        grows along the first k batches in both, so that it cancels out.

        Args:
            current: The batch just edited, not yet in the memory.
            terms: What :meth:`step` said of it, all of the memory looked back at.

        Raises:
            ValueError: If a batch was prepared without its initial loss.
        """
        return 1 + terms.reward / self.unedited_loss(current)

    def unedited_loss(self, current: RewardBatch) -> float:
        """Minus the ``reward_t`` of theta_0, at least :data:`SMALLEST_INITIAL_LOSS`, in nats.

        Args:
            current: The batch at hand, not yet in the memory.

        Raises:
            ValueError: If a batch was prepared without its initial loss.
        """
        batches, factors = self._batches_and_factors(current, lags=None)
        initial = 0.0
        for batch, factor in zip(batches, factors.tolist(), strict=True):
            if batch.initial_loss is None:
                raise ValueError("improvement: a batch was prepared without its initial loss")
            initial += factor * batch.initial_loss
        return max(initial, SMALLEST_INITIAL_LOSS)

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

        Returns:
            The terms, and for each edited module the gradient in factors, over the tokens of all batches looked at.
        """
        batches, factors = self._batches_and_factors(current, lags)
        losses: list[tuple[torch.Tensor, torch.Tensor]] = []
        gradients: list[dict[str, Gradient]] = []
        for part, part_factors in zip(_parts(batches), factors.split(BATCHES_PER_FORWARD), strict=True):

            def weighted_loss(
                logits: torch.Tensor, part: Sequence[RewardBatch] = part, part_factors: torch.Tensor = part_factors
            ) -> torch.Tensor:
                edit, locality = _edit_and_locality_losses(part, logits)
                losses.append((edit.detach(), locality.detach()))
                return (
                    part_factors * (edit + self.config.locality * locality)
                ).sum()  # the part's share of eq. 8 and 9

            gradients.append(self.lm.gradients(Prompts.join([batch.prompts for batch in part]), weighted_loss)[1])
        edit, locality = (torch.cat(column) for column in zip(*losses, strict=True))
        joined = {
            name: Gradient(
                torch.cat([gradient[name].keys for gradient in gradients]),
                torch.cat([gradient[name].value_grads for gradient in gradients]),
            )
            for name in self.lm.modules
        }
        return self._terms(edit, locality, factors, deltas), joined

    def _batches_and_factors(
        self, current: RewardBatch, lags: Sequence[int] | None
    ) -> tuple[list[RewardBatch], torch.Tensor]:
        """The current batch and those looked back at, with each one's factor in eq. 10: 1, then mu^i."""
        looked_back_at = range(1, len(self.memory) + 1) if lags is None else lags
        batches = [current] + [self.memory[-lag] for lag in looked_back_at]
        factors = [self.config.memory_decay**lag for lag in looked_back_at]
        if lags:
            # An unbiased estimate of the whole sum from the lags given: they were drawn uniformly.
            scale = len(self.memory) / len(lags)
            factors = [factor * scale for factor in factors]
        return batches, torch.tensor([1.0, *factors], device=self.lm.device)

    def _terms(
        self, edit: torch.Tensor, locality: torch.Tensor, factors: torch.Tensor, deltas: Mapping[str, Delta]
    ) -> RewardTerms:
        """Eq. 8 to 10, from the losses of the current batch and of those looked back at."""
        losses = edit + self.config.locality * locality  # eq. 8
        memory = (factors[1:] * losses[1:]).sum()  # eq. 9
        norm = sum(float(squared_norm(delta)) for delta in deltas.values())
        reward = -float(losses[0] + memory + self.config.regularization * norm)  # eq. 10
        return RewardTerms(float(edit[0]), float(locality[0]), float(memory), norm, reward)
