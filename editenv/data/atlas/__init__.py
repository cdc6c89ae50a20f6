"""Atlas: the embedded world. 21,546 real facts with our own phrasings, cut into splits that share no subject.

Facts are Wikidata triples as collected by CounterFact (see ``benchmarks/make_atlas.py`` for how the table was made).
Each relation has six phrasings: three may be edit prompts, three are only ever rephrases; two of the six are questions.
"""

import csv
import json
import random
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from importlib import resources

from editenv.data.edits import Edit, Locality

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Fact:
    """A triple, the counterfactual object an edit asks for, and the part it plays.

    ``role`` is ``"<split>"`` for a fact that is edited in that split and ``"<split>-locality"`` for one that is asked
    about as a locality prompt.
    """

    subject: str
    relation: str
    object: str
    counterfactual: str
    role: str


@dataclass(frozen=True, slots=True)
class Phrasings:
    """The sentence templates of one relation; ``{}`` stands for the subject and the object follows the end."""

    prompts: tuple[str, ...]
    rephrases: tuple[str, ...]


@cache
def facts() -> tuple[Fact, ...]:
    """The whole fact table, in file order (by relation, then subject)."""
    text = resources.files(__package__).joinpath("facts.csv").read_text(encoding="utf-8")
    return tuple(Fact(**row) for row in csv.DictReader(text.splitlines()))


@cache
def phrasings() -> dict[str, Phrasings]:
    """Templates by relation."""
    table = json.loads(resources.files(__package__).joinpath("phrasings.json").read_text(encoding="utf-8"))
    return {name: Phrasings(tuple(row["prompts"]), tuple(row["rephrases"])) for name, row in table.items()}


@cache
def objects() -> dict[str, tuple[str, ...]]:
    """Every object a relation can take, true or counterfactual, sorted."""
    names: dict[str, set[str]] = defaultdict(set)
    for fact in facts():
        names[fact.relation] |= {fact.object, fact.counterfactual}
    return {relation: tuple(sorted(group)) for relation, group in names.items()}


def load_edits(split: str, seed: int | None = None) -> list[Edit]:
    """The edits of one split, in a fixed order that mixes the relations.

    Args:
        split: ``"train"`` (8,350 edits), ``"validation"`` (1,000) or ``"test"`` (8,000).
        seed: With a seed, targets and phrasings are drawn anew (targets within the relation, never the true object), so
            that training edits never run out. ``None`` gives the canonical edits. Only the training split may be
            redrawn: the other two are for reporting.

    Raises:
        ValueError: For an unknown split, or a seed with a split that is for reporting.
    """
    if split not in SPLITS:
        raise ValueError(f"atlas has no split {split!r}; it has {', '.join(SPLITS)}")
    if seed is not None and split != "train":
        raise ValueError(f"only atlas' training split can be redrawn with a seed, not {split!r}")
    return list(_canonical(split) if seed is None else _drawn(split, seed))


@cache
def _canonical(split: str) -> tuple[Edit, ...]:
    """Made once: each environment and each run asks for them again, and 8,000 edits take a fifth of a second."""
    return tuple(_drawn(split, None))


def _drawn(split: str, seed: int | None) -> list[Edit]:
    """The edits of a split with the targets and phrasings of a seed."""
    rng = random.Random(f"atlas/{split}/{seed}")
    edited = [fact for fact in facts() if fact.role == split]
    bystanders = [fact for fact in facts() if fact.role == f"{split}-locality"]
    same_answer: dict[tuple[str, str], list[Fact]] = defaultdict(list)
    same_relation: dict[str, list[Fact]] = defaultdict(list)
    for fact in bystanders:
        same_answer[fact.relation, fact.object].append(fact)
        same_relation[fact.relation].append(fact)
    random.Random(f"atlas/{split}").shuffle(edited)

    edits = []
    for i, fact in enumerate(edited):
        forms = phrasings()[fact.relation]
        target = fact.counterfactual
        if seed is not None:
            target = rng.choice([name for name in objects()[fact.relation] if name != fact.object])
        # The hardest bystander first: same relation and old answer where the split has one, then any other relation.
        near = same_answer.get((fact.relation, fact.object)) or same_relation[fact.relation]
        other = rng.choice(bystanders)
        while other.relation == fact.relation:
            other = rng.choice(bystanders)
        edits.append(
            Edit(
                id=f"atlas/{split}/{i}" if seed is None else f"atlas/{split}/{seed}/{i}",
                prompt=rng.choice(forms.prompts).format(fact.subject),
                target=target,
                rephrases=tuple(form.format(fact.subject) for form in rng.sample(forms.rephrases, 2)),
                locality=tuple(_locality_prompt(bystander, rng) for bystander in (rng.choice(near), other)),
                subject=fact.subject,
                old_answer=fact.object,
                relation=fact.relation,
            )
        )
    return edits


def possible_prompts(split: str) -> set[str]:
    """Every prompt that an edit of the split may be drawn with."""
    edited = [fact for fact in facts() if fact.role == split]
    return {form.format(fact.subject) for fact in edited for form in phrasings()[fact.relation].prompts}


def possible_targets() -> set[str]:
    """Every target that may be drawn."""
    return {name for group in objects().values() for name in group}


def _locality_prompt(fact: Fact, rng: random.Random) -> Locality:
    """A fact that must stay, in any of its phrasings."""
    forms = phrasings()[fact.relation]
    return Locality(rng.choice(forms.prompts + forms.rephrases).format(fact.subject), fact.object)
