"""How good an edited model is, each figure under a named protocol.

``teacher_forced``
    The answer is given and each of its tokens is asked for: the share of tokens that are the model's first choice
    (RLEdit's appendix A.3.1). The answer's beginning and its length leak to the model.
``probability``
    The edit's target is likelier than the old answer, each under its own prefix and by its token mean (ROME's and
    MEMIT's CounterFact metrics; RLEdit's appendix A.3.2). The model may say neither.
``generation``
    The model writes freely (greedy) until it stops by itself; right is only the exact answer, white space at its
    ends aside.

Each reports **efficacy** on the edit's own prompt, **generalization** on its rephrases, and **specificity** on its
locality prompts: agreement with the model's *own* output before any edit, whatever that was (with ``probability``: the
data set's answer is likelier than the edit's target). **Locality accuracy** is agreement with the data set's answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from editenv.data.edits import Edit
from editenv.evaluation import greedy
from editenv.evaluation.batch import LOCALITY, PROMPT, REPHRASE, EvaluationBatch, batches_of, greedy_tokens
from editenv.evaluation.greedy import ELLIPSIS
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
    lm: EditableLM, questions: EvaluationBatch, batch_size: int = 512, choices: torch.Tensor | None = None
) -> Scores:
    """Token top-1 accuracy at the current weights; for locality prompts, agreement with theta_0.

    Args:
        lm: The edited model.
        questions: What to ask.
        batch_size: Prompts run together.
        choices: ``(A,)`` the model's first choices, if they are known.
    """
    prompts = questions.prompts
    if choices is None:
        choices = greedy_tokens(lm, prompts, batch_size)
    wanted = prompts.labels.clone()
    wanted[len(wanted) - len(questions.initial_tokens) :] = questions.initial_tokens
    return _per_edit(
        questions, _token_share(prompts, choices == wanted), _token_share(prompts, choices == prompts.labels)
    )


def _token_share(prompts: Prompts, right: torch.Tensor) -> np.ndarray:
    """``(B,)`` the share of each prompt's answer tokens, of ``(A,)`` bools."""
    sums = torch.zeros(len(prompts), device=right.device).index_add_(0, prompts.prompt_index, right.float())
    return (sums / prompts.lengths).cpu().numpy()


@torch.no_grad()
def probability(lm: EditableLM, edits: Sequence[Edit], batch_size: int = 512) -> Scores:
    """Whether the right one of two answers is likelier, by the token mean of its log-probability; ties are wrong.

    On prompts and rephrases the target against the old answer, on locality prompts the data set's answer against the
    target, unless the two are the same. An edit without an old answer has neither efficacy nor generalization.
    """
    rows: list[tuple[int, int, str, str, str]] = []
    rows += [(i, PROMPT, e.prompt, e.target, e.old_answer) for i, e in enumerate(edits) if e.old_answer]
    rows += [(i, REPHRASE, t, e.target, e.old_answer) for i, e in enumerate(edits) if e.old_answer for t in e.rephrases]
    rows += [
        (i, LOCALITY, item.prompt, item.answer, e.target)
        for i, e in enumerate(edits)
        for item in e.locality
        if item.answer != e.target
    ]
    texts = [row[2] for row in rows]
    wanted = mean_log_probs(lm, lm.encode(texts, [row[3] for row in rows]), batch_size)
    other = mean_log_probs(lm, lm.encode(texts, [row[4] for row in rows]), batch_size)
    right = (wanted > other).float().cpu().numpy()
    owners, kinds = np.array([row[0] for row in rows], dtype=int), np.array([row[1] for row in rows], dtype=int)
    columns = [_mean_of(owners[kinds == kind], right[kinds == kind], len(edits)) for kind in range(3)]
    return Scores(columns[0], columns[1], columns[2], np.full(len(edits), np.nan))


def mean_log_probs(lm: EditableLM, prompts: Prompts, batch_size: int = 512) -> torch.Tensor:
    """``(B,)`` token mean of the log-probability of each answer."""
    found = []
    for part in batches_of(prompts, batch_size):
        log_probs = lm.logits(part).log_softmax(-1).gather(1, part.labels[:, None]).squeeze(1)
        sums = torch.zeros(len(part), device=log_probs.device).index_add_(0, part.prompt_index, log_probs)
        found.append(sums / part.lengths)
    return torch.cat(found) if found else torch.zeros(0, device=lm.device)


