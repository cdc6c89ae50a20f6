"""Builds the embedded world's fact table from a CSV of triples.

The package ships the result (``editenv/data/atlas/facts.csv``); this script is how it was made:

    python -m benchmarks.make_atlas --facts facts.csv --output editenv/data/atlas/facts.csv

Input columns are ``subject, relation, object, counterfactual`` (the last may be empty). Facts come from Wikidata (CC0)
through CounterFact (Meng et al. 2022, MIT). What is done to them:

* one fact per subject, so that no subject can be in two splits;
* no object may take more than ``max_share`` of its relation (the source has 641 Antarcticas among 909 continents),
  unless the relation has too few objects for that;
* each fact is given a role: edited in the test, validation or training split, or asked about as a locality prompt of
  one of them. Roles are dealt within each (relation, object) group, so that every split sees the same mixture and an
  edit usually finds a locality fact with its own old answer;
* the source's counterfactual is the edit target where there is one, otherwise another object of the relation is drawn.
"""

import csv
import random
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import tyro

Row = dict[str, str]
"""A fact: the input's columns, and later its role."""

PRIORITY = ("test", "validation", "train", "test-locality", "validation-locality", "train-locality")
"""Roles, those that are reported first."""

LEAST_TRAINING_EDITS = 8000

COLUMNS = ("subject", "relation", "object", "counterfactual", "role")


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        facts: CSV of triples: subject, relation, object, counterfactual.
        output: Where the fact table is written.
        max_share: Largest share of one object within its relation.
        test: Edits of the test split.
        validation: Edits of the validation split.
        locality: Locality facts kept aside for the test, validation and training split; the rest are training edits.
        seed: Of everything that is drawn.
    """

    facts: Path
    output: Path
    max_share: float = 0.15
    test: int = 8000
    validation: int = 1000
    locality: tuple[int, int, int] = (2000, 600, 1600)
    seed: int = 0


def one_fact_per_subject(rows: list[Row], rng: random.Random) -> list[Row]:
    """One fact of each subject, drawn from all it has."""
    by_subject: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_subject[row["subject"]].append(row)
    return [rng.choice(group) for group in by_subject.values()]


def balance(rows: list[Row], max_share: float, rng: random.Random) -> list[Row]:
    """The rows without the surplus of objects that take more than their share of a relation.

    Args:
        rows: All facts.
        max_share: Largest share of an object; larger where a relation has too few objects for that.
        rng: Draws which rows are dropped.
    """
    by_relation: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_relation[row["relation"]].append(row)
    balanced = []
    for group in by_relation.values():
        counts = Counter(row["object"] for row in group)
        share = max(max_share, 1.6 / len(counts))
        # Cutting an object makes the relation smaller, and with it what a share of it is.
        cap = max(counts.values())
        while cap > 1 and cap > share * sum(min(n, cap) for n in counts.values()):
            cap -= 1
        rng.shuffle(group)
        of_object: Counter[str] = Counter()
        for row in group:
            if of_object[row["object"]] < cap:
                of_object[row["object"]] += 1
                balanced.append(row)
    return balanced


def deal_roles(rows: list[Row], args: Args, rng: random.Random) -> None:
    """Shuffles within (relation, object), then deals roles at a constant rate along the whole list.

    Args:
        rows: All facts; they are put in another order, and each gets its ``role``.
        args: How many there are of each role.
        rng: Of the order.

    Raises:
        SystemExit: If too few facts are left for training.
    """
    sizes = {
        "test": args.test,
        "validation": args.validation,
        "test-locality": args.locality[0],
        "validation-locality": args.locality[1],
        "train-locality": args.locality[2],
    }
    sizes["train"] = len(rows) - sum(sizes.values())
    if sizes["train"] < LEAST_TRAINING_EDITS:
        raise SystemExit(f"{len(rows)} facts are left after balancing, which leaves {sizes['train']} training edits")
    rng.shuffle(rows)
    rows.sort(key=lambda row: (row["relation"], row["object"]))
    dealt: Counter[str] = Counter()
    for i, row in enumerate(rows):
        # The role that lags furthest behind its even pace takes the fact (random ties would clump small groups).
        pace = (i + 1) / len(rows)
        open_roles = [role for role in sizes if dealt[role] < sizes[role]]
        row["role"] = max(open_roles, key=lambda role: sizes[role] * pace - dealt[role])
        dealt[row["role"]] += 1
    # Within a group, the source's own counterfactuals go to the splits that are reported.
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["relation"], row["object"]].append(row)
    for group in groups.values():
        roles = sorted((row["role"] for row in group), key=PRIORITY.index)
        group.sort(key=lambda row: row["counterfactual"] == "")
        for row, role in zip(group, roles, strict=True):
            row["role"] = role


def drop_other_spellings(rows: list[Row]) -> list[Row]:
    """Of subjects that differ only in case, the one whose role is reported stays."""
    first_spelling: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: PRIORITY.index(row["role"])):
        first_spelling.setdefault(row["subject"].casefold(), row)
    return [row for row in rows if first_spelling[row["subject"].casefold()] is row]


def main(args: Args) -> None:
    """Builds the table and says how many facts have each role.

    Raises:
        SystemExit: If too few facts are left for training.
    """
    rng = random.Random(args.seed)
    with args.facts.open(encoding="utf-8", newline="") as file:
        source = list(csv.DictReader(file))
    rows = balance(one_fact_per_subject(source, rng), args.max_share, rng)
    deal_roles(rows, args, rng)
    objects: dict[str, list[str]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["relation"], row["object"])):
        if row["object"] not in objects[row["relation"]]:
            objects[row["relation"]].append(row["object"])
    for row in rows:
        if row["counterfactual"] in ("", row["object"]):
            row["counterfactual"] = rng.choice([o for o in objects[row["relation"]] if o != row["object"]])
    rows = drop_other_spellings(rows)
    rows.sort(key=lambda row: (row["relation"], row["subject"]))
    with args.output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(
        f"{len(rows)} facts: "
        + ", ".join(f"{n} {role}" for role, n in sorted(Counter(r["role"] for r in rows).items()))
    )


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
