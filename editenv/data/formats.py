"""The schemas in which edits are published, each turned into :class:`editenv.data.edits.Edit`.

``zsre``
    MEND's and RLEdit's: ``src, rephrase, alt | ans | answers, loc, loc_ans``, optional ``subject``. The target is
    ``alt`` where there is one, then ``ans``, then the first of ``answers``. ``answers`` is the old answer only if
    it differs from the target: some files repeat the target there. Locality prompts carry MEND's prefix
    ``nq question: ``; it is kept or stripped by ``nq_prefix``, and a question mark is added if it has none, as MEMIT's
    loader does.
``counterfact``
    The nested original (``requested_rewrite, paraphrase_prompts, neighborhood_prompts``; Meng et al. 2022) and
    EasyEdit's flat one (``prompt, target_new, subject, ground_truth, rephrase_prompt, locality_prompt,
    locality_ground_truth``).
``fever``
    MALMEN's and RLEdit's: ``prompt, equiv_prompt, alt, unrel_prompt, unrel_ans``. Where ``alt`` is a verdict (true or
    false) the old answer is the other one.
``wise``
    WISE's temporal and hallucination edits: ``prompt, target_new, subject, locality_prompt,
    locality_ground_truth``, and ``rephrase_prompt`` if there is one. ``ood_rephrase`` is another description, not a
    rephrase, and is not used.
``wikibigedit``
    ``update, ans, rephrase, loc, loc_ans``, optional ``subject``. Personas and multi-hop questions are not used.
``own``
    Your own: ``prompt, target``, and optional ``subject, old_answer, relation, rephrases, locality``; see
    docs/reference/data_formats.md.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from editenv.data.edits import Edit, Locality
from editenv.data.records import BadRecordError

NQ_PREFIX = "nq question: "


@dataclass(frozen=True, slots=True)
class Fields:
    """A raw record that knows where it comes from, so that every error names file, record and field.

    Attributes:
        file: Name of the file.
        number: Of the record, from 1.
        values: By field, as JSON has them.
    """

    file: str
    number: int
    values: Mapping[str, Any]

    def bad(self, field: str | None, what: str, kind: str = "field") -> BadRecordError:
        """An error that names file, record and field; to be raised."""
        return BadRecordError(self.file, self.number, what, field, kind)

    def has(self, field: str) -> bool:
        """Whether a field is there and holds something."""
        return self.values.get(field) not in (None, "", [])

    def text(self, field: str) -> str:
        """A text that is there and is not blank, without white space around it.

        Raises:
            BadRecordError: If it is not.
        """
        if field not in self.values:
            raise self.bad(field, "is missing")
        return self.checked(field, self.values[field])

    def optional(self, field: str) -> str | None:
        """Likewise, or None where the field is not there or holds nothing."""
        return self.text(field) if self.has(field) else None

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
        return Fields(self.file, self.number, {f"{field}.{key}": item for key, item in value.items()})

    def checked(self, field: str, value: Any) -> str:
        """A value of a field as a text, without white space around it.

        Raises:
            BadRecordError: If it is no text, or blank.
        """
        if not isinstance(value, str):
            raise self.bad(field, f"must be text, not {_shown(value)}")
        if not value.strip():
            raise self.bad(field, "is empty")
        return value.strip()


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
    answers = record.texts("answers") if record.has("answers") else ()
    question = record.text("loc")
    if nq_prefix == "strip":
        question = question.removeprefix(NQ_PREFIX)
    if not question.endswith("?"):
        question += "?"
    return {
        "prompt": record.text("src"),
        "target": target,
        "rephrases": record.texts("rephrase"),
        "locality": (Locality(question, record.text("loc_ans")),),
        "subject": record.optional("subject"),
        "old_answer": None if target in answers else next(iter(answers), None),
    }


def _counterfact_nested(record: Fields, nq_prefix: str) -> dict[str, Any]:
    rewrite = record.inside("requested_rewrite")
    subject = rewrite.text("requested_rewrite.subject")
    template = rewrite.text("requested_rewrite.prompt")
    if "{}" not in template:
        raise record.bad("requested_rewrite.prompt", "has no {} for the subject")
    old = rewrite.inside("requested_rewrite.target_true").text("requested_rewrite.target_true.str")
    return {
        "prompt": template.replace("{}", subject),
        "target": rewrite.inside("requested_rewrite.target_new").text("requested_rewrite.target_new.str"),
        "rephrases": record.texts("paraphrase_prompts"),
        "locality": tuple(Locality(prompt, old) for prompt in record.texts("neighborhood_prompts")),
        "subject": subject,
        "old_answer": old,
        "relation": rewrite.optional("requested_rewrite.relation_id"),
    }


def _counterfact_flat(record: Fields, nq_prefix: str) -> dict[str, Any]:
    return {
        "prompt": record.text("prompt"),
        "target": record.text("target_new"),
        "rephrases": record.texts("rephrase_prompt"),
        "locality": (Locality(record.text("locality_prompt"), record.text("locality_ground_truth")),),
        "subject": record.text("subject"),
        "old_answer": record.text("ground_truth"),
    }


def _fever(record: Fields, nq_prefix: str) -> dict[str, Any]:
    target = record.text("alt")
    return {
        "prompt": record.text("prompt"),
        "target": target,
        "rephrases": record.texts("equiv_prompt"),
        "locality": (Locality(record.text("unrel_prompt"), record.text("unrel_ans")),),
        "old_answer": {"true": "false", "false": "true"}.get(target.lower()),
    }


def _wise(record: Fields, nq_prefix: str) -> dict[str, Any]:
    return {
        "prompt": record.text("prompt"),
        "target": record.text("target_new"),
        "rephrases": record.texts("rephrase_prompt") if record.has("rephrase_prompt") else (),
        "locality": (Locality(record.text("locality_prompt"), record.text("locality_ground_truth")),),
        "subject": record.optional("subject"),
    }


def _wikibigedit(record: Fields, nq_prefix: str) -> dict[str, Any]:
    return {
        "prompt": record.text("update"),
        "target": record.text("ans"),
        "rephrases": record.texts("rephrase"),
        "locality": (Locality(record.text("loc"), record.text("loc_ans")),),
        "subject": record.optional("subject"),
    }


def _own(record: Fields, nq_prefix: str) -> dict[str, Any]:
    # Spreadsheets leave empty columns at the end.
    unknown = sorted(name for name, value in record.values.items() if name not in OWN_FIELDS and (name or value))
    if unknown:
        raise record.bad(unknown[0], f"is not known; the fields are {', '.join(OWN_FIELDS)}")
    values = dict(record.values)
    for field in ("rephrases", "locality"):  # a CSV cell holds a JSON list, or one text
        if isinstance(values.get(field), str) and values[field].lstrip().startswith("["):
            try:
                values[field] = json.loads(values[field])
            except (ValueError, RecursionError) as error:
                raise record.bad(field, f"starts like a JSON list but is none ({error})") from None
    record = Fields(record.file, record.number, values)
    locality = tuple(_own_locality(record))
    return {
        "prompt": record.text("prompt"),
        "target": record.text("target"),
        "rephrases": record.texts("rephrases") if record.has("rephrases") else (),
        "locality": locality,
        "subject": record.optional("subject"),
        "old_answer": record.optional("old_answer"),
        "relation": record.optional("relation"),
    }


def _own_locality(record: Fields) -> Iterator[Locality]:
    """From a list of objects, and from the two fields that a spreadsheet has."""
    if record.has("locality"):
        items = record.values["locality"]
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise record.bad("locality", 'must be a list of objects like {"prompt": "...", "answer": "..."}')
        for item in items:
            fields = Fields(record.file, record.number, {f"locality.{key}": value for key, value in item.items()})
            yield Locality(fields.text("locality.prompt"), fields.text("locality.answer"))
    if record.has("locality_prompt"):
        yield Locality(record.text("locality_prompt"), record.text("locality_answer"))


OWN_FIELDS = (
    "prompt",
    "target",
    "subject",
    "old_answer",
    "relation",
    "rephrases",
    "locality",
    "locality_prompt",
    "locality_answer",
)

# By format its forms: the fields that only this form has, and what parses it. The order matters where one format's
# fields contain another's.
FORMATS: dict[str, tuple[tuple[tuple[str, ...], Callable[[Fields, str], dict[str, Any]]], ...]] = {
    "counterfact": (
        (("requested_rewrite",), _counterfact_nested),
        (("prompt", "target_new", "ground_truth"), _counterfact_flat),
    ),
    "zsre": ((("src",), _zsre),),
    "fever": ((("prompt", "alt"), _fever),),
    "wikibigedit": ((("update", "ans"), _wikibigedit),),
    "wise": ((("prompt", "target_new"), _wise),),
    "own": ((("prompt", "target"), _own),),
}


def detect(
    record: Mapping[str, Any], file: str, name: str | None = None, number: int = 1
) -> tuple[str, Callable[[Fields, str], dict[str, Any]]]:
    """The format of a record by its fields, and what parses it.

    Args:
        record: The first one of a file that can be read.
        file: Named in errors.
        name: The format it should be; any by default.
        number: Of the record, named in errors.

    Raises:
        BadRecordError: If it has the fields of none.
    """
    candidates = FORMATS if name is None else {name: FORMATS[name]}
    for format_name, forms in candidates.items():
        for fields, parse in forms:
            if all(field in record for field in fields):
                return format_name, parse
    needed = "; ".join(
        f"{format_name}: {' or '.join(', '.join(fields) for fields, _ in forms)}"
        for format_name, forms in candidates.items()
    )
    # A spreadsheet's header is easily written as "Prompt, target ".
    own = ("prompt", "target")
    if misspelt := [field for field in record if field not in own and field.strip().lower() in own]:
        needed += f" (are {', '.join(map(repr, misspelt))} meant to be prompt and target? write them so)"
    present = ", ".join(map(repr, list(record)[:12])) or "none"
    what = f"its fields ({present}) are those of no format known here; needed are {needed}"
    raise BadRecordError(file, number, what, kind="field")


def to_edit(
    record: Fields, parse: Callable[[Fields, str], dict[str, Any]], nq_prefix: Literal["keep", "strip"]
) -> Edit:
    """The edit of one record.

    Args:
        record: The raw record.
        parse: What :func:`detect` returned.
        nq_prefix: Whether ZsRE's locality questions keep their prefix.

    Raises:
        BadRecordError: If a field is missing, empty or of a wrong type, or if the edit would change nothing.
    """
    edit = Edit(id=f"{record.file}/{record.number}", **parse(record, nq_prefix))
    if edit.old_answer is not None and edit.target.casefold() == edit.old_answer.casefold():
        raise record.bad(
            "target", f"equals the old answer, {_shown(edit.target)}: there is nothing to edit", "unchanged"
        )
    return edit
