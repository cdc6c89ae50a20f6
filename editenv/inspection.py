"""What is in a file of edits, and which of the known traps."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from editenv.data.edits import Edit
from editenv.data.files import EditFile, FileOptions, load_file_edits, read_edits, true_rephrases
from editenv.data.formats import FORMATS
from editenv.language_model.prompts import answer_ids
from editenv.models import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Inspection:
    """Counts over the usable edits of a file, and of what was left out.

    Attributes:
        file: Its name.
        format: One of :data:`editenv.data.formats.FORMATS`.
        records: Records in the file.
        edits: Those that can be used.
        left_out: Records that cannot, by reason, ``duplicate`` and ``conflict`` with an earlier record among them.
        examples: The first message for each reason.
        subjects: Distinct subjects; 0 if none are given.
        rephrases: Rephrases in all.
        locality_prompts: Locality prompts in all.
        target_tokens: Least, median, 90% quantile and largest number of tokens of a target.
        one_token_targets: Share of the targets that are one token, 0 to 100.
        already_believed: Share of a sample of edits whose target the model generates already; None if not asked.
        old_answer_known: Share of the same sample whose old answer the model generates.
        asked: Size of that sample.
        overlap: With the training file: ``prompts`` in both, those of them with another target (``contradicting``), and
            edits whose ``subjects`` occur in both.
        notes: Traps found, in words.
    """

    file: str
    format: str
    records: int
    edits: int
    left_out: dict[str, int]
    examples: dict[str, str]
    subjects: int = 0
    rephrases: int = 0
    locality_prompts: int = 0
    target_tokens: list[float] = field(default_factory=list)
    one_token_targets: float | None = None
    already_believed: float | None = None
    old_answer_known: float | None = None
    asked: int = 0
    overlap: dict[str, int] | None = None
    notes: list[str] = field(default_factory=list)


def inspect(file: str, train: Path | None = None, model: str = "atlas", sample: int = 200) -> Inspection:
    """Reads a file of edits, all of it, and reports.

    Args:
        file: ``PATH`` or ``FORMAT:PATH``.
        train: A training file to compare with.
        model: Whose tokens are counted, whose context must hold the prompts, and who is asked what it believes.
        sample: How many edits it is asked about, spread over the file; 0 asks about none.

    Raises:
        BadRecordError: If the file cannot be read to its end.
        FileNotFoundError: If there is no such file.
    """
    options = FileOptions(bad_records="skip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        edits = load_file_edits(file, "all", options)
    report = edits.report
    base, tokenizer = load_model(model)
    context = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    if context:
        edits = edits.check_lengths(tokenizer, context, options)
    found = Inspection(
        report.source, report.format, report.records, len(edits), dict(report.bad), dict(report.examples)
    )
    if len(edits) == 0:
        found.notes.append("no edit of this file can be used")
        return found
    found.subjects = len({subject for subject in edits.column("subject") if subject})
    found.rephrases = sum(map(len, edits.column("rephrases")))
    found.locality_prompts = sum(map(len, edits.column("locality_prompts")))
    lengths = _token_lengths(edits, tokenizer)
    found.target_tokens = [float(np.quantile(lengths, q, method="nearest")) for q in (0, 0.5, 0.9, 1)]
    found.one_token_targets = round(100 * float((lengths == 1).mean()), 2)
    if sample:
        _ask(found, edits, model, sample)
    if train is not None:
        found.overlap = _overlap(edits, train, options)
    found.notes += _traps(edits, found)
    return found


def _token_lengths(edits: EditFile, tokenizer: "PreTrainedTokenizerBase") -> np.ndarray:
    return np.array([len(ids) for ids in answer_ids(tokenizer, list(edits.column("target")))])


def _ask(found: Inspection, edits: EditFile, model: str, sample: int) -> None:
    from editenv.evaluation.greedy import generate

    places = np.unique(np.linspace(0, len(edits) - 1, min(sample, len(edits))).astype(int))
    asked: list[Edit] = edits.where(places)[:]
    limit = int(found.target_tokens[-1]) + 2
    base, tokenizer = load_model(model)
    said = generate(base, tokenizer, [edit.prompt for edit in asked], limit)
    found.asked = len(asked)
    found.already_believed = round(100 * float(np.mean([s == e.target for s, e in zip(said, asked, strict=True)])), 2)
    old = [(s, e.old_answer) for s, e in zip(said, asked, strict=True) if e.old_answer]
    found.old_answer_known = round(100 * float(np.mean([s == answer for s, answer in old])), 2) if old else None


def _overlap(edits: EditFile, train: Path, options: FileOptions) -> dict[str, int]:
    name, colon, place = str(train).partition(":")
    known = name in FORMATS and bool(colon)
    other = read_edits(Path(place if known else str(train)), name if known else "", options)
    targets: dict[str, set[str]] = {}
    for edit in other:
        targets.setdefault(edit.prompt.casefold(), set()).add(edit.target.casefold())
    subjects = set(other.subjects().tolist())
    shared = [edit for edit in edits if edit.prompt.casefold() in targets]
    return {
        "prompts": len(shared),
        "contradicting": sum(edit.target.casefold() not in targets[edit.prompt.casefold()] for edit in shared),
        "subjects": sum(subject in subjects for subject in edits.subjects().tolist()),
    }


def _traps(edits: EditFile, found: Inspection) -> list[str]:
    notes = []
    if found.format == "counterfact":
        wrong = int((~true_rephrases(edits)).sum())
        if wrong:
            notes.append(
                f"{wrong:,} of {len(edits):,} edits have a rephrase that ends in none of the file's prompt templates: "
                "probably a generation prompt, not a paraphrase (option rephrases=checked leaves them out)"
            )
    if found.format == "zsre":
        without = sum(answer is None for answer in edits.column("old_answer"))
        if without:
            notes.append(
                f"{without:,} of {len(edits):,} records repeat the target in `answers`, or have none: it is not taken as "
                "the answer before the edit"
            )
    prompts = {prompt.casefold() for prompt in edits.column("prompt")}
    edited = sum(text.casefold() in prompts for texts in edits.column("locality_prompts") for text in texts)
    if edited:
        notes.append(
            f"{edited:,} of {found.locality_prompts:,} locality prompts are edited by a record of this file: editing them "
            "right counts as harm (option locality=checked leaves them out)"
        )
    apart = sum(bool(s) and s not in p for s, p in zip(edits.column("subject"), edits.column("prompt"), strict=True))
    if apart:
        notes.append(f"{apart:,} edits name a subject that does not occur in their prompt")
    same = sum(text == edit.prompt for edit in edits for text in edit.rephrases)
    if same:
        notes.append(f"{same:,} rephrases are the prompt itself")
    if not found.rephrases:
        notes.append("no edit has a rephrase: generalization cannot be measured")
    if not found.locality_prompts:
        notes.append("no edit has a locality prompt: specificity cannot be measured")
    if found.overlap and found.overlap["subjects"]:
        notes.append(
            f"{found.overlap['subjects']:,} edits are about subjects of the training file: a policy trained there has "
            "seen them (in a folder of both files such edits are refused, or left out with bad_records=skip)"
        )
    if found.already_believed is not None and found.already_believed > 5:
        notes.append(f"{found.already_believed:.1f}% of the sampled edits ask for what the model says already")
    return notes
