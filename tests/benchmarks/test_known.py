"""Which facts a model knows: asked of plain transformers, too."""

import json

import pytest
import torch

from benchmarks.known import Args, main
from editenv.data import load_edits
from editenv.models import load_model


@pytest.fixture
def records(tmp_path):
    facts = list(load_edits("atlas", "test"))[:6]
    lines = [
        {"prompt": fact.prompt, "target": fact.target, "old_answer": fact.old_answer if n % 2 else "Nowhere"}
        for n, fact in enumerate(facts)
    ]
    lines.append({"prompt": "Nobody knows what", "target": "this is"})
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_the_ids_are_those_of_facts_that_the_plain_model_says(records, tmp_path, capsys):
    out = tmp_path / "known.txt"
    main(Args(dataset=str(records), split="all", model="atlas", out=out))
    model, tokenizer = load_model("atlas")
    expected = []
    for edit in load_edits(str(records), "all"):
        ids = tokenizer(edit.prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            written = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        text = tokenizer.decode(written, skip_special_tokens=True).strip()
        if edit.old_answer and (text == edit.old_answer or text.startswith(f"{edit.old_answer} ")):
            expected.append(edit.id)
    assert 0 < len(expected) <= 3
    *about, rest = out.read_text().split("\n", 2)
    assert all(line.startswith("#") for line in about)
    assert rest.split() == expected
    assert f"{len(expected)} of 7 are known" in capsys.readouterr().out
    assert [e.id for e in load_edits(str(records), "all", options={"only": str(out)})] == expected


def test_data_without_old_answers_are_refused(tmp_path):
    (tmp_path / "facts.jsonl").write_text(json.dumps({"prompt": "Nobody knows what", "target": "this is"}))
    with pytest.raises(SystemExit, match=r"of 1 edits of .* there is none whose old answer atlas says"):
        main(Args(dataset=str(tmp_path / "facts.jsonl"), split="all", model="atlas", out=tmp_path / "known.txt"))
    assert not (tmp_path / "known.txt").exists()
