"""The schemas in which edits are published, each turned into :class:`editenv.data.edits.Edit`.

Their field names with their sources are in docs/reference/data_formats.md. Where a schema leaves something open:

``zsre``
    The target is ``alt`` where there is one, then ``ans``, then the first of ``answers``. ``answers`` is the old answer
    only if it differs from the target: some files repeat the target there, and some in other case, which is no
    correction. Locality prompts carry MEND's prefix
    ``nq question: ``; it is kept or stripped by ``nq_prefix``, and a question mark is added if it has none, as MEMIT's
    loader does.
``fever``
    Where ``alt`` is a verdict (true or false) the old answer is the other one.
``wise``
    ``ood_rephrase`` is another description, not a rephrase, and is not used.
``knowedit``
    Of a locality prompt's answers the first one is taken; a prompt without any is left out. WikiBio has ``text,
    concept, labels`` in the place of ``prompt, subject, target_new``.
``mquake``
    A record has several rewrites, and each is an edit; one that an earlier record makes, too, is made once.
``own``
    Your own: ``prompt, target``, and optional ``id, subject, old_answer, relation, rephrases, locality, portability``.
    ``messages``, a conversation, may stand in the place of ``prompt``, and with its last answer in that of ``target``.
    Field names may be written with capitals and spaces (:func:`own_names`), and other fields are passed over with a
    note.

Texts are kept as they are written, but for what :func:`to_edits` says.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal

from editenv.data.chat import plain_text
from editenv.data.edits import Edit, Locality, Message, Question
from editenv.data.options import OWN_FIELDS
from editenv.data.records import BadRecordError
from editenv.data.text import INVISIBLE, end_of, same_text, separator, without_invisible

NQ_PREFIX = "nq question: "

HOPS = ("two", "three", "four", "five", "six")
"""How many facts one of HalluEditBench's questions goes through."""


@dataclass(frozen=True, slots=True)
class Fields:
    """A raw record that knows where it comes from, so that every error names file, record and field.

    Attributes:
        file: Name of the file.
        number: Of the record, from 1.
        values: By field, as JSON has them.
        line: The line that the record begins in, if that is known.
        notes: What is to be said about a record that is good all the same, in words that fit other records, too.
        id: The record's own name, if it has one.
    """

    file: str
    number: int
    values: Mapping[str, Any]
    line: int | None = None
    notes: list[str] = field(default_factory=list)
    id: str | None = None

    def bad(self, field: str | None, what: str, kind: str = "field") -> BadRecordError:
        """An error that names file, record and field; to be raised."""
        return BadRecordError(self.file, self.number, what, field, kind, line=self.line, id=self.id)

    def of(self, values: Mapping[str, Any]) -> "Fields":
        """Other values of the same record."""
        return replace(self, values=values)

    def has(self, field: str) -> bool:
        """Whether a field is there and holds something."""
        return self.values.get(field) not in (None, "", [])

    def text(self, field: str) -> str:
        """A text that is there and is not blank, as it is written.

        Raises:
            BadRecordError: If it is not.
        """
        if field not in self.values:
            raise self.bad(field, "is missing")
        return self.checked(field, self.values[field])

    def trimmed(self, field: str) -> str:
        """Likewise, without white space around it."""
        return self.text(field).strip()

    def optional(self, field: str) -> str | None:
        """Likewise, or None where the field is not there or holds nothing."""
        return self.trimmed(field) if self.has(field) else None

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of texts, or one text.

        Raises:
            BadRecordError: If the field is not there, or one of them is blank.
        """
        if field not in self.values:
            raise self.bad(field, "is missing")
        value = self.values[field]
        return tuple(self.checked(field, item) for item in (value if isinstance(value, list) else [value]))

    def inside(self, field: str) -> "Fields":
        """The object in a field, whose fields go on with a dot (``target_new.str``).

        Raises:
            BadRecordError: If there is none.
        """
        value = self.values.get(field)
        if not isinstance(value, Mapping):
            raise self.bad(field, "is missing" if value is None else f"must be an object, not {_shown(value)}")
        return self.of({f"{field}.{key}": item for key, item in value.items()})

    def objects(self, field: str) -> "Iterator[Fields]":
        """Each of a list of objects, whose fields go on with a dot.

        Raises:
            BadRecordError: If the field is not there, or something else.
        """
        value = self.values.get(field)
        if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
            raise self.bad(field, "is missing" if value is None else f"must be a list of objects, not {_shown(value)}")
        for item in value:
            yield self.of({f"{field}.{key}": entry for key, entry in item.items()})

    def checked(self, field: str, value: Any) -> str:
        """A value of a field as a text, as it is written.

        Raises:
            BadRecordError: If it is no text, or blank.
        """
        if not isinstance(value, str):
            raise self.bad(field, f"must be text, not {_shown(value)}")
        if not value.strip():
            raise self.bad(field, "is empty")
        return value


def _shown(value: Any) -> str:
    """A value in an error message, cut if it is long."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 40 else f"{text[:40]} ..."