@torch.no_grad()
def drift(lm: EditableLM, texts: Sequence[str], batch_size: int = 64) -> dict[str, float]:
    """How far the model has moved on text that no edit is about.

    Args:
        lm: The edited model.
        texts: Of two words or more; the first word is only read.

    Returns:
        ``perplexity_before``, ``perplexity`` (per token, of theta_0 and now) and ``kl``, the mean over tokens of
        ``KL(p_theta0 || p_theta)`` in nats.
    """
    pairs = [text.split(" ", 1) for text in texts if " " in text.strip()]
    prompts = lm.encode([head for head, _ in pairs], [tail for _, tail in pairs])
    totals, tokens = np.zeros(3), 0
    for part in batches_of(prompts, batch_size):
        now = lm.logits(part).log_softmax(-1)
        with lm.at_initial_weights():
            before = lm.logits(part).log_softmax(-1)
        for i, log_probs in enumerate((before, now)):
            totals[i] -= float(log_probs.gather(1, part.labels[:, None]).sum())
        totals[2] += float((before.exp() * (before - now)).sum())
        tokens += len(part.labels)
    nll_before, nll, kl = totals / max(1, tokens)
    return {"perplexity_before": float(np.exp(nll_before)), "perplexity": float(np.exp(nll)), "kl": float(kl)}


def generation(
    lm: EditableLM, questions: EvaluationBatch, before: Sequence[str | None] | None = None, batch_size: int = 512
) -> Scores:
    """Exact match of free greedy generation; for locality prompts, the same text as theta_0 wrote.

    Args:
        lm: The edited model.
        questions: What to ask.
        before: What theta_0 wrote for the locality prompts, if known from :func:`initial_generations`.
        batch_size: Prompts run together.
    """
    if before is None:
        before = initial_generations(lm, questions)
    texts, answers = map(list, zip(*questions.texts, strict=True)) if questions.texts else ([], [])
    ours = len(texts) - len(before)
    limit = generation_limit(questions)
    prompts, place = questions.prompts, torch.arange(len(texts), device=questions.kind.device)
    same = torch.tensor(
        [True] * ours + [text == answers[i] for i, text in enumerate(before, start=ours)], device=place.device
    )
    as_given = np.zeros(len(texts), dtype=bool)
    for chosen, unfinished in (((place < ours), False), ((place >= ours) & same, True), (~same, True)):
        rows = chosen.nonzero().flatten().tolist()
        wanted = [answers[i] for i in rows]
        as_given[rows] = matches_greedy(
            lm, [texts[i] for i in rows], wanted, limit, batch_size, unfinished, encoded=prompts.select(chosen)
        )
    right = as_given.copy()
    rows = (~same).nonzero().flatten().tolist()
    right[rows] = matches_greedy(
        lm, [texts[i] for i in rows], [before[i - ours] for i in rows], limit, batch_size, unfinished=True
    )
    return _per_edit(questions, right.astype(np.float32), as_given.astype(np.float32))


def generation_limit(questions: EvaluationBatch) -> int:
    """Tokens a generation may take: the longest answer asked for anywhere, and two more to stop."""
    return int(questions.prompts.lengths.max()) + 2


def initial_generations(lm: EditableLM, questions: EvaluationBatch) -> list[str | None]:
    """What theta_0 writes for the locality prompts."""
    locality = questions.kind == LOCALITY
    asked = [text for text, chosen in zip(questions.texts, locality.tolist(), strict=True) if chosen]
    texts, answers = [text for text, _ in asked], [answer for _, answer in asked]
    with lm.at_initial_weights():
        return generate_from_guesses(
            lm, texts, answers, generation_limit(questions), encoded=questions.prompts.select(locality)
        )


def generate(
    lm: EditableLM, texts: Sequence[str], limit: int, batch_size: int = 256, unfinished: bool = False
) -> list[str | None]:
    """:func:`editenv.evaluation.greedy.generate` at the current weights."""
    return greedy.generate(lm.model, lm.tokenizer, texts, limit, batch_size, unfinished)


def generate_from_guesses(
    lm: EditableLM, texts: Sequence[str], guesses: Sequence[str], limit: int, encoded: Prompts | None = None
) -> list[str | None]:
    """What the model writes, unfinished texts included; sooner known where it is what was guessed (:func:`matches_greedy`).

    Where it is not, the model's own choices up to there are a second guess: most answers are short.
    """
    written: list[str | None] = [None] * len(texts)
    open_ = dict(enumerate(guesses))
    for prompts in (encoded, None):
        known, begun = _compare(lm, [texts[i] for i in open_], list(open_.values()), limit, 512, True, prompts)
        for (i, guess), right in zip(open_.items(), known, strict=True):
            written[i] = guess.strip() if right else None
        open_ = {i: text for i, text in zip(open_, begun, strict=True) if text is not None}
    rest = [i for i, text in enumerate(written) if text is None]
    for i, text in zip(rest, generate(lm, [texts[i] for i in rest], limit, unfinished=True), strict=True):
        written[i] = text
    return written


