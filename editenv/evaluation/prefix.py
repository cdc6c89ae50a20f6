"""``generation_prefix``: the model's free greedy continuation begins with the target.

A model that was not taught to stop goes on after an answer: "Paris. The city is".
Under the protocol ``generation`` that is wrong; here it is right, and "Parisian" is not.

What counts as beginning with a target (:func:`begins_with`):

* both are in Unicode's form NFC (NFKC where the tokenizer writes that), without white space at their beginnings, and
  with one space for any run of white space;
* after the target the text ends, or goes on with something that does not continue its last word: no letter, digit or
  combining mark, and after a digit no point or comma that is followed by a digit (1 is not the beginning of 1.5);
* Chinese, Japanese, Thai and other scripts without spaces have no boundary that could be seen: any text may follow;
* upper and lower case differ.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from editenv.evaluation.batch import LOCALITY, EvaluationBatch, greedy_tokens
from editenv.evaluation.greedy import continuations
from editenv.evaluation.matching import GreedyMatcher, Verdict
from editenv.evaluation.metrics import Scores, mean_scores
from editenv.language_model.editable_lm import EditableLM
from editenv.language_model.prompts import asked

NO_SPACES = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
"""A character of a script that writes no spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""


def begins_with(text: str, target: str, ended: bool, form: Literal["NFC", "NFKC"] = "NFC") -> bool | None:
    """Whether a text begins with a target, at a word boundary; None while what follows may still decide it.

    Args:
        text: What has been written so far.
        target: What it should begin with.
        ended: Whether nothing more will be written.
        form: Unicode's normal form in which the two are compared.
    """
    text, target = _normalised(text, form), _normalised(target, form)
    if not text.startswith(target):
        return None if not ended and _may_become(text.rstrip("\ufffd"), target) else False
    rest = text[len(target) :]
    if not target or NO_SPACES.match(target[-1]):
        return True
    if not rest or (rest[0] == "\ufffd" and not ended):
        return True if ended else None
    if target[-1].isdigit() and rest[0] in ".,":
        if len(rest) == 1 and not ended:
            return None
        return not rest[1:2].isdigit()
    return not (rest[0].isalnum() or unicodedata.combining(rest[0]))


def _may_become(text: str, target: str) -> bool:
    """Whether a text that does not begin with the target may do so when it has gone on."""
    if target.startswith(text):
        return True
    # A mark that follows may join the last letter: e and an acute accent become one character.
    last = unicodedata.normalize("NFD", target[len(text) - 1 : len(text)])
    return target.startswith(text[:-1]) and last.startswith(text[-1])


def _normalised(text: str, form: Literal["NFC", "NFKC"]) -> str:
    return re.sub(r"\s+", " ", unicodedata.normalize(form, text)).lstrip()


class PrefixMatcher(GreedyMatcher):
    """Compares the beginning of what a model writes, at its current weights, with target texts."""

    def _matches(self, tokens: list[int], target: str) -> bool:
        """The text counts as it is where the limit ends it."""
        return self._verdict([*tokens, self.lm.tokenizer.eos_token_id], target) is Verdict.MATCH

    def _verdict_at_limit(self, tokens: list[int], target: str) -> Verdict:
        return self._verdict([*tokens, self.lm.eos_token], target)

    def _verdict(self, tokens: list[int], target: str) -> Verdict:
        eos = self.lm.tokenizer.eos_token_id
        ended = eos in tokens
        text = self.lm.tokenizer.decode(tokens[: tokens.index(eos)] if ended else tokens)
        begins = begins_with(text, target, ended, self._form)
        return Verdict.UNDECIDED if begins is None else Verdict.MATCH if begins else Verdict.DIFFERS


def generation_prefix(
    lm: EditableLM,
    batch: EvaluationBatch,
    initial_beginnings: Sequence[Sequence[int]] | None = None,
    batch_size: int = 512,
    choices: torch.Tensor | None = None,
) -> Scores:
    """Whether the free greedy continuation begins with the target; on locality prompts, as theta_0's does.

    Specificity compares as many tokens as the data set's answer has; locality accuracy asks for the answer itself.

    Args:
        lm: The edited model.
        batch: What is asked.
        initial_beginnings: What theta_0 writes on the locality prompts, if known from :func:`beginnings_of_initial_model`.
        batch_size: Prompts run together.
        choices: ``(A,)`` the model's greedy tokens at the answer positions, if they are known.
    """
    if initial_beginnings is None:
        initial_beginnings = beginnings_of_initial_model(lm, batch)
    matcher = PrefixMatcher(lm, prefix_limit(batch), batch_size)
    prompts, answers = [prompt for prompt, _ in batch.texts], [answer for _, answer in batch.texts]
    matches_answer = matcher.matches(prompts, answers, encoded=batch.prompts, choices=choices)
    correct = matches_answer.copy()
    is_locality = (batch.kind == LOCALITY).cpu().numpy()
    questions = [prompt for prompt, chosen in zip(prompts, is_locality, strict=True) if chosen]
    correct[is_locality] = writes_tokens(lm, questions, initial_beginnings, batch_size)
    return mean_scores(batch, correct.astype(np.float32), matches_answer.astype(np.float32))


def prefix_limit(batch: EvaluationBatch) -> int:
    """Tokens a continuation may take: the same text may need other tokens than the answer has."""
    return 2 * int(batch.prompts.lengths.max()) + 4


@torch.no_grad()
def beginnings_of_initial_model(lm: EditableLM, batch: EvaluationBatch) -> list[list[int]]:
    """The tokens with which theta_0 goes on from each locality prompt, as many as the data set's answer has."""
    is_locality = batch.kind == LOCALITY
    encoded = batch.prompts.select(is_locality)
    lengths = encoded.lengths.tolist()
    questions = [prompt for (prompt, _), chosen in zip(batch.texts, is_locality.tolist(), strict=True) if chosen]
    written: list[list[int]] = []
    unknown = []
    for i, (answer, choice) in enumerate(
        zip(encoded.labels.cpu().split(lengths), batch.initial_tokens.cpu().split(lengths), strict=True)
    ):
        # Up to the last token, theta_0 has read nothing but what it would have written itself.
        written.append(choice.tolist())
        if not torch.equal(answer[:-1], choice[:-1]):
            unknown.append(i)
    with lm.at_initial_weights():
        generated = continuations(
            lm.model,
            lm.tokenizer,
            [questions[i] for i in unknown],
            max((lengths[i] for i in unknown), default=0),
            decided=lambda row, tokens: len(tokens) >= lengths[unknown[row]],
        )
    for i, tokens in zip(unknown, generated, strict=True):
        written[i] = tokens
    return written


@torch.no_grad()
def writes_tokens(
    lm: EditableLM, texts: Sequence[str], beginnings: Sequence[Sequence[int]], batch_size: int
) -> np.ndarray:
    """``(n,)`` bool: whether the greedy continuation of each text begins with these tokens."""
    heads = lm.tokenizer([asked(text) for text in texts])["input_ids"] if texts else []
    prompts = lm.encode_tokens([(head, list(tokens)) for head, tokens in zip(heads, beginnings, strict=True)])
    agrees = (greedy_tokens(lm, prompts, batch_size) == prompts.labels).cpu().split(prompts.lengths.tolist())
    return np.array([bool(row.all()) for row in agrees], dtype=bool)
