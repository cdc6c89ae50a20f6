"""Files of edits: the published formats, your own, what is wrong with them, and how much memory they take."""

import copy
import csv
import gzip
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from editenv.data import Edit, Locality, Question, edits_digest, load_edits, tables
from editenv.data.files import SHARES, FileOptions, load_file_edits
from editenv.data.records import BadRecordError, read_records
from editenv.data.rephrases import true_rephrases

RECORDS = {
    "zsre": {
        "subject": "Ada",
        "src": "Where was Ada born?",
        "rephrase": "What is the birthplace of Ada?",
        "alt": "Rome",
        "answers": ["Paris"],
        "loc": "nq question: who sings",
        "loc_ans": "Bob",
    },
    "counterfact": {
        "case_id": 1,
        "prompt": "Ada speaks",
        "target_new": "Latin",
        "ground_truth": "Dutch",
        "subject": "Ada",
        "rephrase_prompt": "It rained. Ada speaks",
        "locality_prompt": "Bo speaks",
        "locality_ground_truth": "Dutch",
    },
    "nested": {
        "case_id": 1,
        "requested_rewrite": {
            "prompt": "{} speaks",
            "subject": "Ada",
            "target_new": {"str": "Latin", "id": "Q1"},
            "target_true": {"str": "Dutch", "id": "Q2"},
            "relation_id": "P1",
        },
        "paraphrase_prompts": ["So Ada talks in", "Ada uses"],
        "neighborhood_prompts": ["Bo speaks", "Cy speaks"],
        "generation_prompts": ["Ada lives in"],
    },
    "fever": {
        "prompt": "Ada is a poet.",
        "equiv_prompt": ["Is it true that Ada is a poet?", "True or false: Ada is a poet."],
        "alt": "false",
        "unrel_prompt": "Bo is tall.",
        "unrel_ans": "true",
    },
    "wise": {
        "prompt": "Ada,",
        "target_new": "a poet from Rome who wrote much",
        "subject": "Ada",
        "locality_prompt": "The sea is",
        "locality_ground_truth": "wide",
        "ood_rephrase": "Ada, born in Rome, is",
    },
    "wikibigedit": {
        "subject": "Ada",
        "update": "Who is Ada married to?",
        "rephrase": "To whom is Ada married?",
        "ans": "Bo",
        "loc": "Who is Cy married to?",
        "loc_ans": "Di",
    },
    "own": {
        "prompt": "The boss of Ada is",
        "target": "Bo",
        "old_answer": "Cy",
        "rephrases": ["Ada works for"],
        "locality": [{"prompt": "The boss of Di is", "answer": "Ed"}],
        "portability": [
            {"kind": "two_hop", "prompt": "Ada's boss lives in", "answer": "Rome"},
            {"kind": "locality", "prompt": "Ada lives in"},
        ],
    },
}
EDITS = {
    "zsre": Edit(
        "f/1", "Where was Ada born?", "Rome", ("What is the birthplace of Ada?",),
        (Locality("nq question: who sings?", "Bob"),), "Ada", "Paris",
    ),
    "counterfact": Edit(
        "f/1", "Ada speaks", "Latin", ("It rained. Ada speaks",), (Locality("Bo speaks", "Dutch"),), "Ada", "Dutch"
    ),
    "nested": Edit(
        "f/1", "Ada speaks", "Latin", ("So Ada talks in", "Ada uses"),
        (Locality("Bo speaks", "Dutch"), Locality("Cy speaks", "Dutch")), "Ada", "Dutch", "P1",
    ),
    "fever": Edit(
        "f/1", "Ada is a poet.", "false", ("Is it true that Ada is a poet?", "True or false: Ada is a poet."),
        (Locality("Bo is tall.", "true"),), None, "true",
    ),
    "wise": Edit("f/1", "Ada,", "a poet from Rome who wrote much", (), (Locality("The sea is", "wide"),), "Ada"),
    "wikibigedit": Edit(
        "f/1", "Who is Ada married to?", "Bo", ("To whom is Ada married?",), (Locality("Who is Cy married to?", "Di"),),
        "Ada",
    ),
    "own": Edit(
        "f/1", "The boss of Ada is", "Bo", ("Ada works for",), (Locality("The boss of Di is", "Ed"),), None, "Cy", None,
        (Question("two_hop", "Ada's boss lives in", "Rome"), Question("locality", "Ada lives in")),
    ),
}  # fmt: skip

