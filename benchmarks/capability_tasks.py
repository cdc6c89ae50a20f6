"""Local tasks for lm-eval: which files they read, and the documents of those that no file holds ready made.

The descriptions are benchmarks/tasks/*.yaml, and some of them name a function of this module as ``custom_dataset``.
Each such document is a text with a few choices, one of them right, as in HellaSwag (Zellers et al. 2019, arXiv
1905.07830) and ARC (Clark et al. 2018, arXiv 1803.05457). Which records are taken, which wrong choices they get and
where the right one stands is drawn with :data:`SEED`: the same files give the same documents.
"""

import ast
import csv
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import datasets

from editenv.data import load_edits

T = TypeVar("T")

SEED = 0
"""Of every draw."""

DOCUMENTS = 300
"""The most that a task has, as with GLUE's parts here: a standard error of at most 2.9 points."""

WRONG_CHOICES = 3
"""Beside the right one, unless a task says otherwise."""

CONTINUATION_WORDS = 6
"""Of a choice of :func:`continuation`."""

WISE = tuple(
    f"wise/{name}.json" for name in ("hallucination-edit", "hallucination-train", "temporal-edit", "temporal-train")
)
"""Records whose ``locality_prompt`` and ``locality_ground_truth`` are two halves of a web text."""

EDIT_FILES = (
    "counterfact/counterfact-edit.json",
    "counterfact/counterfact-train.json",
    "counterfact/counterfact_3k.json",
    "zsre/zsre_edit_1000.json",
    "zsre/zsre_3k.json",
    "wikibigedit/wikibigedit_120.json",
    "wikibigedit/wikibigedit_3k.json",
    "qaedit/qaedit_1k.json",
)
"""JSON records with a ``subject`` that suites edit."""

HALLUEDITBENCH = "hallueditbench/llama3_8b_instruct.csv"
CLAIMS = "fever/claims.jsonl"
QAEDIT = "qaedit/qaedit_1k.json"
FACTS, TEMPLATES = "facts/facts.csv", "facts/templates.csv"

GLUE_TASKS = ("sst2", "mrpc", "cola", "rte", "nli", "mmlu")
"""Figures 5 and 7 of the RLEdit paper; zero-shot."""

REAL_TASKS = ("continuation", "word_order", "facts", "questions", "sst2_few_shot")
"""Tasks on which SmolLM2-135M is well above chance (docs/guides/general_capability.md); about no fact that suites
edit.
"""

FILES: Mapping[str, tuple[str, ...]] = {
    **{name: (f"glue/{name}.jsonl",) for name in GLUE_TASKS},
    "continuation": WISE,
    "word_order": ("glue/nli.jsonl", "glue/rte.jsonl"),
    "facts": (FACTS, TEMPLATES, *EDIT_FILES, HALLUEDITBENCH, CLAIMS),
    "questions": (QAEDIT,),
    "sst2_few_shot": ("glue/sst2.jsonl",),
    "mmlu_texts": ("glue/mmlu.jsonl",),
    "claims": (CLAIMS,),
    "hallueditbench": (HALLUEDITBENCH,),
}
"""What each local task reads of the folder of data sets."""

MADE_TASKS = ("continuation", "word_order", "facts", "questions", "claims", "hallueditbench")
"""Tasks whose documents a function of this module makes; the others' documents are the records of their one file."""

GROUPS: Mapping[str, tuple[str, ...]] = {"glue": GLUE_TASKS, "real": REAL_TASKS}
"""Names that stand for several local tasks."""


class Document(TypedDict):
    """One question; ``answer`` is the index of the right choice."""

    text: str
    choices: list[str]
    answer: int


Splits = dict[str, datasets.Dataset]
"""What lm-eval takes from a ``custom_dataset``."""


# -- files --------------------------------------------------------------------------------------------------------


def data_file(data: str | Path, name: str) -> Path:
    """A file of the folder of data sets, as ``sst2.jsonl`` or, in one of several folders, as ``glue/sst2.jsonl``.

    Raises:
        FileNotFoundError: If there is neither.
    """
    paths = [Path(data) / Path(name).name, Path(data) / name]
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(f"there is no file {paths[0]}, nor {paths[1]}")


