"""One edit, and nothing else: the record every data set is turned into."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Locality:
    """A prompt about something the edit must not change, with the answer the data set gives for it."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Edit:
    """One correction: make the model continue ``prompt`` with ``target``.

    Attributes:
        id: Names the edit in reports, e.g. ``"atlas/test/17"``.
        prompt: The text the fine-tuning gradient is taken on (x).
        target: The answer the model should give afterwards (y). What stands between it and a prompt is white space of
            theirs, or what :func:`editenv.data.text.separator` puts there.
        rephrases: Other phrasings of the prompt (x' of eq. 7); they get the same target.
        locality: Prompts whose answers must stay (x_loc of eq. 7).
        subject: The entity the edit is about, if known; a substring of ``prompt``.
        old_answer: What the model is believed to answer before the edit, if known.
        relation: The kind of fact, if known.
    """

    id: str
    prompt: str
    target: str
    rephrases: tuple[str, ...] = ()
    locality: tuple[Locality, ...] = ()
    subject: str | None = None
    old_answer: str | None = None
    relation: str | None = None


def edits_digest(edits: Sequence[Edit]) -> str:
    """Tells one list of edits from another."""
    digest = hashlib.sha256()
    for edit in edits:
        digest.update(json.dumps(asdict(edit), sort_keys=True).encode())
    return digest.hexdigest()