# The shapes of further public files; the facts are made up.
RECORDS |= {
    "knowedit": {
        "subject": "Ada",
        "prompt": "The name of the trade of Ada is",
        "target_new": "baker",
        "ground_truth": "miller",
        "rephrase": "Ada works as a",
        "portability": {"Reasoning": [{"prompt": "Ada's shop sells", "ground_truth": [["bread", "loaves"]]}]},
        "locality": {
            "Relation_Specificity": [
                {"prompt": "The father of Ada is", "ground_truth": [["Bo", "Bob"]]},
                {"prompt": "The town of Ada is", "ground_truth": [[""]]},
            ],
            "Forgetfulness": [{"prompt": "The trade of Ada, which is not baker, is", "ground_truth": "miller"}],
        },
    },
    "wikibio": {
        "text": "This is a passage about ada. Ada was a baker.",
        "labels": "She had three shops.",
        "concept": "ada",
        "locality": {"Relation_Specificity": [{"prompt": "The town of ada is", "ground_truth": ["Rome"]}]},
    },
    "cknowedit": {
        "prompt": "解释成语对牛弹琴",
        "target_old": "旧",
        "target_new": "新",
        "portability": [{"prompt": "何时用", "answer": "常"}],
        "locality": [{"prompt": "首都是", "answer": "北京"}],
        "rephrase": ["对牛弹琴的意思是"],
    },
    "mquake": {
        "case_id": 1,
        "requested_rewrite": [
            {
                "prompt": "{} plays",
                "relation_id": "P1",
                "target_new": {"str": "chess", "id": "Q1"},
                "target_true": {"str": "golf", "id": "Q2"},
                "subject": "Ada",
                "question": "What does Ada play?",
            },
            {
                "prompt": "{} was invented in",
                "relation_id": "P2",
                "target_new": {"str": "Peru", "id": "Q3"},
                "target_true": {"str": "Oslo", "id": "Q4"},
                "subject": "Chess",
                "question": "Where was Chess invented?",
            },
        ],
        "questions": ["Where was what Ada plays invented?"],
        "answer": "Oslo",
        "new_answer": "Peru",
    },
    "akew": {
        "case_id": 1,
        "requested_rewrite": {
            "subject": "Ada",
            "prompt": "{} is led by",
            "answer_new": "Bo",
            "answer_true": "Cy",
            "question": "Who leads Ada?",
            "fact_new_uns": "Bo took over Ada last year.",
            "unsfact_triplets_GPT": [{"subject": "Ada", "prompt": "{} was taken over by", "target": "Bo"}],
        },
        "loc": "Who leads Di?",
        "loc_ans": "Ed",
    },
    "qaedit": {
        "id": 1,
        "source": "NQ",
        "prompt": "who leads ada?",
        "target": "Bo",
        "subject": "ada",
        "rephrase": "Who is the leader of ada?",
        "locality": [{"loc": "who sings", "loc_ans": "Di"}, {"loc": "who dances", "loc_ans": "Ed"}],
    },
    "hallueditbench": {
        "topic": "people",
        "subject": "Ada",
        "relation": "trade",
        "object": "baker",
        "question": "What is the trade of Ada?",
        "output_some_model": "Miller",
        "paraphrased_question": "What does Ada work as?",
        "locality_question": "Where is Rome?",
        "question_2hop": "What does Ada's shop sell?",
        "answer_2hop": "bread",
        "question_6hop": "Where is its flour from?",
        "answer_6hop": "Rome",
        "reversed_relation_question": "Who is a baker?",
        "yes_question": "Is Ada a baker?",
        "no_question": "Is Ada a miller?",
        "multiple_choice_with_letters": "A. miller  B. baker",
        "multiple_choice_labels": "B",
    },
}  # fmt: skip
EDITS |= {
    "knowedit": Edit(
        "f/1", "The name of the trade of Ada is", "baker", ("Ada works as a",),
        (Locality("The father of Ada is", "Bo"), Locality("The trade of Ada, which is not baker, is", "miller")),
        "Ada", "miller", None, (Question("reasoning", "Ada's shop sells", "bread"),),
    ),
    "wikibio": Edit(
        "f/1", "This is a passage about ada. Ada was a baker.", "She had three shops.", (),
        (Locality("The town of ada is", "Rome"),), "ada",
    ),
    "cknowedit": Edit(
        "f/1", "解释成语对牛弹琴", "新", ("对牛弹琴的意思是",), (Locality("首都是", "北京"),), None, "旧", None,
        (Question("portability", "何时用", "常"),),
    ),
    "mquake": Edit("f/1", "Ada plays", "chess", ("What does Ada play?",), (), "Ada", "golf", "P1"),
    "akew": Edit("f/1", "Ada is led by", "Bo", ("Who leads Ada?",), (Locality("Who leads Di?", "Ed"),), "Ada", "Cy"),
    "qaedit": Edit(
        "f/1", "who leads ada?", "Bo", ("Who is the leader of ada?",),
        (Locality("who sings", "Di"), Locality("who dances", "Ed")), "ada",
    ),
    "hallueditbench": Edit(
        "f/1", "What is the trade of Ada?", "baker", ("What does Ada work as?",), (), "Ada", "Miller", "trade",
        (
            Question("paraphrase", "What does Ada work as?", "baker"),
            Question("reversed", "Who is a baker?", "Ada"),
            Question("two_hop", "What does Ada's shop sell?", "bread"),
            Question("six_hop", "Where is its flour from?", "Rome"),
            Question("yes", "Is Ada a baker?", "Yes"),
            Question("no", "Is Ada a miller?", "No"),
            Question("multiple_choice", "What is the trade of Ada? A. miller  B. baker", "B"),
            Question("locality", "Where is Rome?", None),
        ),
    ),
}  # fmt: skip
FORMS = {"nested": "counterfact", "wikibio": "knowedit", "cknowedit": "knowedit"}
SKIP = {"bad_records": "skip"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
    return folder


@pytest.fixture
def write(tmp_path):
    def write(records, name="edits.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        if name.endswith(".csv"):
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(records[0]))
                writer.writeheader()
                writer.writerows(records)
        elif name.endswith(".jsonl"):
            path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
        else:
            path.write_text(json.dumps(records), encoding="utf-8")
        return path

    return write


def own(i, **change):
    return {"prompt": f"The boss of number {i} is", "target": f"person {i}", "subject": f"number {i}"} | change


def load(path, split="all", **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_edits(str(path), split, options=options)


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("file", ["edits.json", "edits.jsonl"])
def test_every_format_is_recognised_and_becomes_the_edit_it_means(write, name, file):
    path = write([RECORDS[name]], file)
    edit, *others = load(path)
    values = {field: getattr(EDITS[name], field) for field in Edit.__slots__ if field != "id"}
    assert {field: getattr(edit, field) for field in values} == values
    assert edit.id == f"{file}/1"
    assert bool(others) == (name == "mquake")
    assert load(f"{FORMS.get(name, name)}:{path}")[0] == edit


def test_a_format_that_the_file_is_not_in_is_refused(write):
    path = write([RECORDS["zsre"]])
    with pytest.raises(
        BadRecordError, match=r"edits.jsonl, record 1: its fields \('subject', 'src'.*needed are fever: prompt, alt"
    ):
        load(f"fever:{path}")


def test_zsre_targets_and_prefix(write):
    record = RECORDS["zsre"]
    path = write([record | {"loc": "nq question: who sings?"}])
    assert load(path)[0].locality[0].prompt == "nq question: who sings?"
    assert load(path, nq_prefix="strip")[0].locality[0].prompt == "who sings?"
    for change, target, old in (
        ({"answers": ["Rome", "Roma"]}, "Rome", None),  # `answers` repeats the target: not gold
        ({"alt": "", "ans": "Oslo"}, "Oslo", "Paris"),
        ({"alt": ""}, "Paris", None),
    ):
        (edit,) = load(write([record | change], f"{target}{old}.json"))
        assert (edit.target, edit.old_answer) == (target, old)


def test_csv(write):
    rows = [
        {
            "prompt": 'a, "b"\nis',
            "target": "x",
            "rephrases": '["one", "two"]',
            "locality": '[{"prompt": "p", "answer": "q"}]',
        },
        {"prompt": "c is", "target": "y", "rephrases": "just one", "locality": ""},
    ]
    first, second = load(write(rows, "edits.csv"))
    assert (first.prompt, first.rephrases, first.locality) == ('a, "b"\nis', ("one", "two"), (Locality("p", "q"),))
    assert (second.rephrases, second.locality) == (("just one",), ())
    path = write([{"prompt": "c is", "target": "y", "locality_prompt": "p", "locality_answer": "q"}], "columns.csv")
    assert load(path)[0].locality == (Locality("p", "q"),)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no records"),
        (b"[]", "holds no records"),
        (b"nonsense", "record 1: is not JSON"),
        (b'[{"prompt": "a", "target": "b"}, {"prompt": "c", "tar', "record 2: is not JSON .* or the file is cut off"),
        (b'[{"prompt": "a", "target": "b"}', "record 2: is missing: the file ends before"),
        (b'[{"prompt": "a", "target": "b"}] x', "record 2: comes after the end of the array: 'x'"),
        (b'[{"prompt": "a", "target": "b"} {"prompt": "c", "target": "d"}]', "record 2: is not preceded by a comma"),
        (b'[1]', "record 1: is a int, not an object"),
        (b'{"prompt": "a", "target": "b"}\n{"prompt": "c", "target": ', "record 2: is not JSON"),
        (b'{"prompt": "a", "target": "b"}\n{"prompt": "c"}', "record 2, field 'target': is missing"),
        (b'{"prompt": "a", "target": "b"}\n{"prompt": "c", "target": " "}', "record 2, field 'target': is empty"),
        (b'{"prompt": "a", "target": "b"}\n{"prompt": "c", "target": 3}', "record 2, field 'target': must be text, not 3"),
        (b'{"prompt": "a", "target": "B ", "old_answer": "B"}', "record 1, field 'target': equals the old answer"),
        (b'{"prompt": "a", "target": "b"}\n{"prompt": "\xff", "target": "d"}', "record 2, field 'prompt': is not UTF-8"),
        (b'{"prompt": "a", "target": "b"}\n{"prompt": "\\ud800", "target": "d"}', "record 2, field 'prompt': is not UTF-8"),
        (b'{"prompt": "a", "target": "b"}\n{"prompt": "A ", "target": "B"}', "record 2, field 'prompt': repeats record 1"),
        (b'{"prompt": "a", "target": "b"}\n{"prompt": "a", "target": "c"}', "record 2, field 'target': contradicts record 1"),
        (b'{"prompt": "a", "target": "b", "locality": [{"prompt": "p"}]}', "record 1, field 'locality.answer': is missing"),
        (b'{"src": "a", "rephrase": "b", "alt": [], "loc": "c", "loc_ans": "d"}', "record 1, field 'alt': is empty"),
        (b"[" * 100_000, "record 1: is not JSON"),
    ],
)  # fmt: skip
def test_bad_input_is_named(tmp_path, content, words):
    path = tmp_path / "edits.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as refusal:
        load(path)
    assert "edits.json" in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("prompt,target\na,b\nc\n", r"record 2 \(line 3\), field 'target': has no cell"),
        ("prompt,target\na,b\nc,d,e\n", r"record 2 \(line 3\): has more cells"),
        ('prompt,target\na,b\n"c,d\n', r"record 2 \(line 3\): is not CSV"),
        ("name,value\na,b\n", r"record 1 \(line 2\): its fields"),
        ("prompt,target,rephrases\na,b,[1\n", r"record 1 \(line 2\), field 'rephrases': starts like a JSON list"),
        ("prompt,target\n", "holds no records"),
    ],
)
def test_bad_csv_is_named(tmp_path, content, words):
    path = tmp_path / "edits.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=words):
        load(path)


