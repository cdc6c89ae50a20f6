import copy
import io
import json
import random
import shutil
import warnings
from collections import Counter
from dataclasses import asdict, replace

import pytest
import torch
from plain import batch_loss, edited_weights

from agents.base import zero_action
from agents.covariance import key_covariance
from agents.hypernetwork.config import GatedPolicyConfig, PolicyConfig, TrainConfig, config_from_json
from agents.hypernetwork.networks import save_policy
from agents.hypernetwork.training import sample_lags, training_environment
from agents.preconditioner import Preconditioner, inverse_covariance
from agents.rledit.agent import RLEdit
from agents.rledit.trainer import RLEditTrainer
from editenv.deltas import LowRank
from editenv.identity import fingerprint
from editenv.rewards import RewardConfig
from editenv.sealed_json import read_sealed, write_sealed

LAST = "model.layers.2.mlp.down_proj"
CONFIG = TrainConfig(
    trajectories=2,
    horizon=3,
    edits_per_step=3,
    memory_decay=0.7,
    memory_batches=2,
    locality=0.5,
    regularization=0.01,
    gradient_clip=1e9,
    covariance_texts=20,
    warm_up_batches=2,
    policy=PolicyConfig(blocks=2, rank=3, step_size=1.0),
)


@pytest.fixture
def saved(make_env, tmp_path):
    """A policy for the environment's two modules."""
    trainer = make_trainer(make_env, modules=MODULES)
    save_policy(trainer.policy, tmp_path / "saved", {"train": asdict(CONFIG)})
    return tmp_path / "saved"


MODULES = ("layers.1.mlp.down_proj", "layers.2.mlp.down_proj")
GATED = GatedPolicyConfig(blocks=2, rank=3, step_size=1.0, gate_width=5)
MEND = PolicyConfig(network="mend", blocks=2, rank=3, step_size=0.3)
TEXTS = ["Ada is in Rome", "So, people find the Long River in Ecuador and in Peru", "Who saw Kepler? Oslo"]


def make_trainer(make_env, config=CONFIG, seed=0, modules=(LAST,), preconditioned=False, moved=0.0, reward="loss"):
    env = training_environment(make_env(modules=list(modules)), config, reward)
    preconditioner = None
    if preconditioned:
        covariance = key_covariance(env.language_model, TEXTS)
        start = {name: inverse_covariance(matrix, config.epsilon) for name, matrix in covariance.items()}
        preconditioner = Preconditioner(start, config.recursive)
    trainer = RLEditTrainer(env, config, seed, preconditioner)
    if moved:
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in trainer.policy.parameters():
                parameter += moved * torch.randn_like(parameter)
    return trainer