@torch.no_grad()
def matches_greedy(
    lm: EditableLM,
    texts: Sequence[str],
    wanted: Sequence[str | None],
    limit: int,
    batch_size: int = 512,
    unfinished: bool = False,
    encoded: Prompts | None = None,
) -> np.ndarray:
    """``(n,)`` bool: whether :func:`generate` at the current weights writes the wanted text, and stops.

    Greedy generation says what teacher forcing chooses for as long as each choice is the text's next token. So one
    forward from the cut tells where the two part, and whether what is written there can still become the same text
    in other tokens. Generated is only where it can: mostly nowhere, and the frozen layers have been run over the
    prompts already.

    Args:
        lm: The edited model.
        texts: ``n`` prompts.
        wanted: ``n`` continuations; None is never said.
        limit: New tokens at most, the end-of-sequence token among them.
        batch_size: Prompts run together.
        unfinished: A text with an ellipsis is wanted from a model that does not stop.
        encoded: The prompts with these continuations, if the frozen layers have been run over them: the end is
            asked for only where all before it is right. Without them both are asked for in one run.
    """
    return _compare(lm, texts, wanted, limit, batch_size, unfinished, encoded)[0]


def _compare(
    lm: EditableLM,
    texts: Sequence[str],
    wanted: Sequence[str | None],
    limit: int,
    batch_size: int,
    unfinished: bool,
    encoded: Prompts | None,
) -> tuple[np.ndarray, list[str | None]]:
    """:func:`matches_greedy`, and for each text that is not said what the model writes up to where the two part, if that is
    known.
    """
    begun: list[str | None] = [None] * len(texts)
    said = np.zeros(len(texts), dtype=bool)
    open_ = [i for i, text in enumerate(wanted) if text is not None]
    doubtful: list[int] = []
    if lm.tokenizer.eos_token_id is None:  # no text has an end to be asked for
        open_, doubtful = [], open_
    for known in (None,) if encoded is None else (encoded, None):
        going_on: list[int] = []
        for start in range(0, len(open_), batch_size):
            chunk = open_[start : start + batch_size]
            answers = [wanted[i] or "" for i in chunk]
            if known is None:
                prompts = lm.encode([texts[i] for i in chunk], answers, append_eos=True)
            else:
                prompts = known.select(torch.isin(torch.arange(len(texts)), torch.tensor(chunk)).to(lm.device))
            lengths = prompts.lengths.tolist()
            labels, choices = prompts.labels.cpu().split(lengths), greedy_tokens(lm, prompts).cpu().split(lengths)
            for i, answer, label, choice in zip(chunk, answers, labels, choices, strict=True):
                wrong = (label != choice).nonzero()
                if len(wrong) == 0 and known is not None:
                    going_on.append(i)
                    continue
                first = int(wrong[0]) + 1 if len(wrong) else len(label)
                verdict = _becomes(lm, choice[:first].tolist(), answer, unfinished) if first <= limit else None
                if verdict is None:
                    doubtful.append(i)
                else:
                    said[i] = verdict
                    if not verdict:
                        begun[i] = lm.tokenizer.decode(choice[:first].tolist(), skip_special_tokens=True).strip()
        open_ = going_on
    written = generate(lm, [texts[i] for i in doubtful], limit, unfinished=unfinished)
    said[doubtful] = [text == wanted[i] for i, text in zip(doubtful, written, strict=True)]
    return said, begun


def _becomes(lm: EditableLM, tokens: list[int], text: str, unfinished: bool) -> bool | None:
    """Whether a continuation that begins with these tokens is the text; None if they do not tell.

    White space does not count before the end, nor half a character: both may still change.
    """
    if lm.eos_token in tokens:
        written: str = lm.tokenizer.decode(tokens[: tokens.index(lm.eos_token)])
        return written.strip() == text
    beginning, whole = "".join(lm.tokenizer.decode(tokens).split()), "".join(text.split())
    if unfinished and text.endswith(ELLIPSIS) and beginning.startswith(whole.removesuffix(ELLIPSIS.strip())):
        return None
    return None if "\ufffd" in beginning or whole.startswith(beginning) else False


def _per_edit(questions: EvaluationBatch, right: np.ndarray, as_given: np.ndarray) -> Scores:
    """Means over each edit's prompts of one kind; ``as_given`` compares with the data set's answers throughout."""
    owners, kinds = questions.edit_index.cpu().numpy(), questions.kind.cpu().numpy()
    edits = len(questions.edits)
    columns = [_mean_of(owners[kinds == kind], right[kinds == kind], edits) for kind in range(3)]
    accuracy = _mean_of(owners[kinds == LOCALITY], as_given[kinds == LOCALITY], edits)
    return Scores(columns[0], columns[1], columns[2], accuracy)


def _mean_of(owners: np.ndarray, values: np.ndarray, edits: int) -> np.ndarray:
    """``(edits,)`` the mean of each edit's values, NaN where it has none."""
    total = np.bincount(owners, weights=values, minlength=edits)
    count = np.bincount(owners, minlength=edits)
    return np.divide(total, count, out=np.full(edits, np.nan), where=count > 0)
