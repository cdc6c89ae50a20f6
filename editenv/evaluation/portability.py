"""``portability``: what follows from an edit, or must not be touched by it, each kind of question a metric of its own.

A question with an answer is right if the model's free greedy continuation begins with the answer, as under
``generation_prefix`` (:func:`editenv.evaluation.prefix.begins_with`: at the end of a word; upper and lower case
differ). A question without one is right if the continuation begins with the same :data:`TOKENS_WITHOUT_ANSWER` tokens
as theta_0's. HalluEditBench itself (Huang et al. 2024) asks through a chat template for a short answer, and lets a
language model judge what is not a part of the answer or the other way round; no such judge is used here.

What a model that was not edited can do is the row ``no-edit``, not a part of the figures.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from editenv.data.edits import Edit
from editenv.evaluation.greedy import continuations
from editenv.evaluation.prefix import PrefixMatcher, writes_tokens
from editenv.language_model.editable_lm import EditableLM
from editenv.language_model.prompts import token_ids

TOKENS_WITHOUT_ANSWER = 8
"""How much of theta_0's continuation must stay where a question has no answer: about a short answer's length."""


class Figure(TypedDict):
    """Of one kind of question.

    Attributes:
        right: Percentage of the questions.
        questions: How many were asked.
    """

    right: float
    questions: int


def portability(lm: EditableLM, edits: Sequence[Edit], batch_size: int = 512) -> dict[str, Figure]:
    """The share of each kind of question that is right at the current weights.

    Args:
        lm: The edited model.
        edits: Those whose questions are asked.
        batch_size: Prompts run together.
    """
    questions = [question for edit in edits for question in edit.portability]
    right = np.zeros(len(questions), dtype=bool)
    answers = {i: question.answer for i, question in enumerate(questions) if question.answer is not None}
    prompts = [questions[i].prompt for i in answers]
    pairs = token_ids(lm.tokenizer, prompts, list(answers.values()))
    # The same text may need other tokens than the answer has.
    limit = 2 * max((len(answer) for _, answer in pairs), default=0) + 4
    right[list(answers)] = PrefixMatcher(lm, limit, batch_size).matches(prompts, list(answers.values()))
    others = [i for i in range(len(questions)) if i not in answers]
    right[others] = _stays(lm, [questions[i].prompt for i in others], batch_size)
    kinds = np.array([question.kind for question in questions], dtype=object)
    return {
        kind: Figure(right=round(float(100 * right[kinds == kind].mean()), 4), questions=int((kinds == kind).sum()))
        for kind in dict.fromkeys(kinds.tolist())
    }


def _stays(lm: EditableLM, prompts: Sequence[str], batch_size: int) -> np.ndarray:
    """``(n,)`` bool: whether the model goes on from each prompt as theta_0 does."""
    with lm.at_initial_weights():
        initial = continuations(lm.model, lm.tokenizer, prompts, TOKENS_WITHOUT_ANSWER)
    return writes_tokens(lm, prompts, initial, batch_size)


def evenly_spread(edits: Sequence[Edit], number: int) -> list[Edit]:
    """So many of the edits at equal distances, from the first to the last: early ones, which later edits may have
    undone, as well as late ones.
    """
    if len(edits) <= number:
        return list(edits)
    return [edits[i] for i in np.linspace(0, len(edits) - 1, number).round().astype(int).tolist()]
