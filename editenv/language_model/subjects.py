"""The token at which a fact is looked up: the subject's last one in the prompt (Meng et al. 2022, section 3.1)."""

from collections.abc import Sequence

import torch

from editenv.data.edits import Edit
from editenv.language_model.editable_lm import EditableLM
from editenv.models.modules import ATTENTION, layer_number, layer_stack


def end_of_subject(edit: Edit, otherwise: str = "set token='last'") -> int:
    """Where the subject ends in the prompt, in characters.

    Args:
        edit: With a subject.
        otherwise: What to do where there is none, for the message.

    Raises:
        ValueError: If there is none, or it does not stand there.
    """
    if not edit.subject:
        raise ValueError(
            f"{edit.id} has no subject, at whose last token facts are looked up; give it one, or {otherwise}"
        )
    end = edit.end_of_subject
    if end is None:
        raise ValueError(f"{edit.id}: the subject {edit.subject!r} does not stand in the prompt {edit.question!r}")
    return end


def token_at(lm: EditableLM, text: str, end: int) -> int:
    """The token that holds the last of the first ``end`` characters, counted from 0."""
    spans = lm.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return max(i for i, (start, stop) in enumerate(spans) if start < end and stop > start)


def subject_tokens(lm: EditableLM, edits: Sequence[Edit]) -> torch.Tensor:
    """``(n,)`` the column of each edit's own prompt in which the last token of its subject lies.

    Raises:
        ValueError: If an edit has no subject, or its prompt does not contain it; names the edit.
    """
    columns = [
        token_at(lm, edit.prompt, end_of_subject(edit, "observe other tokens (observed_tokens)")) for edit in edits
    ]
    return torch.tensor(columns, dtype=torch.long, device=lm.device)


def check_subjects_have_gradient(lm: EditableLM) -> None:
    """Whether every edited module has a gradient at tokens in the middle of a prompt: a later attention must read it.

    Raises:
        ValueError: If one has none: it lies behind the last layer's attention. Names it.
    """
    stack = layer_stack(lm.model, lm.modules)
    last = len(lm.model.get_submodule(stack)) - 1
    for name in lm.modules:
        inside_attention = any(word in part for part in name.split(".")[:-1] for word in ATTENTION)
        if layer_number(stack, name) == last and not inside_attention:
            raise ValueError(
                f"observed_tokens: 'subject' needs modules that a later layer's attention reads; {name} lies in the "
                "last layer, where answer positions alone have a gradient: edit earlier layers (modules), or observe "
                "'answers'"
            )
