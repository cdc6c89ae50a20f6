"""The demo on a model that does not stop after an answer, with a tiny one in place of the public model."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agents.registry import make_agent
from benchmarks import demo
from benchmarks.results.records import read
from benchmarks.suites import find
from editenv.models.modules import find_modules

REAL = "demo-real-10x20"


def test_the_rows_of_the_real_demo_edit_modules_that_its_model_has():
    """SmolLM2-135M has 30 layers of Llama; without memory, and as narrow as can be."""
    config = LlamaConfig(vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=30, num_attention_heads=2)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    suite = find(REAL)
    assert suite.batches * suite.edits_per_step == 200
    assert demo.rows_of(suite)[0] == "no-edit"
    for name in demo.rows_of(suite)[1:]:
        environment = make_agent(name).environment
        assert find_modules(model, environment["modules"]), name


def test_it_runs_and_explains_itself(tmp_path, monkeypatch, model_folder, capsys):
    rows = ("no-edit", "fine-tune")
    small = replace(
        find(REAL), batches=1, edits_per_step=2, split="validation", agents=rows, modules=("layers.2.mlp.down_proj",)
    )
    monkeypatch.setattr(demo, "find", lambda name: small if name == REAL else find(name))
    demo.main(demo.Args(out=tmp_path, suite=REAL, model=model_folder))
    shown = capsys.readouterr().out
    assert "2 facts now become false" in shown
    assert "begins right" in shown
    assert "generation" not in shown
    assert "SmolLM2-135M-Instruct is a language model of 135 M parameters" in demo.introduction(find(REAL), 134_515_008)
    assert "21,546 facts. 1,000 of them" in demo.introduction(find("atlas-50x20"), 12_000_000).replace("\n", " ")
    assert all(len(line) <= 80 for line in shown.splitlines() if "Saved" not in line and "s, " not in line)
    records = read(tmp_path / "results.jsonl")
    assert [record.agent for record in records] == list(rows)
    assert all(record.generation_prefix is not None and record.edits == 2 for record in records)
    assert (tmp_path / "retention.png").stat().st_size > 0


def test_what_cannot_be_had_is_told_in_a_line(tmp_path):
    with pytest.raises(SystemExit, match="demo: unknown suite 'no-such'"):
        demo.main(demo.Args(out=tmp_path / "out", suite="no-such"))
    with pytest.raises(SystemExit, match=r"demo: there is no model folder \./nowhere"):
        demo.main(demo.Args(out=tmp_path / "out", suite=REAL, model="./nowhere"))
    assert not (tmp_path / "out").exists()
