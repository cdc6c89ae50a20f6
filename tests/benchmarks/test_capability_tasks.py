"""The local tasks' documents, on small files of each kind."""

import csv
import json
import math
from collections import Counter

import pytest
import torch

pytest.importorskip("lm_eval")

from benchmarks import capability_tasks
from benchmarks.capability import score, task_manager
from benchmarks.capability_tasks import FILES, MADE_TASKS, data_file, first_sentence, halves

NAMES = ("Ada", "Bert", "Cleo", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivo", "Jana", "Kurt", "Lea")
CITIES = ("Rome", "Oslo", "Paris", "Lima", "Bonn", "Quito")
OBJECTS = {"birthplace": CITIES, "instrument": ("piano", "guitar", "violin", "trumpet"), "sport": ("golf", "chess")}


def wise(number):
    """A text of forty words that is cut within a word."""
    text = " ".join(f"{NAMES[(number + i) % 12]} met {i} of {number}" for i in range(10))
    return {"subject": f"wise {number}", "locality_prompt": text[:61], "locality_ground_truth": text[61:]}


def write_json(path, records):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(records), encoding="utf-8")


def write_lines(path, records):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_table(path, rows):
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def fact_rows():
    """Of 40 subjects; every fourth has a counterfactual."""
    rows = []
    for i in range(40):
        for relation, objects in OBJECTS.items():
            counterfactual = objects[(i + 1) % len(objects)] if i % 4 == 0 else ""
            row = {"subject": f"{NAMES[i % 12]} {i}", "relation": relation, "object": objects[i % len(objects)]}
            rows.append(row | {"counterfactual": counterfactual})
    return [*rows, {"subject": "Rome Station", "relation": "birthplace", "object": "Rome", "counterfactual": ""}]


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for part, name in enumerate(capability_tasks.WISE):
        write_json(folder / name, [wise(10 * part + i) for i in range(8)])
    sentences = [
        f"The {name.lower()} of a {city} went to see {i} old ships. It was a day."
        for i, name in enumerate(NAMES)
        for city in CITIES
    ]
    for name in ("nli", "rte"):
        write_lines(folder / f"glue/{name}.jsonl", [{"sentence1": text, "label": 0} for text in sentences])
    labelled = [{"sentence": f"{name} is here ", "label": i % 2} for i, name in enumerate(NAMES)]
    write_lines(folder / "glue/sst2.jsonl", labelled)
    choices = [{"question": f"{n}?", "choices": [n, "x", "y z", "1"], "answer": i % 4} for i, n in enumerate(NAMES)]
    write_lines(folder / "glue/mmlu.jsonl", choices)
    write_table(folder / "facts/facts.csv", fact_rows())
    templates = [
        {"relation": relation, "template": template, "records": records}
        for relation in OBJECTS
        for template, records in ((f"The {relation} of {{}} is", 12), (f"{{}}, {relation}", 7))
    ]
    write_table(folder / "facts/templates.csv", templates)
    for name in capability_tasks.EDIT_FILES:
        write_json(folder / name, [{"subject": "CLEO 2"}])
    asked = [
        {"loc": f"{'who' if i % 2 else 'when'} did {name} meet", "loc_ans": f"{city} {i % 7}"}
        for i, name in enumerate(NAMES)
        for city in CITIES
    ]
    record = {"subject": "Dora 3", "prompt": "Who did Ada meet?", "rephrase": "Whom?", "locality": asked}
    write_json(folder / "qaedit/qaedit_1k.json", [record])
    hallucinations = [
        {"subject": "Emil 5", "question": f"Where is {n}?", "object": "Rome", "multiple_choices": str(list(CITIES[:4]))}
        for n in NAMES
    ]
    broken = hallucinations[0] | {"multiple_choices": "['Oslo', 'Rome', 'Rome', 'Lima']"}
    write_table(folder / "hallueditbench/llama3_8b_instruct.csv", [*hallucinations, broken])
    labels = ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")
    claims = [
        {"claim": f"{name} saw {city}.", "label": labels[i % 3]} for i, name in enumerate(NAMES) for city in CITIES
    ]
    both = [{"claim": "Fay 6 is tall.", "label": label} for label in labels[:2]]
    write_lines(folder / "fever/claims.jsonl", claims + both)
    return folder