def test_bad_records_are_left_out_and_counted(write):
    records = [own(0), own(1, target=""), own(2), own(0), own(2, target="x"), own(3, old_answer="person 3"), own(4)]
    path = write(records)
    with pytest.warns(UserWarning, match=r"edits.jsonl: 7 records, 4 of them left out"):
        edits = load_edits(str(path), "all", options=SKIP)
    assert [edit.id for edit in edits] == ["edits.jsonl/1", "edits.jsonl/3", "edits.jsonl/7"]
    assert edits.report.bad == {"field": 1, "duplicate": 1, "conflict": 1, "unchanged": 1}
    assert "record 2, field 'target': is empty" in edits.report.examples["field"]


@pytest.mark.parametrize("start", ["{oops", '{"of": "no format"}', json.dumps(own(9, target=""))])
def test_records_are_left_out_before_the_first_good_one_too(tmp_path, start):
    path = tmp_path / "edits.jsonl"
    path.write_text(f"{start}\n{json.dumps(own(0))}\n{json.dumps(own(1))}\n")
    with pytest.warns(UserWarning, match="3 records, 1 of them left out"):
        edits = load_edits(str(path), "all", options=SKIP)
    assert [edit.id for edit in edits] == ["edits.jsonl/2", "edits.jsonl/3"]
    path.write_text('{"of": "no format"}\n{"nor": "this"}\n')
    with pytest.raises(BadRecordError, match=r"(?s)2 records, 2 of them left out.*record 1: its fields.*record 2: its"):
        load_edits(str(path), "all", options=SKIP)


def test_a_broken_line_costs_one_record_a_broken_array_everything(tmp_path):
    good = json.dumps(own(1))
    (tmp_path / "lines.jsonl").write_text(f"{json.dumps(own(0))}\n{{oops\n{good}\n")
    assert len(load(tmp_path / "lines.jsonl", **SKIP)) == 2
    (tmp_path / "array.json").write_text(f"[{good}, {{oops, {good}]")
    with pytest.raises(BadRecordError, match="record 2"):
        load(tmp_path / "array.json", **SKIP)


@pytest.mark.parametrize("pieces", [1, 3])
def test_arrays_are_read_across_pieces_of_the_file(tmp_path, pieces):
    """Records longer than what is read at once, and records that begin just before its end."""
    records = [own(i, target=f"{i} " + 'é{[\\" ' * (i * 3000 * pieces + 1)) for i in range(9)]
    path = tmp_path / "long.json"
    path.write_text(json.dumps(records, indent=pieces, ensure_ascii=False), encoding="utf-8")
    assert [record.content for record in read_records(path)] == records


@pytest.mark.parametrize("separator", [" " * 70_000 + ",", "," + " " * 70_000, ", "])
def test_white_space_is_as_long_as_it_likes(tmp_path, separator):
    path = tmp_path / "wide.json"
    path.write_text("[" + separator.join(json.dumps(own(i)) for i in range(3)) + " " * 70_000 + "]")
    assert [record.content for record in read_records(path)] == json.loads(path.read_text())


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    for name, text in (("a.json", json.dumps([own(0)])), ("a.csv", "prompt,target\na,b\n")):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert len(load(tmp_path / name)) == 1


def test_a_file_that_changed_is_read_again(write):
    path = write([own(0)])
    assert len(load(path)) == 1
    write([own(0), own(1)])
    assert len(load(path)) == 2


def test_sequence(write):
    edits = load(write([own(i) for i in range(25)]))
    assert [edit.target for edit in edits] == [f"person {i}" for i in range(25)]
    assert edits[3:7] == [edits[3], edits[4], edits[5], edits[6]]
    assert edits[-1].target == "person 24"
    assert edits[5:5] == []
    with pytest.raises(IndexError):
        edits[25]


def test_a_single_file_is_cut_by_subject(write):
    records = [
        own(i, subject=f"number {i % 150}", prompt=f"The boss of number {i % 150} in year {i} is") for i in range(600)
    ]
    path = write(records)
    parts = {split: load(path, split) for split in SHARES}
    assert sum(map(len, parts.values())) == 600
    subjects = {split: {edit.subject for edit in edits} for split, edits in parts.items()}
    assert not subjects["train"] & subjects["test"]
    assert not (subjects["train"] | subjects["test"]) & subjects["validation"]
    assert all(len(parts[split]) == pytest.approx(600 * (high - low), abs=90) for split, (low, high) in SHARES.items())


