"""Records in the project's own schema, which is what people's files of corrections have.

``prompt, target``, and optional ``id, subject, old_answer, relation, rephrases, locality, portability``. ``messages``, a
conversation, may stand in the place of ``prompt``, and with its last answer in that of ``target``. Field names may be
written with capitals and spaces (:func:`own_names`), and other fields are passed over with a note.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from editenv.data.chat import plain_text
from editenv.data.edits import Locality, Message, Question
from editenv.data.fields import Fields, shown
from editenv.data.options import OWN_FIELDS


def parse_own(record: Fields, nq_prefix: str) -> dict[str, Any]:
    """The fields of an edit.

    Args:
        record: With its fields under whatever names.
        nq_prefix: Not used: a parser of any schema takes it.

    Raises:
        BadRecordError: If a field is missing, empty, of a wrong type or there twice.
    """
    record = _under_own_names(record)
    record = replace(record, id=_own_id(record))
    values = dict(record.values)
    for name in ("rephrases", "locality", "portability", "messages"):  # a CSV cell holds a JSON list, or one text
        if isinstance(values.get(name), str) and values[name].lstrip().startswith("["):
            try:
                values[name] = json.loads(values[name])
            except (ValueError, RecursionError) as error:
                raise record.bad(name, f"starts like a JSON list but is none ({error})") from None
    record = record.of(values)
    locality = tuple(_own_locality(record))
    return {
        "id": record.id,
        **(_conversation(record) if record.has("messages") else _prompt_and_target(record)),
        "rephrases": record.texts("rephrases") if record.has("rephrases") else (),
        "locality": locality,
        "subject": record.optional("subject"),
        "old_answer": record.optional("old_answer"),
        "relation": record.optional("relation"),
        "portability": tuple(_own_questions(record)),
    }


def _prompt_and_target(record: Fields) -> dict[str, Any]:
    return {"prompt": record.text("prompt"), "target": record.text("target")}


def _conversation(record: Fields) -> dict[str, Any]:
    """The messages up to the last question, their plain text, and the answer to it.

    Raises:
        BadRecordError: If they are no conversation that ends in a user's turn, or in the answer to one; if there is no
            answer, or another one in ``target``.
    """
    if record.has("prompt"):
        raise record.bad("messages", "and prompt both say what is asked: leave one of them out")
    messages = list(_messages(record))
    answer = messages.pop().content if messages[-1].role == "assistant" else None
    if not messages or messages[-1].role != "user":
        roles = ", ".join(message.role for message in messages) or "nothing"
        raise record.bad("messages", f"has no user turn that asks: before the answer there is {roles}")
    if answer is None:
        answer = record.text("target")
    elif record.has("target"):
        raise record.bad("target", "and the last message are both the answer: leave one of them out")
    return {"prompt": plain_text(messages), "target": answer, "messages": tuple(messages)}


def _messages(record: Fields) -> Iterator[Message]:
    like = '{"role": "user", "content": "..."}'
    items = record.values["messages"]
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise record.bad("messages", f"must be a list of objects like {like}")
    for item in record.objects("messages"):
        role = item.trimmed("messages.role")
        if role not in ROLES:
            raise record.bad("messages.role", f"is {shown(role)}; a turn is of {', '.join(ROLES)}")
        yield Message(role, item.text("messages.content"))


ROLES = ("system", "user", "assistant")
"""Who speaks in a conversation."""


def _own_id(record: Fields) -> str | None:
    """Text, or a whole number.

    Raises:
        BadRecordError: If it is something else.
    """
    value = record.values.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return record.optional("id")


def _under_own_names(record: Fields) -> Fields:
    """The record with its fields under their own names; others are noted.

    Raises:
        BadRecordError: If two fields have the same meaning.
    """
    names = own_names(record.values)
    values: dict[str, Any] = {}
    for name, value in record.values.items():
        own = names.get(name)
        if own is None:
            # Spreadsheets leave empty columns at the end.
            if name or value:
                similar = get_close_matches(_plain(name), OWN_FIELDS, n=1)
                meant = f" (is {similar[0]} meant?)" if similar else ""
                record.notes.append(f"field {name!r} is not used{meant}")
            continue
        if own in values:
            raise record.bad(name, f"and another field are both read as {own}: leave one of them out")
        if own != name:
            record.notes.append(f"field {name!r} is read as {own}")
        values[own] = value
    return record.of(values)


def own_names(record: Mapping[str, Any]) -> dict[str, str]:
    """Which of the own format's fields each field of a record is: by its name, whatever its capitals and spaces, and
    by another name (:data:`OTHER_NAMES`) only where none has the name itself.
    """
    plain = {name: _plain(name) for name in record}
    names = {name: text for name, text in plain.items() if text in OWN_FIELDS}
    taken = set(names.values())
    others = {name: OTHER_NAMES[text] for name, text in plain.items() if text in OTHER_NAMES}
    return names | {name: own for name, own in others.items() if own not in taken}


def has_own_names(record: Mapping[str, Any]) -> bool:
    """Whether a record has what every correction has, under its own name: prompt and target, or messages."""
    names = set(map(_plain, record))
    return {"prompt", "target"} <= names or "messages" in names


def _plain(name: str) -> str:
    return "_".join(name.strip().lower().replace("-", " ").replace("_", " ").split())


def _own_locality(record: Fields) -> Iterator[Locality]:
    """From a list of objects, and from the two fields that a spreadsheet has."""
    for item in _own_objects(record, "locality", '{"prompt": "...", "answer": "..."}'):
        yield Locality(item.text("locality.prompt"), item.text("locality.answer"))
    if record.has("locality_prompt"):
        yield Locality(record.text("locality_prompt"), record.text("locality_answer"))


def _own_questions(record: Fields) -> Iterator[Question]:
    """From a list of objects; one without an answer asks for what the model said before."""
    for item in _own_objects(record, "portability", '{"kind": "...", "prompt": "...", "answer": "..."}'):
        prompt, answer = item.text("portability.prompt"), item.optional("portability.answer")
        yield Question(item.trimmed("portability.kind"), prompt, answer)


def _own_objects(record: Fields, name: str, like: str) -> Iterator[Fields]:
    """The objects of a field's list, if there is one.

    Raises:
        BadRecordError: If the field holds something else.
    """
    if record.has(name):
        items = record.values[name]
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise record.bad(name, f"must be a list of objects like {like}")
        yield from record.objects(name)


OTHER_NAMES = {"question": "prompt", "answer": "target", "completion": "target", "rephrase": "rephrases"}
"""What else some of these fields are called in people's files, where it can mean nothing else."""


def with_columns(record: Fields, columns: Mapping[str, str]) -> Fields:
    """A record with the fields that ``columns`` names under their own names; what else had these names is not used.

    Args:
        record: As it is in the file.
        columns: The file's names by those of one's own corrections.

    Raises:
        BadRecordError: If the record has no such field for what an edit must have; other fields that are not there are
            noted.
    """
    values = {name: value for name, value in record.values.items() if name not in columns.values()}
    for name, own in own_names(values).items():
        if own in columns:
            values.pop(name)
            record.notes.append(f"field {name!r} is not used: columns says what {own} is")
    for own, column in columns.items():
        if column in record.values:
            values[own] = record.values[column]
        elif own in ("prompt", "target", "messages"):
            present = ", ".join(map(repr, list(record.values)[:12]))
            raise record.bad(column, f"is named by columns, and is not among the fields {present}")
        else:
            record.notes.append(f"field {column!r} is named by columns as {own}, and is not there")
    return record.of(values)
