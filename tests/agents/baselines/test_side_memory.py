"""Methods with a memory beside the weight: what each must change and must keep, and that a state goes on."""

import copy

import pytest
import torch

from agents.baselines.grace import GRACE
from agents.baselines.side_memory import memory_beside, queries, queries_of_text
from agents.baselines.t_patcher import TPatcher
from agents.baselines.target_loss import edit_prompts
from agents.baselines.wise import WISE, ties
from agents.view import Actor
from editenv.language_model.hooks import hooked
from editenv.memories import apply

LAST = "layers.2.mlp.down_proj"


def t_patcher(**settings):
    return TPatcher(**({"steps": 60, "learning_rate": 0.01, "amplification": 30.0, "tokens": 60} | settings))


def wise(**settings):
    return WISE(**({"steps": 100, "learning_rate": 0.05, "mask": 0.9, "tokens": 60} | settings))


AGENTS = {"grace": lambda: GRACE(radius=0.1, steps=40, learning_rate=0.3), "t-patcher": t_patcher, "wise": wise}


def begun(make_env, agent):
    env = make_env(modules=[LAST])
    agent.prepare(env, 0, lambda *_: None)
    env.reset(seed=0)
    actor = Actor(env, agent)
    actor.begin()
    return env, actor


@pytest.mark.parametrize("name", AGENTS)
def test_a_batch_is_edited_and_no_weight_changed(make_env, small_world, name):
    env, actor = begun(make_env, AGENTS[name]())
    lm = env.language_model
    *_, info = env.step(actor.act(*actor.look()))
    assert info["efficacy"] == 100
    (module,) = lm.modules
    assert torch.equal(lm.weight(module), lm.initial_weight(module))
    assert len(lm.memories[module])


@pytest.mark.parametrize("name", AGENTS)
def test_a_run_that_goes_on_from_its_states_gives_the_same_bits(make_env, small_world, name):
    agent, twin = AGENTS[name](), AGENTS[name]()
    agent.steps = twin.steps = 3
    env, actor = begun(make_env, agent)
    other_env, other = begun(make_env, twin)
    for _ in range(2):
        action = actor.act(*actor.look())
        env.step(action)
        other_env.step(copy.deepcopy(action))
        twin.load_batch_state(agent.batch_state())
    (module,) = env.language_model.modules
    before = memory_beside(env.language_model, module)
    undone = agent.batch_state()
    actor.act(*actor.look())
    agent.revert_batch()
    assert torch.equal(memory_beside(env.language_model, module).keys, before.keys)
    if name == "grace":  # the other two note what the batch itself added
        assert all(torch.equal(part, undone[of]) for of, part in agent.batch_state().items())
    first, second = actor.act(*actor.look()), other.act(*other.look())
    for of, part in first[module].parts().items():
        assert torch.equal(part, second[module].parts()[of]), of


def test_neurons_are_for_mistakes_alone_and_silent_elsewhere(make_env, small_world):
    agent = t_patcher()
    env, actor = begun(make_env, agent)
    lm = env.language_model
    (module,) = lm.modules
    prompts = edit_prompts(env.training_targets)
    wrong = lm.logits(prompts).argmax(-1) != prompts.labels
    keys, _ = queries(lm, module, prompts)
    env.step(actor.act(*actor.look()))
    memory = lm.memories[module]
    assert len(memory) == wrong.sum()
    fired = keys[wrong] @ memory.keys.T - memory.thresholds
    assert (fired.diagonal() > 0).all()
    text = queries_of_text(env, None, 60, 0) @ memory.keys.T - memory.thresholds
    assert (text > 0).float().mean() < 0.05
    # The batch is right now: presented again, it gets no neuron.
    again = t_patcher()
    again.prepare(env, 0, lambda *_: None)
    fresh = make_env(modules=[LAST])
    fresh.reset(seed=0)
    second = Actor(fresh, again)
    second.begin()
    fresh.language_model.apply({module: memory})
    assert len(second.act(*second.look())[module]) == 0


