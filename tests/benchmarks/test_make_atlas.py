import csv
import random
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.make_atlas import Args, balance, deal_roles, main, one_fact_per_subject


def make_rows(sizes, relation="r"):
    return [
        {"subject": f"{relation}{name}{i}", "relation": relation, "object": name, "counterfactual": ""}
        for name, size in sizes.items()
        for i in range(size)
    ]


def test_one_fact_per_subject():
    source = make_rows({"a": 5}) + make_rows({"b": 5}) + [{"subject": "ra0", "relation": "s", "object": "x"}]
    kept = one_fact_per_subject(source, random.Random(0))
    assert Counter(row["subject"] for row in kept) == Counter({row["subject"] for row in source})


def test_balance_caps_common_objects_and_keeps_rare_ones():
    sizes = {"common": 500, **{f"o{i}": 40 for i in range(20)}, "rare": 1}
    kept = Counter(row["object"] for row in balance(make_rows(sizes), 0.15, random.Random(0)))
    assert kept["common"] / kept.total() <= 0.15
    assert (kept["common"] + 1) / (kept.total() + 1) > 0.15  # no more was dropped than had to be
    assert all(kept[name] == size for name, size in sizes.items() if name != "common")


def test_roles_are_dealt_evenly_and_counterfactuals_go_to_the_reported_splits():
    rows = make_rows({f"o{i}": 500 for i in range(50)})
    for row in rows[::3]:
        row["counterfactual"] = "given"
    args = Args(facts=Path(), output=Path(), test=8000, validation=1000, locality=(2000, 600, 1600))
    deal_roles(rows, args, random.Random(0))
    counts = Counter(row["role"] for row in rows)
    assert counts == {
        "test": 8000, "validation": 1000, "test-locality": 2000, "validation-locality": 600,
        "train-locality": 1600, "train": 11800,
    }  # fmt: skip
    of_an_object = Counter((row["object"], row["role"]) for row in rows)
    for role, count in counts.items():
        assert max(abs(of_an_object[f"o{i}", role] - count / 50) for i in range(50)) < 6, role
    with_counterfactual = Counter(row["role"] for row in rows if row["counterfactual"])
    assert with_counterfactual["test"] > 0.9 * 8000
    assert with_counterfactual["train-locality"] == 0


def test_too_few_facts_are_refused():
    with pytest.raises(SystemExit, match="training edits"):
        deal_roles(make_rows({"a": 14_000}), Args(facts=Path(), output=Path()), random.Random(0))


def test_the_same_seed_makes_the_same_table(tmp_path):
    source = [row for i in range(5) for row in make_rows({f"o{j}": 600 for j in range(8)}, f"r{i}")]
    with (tmp_path / "facts.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["subject", "relation", "object", "counterfactual"])
        writer.writeheader()
        writer.writerows(source)
    tables = []
    for seed in (0, 0, 1):
        output = tmp_path / "out.csv"
        main(Args(tmp_path / "facts.csv", output, test=100, validation=50, locality=(40, 30, 20), seed=seed))
        tables.append(output.read_text())
    assert tables[0] == tables[1] != tables[2]
    rows = list(csv.DictReader(tables[0].splitlines()))
    assert len({row["subject"] for row in rows}) == len(rows)
    assert all(row["counterfactual"] not in ("", row["object"]) for row in rows)