def _zsre(record: Fields, nq_prefix: str) -> dict[str, Any]:
    source = next((field for field in ("alt", "ans", "answers") if record.has(field)), "alt")
    targets = record.texts(source)
    if not targets:
        raise record.bad(source, "is empty")
    target = targets[0]
    answers = [answer.strip() for answer in record.texts("answers")] if record.has("answers") else []
    old_answer = None if target.strip() in answers else next(iter(answers), None)
    if old_answer is not None and old_answer.casefold() == target.strip().casefold():
        what = f"equals the old answer, {_shown(old_answer)}, but for case: there is nothing to edit"
        raise record.bad(source, what, "unchanged")
    question = record.trimmed("loc")
    if nq_prefix == "strip":
        question = question.removeprefix(NQ_PREFIX)
    if not question.endswith("?"):
        question += "?"
    return {
        "prompt": record.text("src"),
        "target": target,
        "rephrases": record.texts("rephrase"),
        "locality": (Locality(question, record.trimmed("loc_ans")),),
        "subject": record.optional("subject"),
        "old_answer": old_answer,
    }


def _counterfact_nested(record: Fields, nq_prefix: str) -> dict[str, Any]:
    rewrite = record.inside("requested_rewrite")
    subject = rewrite.trimmed("requested_rewrite.subject")
    old = rewrite.inside("requested_rewrite.target_true").trimmed("requested_rewrite.target_true.str")
    return {
        "prompt": _template(rewrite, "requested_rewrite.prompt", subject),
        "target": rewrite.inside("requested_rewrite.target_new").text("requested_rewrite.target_new.str"),
        "rephrases": record.texts("paraphrase_prompts"),
        "locality": tuple(Locality(prompt.strip(), old) for prompt in record.texts("neighborhood_prompts")),
        "subject": subject,
        "old_answer": old,
        "relation": rewrite.optional("requested_rewrite.relation_id"),
    }


def _template(record: Fields, field: str, subject: str) -> str:
    """The text of a field with the subject in the place of its ``{}``.

    Raises:
        BadRecordError: If it has none.
    """
    template = record.text(field)
    if "{}" not in template:
        raise record.bad(field, "has no {} for the subject")
    return template.replace("{}", subject)


def _flat_locality(record: Fields) -> tuple[Locality, ...]:
    """Of the two fields of EasyEdit's flat records; none if a file goes without."""
    if "locality_prompt" not in record.values:
        return ()
    return (Locality(record.trimmed("locality_prompt"), record.trimmed("locality_ground_truth")),)


def _counterfact_flat(record: Fields, nq_prefix: str) -> dict[str, Any]:
    return {
        "prompt": record.text("prompt"),
        "target": record.text("target_new"),
        "rephrases": record.texts("rephrase_prompt") if "rephrase_prompt" in record.values else (),
        "locality": _flat_locality(record),
        "subject": record.optional("subject"),
        "old_answer": record.trimmed("ground_truth"),
    }


