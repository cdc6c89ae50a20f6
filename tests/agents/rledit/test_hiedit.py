"""HiEdit: the gate by hand, its gradient by autograd through a trajectory, and RLEdit where it chooses all modules."""

from dataclasses import asdict, replace

import pytest
import torch
from plain import batch_loss, edited_weights

from agents.hypernetwork.config import GatedPolicyConfig, PolicyConfig, TrainConfig, config_from_json
from agents.hypernetwork.networks import load_policy, save_policy
from agents.hypernetwork.training import training_environment
from agents.registry import environment_of, make_agent, resolved_settings, settings_of
from agents.rledit.agent import RLEdit
from agents.rledit.hiedit import HiEdit, HiEditConfig, HiEditTrainer
from agents.rledit.trainer import RLEditTrainer
from benchmarks.running.rollout import editing_environment
from benchmarks.suites import SUITES

MODULES = ("layers.1.mlp.gate_proj", "layers.1.mlp.up_proj", "layers.2.mlp.down_proj")
NETWORK = {"blocks": 2, "rank": 3, "step_size": 1.0}
TRAINING = {
    "trajectories": 2,
    "horizon": 3,
    "edits_per_step": 3,
    "memory_batches": 2,
    "regularization": 0.01,
    "gradient_clip": 0.05,
    "warm_up_batches": 2,
}


def config(share, **options):
    policy = GatedPolicyConfig(**NETWORK, share=share, gate_width=8)
    return HiEditConfig(**(TRAINING | options), policy=policy)


def make_trainer(make_env, share=0.6, moved=0.2, **options):
    settings = config(share, **options)
    trainer = HiEditTrainer(training_environment(make_env(modules=list(MODULES)), settings), settings, 0, None)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainer.policy.parameters():
            parameter += moved * torch.randn(parameter.shape, generator=generator)
    return trainer


def scores_of(policy, gradients):
    """From the state of the gate, token by token."""
    state, features, seen = policy.gate.state_dict(), [], {}
    for gradient in gradients.values():
        shape = f"{gradient.keys.shape[1]}x{gradient.value_grads.shape[1]}"
        module = seen.setdefault(shape, -1) + 1
        seen[shape] = module
        normalizer = policy.networks[shape].normalizer
        rows = []
        for key, grad in zip(gradient.keys, gradient.value_grads, strict=True):
            token = normalizer(torch.cat([key, grad])[None])[0]
            hidden = state[f"encoders.{shape}.linear.weight"] @ token + state[f"encoders.{shape}.linear.bias"]
            hidden = torch.maximum(hidden, torch.zeros(()))
            scale, shift = (state[f"encoders.{shape}.{part}"][module] for part in ("scale", "shift"))
            rows.append(scale * hidden + shift)
        features.append(torch.stack(rows).mean(0))
    return state["scoring.weight"] @ torch.cat(features) + state["scoring.bias"]


def choice_by_hand(policy, gradients):
    """The highest scores."""
    scores = scores_of(policy, gradients)
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[: policy.gate.chosen]
    return [float(i in best) for i in range(len(scores))]


def test_the_modules_with_the_highest_scores_are_edited_and_no_others(make_env, small_world):
    trainer = make_trainer(make_env)
    policy, env = trainer.policy, trainer.env
    assert policy.gate.chosen == 2  # of three, 0.6 of them rounded up
    env.reset(seed=1)
    with torch.no_grad():  # no module is ahead in all batches
        batches = [env.gradient_of(env.stream[start : start + 3]) for start in (0, 3, 6)]
        policy.gate.scoring.bias -= torch.stack([scores_of(policy, gradients) for gradients in batches]).mean(0)
    choices = set()
    for _ in range(3):
        gradients = env.gradients
        expected = choice_by_hand(policy, gradients)
        with torch.no_grad():
            assert [float(value) for value in policy.choice(gradients).values()] == expected
            deltas, whole = policy(gradients), policy.deltas(gradients)
        for name, chosen in zip(deltas, expected, strict=True):
            assert whole[name].dense().norm() > 0
            assert torch.equal(deltas[name].dense(), chosen * whole[name].dense())
        choices.add(tuple(expected))
        env.transition(deltas)
    assert len(choices) > 1, "it is a choice for each batch"


