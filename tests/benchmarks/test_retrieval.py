import json
from dataclasses import asdict

import pytest

pytest.importorskip("sklearn")
from benchmarks.retrieval import WITH_PACKAGE, WITH_TRAINING, Args, Found, Learned, as_markdown, found, main
from editenv.data import Edit, Locality


def edit(prompt, rephrase, outside):
    return Edit(prompt, prompt, "Ulm", rephrases=(rephrase,), locality=(Locality(outside, "Bonn"),))


EDITS = [
    edit("the home of Ada", "where Ada lives", "the home of Eve"),
    edit("the job of Bob", "what Bob does", "the hat of Bob"),
]


def test_what_is_found_is_that_of_shares_by_hand():
    """Of "the home of Ada" the two keys share "the" and "of", so that w = 1 for them, and (1 + ln 2)^2 = 2.87 for the
    others: "where Ada lives" has 2.87 / 7.73 = 0.37 of it, "the home of Eve" 4.87 / 7.73 = 0.63.
    """
    learned = Learned({}, ())
    at = {
        threshold: found([EDITS], learned, Args("smoke", thresholds=(threshold,), retrievers=("words",)))
        for threshold in (0.3, 0.5, 0.62, 0.64)
    }
    assert at[0.3] == [Found("words", 2, 0.3, 100.0, 0.0)]
    assert at[0.5] == [Found("words", 2, 0.5, 0.0, 0.0)]
    assert at[0.62] == [Found("words", 2, 0.62, 0.0, 0.0)]
    assert at[0.64] == [Found("words", 2, 0.64, 0.0, 100.0)]


def test_a_background_tells_which_words_are_rare():
    """The 98 have all words of the keys but the names, so that a name has (1 + ln 100)^2 = 31.4 of 34.4."""
    learned = Learned.of([Edit("1", "the home of my job", "Ulm")] * 98, ("words",))
    plain, _, informed = found([EDITS], learned, Args("smoke", thresholds=(0.9,), retrievers=("words",)))
    assert plain == Found("words", 2, 0.9, 0.0, 100.0)
    assert informed == Found("words" + WITH_TRAINING, 2, 0.9, 100.0, 50.0)  # "the hat of Bob" has Bob


def test_contexts_of_one_edit_do_not_confuse_two():
    args = Args("smoke", thresholds=(0.2,), retrievers=("words",))
    apart = found([[EDITS[0]], [EDITS[1]]], Learned({}, ()), args)
    assert apart == [Found("words", 1, 0.2, 100.0, 0.0)]


def test_edits_without_questions_have_no_figures():
    args = Args("smoke", retrievers=("words",))
    assert found([[Edit("1", "the home of Ada", "Ulm")]], Learned({}, ()), args) == [Found("words", 1, 0.5, None, None)]


def test_a_retriever_that_has_no_such_threshold_has_a_dash():
    figures = [Found("words", 10, 0.4, 92.5, None), Found("words", 10, 0.5, 85.71, 79.0), Found("scope", 10, 0.5, 1, 2)]
    rows = as_markdown(figures).splitlines()
    assert [row.strip("| ") for row in rows[2:]] == [
        "10 | 0.4 | 92.5 / - | -",
        "10 | 0.5 | 85.7 / 79.0 | 1.0 / 2.0",
    ]


def test_a_suite_is_asked(tmp_path, capsys):
    names = [
        f"{a}{b}" for a in ("Alder", "Beech", "Cedar", "Hazel") for b in ("ton", "ham", "by", "wick", "ford", "ley")
    ]
    records = [
        {
            "prompt": f"The mayor of {name} is called",
            "target": f"Tom {name[::-1]}",
            "subject": name,
            "rephrases": [f"Who runs {name}? It is"],
            "locality": [{"prompt": f"The mayor of {name}sea is called", "answer": "Kim"}],
        }
        for name in names
    ]
    (tmp_path / "mayors.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    suite = {
        "name": "mayors",
        "batches": 1,
        "edits_per_step": 2,
        "model": "atlas",
        "dataset": "{data}/mayors.jsonl",
        "split": "train",
    }
    (tmp_path / "mayors.json").write_text(json.dumps(suite))
    asked = Args(str(tmp_path / "mayors.json"), edits=(2, 4), out=tmp_path / "figures.json")
    main(asked)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith(
        "| edits | threshold | words | words with the package's texts | words with training edits |"
    )
    figures = [Found(**row) for row in json.loads((tmp_path / "figures.json").read_text())]
    assert {(one.edits, one.retriever) for one in figures} == {
        (edits, name)
        for edits in (2, 4)
        for name in ("scope", *(f"{t}{b}" for t in ("words", "characters") for b in ("", WITH_PACKAGE, WITH_TRAINING)))
    }
    assert all(asdict(one)["rephrases"] == 100 for one in figures if "training" in one.retriever)

    with pytest.raises(SystemExit, match="edits: 1,000 are asked for in a context, and mayors-v1 has"):
        main(Args(str(tmp_path / "mayors.json")))


@pytest.mark.parametrize("empty", ["edits", "thresholds", "retrievers"])
def test_nothing_to_measure_is_refused(empty):
    with pytest.raises(ValueError, match=f"{empty}: name one at least"):
        Args("smoke", **{empty: ()})


def test_an_unknown_suite_ends_the_command():
    with pytest.raises(SystemExit, match="smokee"):
        main(Args("smokee"))