def _fever(record: Fields, nq_prefix: str) -> dict[str, Any]:
    target = record.text("alt")
    return {
        "prompt": record.text("prompt"),
        "target": target,
        "rephrases": record.texts("equiv_prompt"),
        "locality": (Locality(record.trimmed("unrel_prompt"), record.trimmed("unrel_ans")),),
        "old_answer": {"true": "false", "false": "true"}.get(target.strip().lower()),
    }


def _wise(record: Fields, nq_prefix: str) -> dict[str, Any]:
    return {
        "prompt": record.text("prompt"),
        "target": record.text("target_new"),
        "rephrases": record.texts("rephrase_prompt") if record.has("rephrase_prompt") else (),
        "locality": _flat_locality(record),
        "subject": record.optional("subject"),
    }


def _wikibigedit(record: Fields, nq_prefix: str) -> dict[str, Any]:
    return {
        "prompt": record.text("update"),
        "target": record.text("ans"),
        "rephrases": record.texts("rephrase"),
        "locality": (Locality(record.trimmed("loc"), record.trimmed("loc_ans")),),
        "subject": record.optional("subject"),
    }


def _knowedit(record: Fields, nq_prefix: str) -> dict[str, Any]:
    wikibio = "labels" in record.values
    rephrase = next((name for name in ("rephrase", "rephrase_prompt") if record.has(name)), None)
    old = _first_text(record.values.get("ground_truth")) or record.values.get("target_old")
    return {
        "prompt": record.text("text" if wikibio else "prompt"),
        "target": record.text("labels" if wikibio else "target_new"),
        "rephrases": record.texts(rephrase) if rephrase else (),
        "locality": (
            *_flat_locality(record),
            *(Locality(item.prompt, item.answer or "") for item in _knowedit_questions(record, "locality")),
        ),
        "subject": record.optional("concept" if wikibio else "subject"),
        "old_answer": old.strip() if isinstance(old, str) and old.strip() else None,
        "portability": tuple(_knowedit_questions(record, "portability")),
    }


def _knowedit_questions(record: Fields, name: str) -> Iterator[Question]:
    """From an object of lists, whose names are the kinds (KnowEdit: Relation_Specificity, Reasoning), or from one list
    (CKnowEdit), whose kind is the field's name. A question without an answer is left out.
    """
    if not record.has(name):
        return
    if isinstance(record.values[name], Mapping):
        groups = record.inside(name)
        items = [(key, item) for key in groups.values if groups.has(key) for item in groups.objects(key)]
    else:
        items = [(name, item) for item in record.objects(name)]
    for key, item in items:
        fields = item.of({field.rpartition(".")[2]: value for field, value in item.values.items()})
        answer = _first_text(fields.values.get("ground_truth", fields.values.get("answer")))
        if answer is not None:
            yield Question(key.rpartition(".")[2].lower(), fields.texts("prompt")[0].strip(), answer.strip())


def _first_text(value: Any) -> str | None:
    """The first text of a list of lists of texts that is not blank; None if there is none."""
    if isinstance(value, str):
        return value if value.strip() else None
    return next((text for item in value if (text := _first_text(item))), None) if isinstance(value, list) else None


def _mquake(record: Fields, nq_prefix: str) -> list[dict[str, Any]]:
    rewrites = list(record.objects("requested_rewrite"))
    if not rewrites:
        raise record.bad("requested_rewrite", "is empty")
    edits = []
    for rewrite in rewrites:
        subject = rewrite.trimmed("requested_rewrite.subject")
        edits.append(
            {
                "prompt": _template(rewrite, "requested_rewrite.prompt", subject),
                "target": rewrite.inside("requested_rewrite.target_new").text("requested_rewrite.target_new.str"),
                "rephrases": rewrite.texts("requested_rewrite.question")
                if rewrite.has("requested_rewrite.question")
                else (),
                "locality": _loc(record),  # AKEW's files have one
                "subject": subject,
                "old_answer": rewrite.inside("requested_rewrite.target_true").optional(
                    "requested_rewrite.target_true.str"
                ),
                "relation": rewrite.optional("requested_rewrite.relation_id"),
            }
        )
    return edits


