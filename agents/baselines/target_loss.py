"""What fine-tuning minimises: the negative log-likelihood of the edits' targets."""

from collections.abc import Callable

import torch

from editenv.evaluation.batch import PROMPT, EvaluationBatch
from editenv.language_model.prompts import Prompts


def negative_log_likelihood(prompts: Prompts, edits: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Mean over edits of the token mean of ``-log p(target | prompt)``, in nats, as a function of the logits.

    Args:
        prompts: The edits' prompts with their targets, a prompt an edit.
        edits: How many edits there are.

    Returns:
        From logits ``(answer tokens, vocabulary)`` to a scalar.
    """
    weights = 1 / (edits * prompts.lengths[prompts.prompt_index])

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return (weights * torch.nn.functional.cross_entropy(logits, prompts.labels, reduction="none")).sum()

    return loss


def edit_prompts(batch: EvaluationBatch) -> Prompts:
    """The edits' own prompts, without rephrases and locality prompts."""
    return batch.prompts.select(batch.kind == PROMPT)
