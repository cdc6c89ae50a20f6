"""How good an edited model is, each figure under a named protocol.

``teacher_forced``
    The answer is given and each of its tokens is asked for: the share of tokens that are the model's greedy choice
    (RLEdit's appendix A.3.1). The answer's beginning and its length leak to the model.
``probability``
    The edit's target is likelier than the old answer, each under its own prefix and by its token mean (ROME's and
    MEMIT's CounterFact metrics; RLEdit's appendix A.3.2). The model may say neither.
``generation``
    The model writes freely (greedy) until it stops by itself; right is only the exact answer, white space at its
    ends aside (:mod:`editenv.evaluation.matching`).
``generation_prefix``
    The free continuation begins with the answer, for models that do not stop after one
    (:mod:`editenv.evaluation.prefix`).
``wild``
    QAEdit's way: the question alone, a natural stop at the sentence's end, and exact match but for case, articles and
    punctuation (:mod:`editenv.evaluation.wild`).

Each reports **efficacy** on the edit's own prompt, **generalization** on its rephrases, and **specificity** on its
locality prompts: agreement with the model's *own* output before any edit, whatever that was (with ``probability``: the
data set's answer is likelier than the edit's target). **Locality accuracy** is agreement with the data set's answer.

What follows from an edit is not among the three: ``portability`` (:mod:`editenv.evaluation.portability`) and, of the
embedded world, ``probes`` (:mod:`editenv.evaluation.probes`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch

from editenv.data.edits import Edit
from editenv.data.text import same_text
from editenv.evaluation import greedy
from editenv.evaluation.batch import LOCALITY, PROMPT, REPHRASE, EvaluationBatch, batches_of, greedy_tokens
from editenv.evaluation.matching import GreedyMatcher, generate_from_guesses
from editenv.language_model.editable_lm import EditableLM
from editenv.language_model.prompts import Prompts

METRICS = ("efficacy", "generalization", "specificity")


@dataclass(frozen=True, slots=True)
class Scores:
    """One number per edit in [0, 1]; NaN where an edit has no rephrase or no locality prompt.

    Attributes:
        efficacy: ``(n,)``.
        generalization: ``(n,)``.
        specificity: ``(n,)``.
        locality_accuracy: ``(n,)``.
    """

    efficacy: np.ndarray
    generalization: np.ndarray
    specificity: np.ndarray
    locality_accuracy: np.ndarray

    def percentages(self) -> dict[str, float | None]:
        """Means over the edits, 0 to 100; None where no edit has such a prompt."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: round(float(100 * np.nanmean(values)), 4) if np.isfinite(values).any() else None
            for name, values in columns.items()
        }

    @staticmethod
    def join(parts: "Sequence[Scores]") -> "Scores":
        """The scores of several sets of edits as one."""
        columns = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Scores)
        }
        return Scores(**columns)


@torch.no_grad()
def teacher_forced(
    lm: EditableLM, batch: EvaluationBatch, batch_size: int = 512, choices: torch.Tensor | None = None
) -> Scores:
    """The share of answer tokens that are greedy at the current weights (RLEdit's appendix A.3.1).

    For locality prompts the tokens are compared with theta_0's greedy ones, for locality accuracy with the answer's.

    Args:
        lm: The edited model.
        batch: What is asked; ``A`` answer tokens.
        batch_size: Prompts run together.
        choices: ``(A,)`` the model's greedy tokens, if they are known.
    """
    prompts = batch.prompts
    if choices is None:
        choices = greedy_tokens(lm, prompts, batch_size)
    expected = prompts.labels.clone()
    expected[len(expected) - len(batch.initial_tokens) :] = batch.initial_tokens
    return mean_scores(
        batch, _token_share(prompts, choices == expected), _token_share(prompts, choices == prompts.labels)
    )


def _token_share(prompts: Prompts, correct: torch.Tensor) -> np.ndarray:
    """``(B,)`` the share of each prompt's answer tokens, of ``(A,)`` bools."""
    sums = torch.zeros(len(prompts), device=correct.device).index_add_(0, prompts.prompt_index, correct.float())
    return (sums / prompts.lengths).cpu().numpy()


class _Choice(NamedTuple):
    """A prompt with the answer that should be the likelier one, and the one that should not."""

    edit_index: int
    kind: int
    prompt: str
    right: str
    wrong: str


