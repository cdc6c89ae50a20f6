"""A batch of edits as a model is asked about them: encoded once, read by rewards and metrics alike."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from editenv.data.edits import Edit
from editenv.language_model.editable_lm import EditableLM
from editenv.language_model.prompts import Prompts

PROMPT, REPHRASE, LOCALITY = 0, 1, 2
"""Kinds of question."""


@dataclass(slots=True)
class EvaluationBatch:
    """Everything that is asked about some edits, and what theta_0 says to the locality prompts.

    The questions come kind by kind: the edits' prompts, then their rephrases, then their locality prompts.

    Attributes:
        edits: The edits.
        texts: ``(prompt, answer)`` of each of the ``B`` questions.
        prompts: The same, encoded; ``A`` answer tokens.
        edit_index: ``(B,)`` which of ``edits`` each question belongs to.
        kind: ``(B,)`` PROMPT, REPHRASE or LOCALITY.
        initial_tokens: ``(L,)`` theta_0's greedy tokens at the locality prompts' answer positions, which are the last
            ``L`` of ``A``.
        initial_log_probs: ``(L, vocabulary)`` its log-probabilities there, if they were to be kept.
    """

    edits: Sequence[Edit]
    texts: list[tuple[str, str]]
    prompts: Prompts
    edit_index: torch.Tensor
    kind: torch.Tensor
    initial_tokens: torch.Tensor
    initial_log_probs: torch.Tensor | None = None


class _Question(NamedTuple):
    edit_index: int
    kind: int
    prompt: str
    answer: str


@torch.no_grad()
def encode_evaluation(
    lm: EditableLM, edits: Sequence[Edit], keep_log_probs: bool = False, append_eos: bool = False
) -> EvaluationBatch:
    """Encodes the questions about some edits, and asks theta_0 what the edits must not change.

    Args:
        lm: The model.
        edits: ``n`` edits.
        keep_log_probs: Keep theta_0's log-probabilities, not only its greedy tokens: as much as the vocabulary is wide.
        append_eos: Let the end-of-sequence token follow each answer.

    Raises:
        ValueError: If that token is to follow, and the tokenizer has none.
    """
    questions = _questions(edits)
    texts = [(question.prompt, question.answer) for question in questions]
    prompts = lm.encode([prompt for prompt, _ in texts], [answer for _, answer in texts], append_eos=append_eos)
    edit_index = torch.tensor([question.edit_index for question in questions], device=lm.device)
    kind = torch.tensor([question.kind for question in questions], device=lm.device)
    locality = prompts.select(kind == LOCALITY)
    initial_log_probs = None
    with lm.at_initial_weights():
        if keep_log_probs:
            initial_log_probs = lm.logits(locality).log_softmax(-1)
            initial_tokens = initial_log_probs.argmax(-1)
        else:
            initial_tokens = greedy_tokens(lm, locality)
    return EvaluationBatch(edits, texts, prompts, edit_index, kind, initial_tokens, initial_log_probs)


def warm_cache(lm: EditableLM, edits: Sequence[Edit], append_eos: bool = False) -> None:
    """Runs the frozen layers, together, over everything that :func:`encode_evaluation` will ask about these edits; it
    then takes their outputs from the cache.

    Args:
        lm: The model.
        edits: Of several batches.
        append_eos: As it will be given.
    """
    if questions := _questions(edits):
        lm.encode([q.prompt for q in questions], [q.answer for q in questions], append_eos=append_eos)


def _questions(edits: Sequence[Edit]) -> list[_Question]:
    """Everything that is asked about the edits, kind by kind."""
    questions = [_Question(i, PROMPT, edit.prompt, edit.target) for i, edit in enumerate(edits)]
    questions += [_Question(i, REPHRASE, text, edit.target) for i, edit in enumerate(edits) for text in edit.rephrases]
    questions += [
        _Question(i, LOCALITY, item.prompt, item.answer) for i, edit in enumerate(edits) for item in edit.locality
    ]
    return questions


@torch.no_grad()
def greedy_tokens(lm: EditableLM, prompts: Prompts, batch_size: int = 512) -> torch.Tensor:
    """``(A,)`` the model's first choice at each answer position, given the answer up to there.

    Args:
        lm: The model, at its current weights.
        prompts: ``A`` answer tokens.
        batch_size: Prompts run together.
    """
    choices = [lm.logits(part).argmax(-1) for part in batches_of(prompts, batch_size)]
    return torch.cat(choices) if choices else prompts.labels


def batches_of(prompts: Prompts, batch_size: int) -> Iterator[Prompts]:
    """The prompts in order, so many at a time."""
    if 0 < len(prompts) <= batch_size:
        yield prompts
        return
    batch_number = torch.arange(len(prompts), device=prompts.labels.device) // batch_size
    for i in range(-(-len(prompts) // batch_size)):
        yield prompts.select(batch_number == i)
