"""The editor: nothing lost, whatever happens."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from agents.base import Agent
from agents.baselines.ultraedit import UltraEdit
from agents.editing.editor import LifelongEditor
from agents.editing.guard import BadEditError, Guard
from agents.hypernetwork.config import PolicyConfig, TrainConfig
from agents.hypernetwork.networks import MalmenPolicy, save_policy
from editenv.data.records import BadRecordError
from editenv.delta_files import apply_file, read_delta_file, revert_file
from editenv.identity import fingerprint
from editenv.journal import JournalError
from editenv.language_model.editable_lm import EditableLM, Gradient
from editenv.models import load_model
from editenv.sealed_json import read_sealed, write_sealed

LAST = "model.layers.2.mlp.down_proj"
ROOT = Path(__file__).parents[3]


class Jump(Agent):
    """Adds noise of a size that the edit's target names: ``small``, ``huge`` or ``nan``."""

    actions_per_batch = 2

    def begin(self, env):
        self.env, self.count = env, 0

    def batch_state(self):
        return {"count": torch.tensor(self.count)}

    def load_batch_state(self, memory):
        self.count = int(memory["count"])

    def act(self, observation, info):
        self.count += 1
        size = {"huge": 1e3, "nan": float("nan"), "loud": 3.0}.get(self.env.batch[0].target, 0.01)
        return {LAST: size * torch.randn(64, 32, generator=torch.Generator().manual_seed(self.count))}


OWN_METHOD = """
import torch
from agents.base import Agent

class Mine(Agent):
    def begin(self, env):
        pass
    def act(self, observation, info):
        return {"model.layers.2.mlp.down_proj": 0.01 * torch.ones(64, 32)}
"""


def edits(targets):
    return [{"prompt": f"The home of number {i} is", "target": target} for i, target in enumerate(targets)]


@pytest.fixture
def make_editor(model_folder, monkeypatch):
    """An editor with :class:`Jump`, unless told otherwise."""

    def make(output=None, method=f"{__file__}:Jump", **options):
        return LifelongEditor(model_folder, method, output=output, modules=[LAST], **options)

    return make


@pytest.fixture
def policy_folder(tmp_path):
    """An untrained policy that solves under a recursive preconditioner: an agent with a memory."""
    torch.manual_seed(3)
    config = TrainConfig(
        preconditioner=True, absorb_noise=0.3, covariance_texts=40, policy=PolicyConfig(rank=4, step_size=5.0)
    )
    policy = MalmenPolicy({LAST: (64, 32)}, config.policy)
    policy.set_scales({LAST: 1.0}, {LAST: 1.0})
    policy.observe({LAST: Gradient(torch.randn(50, 64), 0.1 * torch.randn(50, 32))})
    save_policy(policy, tmp_path / "policy", {"train": asdict(config), "model": "tiny", "seed": 3})
    return str(tmp_path / "policy")


@pytest.fixture
def training_file(tmp_path):
    """Sixty edits to learn from: the embedded world's eight thousand take half a second for each editor."""
    rows = [{"prompt": f"The home of {i} is", "target": "Rome", "old_answer": "Oslo"} for i in range(60)]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


class Scheduled(Jump):
    """Larger steps later: what it does hangs on how many batches there were."""

    def act(self, observation, info):
        return {name: (1 + info["batch"]) * delta for name, delta in super().act(observation, info).items()}


def test_a_run_that_goes_on_counts_its_batches_on(make_editor, tmp_path):
    method = f"{__file__}:Scheduled"
    whole = make_editor(method=method)
    for target in ("Rome", "Oslo", "Bonn"):
        whole.edit(edits([target]))
    with make_editor(tmp_path / "out", method=method) as first:
        for target in ("Rome", "Oslo"):
            first.edit(edits([target]))
    with make_editor(tmp_path / "out", method=method) as second:
        second.edit(edits(["Bonn"]))
    assert torch.equal(second.lm.weight(LAST), whole.lm.weight(LAST))


def test_a_run_does_not_go_on_with_a_method_that_was_changed(make_editor, tmp_path):
    own = tmp_path / "own.py"
    own.write_text(OWN_METHOD)
    with make_editor(tmp_path / "out", method=f"{own}:Mine") as editor:
        editor.edit(edits(["Rome"]))
    own.write_text(OWN_METHOD.replace("0.01", "0.02"))
    with pytest.raises(JournalError, match="agent was"):
        make_editor(tmp_path / "out", method=f"{own}:Mine")