@torch.no_grad()
def probability(lm: EditableLM, edits: Sequence[Edit], batch_size: int = 512) -> Scores:
    """Whether the right one of two answers is likelier, by the token mean of its log-probability; ties are wrong.

    On prompts and rephrases the target against the old answer, on locality prompts the data set's answer against the
    target, unless the two are the same. An edit without an old answer has neither efficacy nor generalization. (Meng
    et al. 2022, section 3.4; RLEdit's appendix A.3.2.)

    Args:
        lm: The edited model.
        edits: ``n`` edits.
        batch_size: Prompts run together.
    """
    with_old = [(i, edit, edit.old_answer) for i, edit in enumerate(edits) if edit.old_answer]
    choices = [_Choice(i, PROMPT, edit.prompt, edit.target, old) for i, edit, old in with_old]
    choices += [_Choice(i, REPHRASE, text, edit.target, old) for i, edit, old in with_old for text in edit.rephrases]
    choices += [
        _Choice(i, LOCALITY, item.prompt, item.answer, edit.target)
        for i, edit in enumerate(edits)
        for item in edit.locality
        if not same_text(item.answer, edit.target)
    ]
    texts = [choice.prompt for choice in choices]
    right = mean_log_probs(lm, lm.encode(texts, [choice.right for choice in choices]), batch_size)
    wrong = mean_log_probs(lm, lm.encode(texts, [choice.wrong for choice in choices]), batch_size)
    likelier = (right > wrong).float().cpu().numpy()
    edit_index = np.array([choice.edit_index for choice in choices], dtype=int)
    kinds = np.array([choice.kind for choice in choices], dtype=int)
    efficacy, generalization, specificity = (
        mean_by_edit(edit_index[kinds == kind], likelier[kinds == kind], len(edits))
        for kind in (PROMPT, REPHRASE, LOCALITY)
    )
    return Scores(efficacy, generalization, specificity, locality_accuracy=np.full(len(edits), np.nan))


def mean_log_probs(lm: EditableLM, prompts: Prompts, batch_size: int = 512) -> torch.Tensor:
    """``(B,)`` token mean of the log-probability of each answer, in nats."""
    means = []
    for part in batches_of(prompts, batch_size):
        log_probs = lm.logits(part).log_softmax(-1).gather(1, part.labels[:, None]).squeeze(1)
        sums = torch.zeros(len(part), device=log_probs.device).index_add_(0, part.prompt_index, log_probs)
        means.append(sums / part.lengths)
    return torch.cat(means) if means else torch.zeros(0, device=lm.device)


@torch.no_grad()
def drift(lm: EditableLM, texts: Sequence[str], batch_size: int = 64) -> dict[str, float]:
    """How far the model has moved on text that no edit is about.

    Args:
        lm: The edited model.
        texts: Of two words or more; the first word is only read.
        batch_size: Texts run together.

    Returns:
        ``perplexity_before``, ``perplexity`` (per token, of theta_0 and now) and ``kl``, the mean over tokens of
        ``KL(p_theta0 || p_theta)`` in nats.
    """
    pairs = [text.split(" ", 1) for text in texts if " " in text.strip()]
    prompts = lm.encode([head for head, _ in pairs], [tail for _, tail in pairs])
    nll_before = nll = kl = 0.0
    tokens = 0
    for part in batches_of(prompts, batch_size):
        after = lm.logits(part).log_softmax(-1)
        with lm.at_initial_weights():
            before = lm.logits(part).log_softmax(-1)
        nll_before -= float(before.gather(1, part.labels[:, None]).sum())
        nll -= float(after.gather(1, part.labels[:, None]).sum())
        kl += float((before.exp() * (before - after)).sum())
        tokens += len(part.labels)
    count = max(1, tokens)
    return {
        "perplexity_before": float(np.exp(nll_before / count)),
        "perplexity": float(np.exp(nll / count)),
        "kl": kl / count,
    }