def test_a_folder_has_a_file_for_each_split(write, tmp_path):
    write([own(i) for i in range(100)], "set/my-train.json")
    write([own(i) for i in range(98, 110)], "set/my-edit.json")
    (tmp_path / "set" / "notes.txt").write_text("not data")
    with pytest.raises(
        BadRecordError, match=r"my-edit.json, record 1, field 'subject': 'number 98' is edited in my-train.json"
    ):
        load(tmp_path / "set", "test")
    test, train, validation = (load(tmp_path / "set", split, **SKIP) for split in ("test", "train", "validation"))
    assert [edit.id for edit in test] == [f"my-edit.json/{i}" for i in range(3, 13)]
    assert test.report.bad == {"leak": 2}
    assert {e.subject for e in train} | {e.subject for e in validation} == {f"number {i}" for i in range(100)}
    assert len(train) + len(validation) == 100
    assert 2 <= len(validation) <= 20
    with pytest.raises(ValueError, match="name the file"):
        load(tmp_path / "set", "all")
    write([own(0)], "set/other-test.json")
    with pytest.raises(ValueError, match=r"my-edit.json, other-test.json could all be one split"):
        load(tmp_path / "set", "test")


def test_a_hub_data_set_is_read_like_a_file(write, tmp_path, monkeypatch):
    """The same branch as for a hub id; the `datasets` library takes a folder in its place."""
    import datasets

    write([RECORDS["wise"] | {"ood_rephrase": None}, RECORDS["wise"] | {"prompt": "Bo,"}], "hub/test.jsonl")
    splits = []
    split_names = datasets.get_dataset_split_names

    def from_folder(name, split):
        splits.append((name, split))
        return datasets.Dataset.from_json(str(tmp_path / "hub" / "test.jsonl"), cache_dir=str(tmp_path / "c"))

    monkeypatch.setattr("datasets.load_dataset", from_folder)
    monkeypatch.setattr("datasets.get_dataset_split_names", lambda name: split_names(str(tmp_path / "hub")))
    assert [edit.prompt for edit in load("wise:someone/some-set", "test")] == ["Ada,", "Bo,"]
    assert splits == [("someone/some-set", "test")]
    with pytest.raises(ValueError, match=r"someone/some-set' of the hub has no split 'validation'; there are test"):
        load("wise:someone/some-set", "validation")


def test_limit_and_checked_locality(write):
    records = [own(i, locality=[{"prompt": f"The boss of number {i + 1} is", "answer": "x"}]) for i in range(6)]
    path = write(records)
    assert sum(len(edit.locality) for edit in load(path)) == 6
    edits = load(path, limit=3, locality="checked")
    assert [len(edit.locality) for edit in edits] == [0, 0, 1]  # the third's asks for the fourth, which is not edited


def test_what_a_later_split_edits_is_not_learned_as_what_has_to_stay(write, tmp_path):
    """As in FEVER, whose locality prompts are other records' claims: each record's are its neighbour's prompt and
    rephrase.
    """

    def asks(i):
        return [{"prompt": text, "answer": "x"} for text in (own(i)["prompt"], f"Who leads number {i}?", "Tea is")]

    records = [own(i, rephrases=[f"Who leads number {i}?"], locality=asks((i + 1) % 60)) for i in range(60)]
    path = write(records)
    prompts = {split: {text for e in load(path, split) for text in (e.prompt, *e.rephrases)} for split in SHARES}
    locality = {split: {it.prompt for e in load(path, split) for it in e.locality} for split in SHARES}
    raw = {i for i in range(60) if own(i)["prompt"] in prompts["train"]}
    assert {own((i + 1) % 60)["prompt"] for i in raw} & prompts["test"], "there is something to leak"
    assert not locality["train"] & (prompts["validation"] | prompts["test"])
    assert not locality["validation"] & prompts["test"]
    assert locality["train"] & prompts["train"]
    assert locality["test"] & prompts["train"], "the split that is judged stays as it is"
    assert all("Tea is" in texts for texts in locality.values())

    write(records[:30], "set/my-train.json")
    write(records[30:], "set/my-test.json")
    kept = {it.prompt for e in load(tmp_path / "set", "train") for it in e.locality}
    assert not kept & {own(i)["prompt"] for i in range(30, 60)}

    (tmp_path / "set" / "my-test.json").write_text(
        "[{"
    )  # what it edits cannot be known: training would teach to keep it
    with pytest.raises(ValueError, match=r"my-test\.json"):
        load(tmp_path / "set", "train")


def test_generation_prompts_are_told_from_paraphrases(write):
    def record(subject, template, target, old, rephrase):
        fields = {"prompt": template.format(subject), "target_new": target, "ground_truth": old, "subject": subject}
        fields |= {"rephrase_prompt": rephrase, "locality_prompt": "Bo speaks", "locality_ground_truth": old}
        return fields

    records = [
        record("Ada", "{} speaks", "Latin", "Dutch", "It rained a lot. Ada talks in"),
        record("Cy", "{} talks in", "Dutch", "Latin", "Cy lives where people speak the language of"),
        record("Di", "{} was born in", "Rome", "Oslo", "Years passed. Ed was born in"),
        record(
            "Flo Gray", "{} talks in", "Latin", "Dutch", "Flo Gray was born in"
        ),  # a template, but not for languages
        record("Gus", "People know {}", "Rome", "Oslo", "Then it snowed. People know Gus"),
    ]
    records[0] |= {
        "prompt": "Zoe\u0308 speaks",
        "subject": "Zo\u00eb",
        "rephrase_prompt": "It rained. Zoe\u0308 talks in",
    }
    path = write(records)
    expected = [True, False, False, False, True]
    assert true_rephrases(load(path)).tolist() == expected
    assert [bool(edit.rephrases) for edit in load(path, rephrases="checked")] == expected
    first = load(path, rephrases="checked-first", limit=3)
    assert [edit.subject for edit in first] == ["Zo\u00eb", "Gus", "Cy"]
    assert [len(edit.rephrases) for edit in first] == [1, 1, 0]


def test_prompts_longer_than_the_context_are_refused(write, tokenizer):
    path = write([own(0), own(1, rephrases=["word " * 300]), own(2)])
    edits = load(path)
    with pytest.raises(BadRecordError, match=r"record 2, field 'rephrase 1': has \d+ tokens .* context holds 256"):
        edits.check_lengths(tokenizer, 256, FileOptions())
    edits = load(path)
    left = edits.check_lengths(tokenizer, 256, FileOptions("skip"))
    assert [edit.subject for edit in left] == ["number 0", "number 2"]
    assert left.report.bad == {"length": 1}
    tokens = len(tokenizer(f"{edits[0].prompt} {edits[0].target}")["input_ids"])
    short = edits.where(np.array([0]))
    assert len(short.check_lengths(tokenizer, tokens, FileOptions("skip"))) == 1
    assert len(short.check_lengths(tokenizer, tokens - 1, FileOptions("skip"))) == 0


