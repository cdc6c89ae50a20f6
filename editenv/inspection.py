"""What is in a file of edits, and which of the known traps."""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from editenv.data.chat import NO_BOS_IN_TEMPLATE, ChatTemplate, ChatTemplateError
from editenv.data.edit_file import EDITS_AT_A_TIME, REASONS_SHOWN, digest
from editenv.data.edits import Edit
from editenv.data.files import EditFile, FileOptions, format_and_source, load_every_usable_edit
from editenv.data.records import place_of
from editenv.data.rephrases import true_rephrases
from editenv.data.tables import read_edits
from editenv.data.text import border, end_of, same_text
from editenv.language_model.prompts import reaches_across, token_ids
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
        reasons: Each reason with its count and the first messages, in lines.
        subjects: Distinct subjects; 0 if none are given.
        rephrases: Rephrases in all.
        locality_prompts: Locality prompts in all.
        target_tokens: Least, median, 90% quantile and largest number of tokens of a target.
        one_token_targets: Share of the targets that are one token, 0 to 100.
        borders: What stands between prompt and target, in words: of how many edits, and the first of them.
        chat: Of a model with a chat template: what the first edit becomes in chat form, or why it does not.
        already_believed: Share of a sample of edits to which the model's own text begins with the target already
            (:func:`editenv.evaluation.prefix.begins_with`); None if not asked.
        old_answer_known: Share of the same sample to which it begins with the old answer.
        stops: Share of the same sample after which the model stops by itself.
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
    reasons: list[str] = field(default_factory=list)
    subjects: int = 0
    rephrases: int = 0
    locality_prompts: int = 0
    target_tokens: list[float] = field(default_factory=list)
    one_token_targets: float | None = None
    borders: dict[str, tuple[int, str]] = field(default_factory=dict)
    chat: list[str] = field(default_factory=list)
    already_believed: float | None = None
    old_answer_known: float | None = None
    stops: float | None = None
    asked: int = 0
    overlap: dict[str, int] | None = None
    notes: list[str] = field(default_factory=list)