def generation(
    lm: EditableLM,
    batch: EvaluationBatch,
    initial_texts: Sequence[str | None] | None = None,
    batch_size: int = 512,
    choices: torch.Tensor | None = None,
) -> Scores:
    """Exact match of free greedy generation; for locality prompts, the same text as theta_0 wrote.

    Args:
        lm: The edited model.
        batch: What is asked.
        initial_texts: What theta_0 wrote for the locality prompts, if known from :func:`initial_generations`.
        batch_size: Prompts run together.
        choices: ``(A,)`` the model's greedy tokens at the answer positions, if they are known.
    """
    if initial_texts is None:
        initial_texts = initial_generations(lm, batch)
    prompts, answers = [prompt for prompt, _ in batch.texts], [answer for _, answer in batch.texts]
    limit = generation_limit(batch)
    ending = GreedyMatcher(lm, limit, batch_size)
    # theta_0 may not have ended its text: then the edited model may not, either.
    any_text = GreedyMatcher(lm, limit, batch_size, unfinished=True)

    is_locality = batch.kind == LOCALITY
    matches_answer = np.zeros(len(prompts), dtype=bool)
    for chosen, matcher in ((~is_locality, ending), (is_locality, any_text)):
        rows = chosen.nonzero().flatten().tolist()
        matches_answer[rows] = matcher.matches(
            [prompts[i] for i in rows],
            [answers[i] for i in rows],
            encoded=batch.prompts.select(chosen),
            choices=None if choices is None else choices[chosen.repeat_interleave(batch.prompts.lengths)],
        )
    # On locality prompts theta_0's own text counts; where it was the data set's answer, that is known by now.
    first = len(prompts) - len(initial_texts)
    own = {i: text for i, text in enumerate(initial_texts, start=first) if text != answers[i]}
    correct = matches_answer.copy()
    correct[list(own)] = any_text.matches([prompts[i] for i in own], list(own.values()))
    return mean_scores(batch, correct.astype(np.float32), matches_answer.astype(np.float32))


def generation_limit(batch: EvaluationBatch) -> int:
    """Tokens a generation may take: the longest answer asked for anywhere, and two more to stop."""
    return int(batch.prompts.lengths.max()) + 2


def initial_generations(lm: EditableLM, batch: EvaluationBatch) -> list[str | None]:
    """What theta_0 writes for the locality prompts, in their order, unfinished texts included.

    Texts are kept beside what the frozen layers made of the prompts: runs that share that share them.
    """
    is_locality = batch.kind == LOCALITY
    questions = [text for text, chosen in zip(batch.texts, is_locality.tolist(), strict=True) if chosen]
    limit, written = generation_limit(batch), lm.activation_cache.written
    new = [i for i, (prompt, _) in enumerate(questions) if (prompt, limit) not in written]
    if new:
        prompts, answers = [questions[i][0] for i in new], [questions[i][1] for i in new]
        rows = torch.zeros(len(questions), dtype=torch.bool, device=batch.kind.device)
        rows[new] = True
        with lm.at_initial_weights():
            texts = generate_from_guesses(lm, prompts, answers, limit, batch.prompts.select(is_locality).select(rows))
        written.update(zip(((prompt, limit) for prompt in prompts), texts, strict=True))
    return [written[prompt, limit] for prompt, _ in questions]


def generate(
    lm: EditableLM, texts: Sequence[str], limit: int, batch_size: int = 256, unfinished: bool = False
) -> list[str | None]:
    """:func:`editenv.evaluation.greedy.generate` at the current weights."""
    return greedy.generate(lm.model, lm.tokenizer, texts, limit, batch_size, unfinished)


def mean_scores(batch: EvaluationBatch, correct: np.ndarray, matches_answer: np.ndarray) -> Scores:
    """Means over each edit's prompts of one kind.

    Args:
        batch: ``B`` prompts.
        correct: ``(B,)`` of each prompt; of locality prompts, agreement with theta_0.
        matches_answer: ``(B,)`` agreement with the data set's answers throughout.
    """
    edit_index, kinds = batch.edit_index.cpu().numpy(), batch.kind.cpu().numpy()

    def mean(values: np.ndarray, kind: int) -> np.ndarray:
        return mean_by_edit(edit_index[kinds == kind], values[kinds == kind], len(batch.edits))

    return Scores(
        efficacy=mean(correct, PROMPT),
        generalization=mean(correct, REPHRASE),
        specificity=mean(correct, LOCALITY),
        locality_accuracy=mean(matches_answer, LOCALITY),
    )


def mean_by_edit(edit_index: np.ndarray, values: np.ndarray, edits: int) -> np.ndarray:
    """``(edits,)`` the mean of each edit's values, NaN where it has none."""
    total = np.bincount(edit_index, weights=values, minlength=edits)
    count = np.bincount(edit_index, minlength=edits)
    return np.divide(total, count, out=np.full(edits, np.nan), where=count > 0)