def test_an_environment_edits_a_file(write, make_env):
    path = write(
        [own(i, rephrases=[f"{i} works for"], locality=[{"prompt": f"Who is {i}?", "answer": "x"}]) for i in range(9)]
    )
    env = make_env(dataset=str(path), split="all", horizon=None)
    env.reset(seed=0)
    seen = [edit.id for edit in env.batch]
    for _ in range(3):
        action = {name: np.zeros(env.language_model.shape(name), np.float32) for name in env.language_model.modules}
        _, reward, terminated, truncated, info = env.step(action)
        assert np.isfinite(reward)
        assert info["specificity"] == 100
        seen += [edit.id for edit in env.batch]
    assert terminated
    assert not truncated
    assert sorted(seen) == sorted(f"edits.jsonl/{i + 1}" for i in range(9))


def test_edits_without_rephrases_or_locality_prompts_have_no_such_figure(write, make_env):
    env = make_env(dataset=str(write([own(i) for i in range(6)])), split="all", dataset_options={"limit": 6})
    env.reset(seed=0)
    zeros = {name: np.zeros(env.language_model.shape(name), np.float32) for name in env.language_model.modules}
    _, reward, _, _, info = env.step(zeros)
    assert np.isfinite(reward)
    assert info["generalization"] is None
    assert info["specificity"] is None


@pytest.mark.parametrize(
    ("options", "word"), [({"bad": 1}, "'bad'"), ({"limit": 0}, "limit"), ({"nq_prefix": "x"}, "nq_prefix")]
)
def test_wrong_options_are_named(write, options, word):
    with pytest.raises(ValueError, match=word):
        load_edits(str(write([own(0)])), "all", options=options)
    with pytest.raises(ValueError, match="atlas takes no dataset options"):
        load_edits("atlas", "test", options=SKIP)


VALUES = [None, "", " ", 0, 1.5, True, [], {}, [None], [""], ["x", 3], {"str": 1}, [[["x"]]], -1e400]
VALUES += ["x" * 300, "\ud800", "\x00", "é\u202e"]


