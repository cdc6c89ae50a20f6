"""One edit, and nothing else: the record every data set is turned into."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from editenv.data.text import end_of


@dataclass(frozen=True, slots=True)
class Locality:
    """A prompt about something the edit must not change, with the answer the data set gives for it."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question about what an edit entails, or must not touch; for evaluation only (portability).

    Attributes:
        kind: What sort of question it is, e.g. ``"two_hop"``: each kind is a metric of its own.
        prompt: The question.
        answer: What is right after the edit; None if the model is to say what it said before, whatever that was.
    """

    kind: str
    prompt: str
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """A turn of a conversation.

    Attributes:
        role: ``"system"``, ``"user"`` or ``"assistant"``.
        content: What was said.
    """

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Edit:
    """One correction: make the model continue ``prompt`` with ``target``.

    Attributes:
        id: Names the edit in reports, e.g. ``"atlas/test/17"``; of a file's edits no two are the same.
        prompt: The text the fine-tuning gradient is taken on (x).
        target: The answer the model should give afterwards (y). What stands between it and a prompt is white space of
            theirs, or what :func:`editenv.data.text.separator` puts there.
        rephrases: Other phrasings of the prompt (x' of eq. 7); they get the same target.
        locality: Prompts whose answers must stay (x_loc of eq. 7).
        subject: The entity the edit is about, if known; a substring of ``prompt``.
        old_answer: What the model is believed to answer before the edit, if known.
        relation: The kind of fact, if known.
        portability: Questions that are asked after editing, and never learned from.
        messages: The conversation that ``prompt`` is the plain text of, if it was given as one; its last turn is the
            user's. Only :class:`editenv.data.chat.ChatTemplate` reads it.
        question_span: Of a prompt in chat form: where the question stands in it, in characters.
        earlier_turns: Of a prompt in chat form: what user and assistant have said before the question, without the template.
    """

    id: str
    prompt: str
    target: str
    rephrases: tuple[str, ...] = ()
    locality: tuple[Locality, ...] = ()
    subject: str | None = None
    old_answer: str | None = None
    relation: str | None = None
    portability: tuple[Question, ...] = ()
    messages: tuple[Message, ...] = ()
    question_span: tuple[int, int] | None = None
    earlier_turns: str = ""

    @property
    def question(self) -> str:
        """What is asked: of a prompt in chat form the user's words, else the prompt."""
        return self.prompt if self.question_span is None else self.prompt[slice(*self.question_span)]

    @property
    def end_of_subject(self) -> int | None:
        """Where the subject ends in the prompt, in characters; None if there is none, or it does not stand there. In chat
        form it is that of the question: a template's own words may have it, too."""
        if not self.subject:
            return None
        end = end_of(self.subject, self.question)
        return None if end is None else end + (0 if self.question_span is None else self.question_span[0])


NEWER = ("portability", "messages", "question_span", "earlier_turns")
"""Fields that earlier versions did not have."""


def as_json(edit: Edit) -> dict[str, Any]:
    """By field; without the newer ones where they hold nothing, as before there were these fields."""
    content = _by_field(edit)
    for name in ("locality", "portability", "messages"):
        content[name] = tuple(map(_by_field, content[name]))
    return {name: value for name, value in content.items() if value or name not in NEWER}


def _by_field(record: "Edit | Locality | Question | Message") -> dict[str, Any]:
    """As :func:`dataclasses.asdict`, without its deep copies: thousands of edits take a third of the time."""
    return {name: getattr(record, name) for name in record.__slots__}


def of_json(content: Mapping[str, Any]) -> Edit:
    """The edit of what :func:`as_json` gave, now or before there were its newer fields, after JSON has had it."""
    span = content.get("question_span")
    return Edit(
        **{
            **content,
            "rephrases": tuple(content["rephrases"]),
            "locality": tuple(Locality(**item) for item in content["locality"]),
            "portability": tuple(Question(**item) for item in content.get("portability", ())),
            "messages": tuple(Message(**item) for item in content.get("messages", ())),
            "question_span": None if span is None else tuple(span),
        }
    )


def edits_digest(edits: Sequence[Edit], portability: bool = False) -> str:
    """Tells one list of edits from another.

    Args:
        edits: The edits.
        portability: Whether their portability questions count, too; nothing that is learned depends on them.
    """
    digest = hashlib.sha256()
    encode = json.JSONEncoder(sort_keys=True).encode
    for edit in edits:
        content = as_json(edit)
        if not portability:
            content.pop("portability", None)
        digest.update(encode(content).encode())
    return digest.hexdigest()