def documents(task, data):
    return getattr(capability_tasks, task)(str(data), version=1.0)["test"].to_list()


@pytest.mark.parametrize("task", MADE_TASKS)
def test_documents_are_the_same_each_time_and_have_one_right_choice(task, data):
    first = documents(task, data)
    assert first == documents(task, data)
    assert len(first) >= 12
    for document in first:
        choices = [choice.casefold() for choice in document["choices"]]
        assert len(set(choices)) == len(choices) == len(first[0]["choices"])
        assert 0 <= document["answer"] < len(choices)


@pytest.mark.parametrize("task", ["continuation", "word_order", "facts", "questions"])
def test_the_right_choice_stands_anywhere(task, data):
    """Its places are within four standard deviations of a uniform draw's."""
    places = Counter(document["answer"] for document in documents(task, data))
    number, ways = sum(places.values()), 2 if task == "word_order" else 4
    assert set(places) <= set(range(ways))
    for place in range(ways):
        assert abs(places[place] - number / ways) <= 4 * math.sqrt(number * (1 - 1 / ways) / ways)


def test_another_seed_draws_other_documents(data, monkeypatch):
    first = {task: documents(task, data) for task in MADE_TASKS}
    monkeypatch.setattr(capability_tasks, "SEED", 1)
    assert all(documents(task, data) != before for task, before in first.items())


def test_no_task_has_more_documents_than_said(data, monkeypatch):
    monkeypatch.setattr(capability_tasks, "DOCUMENTS", 8)
    assert {task: len(documents(task, data)) for task in MADE_TASKS} == dict.fromkeys(MADE_TASKS, 8)


def test_a_word_that_was_cut_goes_to_the_second_half():
    assert halves("an antique map, historica", "l print or plan?") == ("an antique map,", "historical print or plan?")
    assert halves("whether innovation ", "in banking") == ("whether innovation", "in banking")
    assert halves("a price of", " ten") == ("a price", "of ten")
    assert halves("one", "word") == ("", "oneword")


def test_a_continuation_is_the_texts_own(data):
    whole = {}
    for name in capability_tasks.WISE:
        for record in json.loads((data / name).read_text()):
            text = record["locality_prompt"] + record["locality_ground_truth"]
            whole[text] = " ".join(text.split())
    for document in documents("continuation", data):
        joined = [f"{document['text']} {choice}" for choice in document["choices"]]
        own = [i for i, text in enumerate(joined) if any(full.startswith(text) for full in whole.values())]
        assert own == [document["answer"]]
        assert all(len(choice.split()) == capability_tasks.CONTINUATION_WORDS for choice in document["choices"])


def test_a_separator_within_a_text_does_not_end_a_record(tmp_path):
    texts = ["one\u2028two", "three\u0085four"]
    whole = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    for name, end in (("ended.jsonl", "\n"), ("open.jsonl", "")):
        (tmp_path / name).write_text(whole + end, encoding="utf-8")
        assert [record["text"] for record in capability_tasks.records_of(tmp_path, name)] == texts


def test_first_sentences():
    assert first_sentence("The U.S. Army left. It rained.") == "The U.S. Army left."
    assert first_sentence("No end") == "No end"
    assert first_sentence('It cost 3.5 euros. "Much!"') == 'It cost 3.5 euros. "Much!"'