def mutated(rng):
    """One of the valid records with something wrong with it, as a line of a file."""
    record = json.loads(json.dumps(RECORDS[rng.choice(list(RECORDS))]))
    for _ in range(rng.randint(0, 3)):
        fields = record
        if "requested_rewrite" in record and isinstance(record["requested_rewrite"], dict) and rng.random() < 0.5:
            fields = record["requested_rewrite"]
        field = rng.choice([*fields, "extra"])
        match rng.randrange(3):
            case 0:
                fields.pop(field, None)
            case 1:
                fields[field] = copy.deepcopy(rng.choice(VALUES))
            case 2:
                fields[f"{field}2"] = fields.pop(field, copy.deepcopy(rng.choice(VALUES)))
    line = json.dumps(record, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        start = rng.randrange(len(line))
        junk = bytes(rng.randrange(256) for _ in range(rng.randint(0, 6)))
        line = line[:start] + junk + line[start + rng.randint(0, 6) :]
    return line.replace(b"\n", b" ").replace(b"\r", b" ")


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(["jsonl", "array", "csv"]),
    name=st.sampled_from(["", "own:", "zsre:", "counterfact:"]),
)
def test_ten_thousand_mutated_records_end_in_edits_or_in_an_error_of_ours(tmp_path_factory, seed, kind, name):
    """200 files of 50 records."""
    rng = random.Random(seed)
    lines = [mutated(rng) for _ in range(50)]
    path = tmp_path_factory.mktemp("fuzz") / f"mutated.{'csv' if kind == 'csv' else 'json'}"
    if kind == "csv":
        lines = [b"prompt,target,rephrases,locality", *(line.replace(b"\x00", b"") for line in lines)]
    path.write_bytes(b"[" + b",\n".join(lines) + b"]" if kind == "array" else b"\n".join(lines))
    for options in (FileOptions("skip"), FileOptions("error")):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                edits = load_file_edits(f"{name}{path}", "all", options)
        except ValueError as error:
            if type(error) not in (ValueError, BadRecordError) or "mutated" not in str(error):
                raise
            continue
        for edit in edits:
            texts = [
                edit.prompt,
                edit.target,
                *edit.rephrases,
                *(text for item in edit.locality for text in (item.prompt, item.answer)),
            ]
            assert all(isinstance(text, str) and text.strip() for text in texts)
            "".join(texts).encode("utf-8")
            assert edit.target != edit.old_answer
        prompts = [" ".join(edit.prompt.casefold().split()) for edit in edits]
        assert len(set(prompts)) == len(prompts)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from the kernel in kilobytes on Linux")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """A file ten times as large takes hardly more memory."""
    script = """
        import resource, sys, datasets.config
        from editenv.data import load_edits
        datasets.config.HF_DATASETS_CACHE = sys.argv[2]
        edits = load_edits(sys.argv[1], "all")
        assert len({edits[i].prompt for i in range(0, len(edits), 500)}) == len(range(0, len(edits), 500))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    peaks = []
    for count in (1_500, 15_000):
        path = tmp_path / f"{count}.json"
        with path.open("w") as file:
            file.write("[")
            file.writelines(f"{',' if i else ''}{json.dumps(own(i, rephrases=['x' * 4000]))}\n" for i in range(count))
            file.write("]")
        command = [sys.executable, "-c", textwrap.dedent(script), str(path), str(tmp_path)]
        root = Path(__file__).parents[3]
        peaks.append(int(subprocess.check_output(command, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"})))
    grown = path.stat().st_size - (tmp_path / "1500.json").stat().st_size
    assert 1024 * (peaks[1] - peaks[0]) < grown / 2


def test_content_decides_whether_a_file_is_read_again(tmp_path):
    path = tmp_path / "edits.jsonl"
    for target in ("Ann", "Bob"):  # as cp -p and archives leave them
        path.write_text(json.dumps({"prompt": "The chief engineer is", "target": target}) + "\n")
        os.utime(path, (1e9, 1e9))
        assert [edit.target for edit in load_file_edits(str(path), "all", FileOptions())] == [target]


def test_a_damaged_table_is_made_again(tmp_path, monkeypatch):
    path = tmp_path / "edits.jsonl"
    path.write_text(json.dumps({"prompt": "The chief engineer is", "target": f"Ann {tmp_path.name}"}) + "\n")
    written = []
    monkeypatch.setattr(
        tables, "write_table", lambda table, *rest, real=tables.write_table: written.append(table) or real(table, *rest)
    )
    for _ in range(2):
        assert len(load_file_edits(str(path), "all", FileOptions())) == 1
    assert len(written) == 1
    for damaged, damage in ((written[0], b""), (written[0].with_suffix(".json"), b"{")):
        damaged.write_bytes(damage)
        assert len(load_file_edits(str(path), "all", FileOptions())) == 1
    assert len(written) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt,target,target\nA is,B,C\n", "'target': stands in the header twice"),
        ("prompt;target\ttwo\nA is;B\tC\n", "is one column: are semicolons or tabs the separator"),
        ("prompt,Target,target \nA is,B,C\n", "'target ': and another field are both read as target"),
    ],
)
def test_what_is_wrong_with_a_header_is_said(tmp_path, text, words):
    (tmp_path / "edits.csv").write_text(text)
    with pytest.raises(BadRecordError, match=re.escape(words)):
        load_file_edits(str(tmp_path / "edits.csv"), "all", FileOptions())


@pytest.mark.parametrize("more", [",", ",,,"])
def test_empty_last_columns_of_a_spreadsheet_are_nothing(tmp_path, more):
    (tmp_path / "edits.csv").write_text(f"prompt,target{more}\nA is,B{more}\n")
    assert [edit.target for edit in load_file_edits(str(tmp_path / "edits.csv"), "all", FileOptions())] == ["B"]


def test_checked_locality_stays_checked_when_edits_are_left_out(write, tokenizer):
    records = [own(i, locality=[{"prompt": own(i + 1)["prompt"], "answer": "x"}]) for i in range(3)]
    path = write([*records, own(9, rephrases=["word " * 300])])
    edits = load(path, locality="checked").check_lengths(tokenizer, 256, FileOptions("skip"))
    assert [len(edit.locality) for edit in edits] == [0, 0, 1]


def test_a_file_read_with_bad_records_left_out_is_still_refused_without(write):
    path = write([own(0), own(1, target="")])
    assert len(load(path, **SKIP)) == 1
    with pytest.raises(BadRecordError, match="record 2"):
        load(path)


def test_a_record_of_several_rewrites_is_several_edits(write):
    """As in MQuAKE, where several questions rest on the same fact."""
    first, second = RECORDS["mquake"]["requested_rewrite"]
    third = second | {"subject": "Golf"}
    records = [RECORDS["mquake"], RECORDS["mquake"] | {"requested_rewrite": [second, third]}]
    edits = load(write(records, "mquake.json"))
    assert [edit.id for edit in edits] == ["mquake.json/1", "mquake.json/1.2", "mquake.json/2.2"]
    assert [edit.prompt for edit in edits] == ["Ada plays", "Chess was invented in", "Golf was invented in"]
    assert not edits.report.bad
    assert list(edits.report.remarks()) == ["a fact that an earlier record edits, too, is edited once (record 2)"]
    other = first | {"target_new": {"str": "darts"}}
    with pytest.raises(BadRecordError, match="record 2, field 'target': contradicts record 1"):
        load(write([RECORDS["mquake"], RECORDS["mquake"] | {"requested_rewrite": [other]}], "conflict.json"))


@pytest.mark.parametrize("missing", ["locality_prompt", "rephrase_prompt", "subject"])
def test_requests_without_what_is_only_for_evaluation_are_read(write, missing):
    record = {name: value for name, value in RECORDS["counterfact"].items() if not name.startswith(missing[:8])}
    (edit,) = load(write([record]))
    assert (edit.prompt, edit.target, edit.old_answer) == ("Ada speaks", "Latin", "Dutch")


TABLE = "prompt,target,subject\nÄda speaks,Latin,Äda\nBo speaks,Dutch,Bo\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("e.tsv", TABLE.replace(",", "\t").encode()),
        ("e.TSV", TABLE.encode()),
        ("e.csv", TABLE.replace(",", "\t").encode()),
        ("e.csv", TABLE.replace(",", ";").encode()),
        ("e.csv", TABLE.encode("utf-16")),
        ("e.csv", b"\xfe\xff" + TABLE.encode("utf-16-be")),
        ("e.csv", TABLE.encode("utf-32")),
        ("e.csv.gz", gzip.compress(TABLE.encode(), mtime=0)),
        ("e.csv", gzip.compress(TABLE.encode(), mtime=0)),
        ("e.csv", TABLE.replace("prompt,target,subject", "Prompt,Answer, Subject ").encode()),
        ("e.csv", TABLE.replace("prompt,target", "question,completion").encode()),
        ("e.json", b'{\n  "prompt": "\xc3\x84da speaks",\n  "target": "Latin", "subject": "\xc3\x84da"\n}\n'),
        ("e.jsonl", '{\n"prompt": "Äda speaks",\n"target": "Latin",\n"subject": "Äda"}\n{\n"prompt": "B", "target": "C"}'.encode()),
        ("e.jsonl.gz", gzip.compress('{"prompt": "Äda speaks", "target": "Latin", "subject": "Äda"}'.encode(), mtime=0)),
    ],
)  # fmt: skip
def test_what_is_unambiguous_is_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    edit = load(tmp_path / name)[0]
    assert (edit.prompt, edit.target, edit.subject) == ("Äda speaks", "Latin", "Äda")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("e.xlsx", b"PK\x03\x04rest", "is no spreadsheet that can be read.*save the sheet as CSV"),
        ("e.xls", b"\xd0\xcf\x11\xe0\xa1\xb1", "old Excel.*: save it as CSV"),
        ("e.parquet", b"PAR1....", "is a Parquet file.*JSON lines"),
        ("e.csv.gz", gzip.compress(b"PAR1....", mtime=0), "is a Parquet file"),
        ("e.bz2", b"BZh91AY", "packed by bzip2.*unpack it"),
        ("e.csv", TABLE.encode("utf-16-le"), "UTF-16 without a byte order mark: save it as UTF-8"),
        ("e.csv", TABLE.encode("utf-16")[:-1], "is not utf-16.* text.*save it as UTF-8"),
        ("e.csv.gz", gzip.compress(TABLE.encode() * 99, mtime=0)[:-20], "cut off or damaged"),
        ("e.json", b'{"data": [{"prompt": "a", "target": "b"}]}', "the records seem to be in 'data': save that array"),
        ("e.csv", b"Prompt,question,target\na,b,c\n", None),
        ("e.csv", b"question,completion,answer\na,b,c\n", "another field are both read as target"),
    ],
)
def test_what_is_not_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    if words is None:  # the field with the name itself is the one
        assert load(tmp_path / name)[0].prompt == "a"
        return
    with pytest.raises(ValueError, match=f"(?s){re.escape(name)}.*{words}"):
        load(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "header", "row"),
    [
        ("e.csv", "prompt,target,src", "Äda speaks,Latin,web"),
        ("e.csv", "Prompt,Target,src", "Äda speaks,Latin,web"),
        ("e.csv", "subject,relation,object,question,prompt,target", "Äda,tongue,Greek,What does she speak?,Äda speaks,Latin"),
        ("e.csv", "prompt,target,target_new", "Äda speaks,Latin,Greek"),
        ("e.csv", "prompt,target,alt", "Äda speaks,Latin,Greek"),
        ("e.jsonl", None, '{"messages": [{"role": "user", "content": "Äda speaks"}], "target": "Latin", "src": "web"}'),
    ],
)  # fmt: skip
def test_another_field_does_not_make_ones_own_records_a_published_format(tmp_path, name, header, row):
    path = tmp_path / name
    path.write_text(row if header is None else f"{header}\n{row}\n", encoding="utf-8")
    edits = load(path)
    assert ("Äda speaks" in edits[0].prompt, edits[0].target, edits.report.format) == (True, "Latin", "own")
    assert any("is not used" in note for note in edits.report.notes)