def test_the_losses_of_t_patcher_by_hand():
    agent = TPatcher(hardest=2, activation=0.5, memory=2.0, margin=1.0)
    generator = torch.Generator().manual_seed(0)
    keys, own, others = (torch.randn(size, 4, generator=generator).double() for size in (2, 2, 5))
    biases = torch.tensor([0.1, -0.2]).double()
    activation, memory = 0.0, 0.0
    for i in range(2):
        a = lambda q, i=i: float(keys[i] @ q + biases[i])  # noqa: E731
        activation += torch.tensor(-a(own[i])).double().exp() / 2
        elsewhere = sorted((a(q) for q in [*others, own[1 - i]]), reverse=True)[:2]
        for m in torch.tensor(elsewhere).double():
            memory += ((m - a(own[i]) + 1).exp() + (m + 1).exp()) / 4
    torch.testing.assert_close(agent.losses(keys, biases, own, others), 0.5 * activation + 2 * memory)


def test_wise_uses_the_side_copy_for_the_batch_and_not_for_text(make_env, small_world):
    agent = wise()
    env, actor = begun(make_env, agent)
    lm = env.language_model
    (module,) = lm.modules
    keys, outputs = queries(lm, module, edit_prompts(env.training_targets))
    env.step(actor.act(*actor.look()))
    memory = lm.memories[module]
    delta = memory.values[0]
    assert (delta != 0).float().mean() == pytest.approx(agent.mask, abs=0.03)
    torch.testing.assert_close(apply(memory, keys, outputs), outputs + keys @ delta, rtol=1e-4, atol=1e-4)
    text = queries_of_text(env, None, 60, 0)
    used = (text @ delta).norm(dim=1) > memory.thresholds[0]
    assert used.float().mean() < 0.2


@pytest.mark.parametrize("edits_per_shard", [3, 2])
def test_shards_fill_and_are_merged(make_env, small_world, edits_per_shard):
    """Three edits a batch and three a shard, or too few: a new D each batch; before the third, the first two become one."""
    agent = wise(steps=2, edits_per_shard=edits_per_shard)
    env, actor = begun(make_env, agent)
    (module,) = env.language_model.modules
    counts, values = [], []
    for _ in range(3):
        env.step(actor.act(*actor.look()))
        memory = env.language_model.memories[module]
        counts.append(len(memory))
        values.append(memory)
    assert counts == [1, 2, 2]
    assert torch.equal(values[1].values[0], values[0].values[0])
    expected = ties(values[1].values, agent.density)
    torch.testing.assert_close(values[2].values[0], expected)
    assert values[2].thresholds[0] == values[1].thresholds.min()


def test_ties_entry_by_entry():
    generator = torch.Generator().manual_seed(1)
    deltas = torch.randn(3, 4, 5, generator=generator)
    result = ties(deltas, 0.6)
    kept = [delta.abs().flatten().sort(descending=True).values[11] for delta in deltas]  # 0.6 * 20 = 12 of them
    for i in range(4):
        for j in range(5):
            entries = [float(d[i, j]) if d[i, j].abs() >= least else 0.0 for d, least in zip(deltas, kept, strict=True)]
            sign = 1 if sum(entries) >= 0 else -1
            agreeing = [entry for entry in entries if entry * sign > 0]
            mean = sum(agreeing) / len(agreeing) if agreeing else 0.0
            assert float(result[i, j]) == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("text", ["file", "self-written"])
def test_queries_are_inputs_at_tokens_of_the_text(make_env, small_world, tmp_path, text):
    env = make_env(modules=[LAST])
    lm = env.language_model
    (name,) = lm.modules
    if text == "file":
        text = str(tmp_path / "text.txt")
        (tmp_path / "text.txt").write_text("The home of Ada\nTea\n")
    keys = queries_of_text(env, text, 70, seed=1)
    if text == "self-written":
        assert len(keys) == 70
        return
    seen = []
    with hooked(lm.modules[name].register_forward_hook(lambda _, args, output: seen.append(args[0][0, 1:]))):
        for line in ("The home of Ada", "Tea"):
            lm.model(torch.tensor([lm.tokenizer(line)["input_ids"]]))
    expected = torch.cat(seen)  # without BOS
    assert keys.shape == expected.shape
    assert torch.cdist(keys, expected).min(1).values.max() < 1e-3


def test_a_folder_of_statistics_is_no_text(make_env, small_world, tmp_path):
    agent = t_patcher()
    agent.text = str(tmp_path)
    with pytest.raises(ValueError, match="is a folder of statistics; this method needs the text itself"):
        agent.prepare(make_env(modules=[LAST]), 0, lambda *_: None)