@pytest.mark.parametrize(
    ("edits_per_step", "horizon", "fits"), [(3, 3, True), (5, 2, True), (3, 4, False), (5, 3, False)]
)
def test_a_trajectory_longer_than_the_training_edits_is_refused(make_env, tmp_path, edits_per_step, horizon, fits):
    """Past the end of a stream there would be nothing but the last batch, judged again and again."""
    rows = [{"prompt": f"The seat of body {i} is", "target": "Rome"} for i in range(10)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    env = make_env(modules=[LAST], dataset=str(tmp_path), split="train")
    config = replace(CONFIG, edits_per_step=edits_per_step, horizon=horizon)
    if fits:
        assert training_environment(env, config).longest_stream == 10
        return
    with pytest.raises(
        ValueError, match=f"{horizon} batches of {edits_per_step} edits.* set horizon to {10 // edits_per_step}"
    ):
        training_environment(env, config)


def watch(env):
    """Notes each transition: gradients observed, edits, lags and deltas."""
    trace, transition = [], env.transition

    def noted(deltas, lags=None):
        trace.append((env.gradients, list(env.batch), lags, deltas))
        return transition(deltas, lags)

    env.transition = noted
    return trace


def covariance_inverse_by_hand(start, absorbed, noise):
    """P after keys were absorbed, by inverting."""
    P = torch.linalg.inv(start.double())
    for keys in absorbed:
        P = P + keys.double().T @ keys.double() / noise
    return torch.linalg.inv(P).float()


def unrolled_loss(policy, trace, base, tokenizer, config, starts=None, improvement=False):
    """Minus eq. 11, by the T of it, as a function of the policy; observations are constants."""
    K = config.actions_per_batch
    total = {name: torch.zeros(shape) for name, shape in policy.shapes.items()}
    past, absorbed, loss, reference = [], [], 0.0, None
    for t, (gradients, batch, lags, _) in enumerate(trace):
        projected = None
        if starts is not None:
            projected = {
                name: covariance_inverse_by_hand(P, [g[name].keys for g in absorbed], config.absorb_noise)
                @ gradients[name].keys.T
                for name, P in starts.items()
            }
        deltas = {name: pair.left @ pair.right for name, pair in policy(gradients, projected).items()}
        if config.environment == "fixed" and t % K == 0:
            total = {name: torch.zeros(shape) for name, shape in policy.shapes.items()}
        if config.credit == "step":
            total = {name: value.detach() for name, value in total.items()}
        if config.reference == "previous" and t % K == 0:
            reference = edited_weights(base, {name: value.detach() for name, value in total.items()})
        total = {name: total[name] + delta for name, delta in deltas.items()}
        weights = edited_weights(base, total)
        step = batch_loss(base, tokenizer, batch, weights, config.locality, reference)
        remembered = config.memory_batches if config.environment == "lifelong" else 0
        known = past[max(0, len(past) - remembered) :]
        for lag in range(1, len(known) + 1) if lags is None else lags:
            scale = 1 if lags is None else len(known) / len(lags)
            old = batch_loss(base, tokenizer, known[-lag], weights, config.locality, reference)
            step = step + scale * config.memory_decay**lag * old
        step = step + config.regularization * sum(delta.square().sum() for delta in deltas.values())
        if improvement:
            unedited = edited_weights(base, {name: torch.zeros(shape) for name, shape in policy.shapes.items()})
            losses = [batch_loss(base, tokenizer, b, unedited, 0.0) for b in [batch, *reversed(known)]]
            step = step / sum(config.memory_decay**lag * float(value) for lag, value in enumerate(losses)) - 1
        loss = loss + config.discount**t * step
        if (t + 1) % K == 0:
            past.append(batch)
            absorbed.append(gradients)
    return loss / len(trace)


CASES = {
    "paper": {},
    "two modules": {"modules": ("layers.1.mlp.down_proj", LAST)},
    "own reward only": {"credit": "step"},
    "closed loop, discounted": {"actions_per_batch": 2, "discount": 0.8, "horizon": 2},
    "long, discounted": {"horizon": 10, "edits_per_step": 1, "discount": 0.6, "memory_batches": 1, "warm_up_batches": 9},
    "fixed": {"environment": "fixed"},
    "fixed, closed loop, discounted": {"environment": "fixed", "actions_per_batch": 2, "horizon": 2, "discount": 0.5},
    "fixed, closed loop": {"environment": "fixed", "actions_per_batch": 2, "horizon": 2},
    "fixed, closed loop, own reward only": {
        "environment": "fixed", "actions_per_batch": 2, "horizon": 2, "credit": "step",
    },
    "sampled memory": {"memory_samples": 1},
    "improvement": {"reward": "improvement", "regularization": 0.3},
    "improvement, own reward only, sampled": {"reward": "improvement", "credit": "step", "memory_samples": 1},
    "no memory": {"memory_batches": 0},
    "previous reference": {"reference": "previous", "locality": 2.0},
    "previous reference, closed loop": {
        "reference": "previous", "locality": 2.0, "actions_per_batch": 2, "horizon": 2,
    },
    "previous reference, as in the public code": {
        "reference": "previous", "locality": 2.0, "credit": "step", "modules": ("layers.1.mlp.down_proj", LAST),
    },
    "preconditioned": {"preconditioner": True},
    "preconditioned, closed loop": {"preconditioner": True, "actions_per_batch": 2, "horizon": 2},
    "preconditioned, not recursive": {"preconditioner": True, "recursive": False},
    "MEND's network": {"policy": MEND, "modules": ("layers.1.mlp.down_proj", LAST)},
    "MEND's network, own reward only": {"policy": MEND, "credit": "step"},
    "HiEdit's gate": {"policy": GATED, "modules": ("layers.1.mlp.down_proj", LAST)},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_policy_gradient_is_autograd_through_the_unrolled_trajectory(make_env, small_world, base, tokenizer, case):
    options = dict(CASES[case])
    modules, reward = options.pop("modules", (LAST,)), options.pop("reward", "loss")
    config = replace(CONFIG, **options)
    trainer = make_trainer(make_env, config, 0, modules, config.preconditioner, moved=0.2, reward=reward)
    policy, starts = copy.deepcopy(trainer.policy), None
    if config.preconditioner:
        starts = {name: trainer.preconditioner.project(name, torch.eye(64)) for name in policy.shapes}
    trace = watch(trainer.env)
    log = trainer.train_one()
    assert len(trace) == config.horizon * config.actions_per_batch
    if config.memory_samples:
        assert [lags if lags is None else len(lags) for _, _, lags, _ in trace] == [None, None, 1]
    if not config.recursive:
        config = replace(config, absorb_noise=1e30)
    loss = unrolled_loss(policy, trace, base, tokenizer, config, starts, reward == "improvement")
    loss.backward()
    if config.discount == 1:
        assert log["reward"] == pytest.approx(-float(loss.detach()), rel=1e-4)
    norm = sum(float(p.grad.square().sum()) for p in policy.parameters()) ** 0.5
    assert norm > (0.05 if reward == "loss" else 0.003)
    for (name, found), expected in zip(trainer.policy.named_parameters(), policy.parameters(), strict=True):
        difference = (found.grad - expected.grad).norm()
        assert difference < 2e-3 * expected.grad.norm() + 1e-4 * norm, name
    assert log["gradient_norm"] == pytest.approx(norm, rel=1e-3)


def test_credit_for_later_rewards_makes_a_difference(make_env, small_world):
    gradients = []
    for credit in ("trajectory", "step"):
        trainer = make_trainer(make_env, replace(CONFIG, credit=credit), moved=0.2)
        trainer.train_one()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in trainer.policy.parameters()]))
    assert (gradients[0] - gradients[1]).norm() > 0.2 * gradients[0].norm()