def test_edits_are_made_and_counted(make_editor):
    editor = make_editor()
    before = editor.lm.snapshot()[LAST]
    result = editor.edit(edits(["Rome", "Oslo"]))
    assert (result.batch, result.edits, result.applied, result.reason) == (1, 2, True, None)
    noise = [0.01 * torch.randn(64, 32, generator=torch.Generator().manual_seed(i)) for i in (1, 2)]
    torch.testing.assert_close(editor.lm.snapshot()[LAST], before + (noise[0] + noise[1]).T)
    report = editor.evaluate()
    assert report["edits"] == 2
    assert report["rolled_back"] == []
    editor.revert()
    assert torch.equal(editor.lm.snapshot()[LAST], before)
    assert editor.evaluate() == {"edits": 0, "rolled_back": []}


def test_of_a_prompt_that_is_edited_again_the_last_edit_is_the_one_to_hold(make_editor, tmp_path):
    guard = Guard(max_perplexity=1e9, max_weight_norm=1e9, max_drift=None)
    options = {"method": "fine-tune", "guard": guard, "settings": {"steps": 40, "learning_rate": 1e-2}}
    first, again = (edits(targets)[:1] for targets in (["Rome"], ["Oslo"]))
    with make_editor(tmp_path / "out", **options) as editor:
        assert editor.edit(first).efficacy == editor.edit(again).efficacy == 100
        report = editor.evaluate()
        assert (report["edits"], report["generation_prefix"]["efficacy"]) == (1, 100)
        assert [edit.target for edit in editor.edits] == ["Rome", "Oslo"]
        assert [edit.target for edit in editor.run.to_hold.values()] == ["Oslo"]
        editor.edit(first)
        assert [edit.target for edit in editor.run.to_hold.values()] == ["Rome"], "it was made again"
        undoing = editor.edit([{"prompt": "The home of number 0", "target": "is Bonn"}])
        assert "1 of 1 earlier edits that were asked do not hold" in undoing.reason


def test_with_the_end_taught_the_model_says_the_answer_and_stops(make_editor, tmp_path):
    stops = []
    for ends in (False, True):
        free = Guard(max_perplexity=1e9, max_weight_norm=1e9, max_drift=None, max_lost=None)
        settings = {"steps": 60, "learning_rate": 0.02}
        editor = make_editor(method="fine-tune", settings=settings, train_eos=ends, guard=free)
        assert editor.edit(edits(["Rome", "Oslo"])).efficacy == 100
        stops.append(editor.evaluate()["generation"]["efficacy"])
    assert stops == [0, 100]
    path = tmp_path / "text.txt"
    path.write_text("Ada is in Rome.\n", encoding="utf-8")
    with pytest.raises(ValueError, match="train_eos"):
        make_editor(method="rome", text=str(path), train_eos=True)


def test_bad_input_changes_nothing(make_editor):
    editor = make_editor()
    before = editor.lm.snapshot()[LAST]
    with pytest.raises(BadRecordError, match="edit, record 2, field 'target': is missing"):
        editor.edit([*edits(["Rome"]), {"prompt": "x"}])
    with pytest.raises(ValueError, match="at least one"):
        editor.edit([])
    assert torch.equal(editor.lm.snapshot()[LAST], before)
    assert editor.batches == 0


@pytest.mark.parametrize(
    ("target", "guard", "words"),
    [
        ("nan", Guard(), "NaN or infinity"),
        ("huge", Guard(), "its norm went from"),
        ("loud", Guard(max_weight_norm=1e9, max_perplexity=1.0001), "perplexity of held-out text went from"),
    ],
)
def test_a_bad_batch_is_taken_back_and_the_run_goes_on(make_editor, tmp_path, target, guard, words):
    editor = make_editor(tmp_path / "out", guard=guard)
    if target != "loud":
        editor.edit(edits(["Rome"]))
    before = editor.lm.snapshot()[LAST]
    result = editor.edit(edits([target]))
    assert not result.applied
    assert words in result.reason
    assert torch.equal(editor.lm.snapshot()[LAST], before)
    assert editor.evaluate()["rolled_back"][0]["reason"] == result.reason
    editor.close()
    again = make_editor(tmp_path / "out", guard=guard)
    assert again.results == editor.results
    assert torch.equal(again.lm.snapshot()[LAST], before)
    again.close()


def test_a_bad_batch_can_stop_the_run(make_editor):
    editor = make_editor(guard=Guard(on_bad="stop"))
    before = editor.lm.snapshot()[LAST]
    with pytest.raises(BadEditError, match="batch 1 was taken back"):
        editor.edit(edits(["huge"]))
    assert torch.equal(editor.lm.snapshot()[LAST], before)


