import copy
import io
import json
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from test_rledit import CONFIG, LAST, covariance_inverse_by_hand, same_policies

from agents.hypernetwork import train_command
from agents.hypernetwork.config import TrainConfig
from agents.hypernetwork.training import Step, make_preconditioner, training_environment
from agents.rl import reinforce
from agents.rl.episodes import play, rewards_to_go
from agents.rl.reinforce import ReinforceAgent, ReinforceConfig, ReinforceTrainer, leave_one_out
from agents.rledit.agent import RLEdit
from agents.rledit.trainer import trajectory_credit
from editenv.deltas import LowRank
from editenv.rewards import RewardTerms

NOISY = ReinforceConfig(
    **{field.name: getattr(CONFIG, field.name) for field in fields(TrainConfig)}, rollouts=4, noise=0.3
)


def make_reinforce(make_env, config=NOISY, seed=0, preconditioned=False, moved=0.2):
    env = training_environment(make_env(modules=[LAST]), config)
    trainer = ReinforceTrainer(env, config, seed, make_preconditioner(env, config) if preconditioned else None)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.policy.parameters():
            parameter += moved * torch.randn_like(parameter)
    return trainer


def flat_gradient(policy):
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])


def shifted(policy, direction):
    """The policy, and afterwards what it was, with its parameters moved by a flat vector."""
    start = 0
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += direction[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()


def steps_of(*rewards):
    return [Step({}, None, RewardTerms(0, 0, 0, 0, reward)) for reward in rewards]


def test_rewards_to_go_by_hand():
    assert rewards_to_go(steps_of(1.0, 2.0, 4.0), 1.0) == [7.0, 6.0, 4.0]
    assert rewards_to_go(steps_of(1.0, 2.0, 4.0), 0.5) == [1 + 1 + 1, 1 + 1, 1]


def test_a_rollout_s_baseline_is_the_mean_of_the_others():
    returns = torch.tensor([[1.0, 10.0], [2.0, 0.0], [6.0, 2.0]])
    expected = torch.tensor([[1.0 - 4.0, 10.0 - 1.0], [2.0 - 3.5, 0.0 - 6.0], [6.0 - 1.5, 2.0 - 5.0]])
    torch.testing.assert_close(leave_one_out(returns), expected)


def by_hand(trainer):
    """The gradient of ``learn`` from a density written down: V is normal around the network's, and R what it earned."""
    config, policy = trainer.config, trainer.policy
    rollouts = [trainer.roll_out_noisy(i) for i in range(config.rollouts)]
    rewards = np.array([[step.terms.reward for step in steps] for steps, _ in rollouts])
    weights = rewards * config.discount ** np.arange(config.horizon)
    s = config.noise * (float(policy.value_scale) / 32) ** 0.5
    total = 0.0
    for i, (steps, noises) in enumerate(rollouts):
        for t, (step, noise) in enumerate(zip(steps, noises, strict=True)):
            answers_for = slice(t, t + 1 if config.credit == "step" else None)
            earned = weights[:, answers_for].sum(1)
            baseline = np.delete(earned, i).mean()
            mean = policy.values(LAST, step.gradients[LAST])
            action = (mean + s * noise[LAST]).detach()
            total = total - (earned[i] - baseline) * torch.distributions.Normal(mean, s).log_prob(action).sum()
    (total / (config.rollouts * config.horizon)).backward()


@pytest.mark.parametrize("options", [{}, {"credit": "step"}, {"discount": 0.5}, {"preconditioner": True}])
def test_the_gradient_is_the_score_of_the_noise_by_the_advantage(make_env, small_world, options):
    config = replace(NOISY, learning_rate=0.0, scalar_learning_rate=0.0, **options)
    trainer = make_reinforce(make_env, config, preconditioned=config.preconditioner)
    trainer.learn()
    found = {name: parameter.grad for name, parameter in trainer.policy.named_parameters() if name != "log_ridge"}
    trainer.optimizer.zero_grad()
    by_hand(trainer)
    for name, parameter in trainer.policy.named_parameters():
        if name != "log_ridge":  # which is not in V; the next tests have it
            assert (found[name] - parameter.grad).norm() < 1e-2 * parameter.grad.norm() + 1e-4, name


def test_a_rollout_that_broke_the_model_earned_nothing_after_that(make_env, small_world, monkeypatch):
    config = replace(NOISY, learning_rate=0.0, scalar_learning_rate=0.0)
    trainer = make_reinforce(make_env, config)
    rollouts = [trainer.roll_out_noisy(i) for i in range(config.rollouts)]
    (broke, *_), noises = rollouts[1]
    rollouts[1] = ([replace(broke, terms=replace(broke.terms, reward=-3.0))], noises[:1])
    monkeypatch.setattr(trainer, "roll_out_noisy", lambda i: rollouts[i])
    trainer.learn()
    found = flat_gradient(trainer.policy)
    earned = np.zeros((config.rollouts, config.horizon))
    for i, (steps, _) in enumerate(rollouts):
        earned[i, : len(steps)] = [step.terms.reward for step in steps]
    trainer.optimizer.zero_grad()
    for i, (steps, noises) in enumerate(rollouts):
        for t, (step, noise) in enumerate(zip(steps, noises, strict=True)):
            to_go = earned[:, t:].sum(1)
            advantage = to_go[i] - np.delete(to_go, i).mean()
            loss = -advantage * trainer.log_probability(step, noise)
            (loss / (config.rollouts * config.horizon)).backward()
    torch.testing.assert_close(found, flat_gradient(trainer.policy), rtol=1e-3, atol=1e-5)


def test_an_episode_of_the_bounded_reward_ends_where_the_model_breaks(make_env, small_world):
    env = training_environment(make_env(modules=[LAST]), NOISY, "improvement")
    trainer = ReinforceTrainer(env, NOISY, 0, None)
    calls = []

    def act(gradients, projected):
        calls.append(len(calls))
        size = 0.0 if len(calls) == 1 else 1e3
        return {name: LowRank(g.keys.T, size * g.value_grads) for name, g in gradients.items()}

    steps = play(trainer, act, again=False)
    assert len(calls) == len(steps) == 2
    assert [step.terms.reward for step in steps] == [pytest.approx(0.0, abs=0.01), -2.0], "of three steps two were left"
    assert rewards_to_go(steps, 1.0) == [pytest.approx(-2.0, abs=0.01), -2.0]


@pytest.fixture
def short_answers(monkeypatch, small_world, tokenizer):
    """The edits of two or three tokens: the fewer numbers the noise has, the fewer samples tell what its mean is."""
    short = [edit for edit in small_world if len(tokenizer(f" {edit.target}")["input_ids"]) <= 4]
    monkeypatch.setattr("editenv.env.load_edits", lambda dataset, split, seed=None, options=None: list(short))


QUIET = replace(
    NOISY,
    learning_rate=0.0,
    scalar_learning_rate=0.0,
    horizon=1,
    edits_per_step=1,
    regularization=0.0,
    rollouts=8,
    preconditioner=True,
)


def uphill(make_env, config):
    """A unit vector along RLEdit's own gradient, averaged over streams: where the return changes."""
    trainer = make_reinforce(make_env, config, preconditioned=config.preconditioner, moved=0.0)
    total = 0.0
    for trainer.trajectory in range(10):
        steps = list(trajectory_credit(trainer.roll_out(), trainer.lm))
        trainer.optimizer.zero_grad()
        trainer.backward(steps)
        total = total + flat_gradient(trainer.policy)
    return total / total.norm()


def of_parameter(policy, name):
    """The unit vector of a parameter with one entry."""
    return torch.cat([torch.full((p.numel(),), float(n == name)) for n, p in policy.named_parameters()])


@pytest.mark.parametrize("preconditioned", [pytest.param(False, marks=pytest.mark.slow), True])
def test_on_one_step_its_mean_is_the_differentiable_gradient(make_env, short_answers, preconditioned):
    """RLEdit's gradient at the noisy weights has the same mean exactly; their difference must lie within 4 standard
    errors.

    Along RLEdit's gradient, and for the ridge, which the noise reaches through the regression alone.
    """
    config = replace(QUIET, preconditioner=preconditioned)
    trainer = make_reinforce(make_env, config, preconditioned=preconditioned, moved=0.0)
    policy = trainer.policy
    directions = torch.stack([uphill(make_env, config), of_parameter(policy, "log_ridge")])
    gaps, references = [], []
    for trainer.trajectory in range(24):
        trainer.learn()
        estimate = directions @ flat_gradient(policy)
        action, step = one_step(trainer)
        trainer.env.reset(seed=trainer.stream_seed)
        _, weight_gradients = trainer.env.transition(action)
        trainer.optimizer.zero_grad()
        inner = weight_gradients[LAST].dense() * policy(step.gradients, step.projected)[LAST].dense()
        inner.sum().backward()
        references.append(directions @ flat_gradient(policy))
        gaps.append(estimate - references[-1])
    gap, error, reference = (
        torch.stack(gaps),
        torch.stack(gaps).std(0) / len(gaps) ** 0.5,
        torch.stack(references).mean(0),
    )
    assert error[0] < 0.35 * reference[0].abs()  # else the next line would say little
    assert (gap.mean(0).abs() < 4 * error).all()


@pytest.mark.slow  # hundreds of episodes; the formula over several steps is tested above
def test_over_two_steps_its_mean_is_the_slope_of_the_expected_return(make_env, short_answers):
    """Against finite differences under common noise: later observations depend on earlier actions, and it knows."""
    config = replace(QUIET, horizon=2)
    trainer = make_reinforce(make_env, config, preconditioned=True, moved=0.0)
    policy = trainer.policy
    direction = uphill(make_env, config) * (1 - of_parameter(policy, "log_ridge"))  # the ridge shapes the noise
    step, gaps, slopes = 0.05, [], []
    for trainer.trajectory in range(24):
        trainer.learn()
        estimate = float(flat_gradient(policy) @ direction)
        returns = []
        for shift in (step, -2 * step):
            shifted(policy, shift * direction)
            episodes = [trainer.roll_out_noisy(i)[0] for i in range(2)]
            returns.append(np.mean([rewards_to_go(steps, 1.0)[0] for steps in episodes]))
        shifted(policy, step * direction)
        slopes.append((returns[1] - returns[0]) / (2 * step * config.horizon))  # of the loss, for each step
        gaps.append(estimate - slopes[-1])
    error = np.std(gaps, ddof=1) / len(gaps) ** 0.5
    assert error < 0.5 * abs(np.mean(slopes))
    assert abs(np.mean(gaps)) < 4 * error


def one_step(trainer):
    """The action of the first rollout of one step, and the step."""
    seen, step = [], trainer.env.step
    trainer.env.step = lambda action: seen.append(action) or step(action)
    (only,), _ = trainer.roll_out_noisy(0)
    trainer.env.step = step
    return seen[0], only


@pytest.mark.parametrize("preconditioned", [False, True])
def test_the_noise_is_asked_of_the_outputs(make_env, small_world, preconditioned):
    """V + s E goes through the regression; s is the stated share of a typical entry of the outputs on theta_0."""
    trainer = make_reinforce(make_env, replace(NOISY, horizon=1), preconditioned=preconditioned)
    policy = trainer.policy
    action, step = one_step(trainer)
    noise = trainer.roll_out_noisy(0)[1][0]
    keys = step.gradients[LAST].keys
    left = keys.T if not preconditioned else step.projected[LAST]
    s = 0.3 * (float(policy.value_scale) / 32) ** 0.5
    values = policy.values(LAST, step.gradients[LAST]) + s * noise[LAST]
    ridge = policy.ridge(LAST, preconditioned)
    expected = left @ torch.linalg.solve(keys @ left + ridge * torch.eye(len(keys)), values)
    torch.testing.assert_close(action[LAST].dense(), expected.detach(), rtol=1e-3, atol=1e-5)
    assert noise[LAST].std() == pytest.approx(1, abs=0.2)


def test_rollouts_share_their_stream_and_not_their_noise(make_env):
    trainer = make_reinforce(make_env)
    first, second = trainer.roll_out_noisy(0), trainer.roll_out_noisy(1)
    torch.testing.assert_close(first[0][0].gradients[LAST].keys, second[0][0].gradients[LAST].keys)
    assert not torch.allclose(first[1][0][LAST], second[1][0][LAST])
    again = trainer.roll_out_noisy(0)
    assert torch.equal(first[1][0][LAST], again[1][0][LAST])


@pytest.mark.parametrize("world", ["small", "atlas"])
def test_a_resumed_training_is_the_uninterrupted_one(make_env, request, world):
    request.getfixturevalue({"small": "small_world", "atlas": "tenth_of_atlas"}[world])
    config = replace(NOISY, warm_up_batches=1, preconditioner=True, rollouts=2)
    whole, first, second = (make_reinforce(make_env, config, preconditioned=True, moved=0.0) for _ in range(3))
    whole.run(2)
    first.run(1)
    saved = io.BytesIO()
    torch.save(first.state(), saved)
    saved.seek(0)
    second.load_state(torch.load(saved, weights_only=True))
    second.run(2)
    assert same_policies(whole.policy, second.policy)
    assert not same_policies(whole.policy, first.policy)


def test_training_raises_the_return_when_the_step_size_alone_is_wrong(make_env, small_world):
    config = replace(NOISY, learning_rate=0.0, scalar_learning_rate=0.1, regularization=0.0, rollouts=8)
    trainer = make_reinforce(make_env, config, moved=0.0)
    with torch.no_grad():
        trainer.policy.log_step_size -= 3.0
    before = copy.deepcopy(trainer.policy)
    trainer.run(15)
    assert (trainer.policy.log_step_size - before.log_step_size).item() > 0.5
    returns = []
    for policy in (before, trainer.policy):
        trainer.policy = policy
        returns.append(sum(step.terms.reward for step in trainer.roll_out()))
    assert returns[1] > returns[0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"environment": "fixed"}, "environment"),
        ({"memory_samples": 2}, "memory_samples"),
        ({"rollouts": 1}, "rollouts"),
        ({"noise": 0.0}, "noise"),
    ],
)
def test_what_it_cannot_do_is_refused(options, named):
    with pytest.raises(ValueError, match=named):
        replace(NOISY, **options)