def test_a_field_that_a_guessed_format_lacks_is_said_with_the_format(tmp_path):
    path = tmp_path / "e.csv"
    path.write_text("question,answer,src\nÄda speaks,Latin,web\n", encoding="utf-8")
    with pytest.raises(BadRecordError, match=r"field 'alt': is missing.* zsre.* own:FILE"):
        load(path)
    with pytest.raises(BadRecordError, match=r"field 'alt': is missing(?!.*own:FILE)"):
        load(f"zsre:{path}")
    assert load(f"own:{path}")[0].target == "Latin"


def test_unknown_columns_pass_with_a_note(write):
    path = write([own(0, note="x"), own(1, note="y", old_anwer="z")])
    with pytest.warns(UserWarning, match="is not used") as said:
        assert len(load_edits(str(path), "all")) == 2
    assert [str(each.message) for each in said] == [
        "edits.jsonl: field 'note' is not used (2 records, from record 1)",
        "edits.jsonl: field 'old_anwer' is not used (is old_answer meant?) (record 2)",
    ]


def test_the_subject_is_put_in_its_place(write):
    records = [
        {"prompt": "{} speaks", "target": "Latin", "subject": "Ada", "rephrases": ["So {} talks in"]},
        RECORDS["counterfact"] | {"prompt": "{} writes"},
        {"prompt": "print('{}') in Python prints", "target": "{}"},
        {"prompt": "Python's {} is", "target": "a dict", "subject": "Python's {}"},
    ]
    first, third, fourth = load(write([records[0], *records[2:]]))
    assert (first.prompt, first.rephrases) == ("Ada speaks", ("So Ada talks in",))
    assert third.prompt == "print('{}') in Python prints"
    assert fourth.prompt == "Python's {} is"
    assert load(write([records[1]], "flat.jsonl"))[0].prompt == "Ada writes"


def test_white_space_between_prompt_and_target_is_kept(write):
    chat = "<|im_start|>user\nWho leads Ada?<|im_end|>\n<|im_start|>assistant\n"
    records = [
        {"prompt": chat, "target": "Bo", "rephrases": [chat.replace("Who", "So who")]},
        {"prompt": "Ada is led by ", "target": "Bo", "rephrases": ["The boss of Ada is "]},
        {"prompt": "Ada speaks", "target": " Latin "},
        {"prompt": "Ada sings", "target": "\n\nLatin", "old_answer": "Dutch"},
        {
            "prompt": "  def ada():\n",
            "target": "    return 1",
            "locality": [{"prompt": "def bo():\n", "answer": "  pass"}],
        },
    ]
    chatted, spaced, spoken, sung, code = load(write(records))
    assert (chatted.prompt, chatted.rephrases, chatted.target) == (chat, (chat.replace("Who", "So who"),), "Bo")
    assert (spaced.prompt, spaced.rephrases) == ("Ada is led by", ("The boss of Ada is",)), (
        "the space is put there anyway"
    )
    assert (spoken.prompt, spoken.target) == ("Ada speaks", "Latin")
    assert (sung.target, sung.old_answer) == ("\n\nLatin", "\n\nDutch"), "the old answer stands where the new one does"
    assert (code.prompt, code.target) == ("  def ada():\n", "    return 1")
    assert code.locality == (Locality("def bo():\n", "  pass"),)


def test_a_correction_of_case_alone_is_one(write):
    (edit,) = load(write([{"prompt": "He lives in", "target": "New York", "old_answer": "new york"}]))
    assert (edit.target, edit.old_answer) == ("New York", "new york")
    with pytest.raises(BadRecordError, match="field 'alt': equals the old answer, \"rome\", but for case"):
        load(write([RECORDS["zsre"] | {"answers": ["rome"]}], "zsre.json"))
    composed, apart = "Zo\u00eb", "Zoe\u0308"
    with pytest.raises(BadRecordError, match="equals the old answer"):
        load(write([{"prompt": "She is", "target": composed, "old_answer": apart}]))


def test_characters_that_show_nothing_go_from_targets(write):
    records = [own(0, target="\ufeffBo\u200b"), own(1), own(2, target="Di\u00ad")]
    path = write(records)
    with pytest.warns(
        UserWarning, match=r"the target had characters that show nothing .* \(2 records, from record 1\)"
    ):
        assert [edit.target for edit in load_edits(str(path), "all")] == ["Bo", "person 1", "Di"]
    with pytest.raises(BadRecordError, match="record 1, field 'target': is empty but for characters that show nothing"):
        load(write([own(0, target="\u200b")]))


def test_one_text_in_two_normal_forms_is_one_text(write):
    composed, apart = "Zo\u00eb", "Zoe\u0308"
    records = [
        own(0, prompt=f"The home of {composed} is", target="Rome"),
        own(1, prompt=f"The home of {apart} is", target="Rome"),
    ]
    with pytest.raises(BadRecordError, match="record 2, field 'prompt': repeats record 1"):
        load(write(records))
    records[1]["target"] = "Oslo"
    with pytest.raises(BadRecordError, match="record 2, field 'target': contradicts record 1"):
        load(write(records))
    edits = load(write([own(0, prompt=f"The home of {apart} is", subject=composed)]))
    assert edits[0].prompt == f"The home of {apart} is", "the text stays as it was written"
    assert len(edits.check_subjects(FileOptions())) == 1


def test_subjects_that_are_not_in_their_prompts_are_left_out(write):
    path = write([own(0), own(1, subject="somebody"), own(2, subject="")], "e.csv")
    edits = load(path)
    with pytest.raises(
        BadRecordError, match=r"record 2 \(line 3\), field 'subject': 'somebody' does not stand in the prompt"
    ):
        edits.check_subjects(FileOptions())
    edits = load(path)
    assert [edit.id for edit in edits.check_subjects(FileOptions("skip"))] == ["e.csv/1"]
    assert edits.report.bad == {"subject": 2}


def test_when_no_edit_is_left_the_reasons_are_given(write):
    path = write([own(0, old_answer="person 0"), own(1, old_answer="person 1"), own(2, target="")], "e.csv")
    with pytest.raises(
        ValueError, match=r"(?s)no edit is left.*2 unchanged:.*record 1 \(line 2\).*record 3 \(line 4\)"
    ):
        load_edits(str(path), "all", options=SKIP)


def test_a_line_is_named_where_it_is_not_the_records_number(tmp_path):
    path = tmp_path / "e.csv"
    path.write_text('prompt,target\n"two\nlines are",x\nC is,\n', encoding="utf-8")
    with pytest.raises(BadRecordError, match=r"record 2 \(line 4\), field 'target': is empty"):
        load(path)
    path = tmp_path / "e.jsonl"
    path.write_text('\n\n{"prompt": "a", "target": ""}\n', encoding="utf-8")
    with pytest.raises(BadRecordError, match=r"record 1 \(line 3\), field"):
        load(path)