def test_the_gradient_is_clipped(make_env, small_world):
    trainer = make_trainer(make_env, replace(CONFIG, gradient_clip=0.01), moved=0.2)
    assert trainer.train_one()["gradient_norm"] > 0.02
    norm = sum(float(p.grad.square().sum()) for p in trainer.policy.parameters()) ** 0.5
    assert norm == pytest.approx(0.01, rel=1e-3)


def test_a_trajectory_edits_from_theta_0_and_shows_in_the_log_as_in_the_environment(make_env, small_world):
    """The policy that trains through the core earns the same in a plain episode over the same stream."""
    trainer = make_trainer(make_env, moved=0.2)
    for _ in range(2):
        policy = copy.deepcopy(trainer.policy)
        log = trainer.train_one()
    env = training_environment(make_env(modules=[LAST]), CONFIG)
    env.reset(seed=trainer.env.np_random_seed)
    assert list(env.stream) == list(trainer.env.stream)
    rewards = []
    with torch.no_grad():
        for _ in range(3):
            rewards.append(env.step(policy(env.gradients))[1])
    assert sum(rewards) / 3 == pytest.approx(log["reward"], rel=1e-5)


def test_trajectories_see_different_streams(make_env):
    trainer = make_trainer(make_env)
    trace = watch(trainer.env)
    trainer.run(2)
    first, second = ({edit.subject for _, batch, _, _ in part for edit in batch} for part in (trace[:3], trace[3:]))
    assert first != second


def test_each_trajectory_looks_back_at_batches_of_its_own(make_env, small_world):
    trainer = make_trainer(make_env, replace(CONFIG, memory_samples=1))
    trace = watch(trainer.env)
    trainer.run(8)
    assert {tuple(lags) for _, _, lags, _ in trace if lags is not None} == {(1,), (2,)}


