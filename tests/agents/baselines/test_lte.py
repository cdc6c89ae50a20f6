"""LTE: its loss and gradient against the plain model, what training leaves, and a run that is saved and asked."""

import contextlib
import io
import json
import shutil
from dataclasses import replace

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import editenv
from agents.baselines.lte import LTE, GatedLTE, ReadingConfig, reading_gradients
from agents.cli import main
from agents.progress import silent
from agents.registry import make_agent
from agents.view import Actor
from editenv.contexts import CONTEXT, load_context
from editenv.data import Locality, load_edits
from editenv.deltas import dense
from editenv.identity import fingerprint
from editenv.language_model.editable_lm import EditableLM
from editenv.memories import Memory, load_memories
from editenv.models.with_memory import weights_digest

READING = ReadingConfig(epochs=3, mini_batch=4, learning_rate=1e-2, locality=2.0)


@pytest.fixture
def training(monkeypatch, edits):
    """The ten edits are learned from."""
    monkeypatch.setattr("agents.baselines.lte.training_edits", lambda env: list(edits))
    return edits


def answer_logits(model, tokenizer, prompt, answer):
    """Logits of the plain model at an answer's tokens, and these."""
    head = tokenizer(prompt)["input_ids"]
    tail = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
    logits = model(torch.tensor([head + tail[:-1]])).logits[0, len(head) - 1 :]
    return logits, torch.tensor(tail)


@pytest.mark.parametrize("gated", [False, True])
def test_loss_and_gradient_are_those_of_the_plain_model(model_folder, tokenizer, edits, gated):
    """Prompt by prompt in transformers, at weights other than theta_0's, with autograd's own gradient; gated, what has no
    text before it is not part of it.
    """
    names = ["layers.0.mlp.down_proj", "layers.2.mlp.down_proj"]
    plain = AutoModelForCausalLM.from_pretrained(model_folder)
    lm = EditableLM(editenv.load_model(model_folder)[0], tokenizer, names)
    lm.apply({name: 0.1 * torch.randn(lm.shape(name)) for name in lm.modules})
    agent, some = LTE(threshold=0.6), edits[:3]
    context = agent.context({edit.prompt: agent.text_of(edit) for edit in edits})
    # The first locality prompt begins like an edit, so that the retriever puts a text before it.
    some[0] = replace(some[0], locality=(Locality(f"{edits[4].prompt} not", "Oslo"), *some[0].locality))
    loss, gradients = reading_gradients(lm, some, context, READING, gated)
    assert lm.context is None

    weights = {f"{name}.weight": lm.weight(name).T.clone().requires_grad_() for name in lm.modules}

    class Edited:
        def __call__(self, ids):
            return functional_call(plain, weights, (ids,))

    def asked(prompt):
        (texts,) = context.before([prompt])
        return "".join(texts) + prompt

    def divergence(prompt, answer, asked_as):
        before, _ = answer_logits(plain, tokenizer, prompt, answer)
        after, _ = answer_logits(Edited(), tokenizer, asked_as, answer)
        p, q = before.log_softmax(-1), after.log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1).mean()

    told = [(text, edit.target) for edit in some for text in (edit.prompt, *edit.rephrases)]
    assert any(asked(text) != text for text, _ in told)
    others = [(item.prompt, item.answer) for edit in some for item in edit.locality]
    assert len({asked(prompt) == prompt for prompt, _ in others}) == 2

    def of_the_changed_model(value, asked_as, prompt):
        """At theta_0 there is nothing to learn from it."""
        return torch.zeros(()) if gated and asked_as == prompt else value

    likelihoods = []
    for text, target in told:
        logits, labels = answer_logits(Edited(), tokenizer, asked(text), target)
        likelihoods.append(of_the_changed_model(F.cross_entropy(logits, labels), asked(text), text))
    kept = [of_the_changed_model(divergence(p, a, asked(p)), asked(p), p) for p, a in others]
    untold = [of_the_changed_model(divergence(edit.prompt, edit.target, edit.prompt), "", "") for edit in some]
    expected = torch.stack(likelihoods).mean() + 2.0 * (torch.stack(kept).mean() + torch.stack(untold).mean())
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=1e-5)
    expected.backward()
    for name in lm.modules:
        weight = weights[f"{name}.weight"]
        torch.testing.assert_close(gradients[name].dense(), weight.grad.T, rtol=1e-3, atol=1e-5)