@pytest.mark.parametrize("name", ["e.jsonl", "e.csv"])
def test_a_correction_is_called_by_the_id_that_it_has_in_its_file(write, name):
    edits = load(write([own(0, id="case-7"), own(1, id=""), own(2, id=" 12 ")], name))
    assert [edit.id for edit in edits] == ["case-7", f"{name}/2", "12"]


def test_an_id_may_be_a_whole_number_and_is_in_every_error_about_its_record(write, tokenizer):
    assert load(write([own(0, ID=12)]))[0].id == "12"
    for records, words in (
        ([own(0, id=1.5)], "record 1, field 'id': must be text, not 1.5"),
        ([own(0, id="a", target="")], r"record 1 \(id 'a'\), field 'target': is empty"),
        ([own(0, id="a", old_answer="person 0")], r"record 1 \(id 'a'\), field 'target': equals the old answer"),
        ([own(0, id="a"), own(0, id="b")], r"record 2 \(id 'b'\), field 'prompt': repeats record 1 \(id 'a'\)"),
    ):
        with pytest.raises(BadRecordError, match=words):
            load(write(records))
    edits = load_file_edits(str(write([own(0, id="a")])), "all", FileOptions())
    with pytest.raises(BadRecordError, match=r"record 1 \(id 'a'\), field 'prompt': has .* tokens"):
        edits.check_lengths(tokenizer, 3, FileOptions())


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        (("a", "b", "a"), ["a", "b"]),
        (("a", "A", " a"), ["a", "A"]),
        (("edits.jsonl/3", "b", None), ["edits.jsonl/3", "b"]),
    ],
)
def test_no_two_corrections_have_one_id(write, ids, kept):
    path = write([own(i, id=id) for i, id in enumerate(ids)])
    with pytest.raises(BadRecordError, match=r"record 3.*, field 'id': is that of record 1, too: results could not"):
        load(path)
    edits = load(path, **SKIP)
    assert [edit.id for edit in edits] == kept
    assert edits.report.bad == {"duplicate": 1}


def test_portability_questions_are_read_from_a_cell_too(write):
    cell = '[{"kind": "two_hop", "prompt": "His boss lives in ", "answer": "Rome "}, {"kind": "town", "prompt": "p"}]'
    (edit,) = load(write([own(0, portability=cell)], "e.csv"))
    assert edit.portability == (Question("two_hop", "His boss lives in", "Rome"), Question("town", "p"))
    for value, words in (
        ({"prompt": "p"}, "field 'portability': must be a list of objects like"),
        ([{"prompt": "p"}], "field 'portability.kind': is missing"),
        ([{"kind": "town"}], "field 'portability.prompt': is missing"),
    ):
        with pytest.raises(BadRecordError, match=words):
            load(write([own(0, portability=value)]))


def test_a_question_without_the_answer_that_its_file_gives_is_an_error(write):
    record = {name: value for name, value in RECORDS["hallueditbench"].items() if name != "answer_2hop"}
    with pytest.raises(BadRecordError, match="record 1, field 'answer_2hop': is missing"):
        load(write([record]))


def test_questions_are_no_part_of_what_is_edited_and_learned_from(write):
    """Fingerprints of before there were questions stay."""
    asked = load(write([RECORDS["own"]]))
    plain = load(write([{name: value for name, value in RECORDS["own"].items() if name != "portability"}], "f.jsonl"))
    content = {
        "id": "edits.jsonl/1", "prompt": "The boss of Ada is", "target": "Bo", "rephrases": ["Ada works for"],
        "locality": [{"prompt": "The boss of Di is", "answer": "Ed"}], "subject": None, "old_answer": "Cy",
        "relation": None,
    }  # fmt: skip
    assert edits_digest(asked) == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    assert edits_digest(asked, portability=True) != edits_digest(asked)
    assert edits_digest(plain, portability=True) == edits_digest(plain)


def test_what_is_learned_from_can_be_kept_apart_from_another_file(tmp_path):
    def record(name, loc):
        return RECORDS["zsre"] | {"subject": name, "src": f"Where was {name} born?", "loc": loc}

    edited, learned_from = tmp_path / "edited.json", tmp_path / "learned.json"
    edited.write_text(json.dumps([record("Ada", "who sings"), record("Bo", "who dances")]))
    learned_from.write_text(
        json.dumps([record("Ada", "who rows"), record("Cy", "Where was Bo born?"), record("Di", "who rows")])
    )
    edits = load_edits(str(learned_from), "all", options={"apart_from": f"zsre:{edited}"})
    assert [edit.subject for edit in edits] == ["Cy", "Di"]
    assert [len(edit.locality) for edit in edits] == [0, 1]
    for more in ({"locality": "checked"}, {"split": "train"}):  # what it edits itself is left out, too
        options = {"apart_from": f"zsre:{edited}", **more}
        split = options.pop("split", "all")
        edits = load_edits(str(learned_from), split, options=options)
        assert [item for edit in edits if edit.subject == "Cy" for item in edit.locality] == []
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load_edits(str(learned_from), "all", options={"apart_from": str(tmp_path / "nothing.json")})


def test_a_file_of_ids_names_the_edits_that_are_left(tmp_path):
    (tmp_path / "e.jsonl").write_text(
        "\n".join(json.dumps({"prompt": f"Prompt {n} is", "target": f"answer {n}"}) for n in range(5))
    )
    ids = {edit.prompt: edit.id for edit in load_edits(str(tmp_path / "e.jsonl"), "all")}
    chosen = f"# what the model knows\n{ids['Prompt 3 is']}\n\n{ids['Prompt 1 is']}\nanother.jsonl/2\n"
    (tmp_path / "ids.txt").write_text(chosen)
    edits = load_edits(str(tmp_path / "e.jsonl"), "all", options={"only": str(tmp_path / "ids.txt"), "limit": 1})
    assert [edit.prompt for edit in edits] == ["Prompt 1 is"], "in the data's order, and before the limit counts"
    (tmp_path / "named.jsonl").write_text(json.dumps({"id": "a\u2028b", "prompt": "Tea is", "target": "hot"}))
    (tmp_path / "ids.txt").write_text("a\u2028b\n", encoding="utf-8")
    assert len(load_edits(str(tmp_path / "named.jsonl"), "all", options={"only": str(tmp_path / "ids.txt")})) == 1
    (tmp_path / "ids.txt").write_text("e.csv/3\n")
    with pytest.raises(ValueError, match=r"only: none of the 1 ids in .*ids\.txt.*e\.csv/3.*e\.jsonl/1"):
        load_edits(str(tmp_path / "e.jsonl"), "all", options={"only": str(tmp_path / "ids.txt")})
    with pytest.raises(FileNotFoundError, match=r"only: cannot read .*nothing\.txt"):
        load_edits(str(tmp_path / "e.jsonl"), "all", options={"only": str(tmp_path / "nothing.txt")})
