import io
import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from test_rledit import CONFIG, LAST, make_trainer, same_policies

from agents.hypernetwork import train_command
from agents.hypernetwork.config import TrainConfig
from agents.hypernetwork.training import training_environment
from agents.rl import evolution
from agents.rl.evolution import EvolutionConfig, EvolutionTrainer, pair_weights
from agents.rledit.trainer import RLEditTrainer

PAIRS = EvolutionConfig(**{field.name: getattr(CONFIG, field.name) for field in fields(TrainConfig)}, pairs=3)


def make_evolution(make_env, config=PAIRS, seed=0):
    return EvolutionTrainer(training_environment(make_env(modules=[LAST]), config), config, seed, None)


def test_ranks_by_hand():
    # Ascending: -5, 0, 1, 2, 2, 9: centred ranks -.5, -.3, -.1, .2, .2, .5, the two in the middle sharing .1 and .3.
    weights = pair_weights(np.array([[2.0, -5.0], [0.0, 9.0], [1.0, 2.0]]))
    np.testing.assert_allclose(weights, np.array([0.2 + 0.5, -0.3 - 0.5, -0.1 - 0.2]) / 6)
    np.testing.assert_array_equal(pair_weights(np.full((2, 2), 7.0)), 0)


def test_a_model_that_broke_is_the_last():
    assert pair_weights(np.array([[math.nan, 1.0], [2.0, -math.inf]])) == pytest.approx(
        pair_weights(np.array([[-math.inf, 1.0], [2.0, -math.inf]]))
    )


def test_only_the_order_of_returns_matters():
    returns = np.random.default_rng(0).normal(size=(5, 2))
    np.testing.assert_array_equal(pair_weights(returns), pair_weights(np.exp(3 * returns)))


def test_on_a_quadratic_the_direction_is_the_gradient_s():
    """10 parameters, 2,000 pairs: a sum of random directions has a cosine of about sqrt(2000 / (2000 + 10 * pi /
    3)).
    """
    rng = np.random.default_rng(0)
    best, here = rng.normal(size=10), rng.normal(size=10)
    noise = rng.normal(size=(2000, 10))

    def fitness(points):
        return -np.square(points - best).sum(-1)

    deviation = 0.01
    returns = np.stack([fitness(here + deviation * noise), fitness(here - deviation * noise)], 1)
    direction = pair_weights(returns) @ noise
    gradient = 2 * (best - here)
    assert direction @ gradient / np.linalg.norm(direction) / np.linalg.norm(gradient) > 0.98


def test_in_the_environment_the_direction_is_that_of_the_differentiable_gradient(make_env, small_world):
    """Step size and ridge alone, one step, 24 pairs: two numbers, whose gradient RLEdit knows."""
    config = replace(
        PAIRS, horizon=1, pairs=24, noise=1e-9, scalar_noise=0.05, learning_rate=0.0, scalar_learning_rate=0.0
    )
    trainer = make_evolution(make_env, config)
    exact = make_trainer(make_env, replace(CONFIG, horizon=1, warm_up_batches=1))
    trainer.policy.load_state_dict(exact.policy.state_dict())
    trainer.learn()
    exact.optimizer.zero_grad()
    exact.backward(list(exact.credited_roll_out()))
    found, expected = (
        torch.cat([policy.log_step_size.grad, policy.log_ridge.grad]) for policy in (trainer.policy, exact.policy)
    )
    assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.95


def test_the_gradient_is_the_weighted_noise_and_the_centre_stays(make_env, small_world):
    """Returns are played by hand: the policy at centre plus and minus noise, on the trainer's stream."""
    config = replace(PAIRS, learning_rate=0.0, scalar_learning_rate=0.0, noise=0.02, scalar_noise=0.1, discount=0.9)
    trainer = make_evolution(make_env, config)
    before = {name: value.clone() for name, value in trainer.policy.state_dict().items()}
    steps, norm = trainer.learn()
    assert len(steps) == trainer.steps_per_update == 2 * 3 * 3
    assert all(torch.equal(value, before[name]) for name, value in trainer.policy.state_dict().items())
    found = [parameter.grad.clone() for parameter in trainer.policy.parameters()]
    assert norm == pytest.approx(float(torch.cat([g.flatten() for g in found]).norm()), rel=1e-4)

    deviations = [0.1 if p.numel() == 1 else 0.02 for p in trainer.policy.parameters()]
    returns = []
    env = training_environment(make_env(modules=[LAST]), config)
    for pair in range(3):
        for sign in (1, -1):
            with torch.no_grad():
                for p, d, e in zip(trainer.policy.parameters(), deviations, trainer.noise(pair), strict=True):
                    p += sign * d * e
                env.reset(seed=trainer.env.np_random_seed)
                returns.append(sum(0.9**t * env.step(trainer.policy(env.gradients))[1] for t in range(3)))
            trainer.policy.load_state_dict(before)
    weights = pair_weights(np.array(returns).reshape(3, 2))
    assert len(set(weights)) > 1
    for i, (gradient, deviation) in enumerate(zip(found, deviations, strict=True)):
        expected = -sum(weight / deviation * trainer.noise(pair)[i] for pair, weight in enumerate(weights))
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_each_pair_and_generation_has_noise_of_its_own(make_env, small_world):
    trainer = make_evolution(make_env)
    first = torch.cat([e.flatten() for e in trainer.noise(0)])
    assert torch.equal(first, torch.cat([e.flatten() for e in trainer.noise(0)]))
    others = [torch.cat([e.flatten() for e in trainer.noise(1)])]
    trainer.trajectory = 1
    others.append(torch.cat([e.flatten() for e in trainer.noise(0)]))
    for other in others:
        assert abs(torch.nn.functional.cosine_similarity(first, other, dim=0)) < 5 / len(first) ** 0.5


def test_a_resumed_training_is_the_uninterrupted_one(make_env, small_world):
    config = replace(PAIRS, warm_up_batches=1, horizon=2)
    whole, first, second = (make_evolution(make_env, config) for _ in range(3))
    whole.run(3)
    first.run(2)
    saved = io.BytesIO()
    torch.save(first.state(), saved)
    saved.seek(0)
    second.load_state(torch.load(saved, weights_only=True))
    second.run(3)
    assert same_policies(whole.policy, second.policy)
    assert not same_policies(whole.policy, first.policy)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"environment": "fixed"}, "environment"),
        ({"memory_samples": 2}, "memory_samples"),
        ({"credit": "step"}, "credit"),
        ({"pairs": 0}, "pairs"),
        ({"noise": 0.0}, "noise"),
    ],
)
def test_what_it_cannot_do_is_refused(options, named):
    with pytest.raises(ValueError, match=named):
        replace(PAIRS, **options)


def test_the_command_trains_and_does_not_train_again(model_folder, tenth_of_atlas, tmp_path, capsys):
    train = EvolutionConfig(
        trajectories=1, horizon=1, edits_per_step=2, warm_up_batches=1, pairs=1, policy=replace(CONFIG.policy, rank=2)
    )
    args = evolution.Args(output=tmp_path, train=train, model=model_folder, modules=(LAST,), checkpoint_every=1)
    for _ in range(2):
        train_command.main(args, EvolutionTrainer)
    assert "going on from trajectory 1" in capsys.readouterr().out
    assert json.loads((tmp_path / "policy.json").read_text())["train"]["pairs"] == 1
    with pytest.raises(SystemExit, match=r"checkpoint\.pt belongs to"):
        train_command.main(
            train_command.Args(output=tmp_path, train=CONFIG, model=model_folder, modules=(LAST,)), RLEditTrainer
        )
