import math

import pytest
import torch
from plain import edited_weights, mean, nll

from agents.baselines.fine_tune import FineTune
from agents.baselines.joint_fine_tune import JointFineTune
from agents.baselines.no_edit import NoEdit
from agents.covariance import key_covariance
from editenv.deltas import dense

LAST = "model.layers.2.mlp.down_proj"


def start(env, agent, seed=0):
    observation, info = env.reset(seed=seed)
    agent.begin(env)
    return observation, info


def loss_of(base, tokenizer, edits, deltas):
    weights = edited_weights(base, deltas)
    return float(mean(nll(base, tokenizer, edit.prompt, edit.target, weights) for edit in edits))


def weights_of(env):
    return {name: module.weight.clone() for name, module in env.language_model.modules.items()}


def unchanged(env, before):
    return all(torch.equal(module.weight, before[name]) for name, module in env.language_model.modules.items())


@pytest.mark.parametrize("modules", [[LAST], ["layers.1.mlp.down_proj", "layers.2.mlp.up_proj"]])
def test_fine_tuning_lowers_the_batchs_loss_and_leaves_the_weights(make_env, base, tokenizer, modules):
    env = make_env(modules=modules)
    agent = FineTune(steps=10, learning_rate=0.01)
    _, info = start(env, agent)
    before = weights_of(env)
    deltas = agent.act(env.gradients, info)
    assert unchanged(env, before)
    zero = {name: torch.zeros_like(delta) for name, delta in deltas.items()}
    assert loss_of(base, tokenizer, env.batch, deltas) < 0.8 * loss_of(base, tokenizer, env.batch, zero)


@pytest.mark.parametrize("constraint", [None, 0.012])
def test_fine_tuning_is_adam_on_the_plain_model(make_env, base, tokenizer, constraint):
    """Under a constraint every step ends within it, as the next one's start."""
    env = make_env(modules=[LAST])
    agent = FineTune(steps=6, learning_rate=0.01, norm_constraint=constraint)
    _, info = start(env, agent)
    began = base.get_submodule(LAST).weight
    weight = began.clone().requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.01)
    for _ in range(6):
        optimizer.zero_grad()
        mean(nll(base, tokenizer, e.prompt, e.target, {f"{LAST}.weight": weight}) for e in env.batch).backward()
        optimizer.step()
        if constraint is not None:
            with torch.no_grad():
                weight.clamp_(began - constraint, began + constraint)
    expected = (weight.detach() - began).T
    found = agent.act(env.gradients, info)[LAST]
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_the_norm_constraint_holds_around_where_the_batch_began(make_env):
    env = make_env(modules=[LAST])
    agent = FineTune(steps=10, learning_rate=0.01, norm_constraint=0.004)
    _, info = start(env, agent)
    *_, info = env.step(agent.act(env.gradients, info))
    delta = agent.act(env.gradients, info)[LAST]
    assert delta.abs().max() == pytest.approx(0.004, rel=1e-3)
    free = FineTune(steps=10, learning_rate=0.01)
    free.begin(env)
    assert free.act(env.gradients, info)[LAST].abs().max() > 0.01
    # One step of Adam moves every weight by the learning rate: the constraint cuts it off there and then.
    one = FineTune(steps=1, learning_rate=0.01, norm_constraint=0.004)
    one.begin(env)
    plain = FineTune(steps=1, learning_rate=0.01)
    plain.begin(env)
    expected = plain.act(env.gradients, info)[LAST].clamp(-0.004, 0.004)
    torch.testing.assert_close(one.act(env.gradients, info)[LAST], expected, rtol=1e-3, atol=1e-6)


def test_fine_tuning_goes_on_from_the_weights_as_they_stand(make_env, base, tokenizer):
    env = make_env(modules=[LAST])
    agent = FineTune(steps=10, learning_rate=0.01)
    _, info = start(env, agent)
    first = agent.act(env.gradients, info)
    *_, info = env.step(first)
    second = agent.act(env.gradients, info)
    total = {LAST: first[LAST] + second[LAST]}
    assert loss_of(base, tokenizer, env.batch, total) < 0.8 * loss_of(base, tokenizer, env.batch, first)


