"""Questions beyond the edit itself: negations, distractors, and what follows from the new fact.

All are made from the fact table and the phrasings. Their sentence forms are not in the text that the embedded model was
pre-trained on, which is why each figure stands beside the same question about what the model believed before.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from editenv.data.atlas import Fact, facts, phrasings
from editenv.data.edits import Edit

COPULAS = (" is", " is a", " is the")

# A place or a maker can be named through a relation; what is then asked about it is one hop further.
PLACES = {
    "country": "the country of {}",
    "located_in_territory": "the territory of {}",
    "location": "the location of {}",
    "work_location": "the city in which {} worked",
    "citizenship": "the country of citizenship of {}",
    "birthplace": "the birthplace of {}",
    "death_place": "the place of death of {}",
    "headquarters": "the place of the headquarters of {}",
    "country_of_origin": "the country of origin of {}",
    "formation_location": "the place in which {} was formed",
    "twin_city": "the twin city of {}",
    "capital": "the capital of {}",
}
MAKERS = {
    "manufacturer": "the manufacturer of {}",
    "developer": "the developer of {}",
    "employer": "the employer of {}",
    "owner": "the owner of {}",
}
ABOUT_PLACES = ("country", "continent", "capital", "official_language", "twin_city")
ABOUT_MAKERS = ("headquarters",)


@dataclass(frozen=True, slots=True)
class Probe:
    """One question.

    Attributes:
        edit: Index of the edit it belongs to.
        prompt: What is asked.
        answer: What the edit (or the old fact) would have the model say.
    """

    edit: int
    prompt: str
    answer: str


def negations(edits: Sequence[Edit]) -> list[Probe]:
    """ "The employer of X is not": the new answer is wrong here. For relations that have a phrasing with "is"."""
    probes = []
    for i, edit in enumerate(edits):
        forms = phrasings()[edit.relation or ""]
        for form in forms.prompts + forms.rephrases:
            copula = next((ending for ending in COPULAS if form.endswith(ending)), None)
            if copula:
                negated = form.removesuffix(copula) + copula.replace(" is", " is not", 1)
                probes.append(Probe(i, negated.format(edit.subject), edit.target))
                break
    return probes


def distractors(edits: Sequence[Edit]) -> list[Probe]:
    """Each locality prompt behind a statement of the edit, as in CounterFact+ (Hoelscher-Obermaier et al. 2023)."""
    return [
        Probe(i, f"{edit.prompt} {edit.target}. {item.prompt}", item.answer)
        for i, edit in enumerate(edits)
        for item in edit.locality
    ]


def consequences(edits: Sequence[Edit], hops: int, old: bool = False) -> list[Probe]:
    """What follows from an edit together with ``hops`` facts that no split edits: "The capital of the country of X is".

    Args:
        edits: Of the embedded world.
        hops: 1 or 2.
        old: What followed from the old facts instead, for comparison.
    """
    probes = []
    for i, edit in enumerate(edits):
        relation = edit.relation or ""
        if relation not in PLACES and relation not in MAKERS:
            continue
        paths = _follow((edit.old_answer or "") if old else edit.target, relation, hops)
        for path, answer in paths[:1]:
            name = (PLACES | MAKERS)[relation].format(edit.subject)
            for step in path[:-1]:
                name = PLACES[step].format(name)
            question = phrasings()[path[-1]].prompts[0].format(name)
            probes.append(Probe(i, question[0].upper() + question[1:], answer))
    return probes


def _follow(entity: str, relation: str, hops: int) -> list[tuple[tuple[str, ...], str]]:
    """Relations to go along from an entity, and where each path of them ends."""
    relations = ABOUT_PLACES if relation in PLACES else ABOUT_MAKERS
    facts_about = _unedited().get(entity, ())
    next_facts = [fact for fact in facts_about if fact.relation in relations and fact.relation != relation]
    if hops == 1:
        return [((fact.relation,), fact.object) for fact in next_facts]
    return [
        ((fact.relation, *path), answer)
        for fact in next_facts
        if fact.relation in PLACES
        for path, answer in _follow(fact.object, fact.relation, hops - 1)
    ]


@cache
def _unedited() -> dict[str, list[Fact]]:
    """Facts by subject that stay true in every split."""
    by_subject: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts():
        if fact.role.endswith("-locality"):
            by_subject[fact.subject].append(fact)
    return by_subject