def _akew(record: Fields, nq_prefix: str) -> dict[str, Any]:
    rewrite = record.inside("requested_rewrite")
    subject = rewrite.trimmed("requested_rewrite.subject")
    question = "requested_rewrite.question"
    return {
        "prompt": _template(rewrite, "requested_rewrite.prompt", subject),
        "target": rewrite.text("requested_rewrite.answer_new"),
        "rephrases": rewrite.texts(question) if rewrite.has(question) else (),
        "locality": _loc(record),
        "subject": subject,
        "old_answer": rewrite.optional("requested_rewrite.answer_true"),
        "relation": rewrite.optional("requested_rewrite.relation_id"),
    }


def _loc(record: Fields) -> tuple[Locality, ...]:
    """Of AKEW's ``loc`` and ``loc_ans``: a text each, or a list each."""
    if not record.has("loc"):
        return ()
    prompts, answers = record.texts("loc"), record.texts("loc_ans")
    if len(prompts) != len(answers):
        raise record.bad("loc_ans", f"has {len(answers)} answers, loc has {len(prompts)} prompts")
    return tuple(Locality(prompt.strip(), answer.strip()) for prompt, answer in zip(prompts, answers, strict=True))


def _qaedit(record: Fields, nq_prefix: str) -> dict[str, Any]:
    return {
        "prompt": record.text("prompt"),
        "target": record.text("target"),
        "rephrases": record.texts("rephrase") if record.has("rephrase") else (),
        "locality": tuple(
            Locality(item.trimmed("locality.loc"), item.trimmed("locality.loc_ans"))
            for item in record.objects("locality")
        ),
        "subject": record.optional("subject"),
    }


def _hallueditbench(record: Fields, nq_prefix: str) -> dict[str, Any]:
    # What a model said is in a column of its name; with several models there is no one old answer.
    said = [name for name in record.values if name.startswith("output_") and record.has(name)]
    paraphrase = "paraphrased_question"
    return {
        "prompt": record.text("question"),
        "target": record.text("object"),
        "rephrases": record.texts(paraphrase) if record.has(paraphrase) else (),
        "subject": record.optional("subject"),
        "old_answer": record.optional(said[0]) if len(said) == 1 else None,
        "relation": record.optional("relation"),
        "portability": tuple(_hallueditbench_questions(record)),
    }


def _hallueditbench_questions(record: Fields) -> Iterator[Question]:
    """Each of its kinds of question with the answer that its own code (``edit_all_method.py``) expects."""
    for kind, question, answer in HALLUEDITBENCH_QUESTIONS:
        if record.has(question):
            yield Question(kind, record.trimmed(question), record.trimmed(answer))
    for kind, question, answer in (("yes", "yes_question", "Yes"), ("no", "no_question", "No")):
        if record.has(question):
            yield Question(kind, record.trimmed(question), answer)
    if record.has("multiple_choice_with_letters"):
        choices = f"{record.trimmed('question')} {record.trimmed('multiple_choice_with_letters')}"
        yield Question("multiple_choice", choices, record.trimmed("multiple_choice_labels"))
    if record.has("locality_question"):
        yield Question("locality", record.trimmed("locality_question"))


HALLUEDITBENCH_QUESTIONS = (
    ("paraphrase", "paraphrased_question", "object"),
    ("reversed", "reversed_relation_question", "subject"),
    *((f"{number}_hop", f"question_{n}hop", f"answer_{n}hop") for n, number in enumerate(HOPS, start=2)),
)
"""Kinds of question with the fields of question and answer."""


def _own(record: Fields, nq_prefix: str) -> dict[str, Any]:
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
            raise record.bad("messages.role", f"is {_shown(role)}; a turn is of {', '.join(ROLES)}")
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


