"""MEND and MALMEN: trained on a model that stands still, and their starred forms trained again along the stream."""

import copy
from dataclasses import fields, replace

import pytest
import torch
from plain import batch_loss, edited_weights
from test_rledit import CONFIG, LAST

from agents.base import zero_action
from agents.baselines.malmen import MALMEN, MALMENConfig
from agents.baselines.mend import MEND, MENDConfig
from agents.hypernetwork.config import PolicyConfig, TrainConfig
from agents.hypernetwork.online import OnlineTrainer
from agents.hypernetwork.training import training_environment
from agents.rledit.agent import RLEdit
from agents.rledit.trainer import RLEditTrainer
from editenv.env import RefusedActionError

SMALL = {
    "trajectories": 2, "horizon": 3, "edits_per_step": 3, "warm_up_batches": 2, "gradient_clip": 1e9, "locality": 0.5,
}  # fmt: skip
KINDS = {
    "mend": (MEND, MENDConfig(**SMALL, policy=PolicyConfig(network="mend", blocks=2, rank=3, step_size=0.3))),
    "malmen": (MALMEN, MALMENConfig(**SMALL, policy=PolicyConfig(blocks=2, rank=3))),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def nothing(what, done, total):
    pass


def begun(env, agent, seed=0):
    agent.prepare(env, seed, nothing)
    observation, info = env.reset(seed=1)
    agent.begin(env)
    return observation, info


def move(policy):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.2 * torch.randn_like(parameter)


def test_each_batch_of_theta_0_gives_a_step_along_the_gradient_of_its_own_loss(
    make_env, small_world, base, tokenizer, monkeypatch, kind
):
    _, config = kind
    config = replace(config, learning_rate=0.0, scalar_learning_rate=0.0)
    env = training_environment(make_env(modules=[LAST]), config)
    trainer = OnlineTrainer(env, config, 0, None)
    move(trainer.policy)
    taken, batches = [], []
    transition, optimizer_step = env.transition, trainer.optimizer.step
    monkeypatch.setattr(
        env, "transition", lambda d, lags: (batches.append((env.gradients, list(env.batch))), transition(d, lags))[1]
    )
    monkeypatch.setattr(
        trainer.optimizer,
        "step",
        lambda: (taken.append([p.grad.clone() for p in trainer.policy.parameters()]), optimizer_step())[1],
    )
    policy = copy.deepcopy(trainer.policy)  # the normaliser moves after the trajectory
    trainer.train_one()
    assert len(taken) == len(batches) == config.horizon
    for found, (gradients, batch) in zip(taken, batches, strict=True):
        deltas = {name: delta.dense() for name, delta in policy(gradients).items()}
        loss = batch_loss(base, tokenizer, batch, edited_weights(base, deltas), config.locality)
        expected = torch.autograd.grad(loss, list(policy.parameters()))
        norm = sum(float(g.square().sum()) for g in expected) ** 0.5
        assert norm > 0.05
        for one, other in zip(found, expected, strict=True):
            assert (one - other).norm() < 2e-3 * other.norm() + 1e-4 * norm


def test_training_changes_the_network_and_not_the_model(make_env, small_world, kind):
    make, config = kind
    env = make_env(modules=[LAST])
    before = env.language_model.snapshot()
    trained, fresh = make(config), make(replace(config, trajectories=0))
    _, info = begun(env, fresh)
    untrained = fresh.act(env.gradients, info)[LAST].dense()
    trained.prepare(env, 0, nothing)
    assert all(torch.equal(value, before[name]) for name, value in env.language_model.snapshot().items())
    _, info = begun(env, trained)
    assert (trained.act(env.gradients, info)[LAST].dense() - untrained).norm() > 1e-3 * untrained.norm()


def play(env, agent, batches, observation, info):
    actions = []
    for _ in range(batches):
        actions.append(agent.act(env.gradients, info)[LAST].dense())
        *_, info = env.step({LAST: actions[-1]})
    return actions


def test_the_starred_form_trains_on_the_edited_model_every_three_batches(make_env, small_world, monkeypatch, kind):
    make, config = kind
    env = make_env(modules=[LAST], edits_per_step=1, horizon=8)
    agent = make(config, retrain_every=3, retrain_trajectories=2)
    _, info = begun(env, agent)
    trainings, run, transition = [], RLEditTrainer.run, type(env).transition

    def noted(trainer, trajectories, *rest):
        theta_0 = trainer.lm.initial_weight(LAST).T.clone()
        trainings.append((info["batch"], theta_0, trainer.trajectory, trajectories, []))
        return run(trainer, trajectories, *rest)

    def watched(training, deltas, lags=None):
        trainings[-1][-1].append(training.language_model.snapshot()[LAST])
        return transition(training, deltas, lags)

    monkeypatch.setattr(OnlineTrainer, "run", noted)
    monkeypatch.setattr(type(env), "transition", watched)
    edited, prepared = [], agent.policy
    for batch in range(8):
        edited.append(env.language_model.snapshot()[LAST])
        seen = agent.policy
        action = agent.act(env.gradients, info)
        assert (agent.policy is not seen) == (batch in (3, 6))
        *_, info = env.step(action)
    assert [entry[0] for entry in trainings] == [3, 6]
    assert [entry[2:4] for entry in trainings] == [(2, 4), (4, 6)]  # fresh streams each time
    for batch, theta_0, _, _, weights in trainings:
        # What is edited, what is put back and what locality is measured against is the model as it stood then.
        assert len(weights) == 2 * config.horizon
        assert all(torch.equal(value, edited[batch]) for value in weights)
        assert torch.equal(theta_0, edited[batch])
    _, info = env.reset(seed=1)
    agent.begin(env)
    assert agent.policy is prepared


def test_the_units_of_the_starred_form_stay_those_of_theta_0(make_env, small_world, kind):
    make, config = kind
    env = make_env(modules=[LAST], edits_per_step=1, horizon=8)
    agent = make(config, retrain_every=2)
    _, info = begun(env, agent)
    units = agent.policy.key_scale.clone(), agent.policy.value_scale.clone()
    statistics = next(iter(agent.policy.networks.values())).normalizer.mean.clone()
    lm = env.language_model
    for _ in range(3):
        agent.act(env.gradients, info)
        *_, info = env.step({LAST: 2 * lm.initial_weight(LAST)})
        assert torch.equal(agent.policy.key_scale, units[0])
        assert torch.equal(agent.policy.value_scale, units[1])
    retrained = next(iter(agent.policy.networks.values())).normalizer.mean
    assert not torch.equal(retrained, statistics)  # it did train again


def test_a_network_that_breaks_when_it_is_retrained_is_lost_and_refused(make_env, small_world, monkeypatch, kind):
    """Not an error that ends the run: its edits count as failed. It does not train again and again to the same end."""
    make, config = kind
    env = make_env(edits_per_step=1, horizon=8)
    agent = make(config, retrain_every=2)
    _, info = begun(env, agent)
    tries = []

    def ascend(self):
        tries.append(self.trajectory)
        raise FloatingPointError("the policy's gradient is not finite")

    monkeypatch.setattr(OnlineTrainer, "ascend", ascend)
    for _ in range(2):
        *_, info = env.step(agent.act(env.gradients, info))
    before = env.language_model.snapshot()
    for _ in range(3):
        with pytest.raises(RefusedActionError):
            env.step(agent.act(env.gradients, info))
        agent.revert_batch()
        *_, info = env.step(zero_action(env.language_model))
    assert tries == [config.trajectories]
    assert all(torch.equal(weight, before[name]) for name, weight in env.language_model.snapshot().items())
    _, info = env.reset(seed=1)
    agent.begin(env)
    env.step(agent.act(env.gradients, info))


def test_what_is_retrained_goes_on_from_what_was_learned_with_statistics_of_the_edited_model(
    make_env, small_world, kind
):
    make, config = kind
    env = make_env(modules=[LAST], edits_per_step=1, horizon=8)
    still = replace(config, learning_rate=0.0, scalar_learning_rate=0.0)
    agent = make(still, retrain_every=2)
    observation, info = begun(env, agent)
    move(agent.policy)
    before = agent.policy
    play(env, agent, 3, observation, info)
    for one, other in zip(before.parameters(), agent.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    first, second = (policy.networks["64x32"].normalizer for policy in (before, agent.policy))
    torch.testing.assert_close(first.mean[:64], second.mean[:64], rtol=0.2, atol=0.2)  # keys do not drift
    assert not torch.allclose(first.mean[64:], second.mean[64:], rtol=0.05, atol=1e-3)
    # Nothing but what was seen since: the warm-up, and one trajectory.
    assert float(second.count) < float(first.count)


def test_an_interrupted_run_goes_on_the_same(make_env, small_world, kind):
    make, config = kind
    env = make_env(modules=[LAST], edits_per_step=1, horizon=8)
    whole = make(config, retrain_every=2)
    actions = play(env, whole, 6, *begun(env, whole))
    first, second = make(config, retrain_every=2), make(config, retrain_every=2)
    begun(env, second)
    observation, info = begun(env, first)
    memories = []
    for action in actions[:3]:
        assert torch.equal(first.act(env.gradients, info)[LAST].dense(), action)
        memories.append({name: value.clone() for name, value in first.batch_state().items()})
        observation, *_, info = env.step({LAST: action})
    learned = [any(name.startswith("policy/") for name in memory) for memory in memories]
    assert learned == [False, False, True]
    for memory in memories:
        second.load_batch_state(memory)
    for one, other in zip(play(env, second, 3, observation, info), actions[3:], strict=True):
        assert torch.equal(one, other)


def test_a_trained_policy_is_kept_and_taken_again(make_env, small_world, monkeypatch, tmp_path, kind):
    make, config = kind
    env = make_env(modules=[LAST])
    agent = make(config)
    agent.workspace = tmp_path
    _, info = begun(env, agent)
    action = agent.act(env.gradients, info)[LAST].dense()
    monkeypatch.setattr(OnlineTrainer, "run", lambda *arguments: pytest.fail("trained again"))
    again = make(config)
    again.workspace = tmp_path
    begun(env, again)
    assert torch.equal(again.act(env.gradients, info)[LAST].dense(), action)
    from_folder = make(policy=tmp_path)
    begun(env, from_folder)
    assert torch.equal(from_folder.act(env.gradients, info)[LAST].dense(), action)


@pytest.mark.parametrize("change", [{"environment": "lifelong"}, {"policy": "other"}])
def test_a_configuration_of_something_else_is_refused(kind, change):
    make, config = kind
    if "policy" in change:
        change = {"policy": KINDS["malmen" if make is MEND else "mend"][1].policy}
    with pytest.raises(ValueError, match=f"{make.__name__} is trained with environment 'fixed'"):
        make(replace(config, **change))


def test_retraining_needs_a_number_of_batches():
    with pytest.raises(ValueError, match="retrain_every"):
        MEND(retrain_every=0)
    assert MEND(retrain_every=3).learns


@pytest.mark.parametrize("credit", ["trajectory", "step"])
def test_rledits_training_is_a_plug_in_to_mends_network(make_env, small_world, credit):
    """The very RLEditTrainer and agent of RLEdit; only the configuration names another network."""
    options = {field.name: getattr(CONFIG, field.name) for field in fields(TrainConfig)}
    config = TrainConfig(**{**options, "credit": credit, "policy": KINDS["mend"][1].policy})
    env = make_env(modules=[LAST])
    agent = RLEdit(config)
    _, info = begun(env, agent)
    assert agent.trainer is RLEditTrainer
    assert type(agent.policy).__name__ == "MendPolicy"
    untrained = RLEdit(config, train=False)
    begun(env, untrained)
    one, other = agent.act(env.gradients, info)[LAST].dense(), untrained.act(env.gradients, info)[LAST].dense()
    assert (one - other).norm() > 1e-3 * other.norm()