def test_joint_fine_tuning_lowers_the_loss_over_the_whole_stream_in_one_action(make_env, base, tokenizer):
    env = make_env(modules=[LAST])
    agent = JointFineTune(ridge=1e-3, steps=15)
    agent.prepare(env, 0, lambda what, done, total: None)
    _, info = start(env, agent)
    before = weights_of(env)
    deltas = agent.act(env.gradients, info)
    assert unchanged(env, before)
    zero = {LAST: torch.zeros(64, 32)}
    for edits in (env.stream, env.stream[6:]):
        assert loss_of(base, tokenizer, edits, deltas) < 0.5 * loss_of(base, tokenizer, edits, zero)
    *_, info = env.step(deltas)
    later = agent.act(env.gradients, info)
    assert not dense(later[LAST]).any()


def test_the_ceiling_needs_a_stream(make_env):
    agent = JointFineTune(steps=2, samples=20)
    agent.prepare(make_env(modules=[LAST]), 0, lambda what, done, total: None)
    env = make_env(modules=[LAST], dataset=None)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="all edits of a stream at once"):
        agent.begin(env)


def test_the_ceilings_penalty_keeps_the_texts_outputs(make_env, base, tokenizer, tmp_path):
    """A larger ridge gives up loss for smaller changes of what the module says about text."""
    env = make_env(modules=[LAST])
    texts = ["Ada is in Rome", "The home of Tea is Oslo"]
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    C = key_covariance(env.language_model, texts)[LAST]
    found = []
    for ridge in (1e-3, 1.0):
        agent = JointFineTune(ridge=ridge, steps=15)
        agent.text = str(tmp_path / "texts.txt")
        agent.prepare(env, 0, lambda what, done, total: None)
        _, info = start(env, agent)
        deltas = agent.act(env.gradients, info)
        change = float((deltas[LAST] * (C @ deltas[LAST])).sum())
        loss = loss_of(base, tokenizer, env.stream, deltas)
        found.append((loss, change, loss + ridge * change))
    assert found[0][0] < found[1][0]
    assert found[0][1] > found[1][1]
    assert found[1][2] < loss_of(base, tokenizer, env.stream, {LAST: torch.zeros(64, 32)})
    assert found[1][2] < found[0][0] + 1.0 * found[0][1]


@pytest.mark.parametrize(("smallest", "ridge"), [(1.0, 1.0), (1e-3, 100.0)])
def test_the_ceiling_ends_where_its_objective_is_flat(make_env, base, tokenizer, monkeypatch, smallest, ridge):
    """Also where a text's keys leave most directions almost free, as real ones do."""
    env = make_env(modules=[LAST])
    Q = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
    C = Q @ torch.diag(torch.logspace(0, math.log10(smallest), 64)) @ Q.T
    monkeypatch.setattr("agents.baselines.joint_fine_tune.covariance_of", lambda *_: {LAST: C})
    agent = JointFineTune(ridge=ridge, steps=150, tolerance=1e-7)
    agent.prepare(env, 0, lambda what, done, total: None)
    _, info = start(env, agent)
    found = agent.act(env.gradients, info)[LAST]
    slopes = []
    for D in (torch.zeros(64, 32), found.clone()):
        D.requires_grad_()
        weights = edited_weights(base, {LAST: D})
        loss = mean(nll(base, tokenizer, edit.prompt, edit.target, weights) for edit in env.stream)
        (loss + ridge * (D * (C @ D)).sum()).backward()
        slopes.append(float(D.grad.norm()))
    assert slopes[1] < 0.02 * slopes[0]


def test_no_edit_changes_nothing(make_env, base):
    env = make_env()
    agent = NoEdit()
    _, info = start(env, agent)
    for _ in range(3):
        *_, info = env.step(agent.act(env.gradients, info))
        assert info["specificity"] == 100
        assert info["reward_terms"]["regularization"] == 0
        assert info["reward_terms"]["locality"] == pytest.approx(0, abs=1e-6)
    assert unchanged(env, {name: base.get_submodule(name).weight for name in env.language_model.modules})