def test_two_neighbouring_words_are_exchanged(data):
    records = [json.loads(line) for line in (data / "glue/nli.jsonl").read_text().splitlines()]
    sentences = {record["sentence1"].partition(". ")[0] + "." for record in records}
    for document in documents("word_order", data):
        right = document["choices"][document["answer"]].split()
        wrong = document["choices"][1 - document["answer"]].split()
        assert document["text"] == ""
        assert " ".join(right) in sentences
        changed = [i for i, (one, other) in enumerate(zip(right, wrong, strict=True)) if one != other]
        assert len(changed) == 2
        assert changed[1] == changed[0] + 1
        assert (right[0], right[-1]) == (wrong[0], wrong[-1])
        assert sorted(right) == sorted(wrong)


def test_facts_are_those_that_no_edit_is_about(data):
    rows = {(row["subject"], row["relation"]): row for row in fact_rows()}
    prompts = {f"The {relation} of {subject} is": row for (subject, relation), row in rows.items()}
    about = [prompts[document["text"]] for document in documents("facts", data)]
    assert not any(row["counterfactual"] for row in about)
    # Edited by a JSON file, QAEdit and HalluEditBench, named by a claim, its own answer; and a relation of two objects.
    left_out = {"Cleo 2", "Dora 3", "Emil 5", "Fay 6", "Rome Station"}
    assert {row["subject"] for row in about}.isdisjoint(left_out)
    assert {row["relation"] for row in about} == {"birthplace", "instrument"}
    expected = [
        row
        for row in rows.values()
        if not row["counterfactual"] and row["subject"] not in left_out and row["relation"] != "sport"
    ]
    assert len(about) == len(expected)
    for document, row in zip(documents("facts", data), about, strict=True):
        assert document["choices"][document["answer"]] == row["object"]
        assert set(document["choices"]) <= set(OBJECTS[row["relation"]])


def test_the_embedded_worlds_edits_count_as_edits(data, monkeypatch, edits):
    monkeypatch.setattr(capability_tasks, "load_edits", lambda dataset, split: edits[:1] if split == "train" else [])
    assert capability_tasks.edited_subjects(data) >= {"ada", "cleo 2", "dora 3", "emil 5"}


def test_questions_have_their_own_answers_and_are_not_edited_ones(data):
    (record,) = json.loads((data / "qaedit/qaedit_1k.json").read_text())
    answers = {}
    for pair in record["locality"]:
        answers.setdefault(pair["loc"], pair["loc_ans"])
    asked = documents("questions", data)
    for document in asked:
        assert document["choices"][document["answer"]] == answers[document["text"]]
    edited = {"who did ada meet", "whom"}
    expected = {question for question in answers if question.casefold() not in edited}
    assert {document["text"] for document in asked} == expected


def test_claims_are_balanced_and_have_one_label(data):
    labels = {}
    for line in (data / "fever/claims.jsonl").read_text().splitlines():
        record = json.loads(line)
        labels.setdefault(record["claim"], []).append(record["label"])
    drawn = documents("claims", data)
    assert Counter(document["answer"] for document in drawn) == {0: 24, 1: 24}
    assert all(labels[document["text"]] == [("REFUTES", "SUPPORTS")[document["answer"]]] for document in drawn)


def test_too_few_wrong_choices_are_an_error(data):
    write_json(data / capability_tasks.WISE[0], [wise(1)])
    for name in capability_tasks.WISE[1:]:
        write_json(data / name, [])
    with pytest.raises(ValueError, match="fewer than 3 wrong choices"):
        documents("continuation", data)


def test_a_file_lies_in_the_folder_or_in_one_of_its_own(data):
    assert data_file(data, "glue/sst2.jsonl") == data / "glue/sst2.jsonl"
    (data / "glue/sst2.jsonl").rename(data / "sst2.jsonl")
    assert data_file(data, "glue/sst2.jsonl") == data / "sst2.jsonl"
    with pytest.raises(FileNotFoundError, match=r"cola\.jsonl, nor .*glue/cola\.jsonl"):
        data_file(data, "glue/cola.jsonl")
    (data / "facts/templates.csv").unlink()
    with pytest.raises(SystemExit, match=r"templates\.csv, which the task facts reads"):
        task_manager(["facts"], data)


# -- through lm-eval ----------------------------------------------------------------------------------------------