@pytest.mark.parametrize("credit", ["trajectory", "step"])
def test_the_gate_answers_for_the_trajectory(make_env, small_world, base, tokenizer, credit):
    """The slope of the loss in a factor of each module's whole delta, chosen or not, is what its score learns from."""
    trainer = make_trainer(make_env, credit=credit, gradient_clip=1e9)
    env, settings = trainer.env, trainer.config
    trace, transition = [], env.transition

    def noted(deltas, lags=None):
        trace.append((env.gradients, list(env.batch), deltas))
        return transition(deltas, lags)

    env.transition = noted
    policy = trainer.policy
    state = {name: value.clone() for name, value in policy.state_dict().items()}
    trainer.train_one()
    found = policy.gate.scoring.bias.grad

    policy.load_state_dict(state)
    factors, loss, past = [], 0.0, []
    total = {name: torch.zeros(shape) for name, shape in policy.shapes.items()}
    for gradients, batch, deltas in trace:
        with torch.no_grad():
            whole = {name: delta.dense() for name, delta in policy.deltas(gradients).items()}
        factor = torch.tensor([float(deltas[name].right.any()) for name in whole], requires_grad=True)
        assert 0 < factor.sum() < len(whole)
        if credit == "step":
            total = {name: value.detach() for name, value in total.items()}
        parts = {name: factor[i] * delta for i, (name, delta) in enumerate(whole.items())}
        total = {name: total[name] + part for name, part in parts.items()}
        weights = edited_weights(base, total)
        for lag, edits in enumerate([batch, *past[::-1]][: 1 + settings.memory_batches]):
            loss = loss + settings.memory_decay**lag * batch_loss(base, tokenizer, edits, weights, settings.locality)
        loss = loss + settings.regularization * sum(part.square().sum() for part in parts.values())
        factors.append(factor)
        past.append(batch)
    (loss / len(trace)).backward()
    expected = sum(factor.grad for factor in factors)
    assert expected.norm() > 1e-3
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-4 * float(expected.norm()))


def test_a_gate_that_chooses_all_is_rledit_to_the_last_bit(make_env, small_world):
    """Network, step sizes and what they are trained by; the gradient is clipped, the gate's on its own."""
    hiedit = make_trainer(make_env, share=1.0, moved=0.0)
    plain = TrainConfig(**TRAINING, policy=PolicyConfig(**NETWORK))
    rledit = RLEditTrainer(training_environment(make_env(modules=list(MODULES)), plain), plain, 0, None)
    for _ in range(2):
        first, second = hiedit.train_one(), rledit.train_one()
        assert first["gradient_norm"] > second["gradient_norm"] > TRAINING["gradient_clip"]
        assert first["reward"] == second["reward"]
    state = hiedit.policy.state_dict()
    assert any(name.startswith("gate.") for name in state)
    for name, value in rledit.policy.state_dict().items():
        assert torch.equal(state[name], value), name
    rledit.env.reset(seed=5)
    gradients = rledit.env.gradients
    with torch.no_grad():
        ours, theirs = hiedit.policy(gradients), rledit.policy(gradients)
    assert all(torch.equal(ours[name].dense(), theirs[name].dense()) for name in theirs)


def test_a_saved_policy_chooses_as_before(make_env, small_world, tmp_path):
    trainer = make_trainer(make_env)
    save_policy(trainer.policy, tmp_path, {"train": asdict(trainer.config)})
    agent = HiEdit(policy=tmp_path)
    assert agent.config == config_from_json(asdict(trainer.config))
    assert agent.config.policy == trainer.config.policy
    env = make_env(modules=list(MODULES))
    agent.prepare(env, 0, lambda *_: None)
    _, info = env.reset(seed=1)
    agent.begin(env)
    action = agent.act(env.gradients, info)
    expected = trainer.policy(env.gradients)
    assert all(torch.equal(action[name].dense(), expected[name].dense().detach()) for name in expected)
    assert [bool(action[name].right.any()) for name in action].count(False) == 1


def test_a_policy_without_a_gate_is_refused(make_env, small_world, tmp_path):
    plain = TrainConfig(**TRAINING, policy=PolicyConfig(**NETWORK))
    trainer = RLEditTrainer(training_environment(make_env(modules=list(MODULES)), plain), plain, 0, None)
    save_policy(trainer.policy, tmp_path, {"train": asdict(plain)})
    assert load_policy(tmp_path)[0].gate is None
    RLEdit(policy=tmp_path)
    with pytest.raises(ValueError, match="has no gate: it is for rledit"):
        HiEdit(policy=tmp_path)
    with pytest.raises(ValueError, match="this policy has no gate"):
        trainer.policy.choice({})


def test_the_row_has_modules_to_choose_from():
    """Where a row edits may be part of its settings on the embedded model, too."""
    agent = make_agent("hiedit")
    env = editing_environment(SUITES["smoke"], agent)
    modules = list(env.language_model.modules)
    assert len(modules) > 1
    assert environment_of("hiedit") == agent.environment
    assert settings_of("hiedit", agent)["environment"]["modules"] == agent.environment["modules"]
    sources = {setting.name: setting.source for setting in resolved_settings("hiedit")}
    assert sources["environment.modules"] == sources["config.policy.step_size"] == "settings"
    assert sources["config.policy.share"] == "default"
    assert environment_of("rledit") == make_agent("rledit").environment == {}
    assert replace(agent.config.policy, share=1.0).chosen(len(modules)) == len(modules)