class Breaks(Jump):
    """Two actions a batch; the second fails for some edits."""

    actions_per_batch = 2

    def act(self, observation, info):
        if info["attempt"] == 1 and self.env.batch[0].target == "unknown":
            raise ValueError("this edit is not for me")
        return super().act(observation, info)


def test_an_error_in_the_middle_of_a_batch_leaves_the_model_before_it(make_editor, tmp_path):
    editor = make_editor(tmp_path / "out", method=f"{__file__}:Breaks")
    editor.edit(edits(["Rome"]))
    before = editor.lm.snapshot()[LAST]
    with pytest.raises(ValueError, match="not for me"):
        editor.edit(edits(["unknown"]))
    assert torch.equal(editor.lm.snapshot()[LAST], before)
    assert editor.batches == len(editor.journal.entries) == 1
    editor.edit(edits(["Oslo"]))
    after = editor.lm.snapshot()[LAST]
    editor.close()
    assert torch.equal(make_editor(tmp_path / "out", method=f"{__file__}:Breaks").lm.snapshot()[LAST], after)


def test_a_batch_that_cannot_be_written_down_is_not_in_the_model(make_editor, tmp_path, monkeypatch):
    editor = make_editor(tmp_path / "out")
    editor.edit(edits(["Rome"]))
    before = editor.lm.snapshot()[LAST]

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(editor.journal, "append", full)
        with pytest.raises(OSError, match="No space"):
            editor.edit(edits(["Oslo"]))
    assert torch.equal(editor.lm.snapshot()[LAST], before)
    assert editor.batches == 1
    with pytest.raises(ValueError, match="open the folder again"):
        editor.edit(edits(["Oslo"]))
    again = make_editor(tmp_path / "out")
    assert torch.equal(again.lm.snapshot()[LAST], before)
    again.edit(edits(["Oslo"]))


REMEMBERING = {
    "fine-tune-replay": {"steps": 3, "replayed": 1},
    "prune": {"value": {"token": "last", "steps": 5, "prefixes": 0}, "weight": 1.0, "every_batch": True},
    "memit-seq": {"value": {"token": "last", "steps": 5, "prefixes": 0}, "weight": 1.0, "cache_keys": True},
    "alphaedit": {"value": {"token": "last", "steps": 5, "prefixes": 0}, "threshold": 100.0},
    "nse": {"value": {"token": "last", "steps": 5, "prefixes": 0}, "weight": 1.0, "enough": 0.0, "too_far": 1e6},
    "rlsedit": {"value": {"token": "last", "steps": 5, "prefixes": 0}, "weight": 1.0},
    "o-edit": {"value": {"token": "last", "steps": 5, "prefixes": 0}, "weight": 1.0},
    "simie": {"base": "fine-tune", "editor": {"steps": 3}},
    "crispedit": {"steps": 3, "energy": 0.5},
    "ultraedit": {},
    "stableedit": {"warm_up_batches": 1},
    "dafnet": {"config": {"steps": 2, "judged": 4}},
    "rledit": None,
    "malmen-retrained": {
        "config": {"trajectories": 1, "horizon": 2, "edits_per_step": 3, "warm_up_batches": 2, "policy": {"rank": 2}},
        "retrain_every": 1,
    },
}


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("method", REMEMBERING)
def test_a_batch_that_was_taken_back_leaves_nothing_in_the_method(
    make_editor, policy_folder, training_file, tmp_path, monkeypatch, method, resumed
):
    """With a batch in between that was taken back, the next one leads to the same bits as without."""
    text = tmp_path / "text.txt"
    text.write_text("Ada is in Rome.\nPeople find the Long River in Ecuador and in Peru.\n", encoding="utf-8")
    loose = Guard(max_perplexity=1e9, max_weight_norm=1e9, max_drift=None, max_lost=None)
    options = {"method": method, "guard": loose, "text": str(text), "training": training_file}
    options |= {"policy": policy_folder} if method == "rledit" else {"settings": REMEMBERING[method]}
    first, bad, last = edits(["Rome", "Oslo", "Bonn"])
    ends = {}
    for batches in ([first, last], [first, bad, last]):
        out = tmp_path / str(len(batches))
        editor = make_editor(out, **options)
        for batch in batches:
            with monkeypatch.context() as patched:
                if batch is bad:
                    patched.setattr(editor, "_broken_bound", lambda *_: "so it is said")
                assert editor.edit([batch]).applied == (batch is not bad)
            if resumed:
                editor.close()
                editor = make_editor(out, **options)
        ends[len(batches)] = editor.lm.snapshot()[LAST]
        editor.close()
    assert (ends[2] != editor.lm.initial_weight(LAST).T).any()
    assert torch.equal(ends[3], ends[2])


