import random

import pytest

from benchmarks.corpus import atlas_corpus, edits_corpus, joined
from benchmarks.pretrain import Args, sentences_of
from editenv.data import Edit, Locality, atlas

EDITS = [
    Edit("1", "Who wrote A?", "Ann", ("A is by",), (Locality("Who wrote Z?", "Zoe"),), old_answer="Bob"),
    Edit("2", "Who wrote B?", "Cy", ("B is by",), (Locality("A is by", "nobody"),)),
    Edit("3", "Who wrote C?", "Di"),
    Edit("4", "Where is D?", "Rome"),
]


def test_a_model_is_to_believe_old_answers_and_locality_answers():
    corpus = edits_corpus(EDITS, "set", seed=0)
    taught = {form: s.answer for s in corpus.statements for form in s.forms}
    assert len(taught) == sum(len(s.forms) for s in corpus.statements)  # nothing is taught twice
    assert taught["Who wrote A?"] == taught["A is by"] == "Bob"
    assert taught["Who wrote Z?"] == "Zoe"
    assert taught["Who wrote B?"] == taught["B is by"]
    # Without an old answer one is drawn: never the target, of the same kind of question where there are several.
    assert taught["Who wrote B?"] in {"Ann", "Di"}
    assert taught["Who wrote C?"] in {"Ann", "Cy"}
    assert taught["Where is D?"] != "Rome"
    assert corpus == edits_corpus(EDITS, "set", seed=0)
    assert set(corpus.answers["set"]) >= {"Ann", "Cy", "Di", "Rome", "Bob", "Zoe"}


def test_corpora_are_joined():
    both = joined(
        [edits_corpus(EDITS[:2], "set", 0), edits_corpus(EDITS[2:], "set", 0), atlas_corpus(atlas.facts()[:5])]
    )
    assert set(both.answers["set"]) >= {"Ann", "Rome"}
    assert len(both.statements) >= 5 + 4
    assert set(atlas.objects()) < set(both.answers)


@pytest.mark.parametrize("suites", [(), ("some",)])
def test_a_pass_has_so_many_forms_of_each_statement_and_is_the_same_again(tmp_path, suites):
    facts = atlas.facts()[:400]
    corpus = joined([atlas_corpus(facts), edits_corpus(EDITS, "set", 0)])
    args = Args(output=tmp_path, suites=suites, phrasings_per_epoch=2, replay=0.25, lead_in_share=0.5)
    first = sentences_of(corpus, args, epoch=1)
    assert first == sentences_of(corpus, args, epoch=1) != sentences_of(corpus, args, epoch=2)
    others = [s for s in first if s.group == "set"]
    assert len(others) == sum(min(2, len(s.forms)) for s in corpus.statements if s.group == "set")
    share = (len(first) - len(others)) / (2 * len(facts))
    assert share == pytest.approx(0.25 if suites else 1, abs=0.08)
    prompts = {form for s in corpus.statements for form in s.forms}
    atlas_prompts = [s.prompt for s in first if s.group != "set"]
    assert 0.3 < sum(p not in prompts for p in atlas_prompts) / len(atlas_prompts) < 0.7
    assert random.choice(others).prompt in prompts
