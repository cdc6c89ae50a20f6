import pytest
import torch

from editenv.data import Edit, Locality, atlas, load_edits
from editenv.data.atlas.probes import ABOUT_MAKERS, ABOUT_PLACES, MAKERS, PLACES, consequences, distractors, negations
from editenv.evaluation.probes import probe
from editenv.language_model.editable_lm import EditableLM
from editenv.models import load_model


@pytest.fixture(scope="module")
def edits():
    return load_edits("atlas", "test")


def test_negations_say_not_and_nothing_else_new(edits):
    probes = negations(edits)
    assert len(probes) > len(edits) / 2
    for p in probes:
        edit = edits[p.edit]
        forms = atlas.phrasings()[edit.relation]
        assert p.answer == edit.target
        assert p.prompt.replace(" is not", " is", 1) in {
            f.format(edit.subject) for f in forms.prompts + forms.rephrases
        }


def test_distractors_state_the_edit_first(edits):
    probes = distractors(edits[:5])
    assert len(probes) == 10
    assert probes[0].prompt == f"{edits[0].prompt} {edits[0].target}. {edits[0].locality[0].prompt}"


@pytest.mark.parametrize("hops", [1, 2])
@pytest.mark.parametrize("old", [False, True])
def test_consequences_follow_facts_that_nobody_edits(edits, hops, old):
    table = {}
    for fact in atlas.facts():
        if fact.role.endswith("-locality"):
            table.setdefault((fact.subject, fact.relation), fact.object)
    probes = consequences(edits, hops, old)
    assert probes
    relations = {*ABOUT_PLACES, *ABOUT_MAKERS}
    for p in probes:
        edit = edits[p.edit]
        assert edit.relation in PLACES or edit.relation in MAKERS
        assert edit.subject in p.prompt
        ends = {edit.old_answer if old else edit.target}
        for _ in range(hops):
            ends = {table[end, relation] for end in ends for relation in relations if (end, relation) in table}
        assert p.answer in ends


def test_a_consequence_by_hand():
    """France's capital, continent and the like are asked of whoever is now said to be from there."""
    countries = [f for f in atlas.facts() if f.relation == "official_language" and f.role.endswith("-locality")]
    fact = countries[0]
    edit = Edit("x", "Ada was born in", fact.subject, subject="Ada", relation="birthplace", old_answer="nowhere")
    (question,) = [p for p in consequences([edit], 1) if p.answer == fact.object]
    assert question.prompt == "The official language of the birthplace of Ada is"
    assert consequences([edit], 1, old=True) == []


def test_figures_of_the_embedded_model(edits):
    lm = EditableLM(*load_model("atlas"), ("layers.3.mlp.down_proj",))
    figures = probe(lm, edits[:120])
    assert figures["distractor"] == 100  # nothing was edited
    assert figures["negation"] > 90  # nor is the new answer said
    assert figures["one_hop_questions"] == len(consequences(edits[:120], 1)) > 0
    (name,) = lm.modules
    lm.apply({name: 5 * torch.randn(lm.shape(name), generator=torch.Generator().manual_seed(0))})
    broken = probe(lm, edits[:120])
    assert broken["distractor"] < 50
    assert broken["negation_before"] == figures["negation_before"]


def test_what_cannot_be_asked_is_none():
    edit = Edit("x", "p", "t", subject="s", old_answer="o", relation="sport", locality=(Locality("q", "a"),))
    lm = EditableLM(*load_model("atlas"), ("layers.3.mlp.down_proj",))
    figures = probe(lm, [edit])
    assert figures["one_hop"] is None
    assert figures["two_hop_questions"] == 0
