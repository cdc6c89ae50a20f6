"""What a delta from theta_0 does for some edits: the loss that networks are trained on, the whole delta at once."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from editenv.deltas import LowRank
from editenv.evaluation.batch import LOCALITY, PROMPT, REPHRASE, EvaluationBatch
from editenv.language_model.editable_lm import EditableLM, Gradient


@dataclass(frozen=True)
class Judgement:
    """Of a delta.

    Attributes:
        loss: The weighted sum, in nats.
        divergence: Token mean of KL(theta_0 || theta) on the locality prompts, in nats.
        said: Share of the edits' own target tokens that are the most likely ones.
        gradients: Of the loss with respect to the weights, at theta_0 plus the delta.
    """

    loss: float
    divergence: float
    said: float
    gradients: dict[str, Gradient]


def judge(
    lm: EditableLM, batch: EvaluationBatch, deltas: Mapping[str, LowRank], weights: tuple[float, float, float]
) -> Judgement:
    """Judges a delta; the model is left at theta_0.

    Args:
        lm: The model.
        batch: What is asked about the edits: their prompts, rephrases and locality prompts; theta_0's log-probabilities
            at the last are computed if they are not kept.
        deltas: For each module, from theta_0.
        weights: Of the token means of -log p on the edits' own prompts and on their rephrases, and of the divergence.
    """
    prompts = batch.prompts
    kind = batch.kind[prompts.prompt_index]
    local = kind == LOCALITY
    reference = batch.initial_log_probs
    if reference is None:
        with torch.no_grad(), lm.at_initial_weights():
            reference = lm.logits(prompts.select(batch.kind == LOCALITY)).log_softmax(-1)
    divergence = said = 0.0

    def loss(logits: torch.Tensor) -> torch.Tensor:
        nonlocal divergence, said
        nll = F.cross_entropy(logits, prompts.labels, reduction="none")
        kl = (reference.exp() * (reference - logits[local].log_softmax(-1))).sum(-1)
        terms = [values.sum() / max(len(values), 1) for values in (nll[kind == PROMPT], nll[kind == REPHRASE], kl)]
        divergence = float(terms[2].detach())
        said = float((logits.argmax(-1) == prompts.labels)[kind == PROMPT].float().mean())
        return torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum()

    lm.restore()
    lm.apply({name: LowRank(delta.left.detach(), delta.right.detach()) for name, delta in deltas.items()})
    value, gradients = lm.gradients(prompts, loss)
    lm.restore()
    return Judgement(float(value), divergence, said, gradients)
