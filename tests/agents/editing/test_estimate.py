"""What is said before a long run starts, and while it goes on where nobody sees a bar."""

import json
import time

import pytest

from agents import cli
from agents.editing import display, edit_command, estimate
from agents.editing.arguments import EditArgs
from agents.registry import make_agent, make_method
from editenv import __version__

LAST = ("layers.2.mlp.down_proj",)


def memory(base, tokenizer, edits, method="fine-tune", modules=LAST, count=4):
    agent = make_method(method, {}) if isinstance(method, str) else method
    return estimate.memory_of(agent, base, tokenizer, modules, edits, count)


def test_memory_is_counted_from_the_models_sizes(base, tokenizer, edits):
    """By hand: 64 x 32 weights; of four prompts the activations of one layer and the logits of their answers."""
    found = memory(base, tokenizer, edits)
    assert found.model == sum(p.numel() for p in base.parameters()) * 4
    assert found.edited == 4 * 7 * 64 * 32
    length = max(len(tokenizer(f"{edit.prompt} {edit.target}")["input_ids"]) for edit in edits[:4])
    answer = max(len(tokenizer(edit.target)["input_ids"]) for edit in edits[:4])
    kept = length * (10 * 32 + 3 * 64) + 3 * answer * len(tokenizer)
    seen = length * 3 * 64 + 2 * answer * len(tokenizer)
    assert found.batch == 4 * 4 * (kept + seen)
    more = memory(base, tokenizer, edits, modules=("layers.0.mlp.down_proj", *LAST))
    assert more.edited == 2 * found.edited
    assert more.batch == 4 * 4 * (kept + 2 * length * (10 * 32 + 3 * 64) + seen)


def test_a_method_that_looks_facts_up_needs_more(base, tokenizer, edits):
    plain, searched = (memory(base, tokenizer, edits, name) for name in ("fine-tune", "memit-seq"))
    assert searched.edited == plain.edited + 4 * 3 * 64**2
    assert searched.batch > 10 * plain.batch
    assert make_agent("memit-seq").prompts_together(100)[0] <= 64
    assert make_agent("rome").prompts_together(100) == make_agent("rome").prompts_together(1)


def test_a_line_is_for_what_is_large_or_too_large():
    small, large = estimate.Memory(1e8, 1e7, 1e8), estimate.Memory(1e9, 1e9, 3e9)
    assert small.in_words(1e10) is None
    assert (
        large.in_words(1e10)
        == large.in_words(None)
        == "memory: about 5.5 GB at the peak (model 1.0, edited 1.0, batch 3.0)"
    )
    assert "warning: memory: about 5.5 GB" in large.in_words(2e9)
    assert "2.0 GB are free beside the model; fewer --edits-per-step" in large.in_words(2e9)
    assert small.in_words(1e7).startswith("warning")
    assert 1e6 < estimate.free_memory("cpu") < 1e14


@pytest.fixture
def run(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("agents.editing.unrelated.GENERAL", ("The capital of France is",))
    rows = [{"prompt": f"The home of number {i} is", "target": "Rome"} for i in range(4)]
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(**options):
        options = {"method": "fine-tune", "modules": LAST, "edits_per_step": 2, "save_model": False} | options
        edit_command.edit(EditArgs(str(tmp_path / "edits.jsonl"), tmp_path / "out", model_folder, **options))

    return run


def test_what_a_run_takes_is_said_before_it_is_prepared(run, monkeypatch, capsys):
    monkeypatch.setattr(edit_command, "free_memory", lambda device: 1.0)
    monkeypatch.setattr(edit_command, "WORTH_SAYING", 0.0)
    run()
    said = capsys.readouterr().err
    assert "warning: memory: about 0.5 GB" in said
    assert "2 edits took 1 s: about 1 s for the other 2" in said
    assert said.index("warning: memory") < said.index("2 edits took")


def test_without_a_terminal_a_line_comes_now_and_then(monkeypatch, capsys):
    """Also while nothing is done: a first batch may take minutes."""
    monkeypatch.setattr(display, "INTERVAL", 0.05)
    with display.Display(40) as shown:
        time.sleep(0.2)
        shown.show("1.5 edits/s", 20)
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert "after 1 s: 0 of 40 edits, preparing" in lines
    assert lines[-1] == "after 1 s: 20 of 40 edits, 1.5 edits/s"
    time.sleep(0.15)
    assert capsys.readouterr().err == ""


def test_the_version_is_said(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["editenv", "--version"])
    cli.main()
    assert capsys.readouterr().out == f"lifelongedit {__version__}\n"
