"""What a memory costs at query time: that it is the memory that is timed and counted."""

import json

import pytest

from benchmarks import query_cost
from benchmarks.query_cost import Args, main
from editenv.contexts import Context
from editenv.memories import apply


@pytest.fixture
def tiny(monkeypatch, small_world, model_folder):
    """The command's options on the tiny model, whose edited module has to be named."""
    from editenv.env import LifelongEditEnv

    monkeypatch.setattr(
        query_cost, "LifelongEditEnv", lambda **given: LifelongEditEnv(**given, modules=["layers.2.mlp.down_proj"])
    )
    return lambda *methods, **options: Args(methods, model=model_folder, edits_per_step=2, questions=3, **options)


def test_the_memory_is_counted_and_asked_with_and_without(tiny, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "editenv.memories.apply", lambda memory, *rest: calls.append(len(memory)) or apply(memory, *rest)
    )
    out = tmp_path / "cost.json"
    main(tiny("grace", "no-edit", edits=(2, 6), tokens=2, out=out))
    first, second, *none = json.loads(out.read_text())
    assert (first["edits"], second["edits"]) == (2, 6)
    assert 0 < first["entries"] < second["entries"]
    assert second["megabytes"] == pytest.approx(second["entries"] * (64 + 32 + 1) * 4 / 1e6)
    assert min(first["milliseconds"], first["milliseconds_without"]) > 0
    assert [row["entries"] for row in none] == [0, 0]
    asked = [entries for entries in calls if entries == second["entries"]]
    assert len(asked) >= 2 * 3 * 2, "two turns of three questions of two tokens"


def test_a_context_is_counted_and_looked_up_for_each_question(tiny, tmp_path, monkeypatch):
    looked_up = []
    before = Context.before
    monkeypatch.setattr(Context, "before", lambda context, asked: looked_up.append(asked) or before(context, asked))
    out = tmp_path / "cost.json"
    main(tiny("rag", edits=(2, 6), tokens=2, out=out))
    first, second = json.loads(out.read_text())
    assert (first["entries"], second["entries"]) == (2, 6)
    assert 0 < first["megabytes"] < second["megabytes"] < 0.01
    three = looked_up[-3:]
    assert looked_up[-6:] == three * 2, "in both turns, one at a time"
    assert all(len(asked) == 1 for asked in three)


def test_a_suite_brings_its_model_its_records_and_its_options(model_folder, tmp_path):
    records = [
        {"prompt": f"The river {name} flows through", "target": target, "subject": name}
        for name, target in [(f"Wenn{n}", f"Ham{n}") for n in range(40)]
    ]
    records.append({**records[0], "target": "Ulm"})  # one that contradicts another: refused, if no option says so
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    suite = {
        "name": "mine",
        "batches": 2,
        "edits_per_step": 2,
        "model": model_folder,
        "modules": ["layers.2.mlp.down_proj"],
        "dataset": "{data}/facts.jsonl",
    }
    out = tmp_path / "cost.json"

    def run(**options):
        (tmp_path / "mine.json").write_text(json.dumps(suite | {"split": "validation"} | options))
        main(Args(("rag",), suite=str(tmp_path / "mine.json"), edits=(2,), edits_per_step=2, questions=2, out=out))

    with pytest.raises(SystemExit, match="contradicts"):
        run()
    run(options={"bad_records": "skip"})
    (cost,) = json.loads(out.read_text())
    assert cost["entries"] == 2
    with pytest.raises(ValueError, match="data: is the folder of a suite's data sets"):
        Args(("rag",), data=tmp_path)
    with pytest.raises(ValueError, match="suite: has a model and a data set of its own"):
        Args(("rag",), suite="smoke", model=model_folder)


def test_numbers_of_edits_are_checked(tiny):
    with pytest.raises(ValueError, match="edits: must be different positive numbers in rising order"):
        tiny("grace", edits=(6, 2))
    with pytest.raises(SystemExit, match=r"edits: 99 are asked for, and atlas/validation has 10"):
        main(tiny("grace", edits=(99,)))