SHOTS = (
    ("a gripping , beautifully acted drama", 1),
    ("flat , tired and far too long", 0),
    ("the jokes never land and nobody seems to care", 0),
    ("full of warmth , wit and lovely small surprises", 1),
    ("one of the dullest films of the year", 0),
    ("you will leave the cinema with a smile", 1),
    ("an unforgettable performance in a wonderful film", 1),
    ("a lazy script that wastes its cast", 0),
)
CLAIMS = (
    ("Paris is the capital of France.", 1),
    ("The Moon is larger than the Earth.", 0),
    ("Albert Einstein was a football player.", 0),
    ("Titanic is a film.", 1),
)


def by_hand(task, document):
    """Prompt with what comes between it and a choice, the choices, the right one; written out without a template."""
    if task == "sst2_few_shot":
        signs = ("negative", "positive")
        shots = "".join(f"Review: {text}\nSentiment: {signs[label]}\n\n" for text, label in SHOTS)
        return f"{shots}Review: {document['sentence'].strip()}\nSentiment:", " ", signs, document["label"]
    if task == "mmlu_texts":
        return f"Question: {document['question']}\nAnswer:", " ", document["choices"], document["answer"]
    text, choices, right = document["text"], document["choices"], document["answer"]
    if task == "claims":
        shots = "".join(f"Claim: {t}\nTrue or false?\nAnswer: {('false', 'true')[label]}\n\n" for t, label in CLAIMS)
        return f"{shots}Claim: {text}\nTrue or false?\nAnswer:", " ", choices, right
    if task in ("questions", "hallueditbench"):
        mark = "?" if task == "questions" else ""
        return f"Question: {text}{mark}\nAnswer:", " ", choices, right
    return text, "" if task == "word_order" else " ", choices, right


@torch.no_grad()
def log_likelihood(lm, text, ending):
    """Of the ending's tokens; a text that is too long loses its beginning, and none is the first token alone."""
    tokens = lm.tokenizer(text + ending)["input_ids"]
    length = len(tokens) - len(lm.tokenizer(text)["input_ids"])
    ids = torch.tensor([tokens[-257:]])
    log_probabilities = lm.model(input_ids=ids[:, :-1], use_cache=False).logits[0].log_softmax(-1)
    return sum(log_probabilities[-length + j, ids[0, -length + j]].item() for j in range(length))


NEW_TASKS = tuple(name for name in FILES if name not in capability_tasks.GLUE_TASKS)


def test_figures_are_those_of_the_log_likelihoods(make_lm, data, monkeypatch, tmp_path):
    """Length-normalised, by characters, where texts of different lengths are compared."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(capability_tasks, "DOCUMENTS", 12)
    lm = make_lm()
    scores = score(lm, NEW_TASKS, task_manager(NEW_TASKS, data), data, limit=None, batch_size=8)
    normalised = {"continuation", "questions", "hallueditbench", "mmlu_texts"}
    chosen = []
    for task in NEW_TASKS:
        if task in MADE_TASKS:
            records = documents(task, data)
        else:
            name = data_file(data, *FILES[task])
            records = [json.loads(line) for line in name.read_text().splitlines()]
        right = []
        for record in records:
            text, between, choices, answer = by_hand(task, record)
            values = [
                log_likelihood(lm, text, between + choice) / (len(choice) if task in normalised else 1)
                for choice in choices
            ]
            chosen.append(values.index(max(values)))
            right.append(chosen[-1] == answer)
        accuracy = sum(right) / len(right)
        metric = "acc_norm" if task in normalised else "acc"
        chance = 1 / 2 if task in ("word_order", "sst2_few_shot", "claims") else 1 / 4
        expected = {metric: accuracy, f"{metric}_stderr": math.sqrt(accuracy * (1 - accuracy) / (len(right) - 1))}
        assert scores[task] == pytest.approx(expected | {"records": len(right), "chance": chance}), task
    assert len(set(chosen)) == 4