def inspect(
    file: str, train: Path | None = None, model: str = "atlas", sample: int = 200, columns: str | None = None
) -> Inspection:
    """Reads a file of edits, all of it, and reports.

    Args:
        file: ``PATH`` or ``FORMAT:PATH``.
        train: A training file to compare with.
        model: Whose tokens are counted, whose context must hold the prompts, and who is asked what it believes.
        sample: How many edits it is asked about, spread over the file; 0 asks about none.
        columns: As :class:`FileOptions` has them.

    Raises:
        BadRecordError: If the file cannot be read to its end.
        FileNotFoundError: If there is no such file.
    """
    options = FileOptions(bad_records="skip", columns=columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        edits = load_every_usable_edit(file, options)
    report = edits.report
    base, tokenizer = load_model(model)
    context = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    if context:
        edits = edits.check_lengths(tokenizer, context, options)
    inspection = Inspection(
        report.source,
        report.format,
        report.records,
        len(edits),
        dict(report.bad),
        report.examples,
        list(report.reasons()),
        notes=list(report.remarks()),
    )
    if len(edits) == 0:
        inspection.notes.append("no edit of this file can be used")
        return inspection
    inspection.subjects = len({subject for subject in edits.column("subject") if subject})
    inspection.rephrases = sum(map(len, edits.column("rephrases")))
    inspection.locality_prompts = sum(map(len, edits.column("locality_prompts")))
    prompts, targets = list(edits.column("prompt")), list(edits.column("target"))
    lengths = np.array([len(target) for _, target in token_ids(tokenizer, prompts, targets)])
    inspection.target_tokens = [float(np.quantile(lengths, q, method="nearest")) for q in (0, 0.5, 0.9, 1)]
    inspection.one_token_targets = round(100 * float((lengths == 1).mean()), 2)
    inspection.borders = _borders(edits)
    inspection.chat = _in_chat_form(tokenizer, model, edits)
    inspection.notes += _tokens_across(tokenizer, edits)
    if sample:
        _sample_beliefs(inspection, edits, model, sample)
    if train is not None:
        inspection.overlap = _overlap(edits, str(train), options)
    inspection.notes += [*_traps_of_the_format(edits, inspection), *_traps(edits, inspection)]
    return inspection


def _sample_beliefs(inspection: Inspection, edits: EditFile, model: str, sample: int) -> None:
    """What the model's own text begins with for some of the prompts: the target already, or the old answer?"""
    from editenv.evaluation.greedy import continuations
    from editenv.evaluation.prefix import begins_with

    indices = np.unique(np.linspace(0, len(edits) - 1, min(sample, len(edits))).astype(int))
    sampled: list[Edit] = edits.where(indices)[:]
    longest_target = int(inspection.target_tokens[-1])
    base, tokenizer = load_model(model)
    token_ids = continuations(base, tokenizer, [edit.prompt for edit in sampled], limit=longest_target + 2)
    inspection.stops = _percentage([tokens[-1:] == [tokenizer.eos_token_id] for tokens in token_ids])
    written = tokenizer.batch_decode(token_ids, skip_special_tokens=True)
    pairs = list(zip(written, sampled, strict=True))
    inspection.asked = len(sampled)
    inspection.already_believed = _percentage(
        [bool(begins_with(text, edit.target, ended=True)) for text, edit in pairs]
    )
    old = [bool(begins_with(text, edit.old_answer, ended=True)) for text, edit in pairs if edit.old_answer]
    inspection.old_answer_known = _percentage(old) if old else None


def _borders(edits: EditFile) -> dict[str, tuple[int, str]]:
    """What stands between the prompts and their targets, the commonest first."""
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for number, (prompt, target) in enumerate(zip(edits.column("prompt"), edits.column("target"), strict=True)):
        between = border(prompt, target)
        name = {"": "nothing", " ": "a space"}.get(between) or f"{between!r}, as written,"
        counts[name] += 1
        if name not in examples:
            shown = f"{prompt[-20:]!r} {target[:20]!r}"
            examples[name] = f"{place_of(*edits.place(number))}: {shown}"
    return {name: (count, examples[name]) for name, count in counts.most_common()}


def _in_chat_form(tokenizer: "PreTrainedTokenizerBase", model: str, edits: EditFile) -> list[str]:
    """What a chat template makes of the first edit, preferably of one that was given as messages; empty without one.

    Raises:
        ChatTemplateError: If there are messages and the model has no template.
    """
    conversations = [i for i, messages in enumerate(edits.column("messages")) if messages is not None]
    if not tokenizer.chat_template and not conversations:
        return []
    template = ChatTemplate(tokenizer, model)
    first = conversations[0] if conversations else 0
    try:
        edit = template.in_chat_form(edits[first])
    except ChatTemplateError as error:
        return [f"{place_of(*edits.place(first))}: {error}"]
    asks = f"{len(conversations):,} records are conversations" if conversations else "--chat asks through it"
    lines = [f"{model} has one; {asks}; {place_of(*edits.place(first))} becomes {edit.prompt!r} {edit.target!r}"]
    return lines + ([NO_BOS_IN_TEMPLATE] if template.adds_bos else [])


def _tokens_across(tokenizer: "PreTrainedTokenizerBase", edits: EditFile) -> Iterator[str]:
    """Edits whose text would have a token that is partly the prompt's and partly the target's."""
    across: list[int] = []
    for start in range(0, len(edits), EDITS_AT_A_TIME):
        some = edits[start : start + EDITS_AT_A_TIME]
        flags = reaches_across(tokenizer, [edit.prompt for edit in some], [edit.target for edit in some])
        across += [start + i for i, flag in enumerate(flags) if flag]
    if across:
        yield (
            f"{_named(edits, across)}: a token of the whole text would reach from the prompt into the target; the target is "
            "taught in the tokens that follow the prompt's own, which is what a model that is asked has read"
        )


def _named(edits: EditFile, indices: Sequence[int]) -> str:
    """How many edits these are, and where the first few stand."""
    first = ", ".join(place_of(*edits.place(i)) for i in indices[:REASONS_SHOWN])
    return f"{len(indices):,} edits ({first}{', ...' if len(indices) > REASONS_SHOWN else ''})"


def _percentage(values: Sequence[bool]) -> float:
    return round(100 * float(np.mean(values)), 2)


def _overlap(edits: EditFile, train: str, options: FileOptions) -> dict[str, int]:
    """What the file shares with a training file; see :class:`Inspection`."""
    name, source = format_and_source(train)
    training = read_edits(Path(source), name, options)
    targets: dict[bytes, set[bytes]] = {}
    for edit in training:
        targets.setdefault(digest(edit.prompt), set()).add(digest(edit.target))
    subjects = set(training.subjects().tolist())
    shared = [edit for edit in edits if digest(edit.prompt) in targets]
    return {
        "prompts": len(shared),
        "contradicting": sum(digest(edit.target) not in targets[digest(edit.prompt)] for edit in shared),
        "subjects": sum(subject in subjects for subject in edits.subjects().tolist()),
    }


def _traps_of_the_format(edits: EditFile, inspection: Inspection) -> Iterator[str]:
    """What published files of one format are known for."""
    if inspection.format == "counterfact" and (others := int((~true_rephrases(edits)).sum())):
        yield (
            f"{others:,} of {len(edits):,} edits have a rephrase that ends in none of the file's prompt templates: "
            "probably a generation prompt, not a paraphrase (option rephrases=checked leaves them out)"
        )
    if inspection.format == "zsre" and (without := sum(answer is None for answer in edits.column("old_answer"))):
        yield (
            f"{without:,} of {len(edits):,} records repeat the target in `answers`, or have none: it is not taken as "
            "the answer before the edit"
        )


def _traps(edits: EditFile, inspection: Inspection) -> Iterator[str]:
    """What makes a metric mean less than it seems, in a file of any format."""
    prompts = {digest(prompt) for prompt in edits.column("prompt")}
    edited = sum(digest(text) in prompts for texts in edits.column("locality_prompts") for text in texts)
    if edited:
        yield (
            f"{edited:,} of {inspection.locality_prompts:,} locality prompts are edited by a record of this file: editing "
            "them right counts as harm (option locality=checked leaves them out)"
        )
    pairs = zip(edits.column("subject"), edits.column("prompt"), strict=True)
    apart = [i for i, (subject, prompt) in enumerate(pairs) if subject and end_of(subject, prompt) is None]
    if apart:
        yield (
            f"{_named(edits, apart)} name a subject that does not occur in their prompt: methods that look facts up by their "
            "subject refuse them (--bad-records skip leaves them out)"
        )
    if same := sum(same_text(text, edit.prompt) for edit in edits for text in edit.rephrases):
        yield f"{same:,} rephrases are the prompt itself"
    if not inspection.rephrases:
        yield "no edit has a rephrase: generalization cannot be measured"
    if not inspection.locality_prompts:
        yield "no edit has a locality prompt: specificity cannot be measured"
    if inspection.overlap and inspection.overlap["subjects"]:
        yield (
            f"{inspection.overlap['subjects']:,} edits are about subjects of the training file: a policy trained there has "
            "seen them (in a folder of both files such edits are refused, or left out with bad_records=skip)"
        )
    if inspection.already_believed is not None and inspection.already_believed > 5:
        yield f"{inspection.already_believed:.1f}% of the sampled edits ask for what the model says already"