def test_a_mini_batch_without_locality_prompts_has_the_other_terms(make_lm, edits):
    lm, agent = make_lm("layers.1.mlp.down_proj"), LTE()
    context = agent.context({edit.prompt: agent.text_of(edit) for edit in edits})
    bare = [replace(edit, locality=()) for edit in edits[:2]]
    loss, _ = reading_gradients(lm, bare, context, READING)  # at theta_0, where nothing has changed
    likelihoods = []
    for edit in bare:
        for text in (edit.prompt, *edit.rephrases):
            (texts,) = context.before([text])
            logits, labels = answer_logits(lm.model, lm.tokenizer, "".join(texts) + text, edit.target)
            likelihoods.append(F.cross_entropy(logits, labels))
    torch.testing.assert_close(loss, torch.stack(likelihoods).mean().detach(), rtol=1e-4, atol=1e-5)


def test_training_is_kept_and_leaves_the_model_as_it_was(make_env, small_world, training, tmp_path):
    env, losses = make_env(), []
    before = fingerprint(env.language_model)

    def noted(what, done, total):
        losses.append(float(what.split()[-1].rstrip(")")))

    agents = []
    for seed in (0, 0, 1):
        agent = LTE(reading=READING)
        agent.workspace = tmp_path / f"policy-{seed}"
        agent.prepare(env, seed, noted)
        agents.append(agent)
    assert len(losses) == 2 * 9, "three steps an epoch; the second agent found it there"
    assert losses[8] < losses[0]
    assert fingerprint(env.language_model) == before
    assert agents[1].kept_seconds > 0
    first, again, other = (agent._change.deltas() for agent in agents)
    for name in env.language_model.modules:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_the_change_is_made_once_and_the_context_with_every_batch(make_env, small_world, training):
    env, agent = make_env(), LTE(reading=READING)
    agent.prepare(env, 0, silent)
    lm = env.language_model
    for _ in range(2):  # nothing of an episode is left for the next
        env.reset(seed=0)
        actor = Actor(env, agent)
        actor.begin()
        for batch in range(3):
            action = actor.act(*actor.look())
            assert list(action[CONTEXT].entries) == [edit.prompt for edit in env.batch]
            for name in lm.modules:
                delta = dense(action[name])
                expected = agent._change.deltas()[name] if batch == 0 else torch.zeros(lm.shape(name))
                torch.testing.assert_close(delta, expected.detach())
            env.step(action)
        assert len(lm.context) == 9


def test_gated_it_is_a_memory_of_the_first_action_and_no_weight_changes(make_env, small_world, training):
    env, agent = make_env(), GatedLTE(reading=READING)
    agent.prepare(env, 0, silent)
    lm = env.language_model
    weights = {name: lm.weight(name).clone() for name in lm.modules}
    for _ in range(2):
        env.reset(seed=0)
        actor = Actor(env, agent)
        actor.begin()
        for batch in range(2):
            action = actor.act(*actor.look())
            assert [isinstance(action[name], Memory) for name in lm.modules] == [batch == 0] * len(lm.modules)
            env.step(action)
        assert len(lm.context) == 6
        for name in lm.modules:
            assert lm.memories[name].gate == "context"
            torch.testing.assert_close(lm.memories[name].values[0], agent._change.deltas()[name].detach())
            assert lm.memories[name].values.abs().max() > 0
            assert torch.equal(lm.weight(name), weights[name])


def test_gated_it_takes_no_other_memory_for_its_own(make_env, small_world, training):
    """Found beside a module it is not the change; one that the model begins with would be lost, and is refused."""
    env, agent = make_env(modules=["layers.2.mlp.down_proj"]), GatedLTE(reading=READING)
    lm, (name,) = env.language_model, env.language_model.modules
    agent.prepare(env, 0, silent)
    d_in, d_out = lm.shape(name)
    other = Memory("ball", torch.randn(1, d_in), torch.randn(1, d_out), torch.ones(1))
    env.reset(seed=0)
    actor = Actor(env, agent)
    actor.begin()
    lm.apply({name: other})
    assert actor.act(*actor.look())[name].gate == "context", "the memory that is there is not the change"
    lm.rebase(lm.snapshot())
    with pytest.raises(ValueError, match=r"lte-gated: model\.layers\.2\.mlp\.down_proj has a memory already"):
        GatedLTE(reading=READING).prepare(env, 0, silent)


def test_it_needs_what_it_learns_from(make_env, small_world, monkeypatch, edits):
    bare = [type(edit)(edit.id, edit.prompt, edit.target) for edit in edits]
    monkeypatch.setattr("agents.baselines.lte.training_edits", lambda env: bare)
    with pytest.raises(ValueError, match="rephrases and with locality prompts"):
        LTE().prepare(make_env(), 0, silent)
    assert make_agent("lte").needs == ("model", "edits")