def records_of(data: str | Path, name: str) -> list[dict[str, Any]]:
    """The records of a JSON, JSONL or CSV file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read; names it.
    """
    path = data_file(data, name)
    try:
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file))
        with path.open(encoding="utf-8") as file:  # its lines end at "\n" only: U+2028 may stand in a text
            return [json.loads(line) for line in file] if path.suffix == ".jsonl" else list(json.load(file))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


# -- documents ----------------------------------------------------------------------------------------------------


def continuation(data: str, **_: Any) -> Splits:
    """Which of four beginnings continues a web text: its own, against those of three other texts.

    The halves are cut at a fixed length, also within a word; a word that was cut goes to the second half whole.
    """
    rng = random.Random(SEED)
    second_by_first: dict[str, str] = {}
    for record in (record for name in WISE for record in records_of(data, name)):
        first, second = halves(record["locality_prompt"], record["locality_ground_truth"])
        if first and len(second.split()) > CONTINUATION_WORDS:
            second_by_first.setdefault(first, " ".join(second.split()[:CONTINUATION_WORDS]))
    texts = sorted(second_by_first.items())
    continuations = sorted(set(second_by_first.values()))
    return _splits(
        _document(rng, first, second, _drawn(rng, continuations, second))
        for first, second in _shuffled(rng, texts)[:DOCUMENTS]
    )


def halves(first: str, second: str) -> tuple[str, str]:
    """The two halves of a text, cut anew before the word in which they were cut."""
    whole = first + second
    start = re.search(r"\S*$", first).start()  # type: ignore[union-attr]  # it always matches
    return whole[:start].strip(), whole[start:].strip()


def word_order(data: str, **_: Any) -> Splits:
    """A sentence of a news text against the same with two neighbouring words exchanged, without any text before.

    Sentences have 8 to 30 words. The first and the last word stay, for capitals and full stops would give them away.
    """
    rng = random.Random(SEED)
    texts = [record["sentence1"] for name in ("glue/nli.jsonl", "glue/rte.jsonl") for record in records_of(data, name)]
    sentences = sorted({" ".join(sentence.split()) for sentence in map(first_sentence, texts)})
    documents = []
    for sentence in _shuffled(rng, sentences):
        words = sentence.split()
        places = [i for i in range(1, len(words) - 2) if words[i].lower() != words[i + 1].lower()]
        if 8 <= len(words) <= 30 and places:
            i = rng.choice(places)
            exchanged = [*words[:i], words[i + 1], words[i], *words[i + 2 :]]
            documents.append(_document(rng, "", sentence, [" ".join(exchanged)]))
    return _splits(documents[:DOCUMENTS])


def first_sentence(text: str) -> str:
    """Up to the first full stop that a capital or the end follows."""
    return re.split(r"(?<=\w\w[.!?])\s+(?=[A-Z])", text.strip(), maxsplit=1)[0]


def facts(data: str, **_: Any) -> Splits:
    """The object of a fact against three others of its relation, which are drawn as often as the relation has them.

    Left out are facts with a counterfactual, facts of any subject that an edit of CounterFact, ZsRE, WikiBigEdit,
    QAEdit, HalluEditBench or the embedded world is about or that a claim of FEVER names, and subjects whose own name
    holds the object.
    """
    rng = random.Random(SEED)
    templates = _templates(data)
    rows = records_of(data, FACTS)
    objects: dict[str, list[str]] = {}
    for row in rows:
        objects.setdefault(row["relation"], []).append(row["object"])
    edited = edited_subjects(data)
    claims_text = "\n".join(record["claim"] for record in records_of(data, CLAIMS))
    unedited = [row for row in rows if not row["counterfactual"] and row["subject"].casefold() not in edited]
    documents: list[Document] = []
    for row in _shuffled(rng, unedited):
        subject, relation, right = row["subject"], row["relation"], row["object"]
        enough_objects = len(set(objects[relation])) > WRONG_CHOICES
        if len(documents) == DOCUMENTS:
            break
        if enough_objects and right.casefold() not in subject.casefold() and subject not in claims_text:
            text = templates[relation].replace("{}", subject)
            documents.append(_document(rng, text, right, _drawn(rng, objects[relation], right)))
    return _splits(documents)


