import copy
from dataclasses import replace

import pytest
import torch
from plain import batch_loss, edited_weights
from test_rledit import CONFIG, LAST, make_trainer, same_policies, watch

from agents.hypernetwork.online import OnlineTrainer
from agents.hypernetwork.training import training_environment
from agents.rledit.trainer import RLEditTrainer

NO_MEMORY = replace(CONFIG, memory_batches=0, gradient_clip=0.5)


def make_online(make_env, config=NO_MEMORY, seed=0):
    return OnlineTrainer(training_environment(make_env(modules=[LAST]), config), config, seed, None)


def test_every_reward_is_followed_by_an_optimiser_step(make_env, small_world, base, tokenizer):
    """Step by step with plain models and autograd: the reward of the delta just made moves the policy that makes
    the next.
    """
    trainer = make_online(make_env)
    policy = copy.deepcopy(trainer.policy)
    optimizer = torch.optim.Adam(
        [
            {"params": list(policy.networks.parameters()), "lr": NO_MEMORY.learning_rate},
            {"params": [policy.log_step_size, policy.log_ridge], "lr": NO_MEMORY.scalar_learning_rate},
        ]
    )
    trace = watch(trainer.env)
    log = trainer.train_one()
    assert len(trace) == 3
    total, losses, norms = torch.zeros(64, 32), [], []
    for gradients, batch, _, applied in trace:
        delta = policy(gradients)[LAST].dense()
        torch.testing.assert_close(applied[LAST].dense(), delta.detach(), rtol=1e-3, atol=1e-5)
        weights = edited_weights(base, {LAST: total + delta})
        loss = batch_loss(base, tokenizer, batch, weights, NO_MEMORY.locality)
        loss = loss + NO_MEMORY.regularization * delta.square().sum()
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(policy.parameters(), NO_MEMORY.gradient_clip)))
        optimizer.step()
        losses.append(float(loss.detach()))
        total = total + delta.detach()
    assert log["reward"] == pytest.approx(-sum(losses) / 3, rel=1e-3)
    assert log["gradient_norm"] == pytest.approx(sum(norms) / 3, rel=1e-2)
    for scalar in ("log_step_size", "log_ridge"):
        assert getattr(trainer.policy, scalar).item() == pytest.approx(getattr(policy, scalar).item(), abs=1e-4)
    differing = [
        (found - expected).abs().max().item()
        for found, expected in zip(trainer.policy.parameters(), policy.parameters(), strict=True)
    ]
    assert max(differing) < 1e-3  # Adam's first steps are about the learning rate of 1e-3, whatever the gradient


def test_with_one_step_it_is_rledit(make_env, small_world):
    config = replace(CONFIG, horizon=1, warm_up_batches=1, credit="step")
    online, offline = make_online(make_env, config), make_trainer(make_env, config)
    online.run(3)
    offline.run(3)
    assert type(offline) is RLEditTrainer
    assert same_policies(online.policy, offline.policy)


def test_with_more_it_is_not(make_env, small_world):
    online, offline = make_online(make_env, CONFIG), make_trainer(make_env, replace(CONFIG, credit="step"))
    online.run(1)
    offline.run(1)
    assert not same_policies(online.policy, offline.policy)
