from dataclasses import replace

import pytest
import torch

from agents.hypernetwork.config import PolicyConfig, TrainConfig
from agents.hypernetwork.training import training_environment
from agents.rl.reinforce import ReinforceConfig, ReinforceTrainer
from agents.rledit.trainer import RLEditTrainer
from benchmarks.gradient_variance import Args, compare, gradients, main, standing_still

CONFIG = TrainConfig(horizon=2, edits_per_step=3, warm_up_batches=1, policy=PolicyConfig(blocks=1, rank=2))


def test_variance_and_projection_of_normal_estimates():
    """E g = (3, 4): |E g|^2 = 25. The other has half of it and ten times the noise."""
    generator = torch.Generator().manual_seed(0)
    count, mean = 20_000, torch.tensor([3.0, 4.0], dtype=torch.float64)
    first = mean + torch.randn(count, 2, generator=generator, dtype=torch.float64)
    second = mean / 2 + 10 * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    variance, projection, error, deviation = compare(first, first)
    assert variance == pytest.approx(2 / 25, rel=0.05)
    assert projection == pytest.approx(1, abs=0.02)
    assert deviation == pytest.approx(1 / 5, rel=0.05)
    variance, projection, error, deviation = compare(first, second)
    assert variance == pytest.approx(200 / 25, rel=0.05)
    assert abs(projection - 0.5) < 4 * error
    assert deviation == pytest.approx(10 / 5, rel=0.05)
    assert error == pytest.approx(deviation / (count / 2) ** 0.5)


def test_a_gradient_that_is_not_told_from_noise_is_not_compared():
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    with pytest.raises(ValueError, match="more"):
        compare(opposite, opposite)


@pytest.mark.parametrize("algorithm", [RLEditTrainer, ReinforceTrainer])
def test_gradients_are_those_of_a_policy_that_stands_still(make_env, small_world, algorithm):
    config = CONFIG
    if algorithm is ReinforceTrainer:
        config = ReinforceConfig(horizon=2, edits_per_step=3, warm_up_batches=1, policy=CONFIG.policy, rollouts=2)
    trainer = algorithm(training_environment(make_env(), config), standing_still(config), 0, None)
    before = {name: value.clone() for name, value in trainer.policy.state_dict().items()}
    estimates = gradients(trainer, [4, 5, 4])
    assert all(torch.equal(value, before[name]) for name, value in trainer.policy.state_dict().items())
    assert torch.equal(estimates[0], estimates[2])
    assert not torch.allclose(estimates[0], estimates[1])
    if algorithm is RLEditTrainer:
        trainer.trajectory = 5
        trainer.optimizer.zero_grad()
        trainer.backward(list(trainer.credited_roll_out()))
        expected = torch.cat([parameter.grad.flatten() for parameter in trainer.policy.parameters()])
        torch.testing.assert_close(estimates[1], expected)
    moving = algorithm(training_environment(make_env(), config), replace(config, gradient_clip=1e9), 0, None)
    with pytest.raises(ValueError, match="clipping"):
        gradients(moving, [0])


def test_too_few_streams_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="streams"):
        main(Args(out=tmp_path / "x.json", streams=3))
    assert not list(tmp_path.iterdir())
