import random

import pytest

from benchmarks.corpus import atlas_text, edits_text, join
from benchmarks.pretrain import Args, corpus
from editenv.data import Edit, Locality, atlas

EDITS = [
    Edit("1", "Who wrote A?", "Ann", ("A is by",), (Locality("Who wrote Z?", "Zoe"),), old_answer="Bob"),
    Edit("2", "Who wrote B?", "Cy", ("B is by",), (Locality("A is by", "nobody"),)),
    Edit("3", "Who wrote C?", "Di"),
    Edit("4", "Where is D?", "Rome"),
]


def test_a_model_is_to_believe_old_answers_and_locality_answers():
    text = edits_text(EDITS, "set", seed=0)
    told = {form: s.answer for s in text.statements for form in s.forms}
    assert len(told) == sum(len(s.forms) for s in text.statements)  # nothing is told twice
    assert told["Who wrote A?"] == told["A is by"] == "Bob"
    assert told["Who wrote Z?"] == "Zoe"
    assert told["Who wrote B?"] == told["B is by"]
    # Without an old answer one is drawn: never the target, of the same kind of question where there are several.
    assert told["Who wrote B?"] in {"Ann", "Di"}
    assert told["Who wrote C?"] in {"Ann", "Cy"}
    assert told["Where is D?"] != "Rome"
    assert text == edits_text(EDITS, "set", seed=0)
    assert set(text.answers["set"]) >= {"Ann", "Cy", "Di", "Rome", "Bob", "Zoe"}


def test_texts_are_joined():
    both = join([edits_text(EDITS[:2], "set", 0), edits_text(EDITS[2:], "set", 0), atlas_text(atlas.facts()[:5])])
    assert set(both.answers["set"]) >= {"Ann", "Rome"}
    assert len(both.statements) >= 5 + 4
    assert set(atlas.objects()) < set(both.answers)


@pytest.mark.parametrize("suites", [(), ("some",)])
def test_a_pass_has_so_many_forms_of_each_statement_and_is_the_same_again(tmp_path, suites):
    facts = atlas.facts()[:400]
    text = join([atlas_text(facts), edits_text(EDITS, "set", 0)])
    args = Args(output=tmp_path, suites=suites, phrasings_per_epoch=2, replay=0.25, lead_in_share=0.5)
    first = corpus(text, args, epoch=1)
    assert first == corpus(text, args, epoch=1) != corpus(text, args, epoch=2)
    others = [s for s in first if s.group == "set"]
    assert len(others) == sum(min(2, len(s.forms)) for s in text.statements if s.group == "set")
    share = (len(first) - len(others)) / (2 * len(facts))
    assert share == pytest.approx(0.25 if suites else 1, abs=0.08)
    prompts = {form for s in text.statements for form in s.forms}
    atlas_prompts = [s.prompt for s in first if s.group != "set"]
    assert 0.3 < sum(p not in prompts for p in atlas_prompts) / len(atlas_prompts) < 0.7
    assert random.choice(others).prompt in prompts
