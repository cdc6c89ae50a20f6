"""A file of corrections, read and checked to the end before anything is done with it."""

import sys
import warnings
from functools import partial
from typing import Literal

from agents.editing.preparation import end_of_answers
from editenv.data.answer_ends import AnswerEnds
from editenv.data.chat import NO_BOS_IN_TEMPLATE, ChatTemplate
from editenv.data.files import EditFile, FileOptions, load_file_edits
from editenv.data.records import BadRecordError
from editenv.data.text import printable
from editenv.models import load_model


def edits_for(
    file: str,
    bad_records: Literal["error", "skip"],
    model: str,
    device: str,
    dtype: str,
    subjects: bool = False,
    chat: bool = False,
    columns: str | None = None,
    taught_end: str | None = "",
) -> EditFile:
    """The file's edits that fit into the model, read and checked to the end before anything is done.

    Args:
        file: As docs/reference/data_formats.md has it.
        bad_records: Whether a record that cannot be used is an error, or is left out and named on stderr.
        model, device, dtype: Model whose context the edits must fit into.
        subjects: Whether each edit must have a subject that stands in its prompt.
        chat: Whether every edit is asked in a chat, too; those that were given as messages are.
        columns: As :class:`FileOptions` has them.
        taught_end: What is taught after a target, as :class:`agents.editing.editor.LifelongEditor` has it.

    Raises:
        ValueError: If a record cannot be used, or the file or the model cannot be read; if an edit is asked in a chat
            and the model has no template for it.
    """
    options = FileOptions(bad_records=bad_records, columns=columns)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what was left out is said below
            edits = load_file_edits(file, "all", options)
        loaded, tokenizer = load_model(model, device, dtype)
        context = getattr(loaded.config.get_text_config(), "max_position_embeddings", None)
        if chat or edits.has_conversations:
            template = ChatTemplate(tokenizer, model)
            if template.adds_bos:
                print(f"note: {NO_BOS_IN_TEMPLATE}", file=sys.stderr)
            edits = edits.in_chat(template, chat, options)
        ends = AnswerEnds(
            partial(end_of_answers, loaded, tokenizer) if taught_end is None else taught_end,
            partial(ChatTemplate, tokenizer, model),
        )
        edits = edits.check_lengths(tokenizer, context, options, ends) if context else edits
        edits = edits.check_subjects(options) if subjects else edits
    except BadRecordError as error:
        message = str(error).replace("the dataset option bad_records=skip", "--bad-records skip")
        raise ValueError(message) from None
    for remark in edits.report.remarks():
        print(printable(f"note: {remark}"), file=sys.stderr)
    for line in edits.report.refused:
        print(printable(f"left out: {line}"), file=sys.stderr)
    if more := edits.report.bad.total() - len(edits.report.refused):
        print(f"left out: {more:,} more", file=sys.stderr)
    if len(edits) == 0:
        raise ValueError("\n".join((f"no edit of {edits.report} can be used", *edits.report.reasons())))
    return edits