def _templates(data: str) -> dict[str, str]:
    """Of each relation the template of most records."""
    rows = sorted(records_of(data, TEMPLATES), key=lambda row: int(row["records"]))
    return {row["relation"]: row["template"] for row in rows}


def edited_subjects(data: str | Path) -> set[str]:
    """Subjects of all records that suites edit or train on, FEVER's aside, without regard to capitals."""
    records = [record for name in (*EDIT_FILES, HALLUEDITBENCH) for record in records_of(data, name)]
    subjects = {str(record["subject"]) for record in records}
    subjects |= {str(edit.subject) for split in ("train", "validation", "test") for edit in load_edits("atlas", split)}
    return {subject.casefold() for subject in subjects}


def questions(data: str, **_: Any) -> Splits:
    """The answer to a question of Natural Questions against the answers to three others.

    They are locality questions of QAEdit, without those that QAEdit also edits.
    """
    rng = random.Random(SEED)
    records = records_of(data, QAEDIT)
    edited = {_plain(record["prompt"]) for record in records} | {_plain(record["rephrase"]) for record in records}
    answers: dict[str, str] = {}
    for pair in (pair for record in records for pair in record["locality"]):
        if _plain(pair["loc"]) not in edited:
            answers.setdefault(pair["loc"], pair["loc_ans"])
    asked = [(question, answers[question]) for question in sorted(answers) if _INTERROGATIVE.match(question)]
    candidates = [answer for _, answer in asked]
    return _splits(
        _document(rng, question, right, _drawn(rng, candidates, right))
        for question, right in _shuffled(rng, asked)[:DOCUMENTS]
    )


_INTERROGATIVE = re.compile(r"(who|what|when|where|which|how)\b", re.IGNORECASE)


def _plain(question: str) -> str:
    return question.casefold().strip(" ?.")


def claims(data: str, **_: Any) -> Splits:
    """Claims of FEVER whose only label is SUPPORTS or REFUTES, as many of each: true or false."""
    rng = random.Random(SEED)
    labels: dict[str, set[str]] = {}
    for record in records_of(data, CLAIMS):
        labels.setdefault(record["claim"], set()).add(record["label"])
    documents = []
    for answer, label in enumerate(("REFUTES", "SUPPORTS")):
        texts = sorted(text for text, own in labels.items() if own == {label})
        for text in _shuffled(rng, texts)[: DOCUMENTS // 2]:
            documents.append(Document(text=text, choices=["false", "true"], answer=answer))
    return _splits(_shuffled(rng, documents))


def hallueditbench(data: str, **_: Any) -> Splits:
    """HalluEditBench's own choice of four, one of which is what Llama-3-8B-Instruct answers instead."""
    rng = random.Random(SEED)
    documents = []
    for record in _shuffled(rng, records_of(data, HALLUEDITBENCH)):
        choices, right = ast.literal_eval(record["multiple_choices"]), record["object"]
        wrong = [choice for choice in choices if choice != right]
        if len(set(choices)) == len(choices) == len(wrong) + 1 == 4:
            documents.append(_document(rng, record["question"], right, wrong))
    return _splits(documents[:DOCUMENTS])


# -- draws --------------------------------------------------------------------------------------------------------


def _shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    return rng.sample(items, len(items))


def _drawn(rng: random.Random, candidates: Sequence[str], right: str) -> list[str]:
    """Different candidates that are not the right choice, without regard to capitals.

    Raises:
        ValueError: If there are not enough.
    """
    if len({text.casefold() for text in candidates} - {right.casefold()}) < WRONG_CHOICES:
        raise ValueError(f"the files hold fewer than {WRONG_CHOICES} wrong choices beside {right!r}")
    wrong: dict[str, str] = {}
    while len(wrong) < WRONG_CHOICES:
        candidate = rng.choice(candidates)
        if candidate.casefold() != right.casefold():
            wrong.setdefault(candidate.casefold(), candidate)
    return list(wrong.values())


def _document(rng: random.Random, text: str, right: str, wrong: Iterable[str]) -> Document:
    """With the choices in an order that is drawn."""
    choices = _shuffled(rng, [right, *wrong])
    return Document(text=text, choices=choices, answer=choices.index(right))


def _splits(documents: Iterable[Document]) -> Splits:
    return {"test": datasets.Dataset.from_list([dict(document) for document in documents])}