@pytest.fixture
def corrected(model_folder, edits, tmp_path, monkeypatch):
    """Three corrections by the command, on training edits of the package: by a row, its folder and what was printed; and
    the command.
    """
    some = load_edits("atlas", "train")[:12]
    monkeypatch.setattr("agents.baselines.lte.training_edits", lambda env: some)
    settings = {"reading": {"epochs": 1, "mini_batch": 6, "learning_rate": 0.01, "locality": 1.0}}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    rows = [{"prompt": edit.prompt, "target": edit.target} for edit in edits[:3]]
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    words = ["edit", "--model", model_folder, "--edits", tmp_path / "edits.jsonl", "--output", out]
    words += ["--training", "atlas", "--settings", tmp_path / "settings.json"]
    words += ["--guard.max-perplexity", "inf", "--guard.max-drift", "inf", "--guard.max-lost", "inf"]

    def editenv_command(*words):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            monkeypatch.setattr("sys.argv", ["editenv", *map(str, words)])
            main()
        return printed.getvalue()

    return lambda row, *more: (out, editenv_command(*words, "--method", row, *more)), editenv_command


def test_a_corrected_model_has_weights_and_context_in_one_folder(corrected, model_folder, edits, tmp_path):
    """Loaded by one call, and given away whole."""
    correct, editenv_command = corrected
    out, printed = correct("lte", "--modules", "layers.1.mlp.down_proj")
    folder = out / "model"
    assert f"{folder} is a context beside weights of its own, no plain transformers folder" in printed
    assert {path.name for path in folder.iterdir()} == {
        "weights",
        "base.json",
        "context.json",
        "lifelongedit.json",
        "README.md",
    }
    card = (folder / "README.md").read_text()
    assert "put into a context that is put before questions, with weights of its own" in card
    assert "which loads the weights beside it, too" in card
    assert "Weights were changed, and the corrections are in a context" in (out / "report.html").read_text()
    undone = shutil.copytree(out, tmp_path / "undone")
    editenv_command("undo", undone, "1", "--yes")
    assert list(load_context(undone / "model/context.json").entries) == [edit.prompt for edit in edits[1:3]]
    assert (undone / "model/weights/model.safetensors").read_bytes() == (
        folder / "weights/model.safetensors"
    ).read_bytes(), "the batch of the undone correction had brought the change"
    model, _ = editenv.load_model(str(folder.rename(tmp_path / "elsewhere")))
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "elsewhere/weights").state_dict()
    base = AutoModelForCausalLM.from_pretrained(model_folder).state_dict()
    changed = {name for name in base if not torch.equal(weights[name], base[name])}
    assert changed == {"model.layers.1.mlp.down_proj.weight"}
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


def test_gated_the_folder_is_beside_the_model_and_an_undone_correction_leaves_it_there(
    corrected, model_folder, edits, tokenizer, tmp_path
):
    correct, editenv_command = corrected
    out, printed = correct("lte-gated")
    folder = out / "model"
    assert f"{folder} is a memory and a context beside {model_folder}, no plain transformers folder" in printed
    page = (out / "report.html").read_text()
    assert "No weight was changed: the corrections are in a memory and a context beside the model" in page
    assert (
        "put into a memory beside the weights and a context that is put before questions"
        in (folder / "README.md").read_text()
    )
    files = {path.name for path in folder.iterdir()}
    assert files == {"base.json", "context.json", "memory.safetensors", "lifelongedit.json", "README.md"}
    memories = load_memories(folder / "memory.safetensors")
    assert {name: memory.gate for name, memory in memories.items()} == dict.fromkeys(
        ["model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"], "context"
    ), "the upper half of three layers, as no modules were named"
    model, _ = editenv.load_model(str(folder))
    plain = AutoModelForCausalLM.from_pretrained(model_folder)
    assert weights_digest(model) == weights_digest(plain)
    ids = tokenizer("Who saw number 11?", return_tensors="pt")
    options = {"max_new_tokens": 5, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    for ours, its in zip(model.generate(**ids, **options).scores, plain.generate(**ids, **options).scores, strict=True):
        assert torch.equal(ours, its), "of what no correction is about, every bit"
    editenv_command("undo", out, "1", "--yes")
    assert list(load_context(folder / "context.json").entries) == [edit.prompt for edit in edits[1:3]]
    undone = load_memories(folder / "memory.safetensors")
    assert undone.keys() == memories.keys()
    for name, memory in memories.items():
        for part, tensor in memory.parts().items():
            assert torch.equal(undone[name].parts()[part], tensor), (name, part)
