from dataclasses import replace

import pytest
import torch
from plain import mean, nll

from agents.baselines.fine_tune import FineTune
from agents.baselines.fine_tune_replay import FineTuneReplay

LAST = "model.layers.2.mlp.down_proj"


def silent(*_):
    pass


def start(env, agent, seed=0):
    agent.prepare(env, seed, silent)
    _, info = env.reset(seed=1)
    agent.begin(env)
    return info


def two_batches(env, agent, seed=0):
    info = start(env, agent, seed)
    first = agent.act(env.gradients, info)
    earlier = list(env.batch)
    *_, info = env.step(first)
    return first, earlier, agent.act(env.gradients, info)


def test_the_first_batch_is_plain_fine_tuning(make_env):
    env = make_env(modules=[LAST])
    agent, plain = FineTuneReplay(steps=5, learning_rate=0.01), FineTune(steps=5, learning_rate=0.01)
    info = start(env, agent)
    plain.begin(env)
    assert torch.equal(agent.act(env.gradients, info)[LAST], plain.act(env.gradients, info)[LAST])


def test_each_step_goes_down_the_mean_over_the_batch_and_the_replayed_edits(make_env, base, tokenizer):
    """With all earlier edits in each step it is Adam on the union, by autograd on the plain model."""
    env = make_env(modules=[LAST])
    first, earlier, second = two_batches(env, FineTuneReplay(steps=4, learning_rate=0.01, replayed=100))
    began = base.get_submodule(LAST).weight + first[LAST].T
    weight = began.clone().requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.01)
    for _ in range(4):
        optimizer.zero_grad()
        edits = [*env.batch, *earlier]
        mean(nll(base, tokenizer, e.prompt, e.target, {f"{LAST}.weight": weight}) for e in edits).backward()
        optimizer.step()
    expected = (weight.detach() - began).T
    assert (second[LAST] - expected).norm() < 0.02 * expected.norm()


def test_earlier_edits_are_kept_better_than_without_replay(make_env, base, tokenizer):
    losses = []
    for agent in (FineTune(steps=15, learning_rate=0.02), FineTuneReplay(steps=15, learning_rate=0.02)):
        env = make_env(modules=[LAST])
        first, earlier, second = two_batches(env, agent)
        weights = {f"{LAST}.weight": base.get_submodule(LAST).weight + (first[LAST] + second[LAST]).T}
        losses.append(float(mean(nll(base, tokenizer, e.prompt, e.target, weights) for e in earlier)))
    assert losses[1] < 0.7 * losses[0]


def test_a_sample_is_drawn_anew_for_each_step_and_follows_from_the_seed(make_env, monkeypatch):
    env = make_env(modules=[LAST])
    agent = FineTuneReplay(steps=6, replayed=2)
    encode, asked = env.language_model.encode, []

    def watched(prompts, answers, **options):
        asked.append(tuple(prompts))
        return encode(prompts, answers, **options)

    info = start(env, agent)
    earlier = {edit.prompt for edit in env.batch}
    *_, info = env.step(agent.act(env.gradients, info))
    monkeypatch.setattr(env.language_model, "encode", watched)
    deltas = agent.act(env.gradients, info)
    assert len(asked) == 6
    assert len(set(asked)) > 1
    assert all(len(set(prompts)) == 2 and set(prompts) <= earlier for prompts in asked)
    assert torch.equal(agent.act(env.gradients, info)[LAST], deltas[LAST])
    ends = [two_batches(make_env(modules=[LAST]), FineTuneReplay(steps=3, replayed=1), seed)[2] for seed in (0, 0, 1)]
    assert torch.equal(ends[0][LAST], ends[1][LAST])
    assert not torch.equal(ends[0][LAST], ends[2][LAST])


def test_a_fact_that_was_edited_again_is_replayed_with_its_last_target_alone(make_env, edits):
    env = make_env(modules=[LAST], dataset=None)
    agent = FineTuneReplay(steps=1)
    env.reset(seed=0)
    agent.prepare(env, 0, silent)
    agent.begin(env)
    fact, other = edits[:2]
    corrected = replace(fact, target=other.target)
    for number, batch in enumerate(([fact, other], [corrected], [other])):
        _, info = env.present(batch)
        agent.act(env.gradients, info | {"attempt": 0})
        if number == 1:
            assert agent._memory == {fact.prompt: fact.target, other.prompt: other.target}
    assert agent._memory == {other.prompt: other.target, fact.prompt: corrected.target}
    assert list(agent._memory) == [other.prompt, fact.prompt]


@pytest.mark.parametrize("text", ["Zoë Müller 東京 is", ""])
def test_what_is_saved_of_a_batch_is_read_again(text):
    from agents.baselines.weight_training import as_tensor, of_tensor

    targets = {f"{text} one": "É", f"{text} two": "2"}
    assert of_tensor(as_tensor(targets)) == targets
    assert list(of_tensor(as_tensor(targets))) == list(targets)
