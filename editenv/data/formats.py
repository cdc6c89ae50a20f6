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
    Your own: :mod:`editenv.data.own_format`.

Texts are kept as they are written, but for what :func:`editenv.data.checked_edits.to_edits` says.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from editenv.data.checked_edits import Parser
from editenv.data.edits import Locality, Question
from editenv.data.fields import Fields, shown
from editenv.data.own_format import has_own_names, own_names, parse_own
from editenv.data.records import BadRecordError

NQ_PREFIX = "nq question: "

HOPS = ("two", "three", "four", "five", "six")
"""How many facts one of HalluEditBench's questions goes through."""


def _zsre(record: Fields, nq_prefix: str) -> dict[str, Any]:
    source = next((field for field in ("alt", "ans", "answers") if record.has(field)), "alt")
    targets = record.texts(source)
    if not targets:
        raise record.bad(source, "is empty")
    target = targets[0]
    answers = [answer.strip() for answer in record.texts("answers")] if record.has("answers") else []
    old_answer = None if target.strip() in answers else next(iter(answers), None)
    if old_answer is not None and old_answer.casefold() == target.strip().casefold():
        what = f"equals the old answer, {shown(old_answer)}, but for case: there is nothing to edit"
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


# By format its forms: the fields that only this form has, and what parses it. The order matters where one format's
# fields contain another's; one's own records come before every form that does not read their prompt and target.
# ``a.b`` is a field b inside an object a, ``a[]`` a list of objects.
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
    "own": ((("prompt", "target"), parse_own), (("messages",), parse_own)),
}

WITH_PORTABILITY = ("hallueditbench", "knowedit", "own")
"""Formats whose records may have portability questions."""


def detect(
    record: Mapping[str, Any], file: str, name: str | None = None, number: int = 1, line: int | None = None
) -> tuple[str, Parser]:
    """The format of a record by its fields, and what parses it.

    A record with one's own ``prompt`` and ``target``, or ``messages``, is one's own whatever else it has: a column of
    notes that is called like a published field does not say what to read. A form that reads both itself comes first.

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
    is_own = "own" in candidates and has_own_names(record)
    for format_name, forms in candidates.items():
        for fields, parse in forms:
            if all(_has(record, field) for field in fields) and (not is_own or {"prompt", "target"} <= set(fields)):
                return format_name, parse
    if "own" in candidates:
        names = set(own_names(record).values())
        if {"prompt", "target"} <= names or "messages" in names:
            return "own", parse_own
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
