"""How good an edited model is, each figure under a named protocol.

``teacher_forced``
    The answer is given and each of its tokens is asked for: the share of tokens that are the model's first choice
    (RLEdit's appendix A.3.1). The answer's beginning and its length leak to the model.
``generation``
    The model writes freely (greedy) until it stops by itself; right is only the exact answer.

Both report three shares: **efficacy** on the edit's own prompt, **generalization** on its rephrases, and **specificity**
on its locality prompts, which is agreement with the model's own output before any edit, whatever that was.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from editenv.dynamics import EditableLM
from editenv.questions import LOCALITY, Questions, first_choices


@dataclass(frozen=True, slots=True)
class Scores:
    """One number per edit in [0, 1]; NaN where an edit has no rephrase or no locality prompt.

    Attributes:
        efficacy: ``(n,)``.
        generalization: ``(n,)``.
        specificity: ``(n,)``.
    """

    efficacy: np.ndarray
    generalization: np.ndarray
    specificity: np.ndarray

    def percentages(self) -> dict[str, float]:
        """Means over the edits, 0 to 100."""
        return {
            name: round(float(100 * np.nanmean(values)), 4) if np.isfinite(values).any() else float("nan")
            for name, values in (
                ("efficacy", self.efficacy),
                ("generalization", self.generalization),
                ("specificity", self.specificity),
            )
        }


@torch.no_grad()
def teacher_forced(lm: EditableLM, questions: Questions) -> Scores:
    """Token top-1 accuracy at the current weights; for locality prompts, agreement with theta_0."""
    prompts = questions.prompts
    wanted = prompts.labels.clone()
    wanted[len(wanted) - len(questions.before) :] = questions.before
    right = (first_choices(lm, prompts) == wanted).float()
    sums = torch.zeros(len(prompts), device=right.device).index_add_(0, prompts.prompt_index, right)
    return _per_edit(questions, (sums / prompts.lengths).cpu().numpy())


def generation(lm: EditableLM, questions: Questions, before: Sequence[str | None] | None = None) -> Scores:
    """Exact match of free greedy generation; for locality prompts, the same text as theta_0 wrote.

    Args:
        lm: The edited model.
        questions: What to ask.
        before: What theta_0 wrote for the locality prompts, if known from :func:`generate_before`.
    """
    if before is None:
        before = generate_before(lm, questions)
    texts = [text for text, _ in questions.texts]
    ours, kept = texts[: len(texts) - len(before)], texts[len(texts) - len(before) :]
    limit = generation_limit(questions)
    written = generate(lm, ours, limit) + generate(lm, kept, limit, unfinished=True)
    wanted: list[str | None] = [answer for _, answer in questions.texts]
    wanted[len(wanted) - len(before) :] = before
    right = [text == answer for text, answer in zip(written, wanted, strict=True)]
    return _per_edit(questions, np.array(right, dtype=np.float32))


def generation_limit(questions: Questions) -> int:
    """Tokens a generation may take: the longest answer asked for anywhere, and two more to stop."""
    return int(questions.prompts.lengths.max()) + 2


def generate_before(lm: EditableLM, questions: Questions) -> list[str | None]:
    """What theta_0 writes for the locality prompts."""
    locality = (questions.kind == LOCALITY).tolist()
    texts = [text for (text, _), chosen in zip(questions.texts, locality, strict=True) if chosen]
    with lm.at_initial_weights():
        return generate(lm, texts, generation_limit(questions), unfinished=True)


@torch.no_grad()
def generate(
    lm: EditableLM, texts: Sequence[str], limit: int, batch_size: int = 256, unfinished: bool = False
) -> list[str | None]:
    """Greedy continuation of every prompt; None where the model does not stop by itself within ``limit`` tokens."""
    tokenizer = lm.tokenizer
    encoded = tokenizer(list(texts))["input_ids"] if texts else []
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    written: list[str | None] = [None] * len(encoded)
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        width = max(len(encoded[i]) for i in chunk)
        ids = torch.full((len(chunk), width), pad)
        mask = torch.zeros(len(chunk), width, dtype=torch.long)
        for j, i in enumerate(chunk):
            ids[j, width - len(encoded[i]) :] = torch.tensor(encoded[i])
            mask[j, width - len(encoded[i]) :] = 1
        output = lm.model.generate(
            input_ids=ids.to(lm.device),
            attention_mask=mask.to(lm.device),
            max_new_tokens=limit,
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=tokenizer.eos_token_id,
        )[:, width:].cpu()
        for i, row in zip(chunk, output.tolist(), strict=True):
            if tokenizer.eos_token_id in row:
                written[i] = tokenizer.decode(row[: row.index(tokenizer.eos_token_id)]).strip()
            elif unfinished:
                written[i] = f"{tokenizer.decode(row).strip()} ..."
    return written


def _per_edit(questions: Questions, right: np.ndarray) -> Scores:
    """Means over each edit's prompts of one kind."""
    edits = len(questions.edits)
    owners, kinds = questions.owner.cpu().numpy(), questions.kind.cpu().numpy()
    columns = []
    for kind in range(3):
        chosen = kinds == kind
        total = np.bincount(owners[chosen], weights=right[chosen], minlength=edits)
        count = np.bincount(owners[chosen], minlength=edits)
        columns.append(np.divide(total, count, out=np.full(edits, np.nan), where=count > 0))
    return Scores(*columns)
