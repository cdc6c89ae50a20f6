"""A set of edits as prompts: encoded once, read by rewards and metrics alike."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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


@torch.no_grad()
def encode_evaluation(
    lm: EditableLM, edits: Sequence[Edit], keep_log_probs: bool = False, append_eos: bool = False
) -> EvaluationBatch:
    """Encodes the questions about some edits, and asks theta_0 what the edits must not change.

    Args:
        lm: The model.
        edits: ``n`` edits.
        keep_log_probs: Keep all that theta_0 says, not only its first choices: as much as the vocabulary is wide.
        ends: Let the end-of-sequence token follow each answer.
    """
    rows = _rows(edits)
    prompts = lm.encode([text for _, _, text, _ in rows], [answer for _, _, _, answer in rows], append_eos=append_eos)
    edit_index = torch.tensor([row[0] for row in rows], device=lm.device)
    kind = torch.tensor([row[1] for row in rows], device=lm.device)
    kept = prompts.select(kind == LOCALITY)
    initial_log_probs = None
    with lm.at_initial_weights():
        if keep_log_probs:
            initial_log_probs = lm.logits(kept).log_softmax(-1)
        initial_tokens = greedy_tokens(lm, kept) if initial_log_probs is None else initial_log_probs.argmax(-1)
    texts = [(row[2], row[3]) for row in rows]
    return EvaluationBatch(edits, texts, prompts, edit_index, kind, initial_tokens, initial_log_probs)


def warm_cache(lm: EditableLM, edits: Sequence[Edit], append_eos: bool = False) -> None:
    """Runs the frozen layers over everything that :func:`encode_evaluation` will ask about these edits, so that it finds them
    done.
    """
    rows = _rows(edits)
    if rows:
        lm.encode([text for _, _, text, _ in rows], [answer for _, _, _, answer in rows], append_eos=append_eos)


def _rows(edits: Sequence[Edit]) -> list[tuple[int, int, str, str]]:
    """Edit, kind, text and answer of each question, kind by kind."""
    rows = [(i, PROMPT, edit.prompt, edit.target) for i, edit in enumerate(edits)]
    rows += [(i, REPHRASE, text, edit.target) for i, edit in enumerate(edits) for text in edit.rephrases]
    return rows + [(i, LOCALITY, item.prompt, item.answer) for i, edit in enumerate(edits) for item in edit.locality]


@torch.no_grad()
def greedy_tokens(lm: EditableLM, prompts: Prompts, batch_size: int = 512) -> torch.Tensor:
    """``(A,)`` the model's first choice at each answer position, ``batch_size`` prompts at a time."""
    found = [lm.logits(part).argmax(-1) for part in batches_of(prompts, batch_size)]
    return torch.cat(found) if found else prompts.labels


def batches_of(prompts: Prompts, batch_size: int) -> Iterator[Prompts]:
    """The prompts in order, so many at a time."""
    if 0 < len(prompts) <= batch_size:
        yield prompts
        return
    number = torch.arange(len(prompts), device=prompts.labels.device) // batch_size
    for i in range(-(-len(prompts) // batch_size)):
        yield prompts.select(number == i)