@pytest.mark.parametrize("where", ["step", "_held_out_perplexity", "_broken_bound"])
@pytest.mark.parametrize("method", ["memit-seq", "ultraedit", "dafnet"])
def test_an_interruption_leaves_nothing_of_the_batch_in_the_method(
    make_editor, training_file, tmp_path, monkeypatch, method, where
):
    """Ctrl-C between the update and the journal: what comes next leads to the bits of a run without it."""
    text = tmp_path / "text.txt"
    text.write_text("Ada is in Rome.\nPeople find the Long River in Ecuador and in Peru.\n", encoding="utf-8")
    options = {"method": method, "settings": REMEMBERING[method], "text": str(text), "training": training_file}
    options["guard"] = Guard(max_perplexity=1e9, max_weight_norm=1e9, max_drift=None, max_lost=None)
    first, cut, last = edits(["Rome", "Oslo", "Bonn"])

    def interrupted(*_):
        raise KeyboardInterrupt

    ends = []
    for batches in ([first, last], [first, cut, last]):
        editor = make_editor(tmp_path / str(len(batches)), **options)
        for batch in batches:
            if batch is not cut:
                assert editor.edit([batch]).applied
                continue
            with monkeypatch.context() as patched:
                patched.setattr(editor.env if where == "step" else editor, where, interrupted)
                with pytest.raises(KeyboardInterrupt):
                    editor.edit([batch])
        ends.append(editor.lm.snapshot()[LAST])
        editor.close()
    assert torch.equal(*ends)


