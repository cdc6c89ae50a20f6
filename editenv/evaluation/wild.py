r"""``wild``: the way of judging of "The Mirage of Model Editing" (Yang et al., ACL 2025), which made QAEdit.

Their framework WILD asks as one would ask a model in use. As their code does it (WanliYoung/Revisit-Editing-Evaluation
6dcc555, ``test_prediction_acc_real``), with its defaults:

* the prompt is the question alone: no instruction, no examples, no answer that leaks (their ``question-only``);
* the model writes greedily until the token that brings a full stop or a line break, until it ends its text, or for
  :data:`LIMIT` tokens;
* what it wrote is right if it equals the target when both are in small letters, without ASCII punctuation, without
  the words a, an and the, and with single spaces (:func:`normalise`, SQuAD's exact match);
* locality: the model writes the very tokens that theta_0 wrote, up to the same stop. Of an edit's locality prompts the
  first one is asked.

Their published figures are of a judge, GPT-4o-mini, that is shown question, target and answer. It cannot be run
offline. Exact match is what their code does without it, and is stricter: "Paris is the capital" is wrong. Their other
prompts (``qa_inst``, ``chat_temp``) are not asked.

Two things follow. A target with a full stop in it ("J. K. Rowling") cannot be matched, for the text ends there. A model
that begins its answer with a line break has answered nothing.

One difference: their code takes the end-of-sequence token off only if it is ``</s>`` or ``<|endoftext|>``; here it is
taken off whatever it is called.
"""

import re
import string
from collections.abc import Sequence

import numpy as np
import torch

from editenv.evaluation.batch import LOCALITY, PROMPT, REPHRASE, EvaluationBatch
from editenv.evaluation.greedy import continuations
from editenv.evaluation.matching import GreedyMatcher, Verdict
from editenv.evaluation.metrics import Scores, mean_by_edit
from editenv.evaluation.prefix import writes_tokens
from editenv.language_model.editable_lm import EditableLM

STOPS = (".", "\n")
"""A text ends with the token that brings one of them."""

LIMIT = 50
"""Tokens that the model may write."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """A text in small letters, without ASCII punctuation, articles and white space beyond single spaces."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def may_become(text: str, target: str) -> bool:
    """Whether a text that goes on may yet equal a target when both are normalised: its whole words decide."""
    whole_words = text[: max((match.end() for match in re.finditer(r"\s", text)), default=0)]
    return f"{normalise(target)} ".startswith(f"{normalise(whole_words)} ".lstrip())


class WildMatcher(GreedyMatcher):
    """Compares what a model writes up to a stop, at its current weights, with target texts.

    Args:
        lm: The edited model.
        batch_size: Prompts run together.
    """

    def __init__(self, lm: EditableLM, batch_size: int = 512) -> None:
        super().__init__(lm, LIMIT, batch_size)

    def _matches(self, tokens: list[int], target: str) -> bool:
        """The text counts as it is where the limit ends it."""
        return self._verdict([*tokens, self.lm.tokenizer.eos_token_id], target) is Verdict.MATCH

    def _verdict_at_limit(self, tokens: list[int], target: str) -> Verdict:
        return self._verdict([*tokens, self.lm.eos_token], target)

    def _verdict(self, tokens: list[int], target: str) -> Verdict:
        text, ended = text_to_stop(self.lm, tokens)
        if ended:
            return Verdict.MATCH if normalise(text) == normalise(target) else Verdict.DIFFERS
        return Verdict.UNDECIDED if may_become(text, target) else Verdict.DIFFERS


def text_to_stop(lm: EditableLM, tokens: list[int]) -> tuple[str, bool]:
    """The text of new tokens up to a stop, with the whole token that brings it; and whether there is one."""
    tokenizer = lm.tokenizer
    ended = tokenizer.eos_token_id in tokens
    tokens = tokens[: tokens.index(tokenizer.eos_token_id)] if ended else tokens
    text = tokenizer.decode(tokens)
    if not _has_stop(text):
        return text, ended or len(tokens) >= LIMIT
    end = next(n for n in range(1, len(tokens) + 1) if _has_stop(tokenizer.decode(tokens[:n])))
    return tokenizer.decode(tokens[:end]), True


def _has_stop(text: str) -> bool:
    return any(stop in text for stop in STOPS)


@torch.no_grad()
def wild(
    lm: EditableLM,
    batch: EvaluationBatch,
    initial_answers: Sequence[Sequence[int]] | None = None,
    batch_size: int = 512,
    choices: torch.Tensor | None = None,
) -> Scores:
    """Efficacy, generalization and specificity in the way above; locality accuracy is not known.

    Args:
        lm: The edited model.
        batch: What is asked.
        initial_answers: What theta_0 writes on the first locality prompt of each edit that has one, if known from
            :func:`answers_of_initial_model`.
        batch_size: Prompts run together.
        choices: ``(A,)`` the model's greedy tokens at the answer positions, if they are known.
    """
    if initial_answers is None:
        initial_answers = answers_of_initial_model(lm, batch)
    edit_index, kind = batch.edit_index.cpu().numpy(), batch.kind.cpu().numpy()
    chosen = batch.kind != LOCALITY
    asked = chosen.nonzero().flatten().tolist()
    right = np.zeros(len(batch.texts), dtype=bool)
    right[asked] = WildMatcher(lm, batch_size).matches(
        [batch.texts[i][0] for i in asked],
        [batch.texts[i][1] for i in asked],
        encoded=batch.prompts.select(chosen),
        choices=None if choices is None else choices[chosen.repeat_interleave(batch.prompts.lengths)],
    )
    first = first_locality_prompts(batch)
    right[first] = writes_tokens(lm, [batch.texts[i][0] for i in first], initial_answers, batch_size)

    def mean(rows: Sequence[int] | np.ndarray) -> np.ndarray:
        return mean_by_edit(edit_index[rows], right[rows].astype(np.float32), len(batch.edits))

    return Scores(
        efficacy=mean(kind == PROMPT),
        generalization=mean(kind == REPHRASE),
        specificity=mean(first),
        locality_accuracy=np.full(len(batch.edits), np.nan),
    )


def first_locality_prompts(batch: EvaluationBatch) -> list[int]:
    """The row in a batch of each edit's first locality prompt, for the edits that have one."""
    rows: dict[int, int] = {}
    for row, (edit, kind) in enumerate(zip(batch.edit_index.tolist(), batch.kind.tolist(), strict=True)):
        if kind == LOCALITY:
            rows.setdefault(edit, row)
    return list(rows.values())


@torch.no_grad()
def answers_of_initial_model(lm: EditableLM, batch: EvaluationBatch) -> list[list[int]]:
    """The tokens that theta_0 writes on the first locality prompts, its stop included."""
    prompts = [batch.texts[i][0] for i in first_locality_prompts(batch)]
    with lm.at_initial_weights():
        return continuations(
            lm.model, lm.tokenizer, prompts, LIMIT, decided=lambda _, tokens: text_to_stop(lm, tokens)[1]
        )