Parser = Callable[[Fields, str], dict[str, Any] | list[dict[str, Any]]]
"""From a record, and what is done about ZsRE's prefix, to the fields of an edit, or of several."""

# By format its forms: the fields that only this form has, and what parses it. The order matters where one format's
# fields contain another's. ``a.b`` is a field b inside an object a, ``a[]`` a list of objects.
FORMATS: dict[str, tuple[tuple[tuple[str, ...], Parser], ...]] = {
    "mquake": ((("requested_rewrite[]",), _mquake),),
    "akew": ((("requested_rewrite.answer_new",), _akew),),
    "knowedit": (
        (("prompt", "target_new", "locality"), _knowedit),
        (("prompt", "target_new", "portability"), _knowedit),
        (("text", "concept", "labels"), _knowedit),
    ),
    "counterfact": (
        (("requested_rewrite",), _counterfact_nested),
        (("prompt", "target_new", "ground_truth"), _counterfact_flat),
    ),
    "zsre": ((("src",), _zsre),),
    "fever": ((("prompt", "alt"), _fever),),
    "wikibigedit": ((("update", "ans"), _wikibigedit),),
    "wise": ((("prompt", "target_new"), _wise),),
    "qaedit": ((("prompt", "target", "locality[].loc"), _qaedit),),
    "hallueditbench": ((("subject", "relation", "object", "question"), _hallueditbench),),
    "own": ((("prompt", "target"), _own), (("messages",), _own)),
}

WITH_PORTABILITY = ("hallueditbench", "knowedit", "own")
"""Formats whose records may have portability questions."""