@pytest.mark.parametrize("method", ["grace", "ultraedit"])
def test_a_batch_that_the_method_has_not_seen_takes_nothing_of_the_one_before(make_editor, monkeypatch, method):
    settings = {"steps": 2} if method == "grace" else None
    editor = make_editor(method=method, settings=settings, guard=Guard(1e9, 1e9, None, None))
    for number, batch in enumerate(edits(["Rome", "Oslo"])):
        known = len(editor.agent._codebook.labels) if method == "grace" else editor.agent._normalizers[LAST].count
        with monkeypatch.context() as patched:
            patched.setattr(editor._actor, "look", lambda: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                editor.edit([batch])
        now = len(editor.agent._codebook.labels) if method == "grace" else editor.agent._normalizers[LAST].count
        assert (now == known, now > 0) == (True, number > 0)
        assert editor.edit([batch]).applied


def test_an_interrupted_run_with_a_policy_ends_as_if_it_never_was(make_editor, policy_folder, tmp_path):
    """Closed after each batch, or never."""
    text = tmp_path / "text.txt"
    text.write_text("Ada is in Rome.\nPeople find the Long River in Peru.\n", encoding="utf-8")
    options = {
        "method": "rledit",
        "policy": policy_folder,
        "text": str(text),
        "guard": Guard(1e9, 1e9, None, None, retry=False),
    }
    ends = []
    for resumed in (False, True):
        editor = make_editor(tmp_path / str(resumed), **options)
        for fact in edits(["Rome", "Oslo", "Bonn"]):
            assert editor.edit([fact]).applied
            if resumed:
                editor.close()
                editor = make_editor(tmp_path / str(resumed), **options)
        ends.append(editor.lm.snapshot()[LAST])
        editor.close()
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


def test_a_run_on_all_tokens_goes_on_to_the_same_bits_and_with_nothing_else(make_editor, model_folder, tmp_path):
    """UltraEdit's statistics are replayed from the journal, with modules that differ in their numbers of tokens."""
    modules = ["model.layers.0.mlp.down_proj", LAST]
    settings = {"step_size": 0.2}

    def editor_in(folder, observed="all"):
        return LifelongEditor(
            model_folder, "ultraedit", output=folder, modules=modules, settings=settings, observed_tokens=observed,
            guard=Guard(1e9, 1e9, None, None, retry=False),
        )  # fmt: skip

    ends = []
    for resumed in (False, True):
        editor = editor_in(tmp_path / str(resumed))
        for fact in edits(["Rome", "Oslo", "Bonn"]):
            assert editor.edit([fact, {"prompt": "People find tea in", "target": "New Peru"}]).applied
            if resumed:
                editor.close()
                editor = editor_in(tmp_path / str(resumed))
        seen = editor.journal.tensors(1)
        first, last = (len(seen[f"memory/{name}/keys"]) for name in editor.lm.modules)
        assert first > last > 0
        ends.append(editor.lm.snapshot())
        editor.close()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    with pytest.raises(JournalError, match="observed_tokens was 'all', is None"):
        editor_in(tmp_path / "True", "answers")


def test_a_policy_edits_with_the_tokens_it_was_trained_with(make_editor, policy_folder, tmp_path):
    """A policy that does not say was trained when there was no choice."""
    options = {"method": "rledit", "text": str(tmp_path / "text.txt")}
    (tmp_path / "text.txt").write_text("Ada is in Rome.\n", encoding="utf-8")
    with pytest.raises(ValueError, match="trained with observed_tokens 'answers', and the environment has 'all'"):
        make_editor(policy=policy_folder, observed_tokens="all", **options)
    file = Path(policy_folder) / "policy.json"
    write_sealed(file, read_sealed(file) | {"observed_tokens": "all"})
    with pytest.raises(ValueError, match="give observed_tokens='all'"):
        make_editor(policy=policy_folder, **options)
    assert make_editor(policy=policy_folder, observed_tokens="all", **options).env.observed_tokens == "all"


def test_settings_that_were_refused_can_be_corrected_in_the_same_folder(make_editor, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Ada is in Rome.\nPeople find the Long River in Peru.\n", encoding="utf-8")
    value = {"token": "last", "steps": 2, "prefixes": 0}
    with pytest.raises(ValueError, match="set every_batch"):
        make_editor(tmp_path / "out", method="prune", settings={"value": value}, text=str(text))
    editor = make_editor(
        tmp_path / "out", method="prune", settings={"value": value, "every_batch": True}, text=str(text)
    )
    editor.edit(edits(["Rome"]))


def test_a_text_is_what_it_says(make_editor, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Ada is in Rome.\nPeople find the Long River in Peru.\n", encoding="utf-8")
    options = {"method": "memit", "settings": REMEMBERING["memit-seq"], "text": str(text)}
    with make_editor(tmp_path / "out", **options) as editor:
        editor.edit(edits(["Rome"]))
    text.write_text("Ada is in Oslo.\n", encoding="utf-8")
    with pytest.raises(JournalError, match="text was"):
        make_editor(tmp_path / "out", **options)


def test_the_norm_is_bounded_by_the_one_before_the_batch(make_editor):
    editor = make_editor(guard=Guard(max_perplexity=1e30, max_weight_norm=30.0, max_drift=None, max_lost=None))
    results = [editor.edit(edits(["loud"])) for _ in range(4)]
    assert [result.applied for result in results] == [True] * 4, results


def test_a_run_that_goes_on_is_bounded_by_the_batch_before(make_editor, tmp_path, monkeypatch):
    monkeypatch.setattr(LifelongEditor, "_held_out_perplexity", lambda self: float(self.lm.weight(LAST).norm()))
    guard = Guard(max_perplexity=30.0, max_weight_norm=1e9, max_drift=None, max_lost=None)
    for _ in range(4):
        with make_editor(tmp_path / "out", guard=guard) as editor:
            assert editor.edit(edits(["loud"])).applied


def test_a_reverted_editor_is_bounded_by_the_model_it_has(make_editor, monkeypatch):
    monkeypatch.setattr(LifelongEditor, "_held_out_perplexity", lambda self: float(self.lm.weight(LAST).square().sum()))
    editor = make_editor(guard=Guard(max_perplexity=1e6, max_weight_norm=1e9, max_drift=None, max_lost=None))
    assert editor.edit(edits(["loud"])).applied
    editor.revert()
    assert not editor.edit(edits(["huge"])).applied


def test_rephrases_and_locality_prompts_beyond_the_context_are_refused(make_editor):
    editor, far = make_editor(), "far " * 300
    for more in ({"rephrases": [far]}, {"locality": [{"prompt": far, "answer": "Rome"}]}):
        with pytest.raises(BadRecordError, match="context holds 256"):
            editor.edit([edits(["Rome"])[0] | more])


class Poisoned(UltraEdit):
    """Sees a gradient that is infinite for some edits, as half precision may give it."""

    def act(self, observation, info):
        if self._env.batch[0].target == "loud":
            self._env.gradients[LAST].value_grads[0, 0] = float("inf")
        return super().act(observation, info)


@pytest.mark.parametrize("method", ["Poisoned", "Unsolvable"])
def test_a_gradient_that_is_not_finite_costs_one_batch(make_editor, method):
    editor = make_editor(method=f"{__file__}:{method}")
    assert editor.edit(edits(["Rome", "Peru"])).applied
    bad = editor.edit(edits(["loud", "Oslo"]))
    assert not bad.applied
    assert "NaN" in bad.reason or "could not solve" in bad.reason
    assert editor.edit(edits(["Bonn", "Oslo"])).applied


class Unsolvable(Jump):
    def act(self, observation, info):
        if self.env.batch[0].target == "loud":
            torch.linalg.eigh(torch.full((3, 3), float("nan")))
        return super().act(observation, info)


def test_after_revert_a_journal_takes_no_more_and_a_bare_editor_begins_anew(make_editor, tmp_path):
    editor = make_editor(tmp_path / "out")
    editor.edit(edits(["Rome"]))
    once = editor.lm.snapshot()[LAST]
    editor.revert()
    with pytest.raises(ValueError, match="choose another output folder"):
        editor.edit(edits(["Rome"]))
    with pytest.raises(ValueError, match="reverted"):
        editor.save_deltas(tmp_path / "deltas.safetensors")
    assert torch.equal(make_editor(tmp_path / "out").lm.snapshot()[LAST], once), "the journal keeps what was done"
    bare = make_editor()
    bare.edit(edits(["Rome"]))
    bare.revert()
    bare.edit(edits(["Rome"]))
    assert torch.equal(bare.lm.snapshot()[LAST], once), "as if nothing had been edited before"


def test_save_replaces_a_model_and_nothing_else(make_editor, tmp_path):
    editor = make_editor(tmp_path / "out")
    editor.edit(edits(["Rome"]))
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    (precious / "config.json").write_text("{}")
    for folder in (precious, tmp_path, tmp_path / "out", precious / "thesis.txt"):
        with pytest.raises(ValueError, match="was not saved here"):
            editor.save(folder)
    assert (precious / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "out" / "journal.jsonl").exists()
    for _ in range(2):
        editor.save(tmp_path / "out" / "model")
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["batches", "journal.jsonl", "journal.lock", "model"]


def test_deltas_that_are_too_many_for_one_file_are_not_gathered(make_editor, tmp_path, monkeypatch):
    editor = make_editor(tmp_path / "out")
    editor.edit(edits(["Rome"]))
    monkeypatch.setattr("agents.editing.editor.LARGEST_DELTA_FILE", 100)
    with pytest.raises(ValueError, match=r"too many for one file; they are in .*batches"):
        editor.save_deltas(tmp_path / "deltas.safetensors")
    assert not (tmp_path / "deltas.safetensors").exists()


def test_a_policy_is_not_silently_taken_for_another_method_or_model(make_editor, policy_folder, tmp_path):
    with pytest.raises(ValueError, match="method 'memit' takes none"):
        make_editor(method="memit", policy=policy_folder, training="atlas")
    config = TrainConfig(policy=PolicyConfig(rank=4))
    policy = MalmenPolicy({LAST: (64, 16)}, config.policy)
    save_policy(policy, tmp_path / "narrow", {"train": asdict(config), "model": "tiny", "seed": 3})
    with pytest.raises(ValueError, match=r"another model: .*down_proj is \(64, 32\) here, and \(64, 16\) for it"):
        make_editor(method="rledit", policy=str(tmp_path / "narrow"))


def test_what_was_prepared_is_kept_and_other_training_data_is_refused(make_editor, tmp_path, monkeypatch):
    for name, city in (("one", "Rome"), ("other", "Oslo")):
        rows = [
            {"prompt": f"The seat of body {i} is", "target": city, "rephrases": [f"Body {i} sits in"]}
            for i in range(40)
        ]
        rows = [row | {"locality": [{"prompt": f"Who saw {i}?", "answer": "Peru"}]} for i, row in enumerate(rows)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"config": {"steps": 2, "judged": 4}}
    options = {"method": "dafnet", "settings": settings, "training_options": {}}
    with make_editor(tmp_path / "out", training=str(tmp_path / "one.jsonl"), **options) as editor:
        editor.edit(edits(["Rome"]))
        after = editor.lm.snapshot()[LAST]
    with pytest.raises(JournalError, match="training was"):
        make_editor(tmp_path / "out", training=str(tmp_path / "other.jsonl"), **options)

    def trains(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr("agents.baselines.dafnet.agent.train", trains)
    again = make_editor(tmp_path / "out", training=str(tmp_path / "one.jsonl"), **options)
    assert torch.equal(again.lm.snapshot()[LAST], after)


def test_a_method_that_learns_needs_something_to_learn_from(make_editor):
    with pytest.raises(ValueError, match="needs edits to learn from"):
        make_editor(method="untrained")
    with pytest.raises(ValueError, match="editenv train --model"):
        make_editor(method="rledit")


def test_settings_reach_the_method_and_wrong_ones_are_named(make_editor):
    assert make_editor(method="fine-tune", settings={"steps": 3}).agent.steps == 3
    assert make_editor(method="fine-tune").agent.steps == 20
    with pytest.raises(ValueError, match="FineTune has no setting 'step'"):
        make_editor(method="fine-tune", settings={"step": 3})
    with pytest.raises(ValueError, match="method 'no-edit' takes no settings"):
        make_editor(method="no-edit", settings={"steps": 3})


def test_text_is_enough_for_a_method_that_takes_statistics(make_editor, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Ada is in Rome.\nPeople find the Long River in Ecuador and in Peru.\n", encoding="utf-8")
    last = {"value": {"token": "last"}}
    editor = make_editor(
        method="memit",
        settings=last,
        text=str(path),
        guard=Guard(max_perplexity=1e9, max_weight_norm=1e9, max_drift=None, max_lost=None),
    )
    before = editor.lm.snapshot()
    result = editor.edit(edits(["Rome", "Oslo"]))
    assert result.applied, result.reason
    assert all((weight != before[name]).any() for name, weight in editor.lm.snapshot().items())


def test_the_saved_model_is_the_edited_one_for_plain_transformers(make_editor, tmp_path):
    editor = make_editor()
    editor.edit(edits(["Rome", "Oslo"]))
    editor.save(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.tensor([[0, 5, 17, 99]])
    assert torch.equal(plain(ids).logits, editor.lm.model(ids).logits)
    editor.edit(edits(["Bonn"]))
    editor.save(tmp_path / "model")
    assert torch.equal(
        AutoModelForCausalLM.from_pretrained(tmp_path / "model")(ids).logits, editor.lm.model(ids).logits
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deltas_go_on_the_base_model_and_off_the_edited_one(make_editor, model_folder, tmp_path, dtype):
    with make_editor(tmp_path / "out", dtype=dtype) as editor:
        for target in ("Rome", "nan", "Oslo"):
            editor.edit(edits([target]))
        editor.save_deltas(tmp_path / "deltas.safetensors")
        editor.save(tmp_path / "model")
        after = fingerprint(editor.lm)
    actions, metadata = read_delta_file(tmp_path / "deltas.safetensors")
    assert len(actions) == 4
    assert metadata["after"] == after
    base = EditableLM(*load_model(model_folder, dtype=dtype), [LAST])
    before = base.snapshot()[LAST]
    apply_file(base, tmp_path / "deltas.safetensors")
    assert fingerprint(base) == after
    with pytest.raises(ValueError, match="another base model"):
        apply_file(base, tmp_path / "deltas.safetensors")
    edited = EditableLM(*load_model(str(tmp_path / "model"), dtype=dtype), [LAST])
    revert_file(edited, tmp_path / "deltas.safetensors")
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    torch.testing.assert_close(edited.snapshot()[LAST], before, rtol=tolerance, atol=tolerance)
    with pytest.raises(ValueError, match="was not what this model was edited with"):
        revert_file(edited, tmp_path / "deltas.safetensors")
    (tmp_path / "junk").write_bytes(b"junk" * 10)
    with pytest.raises(ValueError, match="junk is not a safetensors file"):
        read_delta_file(tmp_path / "junk")


def test_another_run_is_refused(make_editor, tmp_path):
    with make_editor(tmp_path / "out", edits="these") as editor:
        editor.edit(edits(["Rome"]))
    with pytest.raises(JournalError, match="edits was 'these', is 'those'"):
        make_editor(tmp_path / "out", edits="those")


IMPORTED_ONCE = [
    __name__,
    "agents.editing.editor",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
]

BATCHES = [
    [f"{word} {i}" for i in range(3)] for word in ("Rome", "Oslo", "nan", "Bonn", "Lima", "huge", "Kiev", "Bern")
]


def whole_run(model, out, method, policy, training):
    """One process: edits every batch that is not done yet and leaves the final weights."""
    torch.set_num_threads(1)
    editor = LifelongEditor(model, method, policy, out, [LAST], training=training)
    for i in range(editor.batches, len(BATCHES)):
        first = BATCHES[i][0].split()[0]
        targets = [first, *BATCHES[i][1:]] if first in ("nan", "huge") else BATCHES[i]
        editor.edit([edit | {"prompt": f"{edit['prompt']} ({i})"} for edit in edits(targets)])
    partial = Path(out) / "weights.partial"
    torch.save(dict(editor.lm.snapshot()), partial)
    os.replace(partial, Path(out) / "weights.pt")
    editor.close()


def killed_and_resumed(context, arguments, out, kills, rng):
    """Runs until it ends by itself, and kills it so many times before; the number of batches at each kill."""
    progress = []
    for kill in range(kills):
        process = context.Process(target=whole_run, args=arguments)
        process.start()
        journal = Path(out) / "journal.jsonl"
        before = journal.read_bytes().count(b"\n") if journal.exists() else 0
        limit = time.monotonic() + 60
        # The first kill falls into the start; the others wait for a new line, so that kills spread over the whole run.
        while kill and process.is_alive() and time.monotonic() < limit:
            if journal.exists() and journal.read_bytes().count(b"\n") > before:
                break
            time.sleep(0.002)
        # A batch takes about 10 ms: later kills must not fall behind the end.
        time.sleep(rng.random() * (0.02 if kill else 0.1))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        progress.append(journal.read_bytes().count(b"\n") - 1 if journal.exists() else -1)
    process = context.Process(target=whole_run, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0
    return progress


@pytest.mark.parametrize("kind", ["noise", "policy with memory"])
@pytest.mark.parametrize("runs", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_a_run_killed_again_and_again_ends_in_the_same_bits(
    model_folder, policy_folder, training_file, tmp_path, runs, kind
):
    """Five kills each at random moments of a real process; then the plain end."""
    training = None
    method, policy = f"{__file__}:Jump", None
    if kind != "noise":
        method, policy, training = "rledit", policy_folder, training_file
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_ONCE)  # instead of once for each process
    rng = random.Random(kind)
    seen = set()
    plain = tmp_path / "plain"
    plain.mkdir()
    process = context.Process(target=whole_run, args=(model_folder, str(plain), method, policy, training))
    process.start()
    process.join()
    expected = torch.load(plain / "weights.pt", weights_only=True)
    kept = [json.loads(line)["applied"] for line in (plain / "journal.jsonl").read_text().splitlines()[1:]]
    assert sum(kept) >= len(BATCHES) / 2
    for run in range(runs):
        out = tmp_path / f"killed{run}"
        out.mkdir()
        progress = killed_and_resumed(context, (model_folder, str(out), method, policy, training), out, 5, rng)
        seen.update(progress)
        weights = torch.load(out / "weights.pt", weights_only=True)
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert len(seen - {-1, 0, len(BATCHES)}) >= 3  # they were killed in the middle


def command(*arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "agents", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )


def test_the_commands_from_a_file_of_edits_to_the_model_and_back(command_line, model_folder, tmp_path):
    """The first command in a process of its own, the others in this one, which has imported everything."""
    path = tmp_path / "edits.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in edits([f"town {i}" for i in range(5)])))
    out = tmp_path / "out"
    base_model = ["--model", model_folder]
    options = [*base_model, "--modules", LAST, "--method", "fine-tune", "--edits", path, "--edits-per-step", 2]
    done = command("edit", *options, "--output", out, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["edits"] == 5
    assert len((out / "journal.jsonl").read_text().splitlines()) == 1 + 3
    shown, said, _ = command_line("edit", *options, "--output", out, "--json")
    assert "going on after batch 3" in said
    assert json.loads(shown)["teacher_forced"] == report["teacher_forced"]
    deltas = out / "deltas.safetensors"
    apply = ["apply", *base_model, "--deltas", deltas, "--output", tmp_path / "applied"]
    _, said, code = command_line(*apply)
    assert code == 0, said
    one, two = (AutoModelForCausalLM.from_pretrained(folder) for folder in (out / "model", tmp_path / "applied"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    shown, _, _ = command_line("revert", "--model", out / "model", "--deltas", deltas, "--output", tmp_path / "back")
    assert "base model" in shown
    back, base = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "back", model_folder))
    for a, b in zip(back.parameters(), base.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    shown, _, _ = command_line("evaluate", "--model", out / "model", "--base", model_folder, "--edits", path, "--json")
    assert json.loads(shown)["teacher_forced"]["efficacy"] == report["teacher_forced"]["efficacy"]
    _, said, code = command_line(*apply)
    assert code == 1
    assert "exists already" in said


def test_a_method_whose_package_is_missing_is_named(command_line, model_folder, tmp_path):
    path, method = tmp_path / "edits.jsonl", tmp_path / "mine.py"
    path.write_text(json.dumps(edits(["Rome"])[0]))
    method.write_text("import a_package_that_is_not_there\n")
    options = ["--model", model_folder, "--edits", path, "--output", tmp_path / "out"]
    _, said, code = command_line("edit", *options, "--method", f"{method}:Mine")
    assert code == 1
    assert "No module named 'a_package_that_is_not_there'" in said
