import csv
import json
from collections import defaultdict
from pathlib import Path

import pytest

from editenv.data import atlas, load_edits

FOLDER = Path(atlas.__file__).parent
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def table():
    """The files, read without the package."""
    with (FOLDER / "facts.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def forms():
    return json.loads((FOLDER / "phrasings.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def splits():
    return {split: load_edits("atlas", split) for split in SPLITS}


@pytest.fixture(scope="module")
def asked(table, forms):
    """Every question that can be asked about a fact that is not edited: who it is about."""
    rows = defaultdict(list)
    for row in table:
        if row["role"].endswith("-locality"):
            for form in forms[row["relation"]]["prompts"] + forms[row["relation"]]["rephrases"]:
                rows[form.format(row["subject"])].append(row)
    return rows


def test_sizes(splits):
    assert len(splits["test"]) == 8000
    assert len(splits["validation"]) == 1000
    assert len(splits["train"]) >= 8000


def test_one_fact_per_subject_so_no_split_shares_one(table, splits):
    subjects = [row["subject"] for row in table]
    assert len(set(subjects)) == len(subjects)
    roles = {row["subject"]: row["role"] for row in table}
    for split, edits in splits.items():
        assert {edit.subject for edit in edits} == {subject for subject, role in roles.items() if role == split}


def test_subjects_are_the_same_in_no_spelling(table):
    by_spelling = defaultdict(set)
    for row in table:
        by_spelling[" ".join(row["subject"].casefold().split())].add(row["role"].removesuffix("-locality"))
    assert not {spelling for spelling, roles in by_spelling.items() if len(roles) > 1}


def test_nothing_asked_for_locality_is_edited_anywhere(splits, asked):
    edited = {edit.subject for edits in splits.values() for edit in edits}
    for split, edits in splits.items():
        for edit in edits:
            for item in edit.locality:
                rows = asked[item.prompt]
                assert rows, item.prompt
                assert all(row["subject"] not in edited and row["role"] == f"{split}-locality" for row in rows)
                assert item.answer in {row["object"] for row in rows}


@pytest.mark.parametrize("seed", [None, 7])
def test_every_edit_has_rephrases_and_locality_near_and_far(splits, asked, forms, table, seed):
    everything = load_edits("atlas", "train", seed) if seed else [e for edits in splits.values() for e in edits]
    facts = {row["subject"]: row for row in table}
    for edit in everything:
        fact, form = facts[edit.subject], forms[edit.relation]
        assert (edit.relation, edit.old_answer) == (fact["relation"], fact["object"])
        assert edit.prompt in [text.format(edit.subject) for text in form["prompts"]]
        assert len(set(edit.rephrases)) >= 2
        assert set(edit.rephrases) <= {text.format(edit.subject) for text in form["rephrases"]}
        assert edit.target != edit.old_answer
        assert len(edit.locality) >= 2
        rows = [row for item in edit.locality for row in asked[item.prompt]]
        assert edit.subject not in {row["subject"] for row in rows}
        assert edit.relation in {row["relation"] for row in rows}
        assert {row["relation"] for row in rows} != {edit.relation}


def test_the_near_locality_prompt_has_the_old_answer_where_the_split_has_one(splits, table):
    for split, edits in splits.items():
        answers = {(row["relation"], row["object"]) for row in table if row["role"] == f"{split}-locality"}
        near = [edit for edit in edits if (edit.relation, edit.old_answer) in answers]
        assert len(near) > len(edits) / 2
        assert all(edit.old_answer in {item.answer for item in edit.locality} for edit in near)


def test_canonical_targets_are_those_of_the_table(splits, table):
    counterfactuals = {row["subject"]: row["counterfactual"] for row in table}
    assert all(edit.target == counterfactuals[edit.subject] for edits in splits.values() for edit in edits)
    assert all(row["counterfactual"] != row["object"] for row in table)


def test_no_object_rules_its_relation(table):
    """Else answering it blindly would look like knowledge."""
    for relation in {row["relation"] for row in table}:
        names = [row["object"] for row in table if row["relation"] == relation]
        share = max(names.count(name) for name in set(names)) / len(names)
        assert share <= max(0.16, 1.7 / len(set(names))), relation


def test_phrasings(forms, table):
    assert {row["relation"] for row in table} <= set(forms)
    for relation, form in forms.items():
        texts = form["prompts"] + form["rephrases"]
        assert not set(form["prompts"]) & set(form["rephrases"]), relation
        assert len(set(texts)) == len(texts) >= 4, relation
        assert any(text.endswith("?") for text in texts), relation
        assert all(text.count("{}") == 1 and text == text.strip() for text in texts), relation
        assert len(form["rephrases"]) >= 2


def test_ids_are_unique_and_prompts_hold_their_subject(splits):
    everything = [edit for edits in splits.values() for edit in edits]
    assert len({edit.id for edit in everything}) == len(everything)
    assert all(edit.subject in text for edit in everything for text in (edit.prompt, *edit.rephrases))


def test_the_canonical_edits_are_always_the_same_and_mixed(splits):
    assert load_edits("atlas", "validation") == splits["validation"]
    assert len({edit.relation for edit in splits["test"][:50]}) > 8


def test_redrawing_changes_targets_within_the_relation_and_never_to_the_truth(splits, table):
    canonical = splits["train"]
    possible = defaultdict(set)
    for row in table:
        possible[row["relation"]] |= {row["object"], row["counterfactual"]}
    first, again, other = (load_edits("atlas", "train", seed) for seed in (1, 1, 2))
    assert first == again
    for redrawn in (first, other):
        assert {edit.subject for edit in redrawn} == {edit.subject for edit in canonical}
        assert all(edit.target in possible[edit.relation] - {edit.old_answer} for edit in redrawn)
    for a, b in ((canonical, first), (first, other)):
        targets = {edit.subject: edit.target for edit in a}
        assert sum(edit.target != targets[edit.subject] for edit in b) > len(b) / 2
    assert not {edit.id for edit in first} & {edit.id for edit in canonical}


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("seed", [0, 1])
def test_splits_for_reporting_refuse_a_seed(split, seed):
    with pytest.raises(ValueError, match=split):
        load_edits("atlas", split, seed)


def test_unknown_names_are_refused():
    with pytest.raises(FileNotFoundError, match="zsre"):
        load_edits("zsre", "train")
    with pytest.raises(ValueError, match="dev"):
        load_edits("atlas", "dev")