def detect(
    record: Mapping[str, Any], file: str, name: str | None = None, number: int = 1, line: int | None = None
) -> tuple[str, Parser]:
    """The format of a record by its fields, and what parses it.

    Args:
        record: The first one of a file that can be read.
        file: Named in errors.
        name: The format it should be; any by default.
        number: Of the record, named in errors.
        line: Of the record, likewise.

    Raises:
        BadRecordError: If it has the fields of none.
    """
    candidates = FORMATS if name is None else {name: FORMATS[name]}
    for format_name, forms in candidates.items():
        for fields, parse in forms:
            if all(_has(record, field) for field in fields):
                return format_name, parse
    if "own" in candidates:
        names = set(own_names(record).values())
        if {"prompt", "target"} <= names or "messages" in names:
            return "own", _own
    needed = "; ".join(
        f"{format_name}: {' or '.join(', '.join(fields) for fields, _ in forms)}"
        for format_name, forms in candidates.items()
    )
    present = ", ".join(map(repr, list(record)[:12])) or "none"
    lists = [key for key, value in record.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    hint = f" (the records seem to be in {lists[0]!r}: save that array as the file)" if len(lists) == 1 else ""
    what = f"its fields ({present}) are those of no format known here{hint}; needed are {needed}"
    raise BadRecordError(file, number, what, kind="field", line=line)


def _has(record: Any, field: str) -> bool:
    """Whether a record has a field, written as in :data:`FORMATS`."""
    name, _, inner = field.partition(".")
    if not isinstance(record, Mapping) or name.removesuffix("[]") not in record:
        return False
    value = record[name.removesuffix("[]")]
    if name.endswith("[]"):
        if not isinstance(value, list) or not value or not isinstance(value[0], Mapping):
            return False
        value = value[0]
    return not inner or _has(value, inner)


def to_edits(record: Fields, parse: Parser, nq_prefix: Literal["keep", "strip"]) -> list[Edit]:
    """The edits of one record.

    Texts stay as they are written, with these exceptions. White space after a target goes: nothing in a figure could
    see it. A single space between prompt and target is what stands there anyway, and is not kept
    (:func:`editenv.data.text.separator`). A ``{}`` in a prompt that lacks the subject is the subject's place.
    Characters that show nothing go from targets. The last two are noted in ``record.notes``.

    Args:
        record: The raw record.
        parse: What :func:`detect` returned.
        nq_prefix: Whether ZsRE's locality questions keep their prefix.

    Raises:
        BadRecordError: If a field is missing, empty or of a wrong type, or if the edit would change nothing.
    """
    parsed = parse(record, nq_prefix)
    rows = parsed if isinstance(parsed, list) else [parsed]
    edits = []
    for i, row in enumerate(rows, start=1):
        own_id = row.pop("id", None)
        id = own_id or f"{record.file}/{record.number}" + (f".{i}" if i > 1 else "")
        edits.append(_checked(Edit(id=id, **row), replace(record, id=own_id)))
    return edits


def to_edit(record: Fields, parse: Parser, nq_prefix: Literal["keep", "strip"]) -> Edit:
    """The edit of a record that can have but one; as :func:`to_edits`."""
    (edit,) = to_edits(record, parse, nq_prefix)
    return edit


def _checked(edit: Edit, record: Fields) -> Edit:
    """An edit with its texts as :func:`to_edits` has them.

    Raises:
        BadRecordError: If nothing is left of the target, or if it is the old answer.
    """
    target = without_invisible(edit.target).rstrip()
    if target != edit.target.rstrip():
        record.notes.append("the target had characters that show nothing (zero-width, direction), which were removed")
    if not target.strip():
        raise record.bad("target", "is empty but for characters that show nothing")
    if any(INVISIBLE.search(text) for text in (edit.prompt, *edit.rephrases)):
        record.notes.append("the prompt or a rephrase has characters that show nothing (zero-width, direction)")
    prompt, *rephrases = (_filled(text, edit.subject, record) for text in (edit.prompt, *edit.rephrases))
    messages = edit.messages
    if messages:  # what stands between question and answer is the template's
        *earlier, last = messages
        messages = (*earlier, replace(last, content=_filled(last.content, edit.subject, record)))
        prompt = plain_text(messages)
    else:
        target, prompt, *rephrases = _without_usual_space(target, prompt, *rephrases)
    old_answer = edit.old_answer
    if old_answer is not None and same_text(target, without_invisible(old_answer)):
        what = f"equals the old answer, {_shown(target)}: there is nothing to edit"
        raise record.bad("target", what, "unchanged")
    if old_answer is not None:  # it stands where the target stands
        old_answer = target[: len(target) - len(target.lstrip())] + old_answer.strip()
    pairs = (_without_usual_space(item.answer.rstrip(), item.prompt) for item in edit.locality)
    return replace(
        edit,
        prompt=prompt,
        target=target,
        rephrases=tuple(rephrases),
        locality=tuple(Locality(prompt, answer) for answer, prompt in pairs),
        old_answer=old_answer,
        portability=tuple(map(_with_usual_space, edit.portability)),
        messages=messages,
    )


def _filled(prompt: str, subject: str | None, record: Fields) -> str:
    """A prompt with the subject in the place of its ``{}``, unless it has the subject already."""
    if "{}" not in prompt:
        return prompt
    if not subject:
        record.notes.append("a prompt has {} and there is no subject to put there: it is kept as text")
        return prompt
    if end_of(subject, prompt) is not None:
        return prompt
    record.notes.append("the subject was put in the place of {} in a prompt")
    return prompt.replace("{}", subject)


def _with_usual_space(question: Question) -> Question:
    """A question and its answer without the one space between them that would be put there anyway."""
    if question.answer is None:
        return question
    answer, prompt = _without_usual_space(question.answer.rstrip(), question.prompt)
    return replace(question, prompt=prompt, answer=answer)


def _without_usual_space(answer: str, *prompts: str) -> list[str]:
    """An answer and its prompts without the one space between them that would be put there anyway."""
    bare = answer.removeprefix(" ")
    if bare != answer and all(separator(prompt, bare) == " " for prompt in prompts):
        return [bare, *prompts]
    shortened = (prompt.removesuffix(" ") for prompt in prompts)
    return [
        answer,
        *(
            short if separator(short, answer) == " " else prompt
            for prompt, short in zip(prompts, shortened, strict=True)
        ),
    ]