def test_the_normalizer_moves_after_a_trajectory_by_what_was_seen(make_env, small_world):
    trainer = make_trainer(make_env)
    normalizer = trainer.policy.networks["64x32"].normalizer
    mean, count, trace = normalizer.mean.clone(), float(normalizer.count), watch(trainer.env)
    trainer.train_one()
    seen = torch.cat([torch.cat([g[LAST].keys, g[LAST].value_grads], 1) for g, _, _, _ in trace])
    assert normalizer.count == count + len(seen)
    expected = (count * mean + seen.sum(0)) / (count + len(seen))
    torch.testing.assert_close(normalizer.mean, expected, rtol=1e-4, atol=1e-6)


def test_warm_up_gives_statistics_of_theta_0(make_env, small_world, base):
    trainer = make_trainer(make_env)
    env = trainer.env
    seen = []
    env.reset(seed=env.np_random_seed)
    for _ in range(CONFIG.warm_up_batches):
        seen.append(env.gradients[LAST])
        env.transition(zero_action(env.language_model))
    keys = torch.cat([gradient.keys for gradient in seen])
    values = torch.cat([keys, torch.cat([gradient.value_grads for gradient in seen])], 1)
    normalizer = trainer.policy.networks["64x32"].normalizer
    torch.testing.assert_close(normalizer.mean, values.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(normalizer.square / (len(values) - 1), values.var(0), rtol=1e-4, atol=1e-6)
    outputs = keys @ base.get_submodule(LAST).weight.T
    assert trainer.policy.key_scale.item() == pytest.approx(float(keys.square().sum(1).mean()), rel=1e-4)
    assert trainer.policy.value_scale.item() == pytest.approx(float(outputs.square().sum(1).mean()), rel=1e-4)


def state_bytes(trainer):
    buffer = io.BytesIO()
    torch.save(trainer.state(), buffer)
    return buffer.getvalue()


def same_policies(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_seed_decides_everything(make_env, small_world):
    first, second, other = (make_trainer(make_env, seed=seed) for seed in (3, 3, 4))
    assert not same_policies(first.policy, other.policy)
    for trainer in (first, second):
        trainer.run(2)
        torch.randn(7)  # the global generator is nobody's
    assert same_policies(first.policy, second.policy)


@pytest.mark.parametrize(
    "options",
    [{}, {"memory_samples": 1, "preconditioner": True, "actions_per_batch": 2, "horizon": 2}, {"policy": MEND}],
)
@pytest.mark.parametrize("world", ["small", "atlas"])
def test_a_resumed_training_is_the_uninterrupted_one(make_env, request, options, world):
    if world == "small":
        request.getfixturevalue("small_world")
    config = replace(CONFIG, warm_up_batches=1, **options)
    preconditioned = config.preconditioner
    whole = make_trainer(make_env, config, preconditioned=preconditioned)
    whole.run(5)
    first = make_trainer(make_env, config, preconditioned=preconditioned)
    first.run(3)
    saved = io.BytesIO(state_bytes(first))
    first.run(4)
    second = make_trainer(make_env, config, preconditioned=preconditioned)
    second.load_state(torch.load(saved, weights_only=True))
    assert second.trajectory == 3
    second.run(5)
    assert same_policies(whole.policy, second.policy)
    assert not same_policies(whole.policy, first.policy)


def test_lags_are_drawn_uniformly_without_repetition():
    rng = random.Random(0)
    counts = Counter(tuple(sorted(sample_lags(4, 2, rng))) for _ in range(600))
    assert set(counts) == {(a, b) for a in range(1, 5) for b in range(a + 1, 5)}
    assert sum((n - 100) ** 2 / 100 for n in counts.values()) < 25  # chi-squared with 5 degrees of freedom
    assert sample_lags(4, None, rng) is None
    assert sample_lags(4, 4, rng) is None
    assert sample_lags(0, 3, rng) is None


# -- the agent --------------------------------------------------------------------------------------------------------


def started(env, agent, seed=0):
    agent.prepare(env, seed, lambda what, done, total: None)
    observation, info = env.reset(seed=1)
    agent.begin(env)
    return observation, info


@pytest.mark.parametrize(("train", "trajectories"), [(True, 2), (False, 0)])
def test_prepare_trains_so_many_trajectories_on_the_training_split_alone(
    make_env, small_world, monkeypatch, train, trajectories
):
    env = make_env(modules=[LAST], split="test")
    asked = []
    monkeypatch.setattr(
        "editenv.env.load_edits",
        lambda dataset, split, seed=None, options=None: asked.append(split) or list(small_world),
    )
    agent = RLEdit(CONFIG, train=train)
    before = env.language_model.snapshot()
    told = []
    agent.prepare(env, 5, lambda what, done, total: told.append((done, total)))
    assert told == [(i + 1, trajectories) for i in range(trajectories)]
    assert set(asked) == {"train"}
    assert all(torch.equal(value, before[name]) for name, value in env.language_model.snapshot().items())
    reference = make_trainer(make_env, seed=5)
    reference.run(trajectories)
    assert same_policies(agent.policy, reference.policy)


def test_act_is_the_policy_on_the_observation(make_env, small_world):
    env = make_env(modules=[LAST])
    agent = RLEdit(CONFIG, train=False)
    observation, info = started(env, agent)
    for _ in range(2):
        action = agent.act(env.gradients, info)
        assert isinstance(action[LAST], LowRank)
        assert not action[LAST].right.requires_grad
        torch.testing.assert_close(action[LAST].dense(), agent.policy(env.gradients)[LAST].dense().detach())
        tokens = int(observation[LAST]["token_mask"].sum())
        assert action[LAST].left.shape == (64, tokens)
        observation, *_, info = env.step(action)


def test_acting_with_a_preconditioner_absorbs_each_batch_once(make_env, small_world):
    config = replace(CONFIG, preconditioner=True, actions_per_batch=2, absorb_noise=0.5)
    env = make_env(modules=[LAST], actions_per_batch=2)
    agent = RLEdit(config, train=False)
    assert agent.actions_per_batch == 2
    _, info = started(env, agent)
    start = agent._preconditioner.project(LAST, torch.eye(64)).clone()
    absorbed, first_actions = [], []
    for attempt in range(4):
        gradients = env.gradients
        P = covariance_inverse_by_hand(start, absorbed, 0.5)
        expected = agent.policy(gradients, {LAST: P @ gradients[LAST].keys.T})[LAST].dense()
        action = agent.act(env.gradients, info)
        first_actions.append(action[LAST].dense())
        assert (first_actions[-1] - expected).norm() < 2e-3 * expected.norm()
        if attempt % 2:
            absorbed.append(gradients[LAST].keys)
        *_, info = env.step(action)
    _, info = env.reset(seed=1)
    agent.begin(env)
    assert torch.equal(agent.act(env.gradients, info)[LAST].dense(), first_actions[0])


def test_a_saved_policy_brings_its_configuration(make_env, small_world, tmp_path):
    trained = make_trainer(make_env, replace(CONFIG, actions_per_batch=2), moved=0.1)
    save_policy(trained.policy, tmp_path, {"train": asdict(trained.config)})
    agent = RLEdit(policy=tmp_path)
    assert agent.config == trained.config
    assert agent.actions_per_batch == 2
    assert RLEdit(policy=tmp_path, actions_per_batch=3).actions_per_batch == 3
    env = make_env(modules=[LAST], actions_per_batch=2)
    _, info = started(env, agent)
    expected = trained.policy(env.gradients)[LAST].dense()
    assert torch.equal(agent.act(env.gradients, info)[LAST].dense(), expected)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.down_proj"):
        agent.prepare(make_env(), 0, lambda what, done, total: None)


def test_a_saved_policy_of_another_form_is_that_form_again(make_env, small_world, tmp_path):
    trained = make_trainer(make_env, replace(CONFIG, policy=MEND), moved=0.1)
    save_policy(trained.policy, tmp_path, {"train": asdict(trained.config)})
    agent = RLEdit(policy=tmp_path)
    assert type(agent.policy).__name__ == "MendPolicy"
    env = make_env(modules=[LAST])
    _, info = started(env, agent)
    assert torch.equal(agent.act(env.gradients, info)[LAST].dense(), trained.policy(env.gradients)[LAST].dense())


def test_a_preconditioner_needs_a_ridge_regression():
    with pytest.raises(ValueError, match=r"preconditioner.*'mend'"):
        replace(CONFIG, policy=MEND, preconditioner=True)


def test_a_configuration_survives_json(make_env):
    config = replace(CONFIG, memory_samples=2, credit="step", policy=MEND)
    assert config_from_json(json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(("policy", "shown"), [(1, 2), (2, 1)])
def test_an_environment_that_shows_a_batch_another_number_of_times_is_refused(
    make_env, saved, small_world, policy, shown
):
    """Its preconditioner would take in a batch's keys before its last action, or never."""
    agent = RLEdit(policy=saved, actions_per_batch=policy)
    env = make_env(actions_per_batch=shown)
    agent.prepare(env, 0, lambda *_: None)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"{policy} times, the environment shows it {shown} times"):
        agent.begin(env)


def test_a_policy_of_another_model_or_another_teaching_is_told(make_env, saved, small_world, tmp_path):
    shutil.copytree(saved, tmp_path / "policy")
    record = read_sealed(tmp_path / "policy/policy.json")
    record |= {"weights": "0" * 64, "end_of_answer": True}
    write_sealed(tmp_path / "policy/policy.json", record)
    with pytest.warns(UserWarning, match="with other") as told:
        RLEdit(policy=tmp_path / "policy").prepare(make_env(), 0, lambda *_: None)
    assert ["weights" in str(w.message) for w in told] == [True, False]
    record["weights"], record["end_of_answer"] = fingerprint(make_env().language_model), False
    write_sealed(tmp_path / "policy/policy.json", record)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RLEdit(policy=tmp_path / "policy").prepare(make_env(), 0, lambda *_: None)


def test_the_callers_generator_is_left_alone(make_env, small_world):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two = (make_trainer(make_env).policy.state_dict() for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_a_gradient_that_is_not_finite_ends_the_training(make_env, small_world):
    trainer = make_trainer(make_env, replace(CONFIG, policy=replace(CONFIG.policy, step_size=3e18)))
    before = copy.deepcopy(trainer.policy.state_dict())
    with pytest.raises(FloatingPointError, match=r"trajectory 1: .*step_size"):
        trainer.run(3)
    assert all(torch.equal(value, before[name]) for name, value in trainer.policy.state_dict().items())


def test_the_training_environment_judges_as_the_config_says(make_env):
    config = replace(CONFIG, reference="previous")
    judged = training_environment(make_env(modules=[LAST]), config).reward_config
    assert judged == RewardConfig(0.5, 0.7, 2, 0.01, "previous")


def test_in_the_fixed_environment_nothing_is_absorbed(make_env, small_world):
    config = replace(CONFIG, environment="fixed", preconditioner=True)
    trainer = make_trainer(make_env, config, preconditioned=True)
    start = trainer.preconditioner.project(LAST, torch.eye(64)).clone()
    for step in trainer.roll_out():
        torch.testing.assert_close(step.projected[LAST], start @ step.gradients[LAST].keys.T)


@pytest.mark.parametrize("network", [CONFIG.policy, MEND])
def test_what_is_asked_for_an_edit_does_not_depend_on_how_many_it_comes_with(make_env, small_world, network):
    """The gradient is of a sum over the batch's tokens: of a mean, it would be larger in a smaller batch."""
    trainer = make_trainer(make_env, replace(CONFIG, policy=network), moved=0.2)
    edits = trainer.env.stream[:5]
    assert len({len(trainer.env.gradient_of([edit])[LAST].keys) for edit in edits}) > 1
    together, alone = trainer.env.gradient_of(edits), [trainer.env.gradient_of([edit]) for edit in edits]
    parts = zip(*(trainer.policy.pseudo(LAST, gradient[LAST]) for gradient in alone), strict=True)
    for found, expected in zip(trainer.policy.pseudo(LAST, together[LAST]), map(torch.cat, parts), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