def test_the_command_leaves_a_policy_that_the_editor_plays(make_env, tenth_of_atlas, model_folder, tmp_path, capsys):
    train = ReinforceConfig(
        trajectories=1,
        horizon=2,
        edits_per_step=2,
        warm_up_batches=1,
        rollouts=2,
        policy=replace(CONFIG.policy, rank=2),
    )
    args = reinforce.Args(output=tmp_path / "p", train=train, model=model_folder, modules=(LAST,), checkpoint_every=1)
    for _ in range(2):
        train_command.main(args, ReinforceTrainer)
    assert "going on from trajectory 1" in capsys.readouterr().out
    assert json.loads((tmp_path / "p" / "policy.json").read_text())["train"]["rollouts"] == 2
    agent = RLEdit(policy=tmp_path / "p")
    assert agent.config == TrainConfig(**{f.name: getattr(train, f.name) for f in fields(TrainConfig)})
    env = make_env(modules=[LAST])
    agent.prepare(env, 0, lambda what, done, total: None)
    _, info = env.reset(seed=0)
    agent.begin(env)
    assert torch.isfinite(agent.act(env.gradients, info)[LAST].dense()).all()


def test_the_row_is_trained_by_reinforce_and_kept(make_env, small_world, tmp_path):
    config = replace(NOISY, trajectories=1)
    agents = []
    for _ in range(2):
        agent = ReinforceAgent(config)
        agent.workspace = tmp_path
        told = []
        agent.prepare(make_env(modules=[LAST]), 3, lambda what, done, total, told=told: told.append(done))
        agents.append((agent, told))
    reference = make_reinforce(make_env, config, seed=3, moved=0.0)
    reference.run(1)
    assert agents[0][1] == [1]
    assert agents[1][1] == []  # taken from the folder
    for agent, _ in agents:
        assert same_policies(agent.policy, reference.policy)
    assert asdict(config) == json.loads((tmp_path / "policy.json").read_text())["train"]
    other = RLEdit(CONFIG)
    other.workspace = tmp_path
    other.prepare(make_env(modules=[LAST]), 3, lambda what, done, total: None)
    assert not same_policies(other.policy, reference.policy)


def test_rollouts_absorb_each_batch_once_and_begin_anew(make_env, small_world):
    config = replace(NOISY, preconditioner=True, absorb_noise=0.5, actions_per_batch=2)
    trainer = make_reinforce(make_env, config, preconditioned=True)
    start = trainer.preconditioner.project(LAST, torch.eye(64)).clone()
    for _ in range(2):
        absorbed = []
        for t, step in enumerate(trainer.roll_out_noisy(0)[0]):
            keys = step.gradients[LAST].keys
            expected = covariance_inverse_by_hand(start, absorbed, 0.5) @ keys.T
            assert (step.projected[LAST] - expected).norm() < 2e-3 * expected.norm()
            absorbed += [keys] * (t % 2)
