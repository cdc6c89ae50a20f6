"""REINFORCE with a baseline (Williams 1992) on the hypernetwork that RLEdit trains.

    python -m agents.rl.reinforce --output runs/reinforce           # trains on the embedded model
    python -m agents.rl.reinforce --output runs/reinforce --train.rollouts 16 --train.noise 0.1

RLEdit differentiates the reward through the language model. Here the reward is a number that the environment
returns, as it is for RL in general, and the policy is made random so that its gradient can be estimated from such
numbers: Gaussian noise is added to the hypernetwork's output, as appendix E of RLEdit (Li et al. 2025) has it.

**Where the noise goes.** The hypernetwork's output for a batch of r tokens is V ``(r, d_out)``, the change asked of
a module's output at each token; ridge regression turns it into the delta ``U^T A``, ``A = (U U^T + lambda I)^-1
V``. The noise is ``s E`` with E standard normal and ``s`` a fixed share of a typical output entry, added to V, so
the action is ``A ~ N(A_phi, M M^T s^2)`` for each of the d_out columns, ``M = (U U^T + lambda I)^-1``. That is a
density on (r, d_out) numbers that exists for any keys, which noise seen as a ``(d_in, d_out)`` delta of rank r does
not have. White noise on A would do too, but ``U U^T`` would blow it up along the direction that all keys share;
asked of V, the outputs move by at most s. ``M`` in the covariance is held at the acting policy's, so noise does not
learn, but lambda does, through the mean ``A_phi``:

    grad log p = sum over modules and tokens of < E / s , M^-1 dA_phi/dphi >

Several rollouts of one stream differ only in their noise. The baseline of each is the mean reward-to-go of the
others at that step: it does not depend on the rollout's own noise, so the estimate stays unbiased. Resumes like
RLEdit.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch

from agents.hypernetwork import train_command
from agents.hypernetwork.agent import HypernetworkAgent
from agents.hypernetwork.config import TrainConfig
from agents.hypernetwork.networks import MalmenPolicy
from agents.hypernetwork.training import Step, Trainer
from agents.rl.episodes import check_config, play, rewards_to_go
from editenv.arguments import PositiveFloat, at_least
from editenv.deltas import LowRank
from editenv.language_model.editable_lm import Gradient


@dataclass(frozen=True)
class ReinforceConfig(TrainConfig):
    """RLEdit's options, and REINFORCE's; one trajectory is one optimiser step on several rollouts of one stream.

    Attributes:
        rollouts: Rollouts of each stream; two or more, for each is the others' baseline.
        noise: Standard deviation of the noise on V, in units of a typical entry of the module's output.
    """

    rollouts: Annotated[int, at_least(2)] = 8
    noise: PositiveFloat = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_config(self)
        if self.policy.network != "malmen":
            raise ValueError(
                f"policy.network must be 'malmen', whose V the noise is added to, not {self.policy.network!r}"
            )


class ReinforceTrainer(Trainer):
    """Rollouts of a noisy policy, rewards-to-go, leave-one-out baselines, one policy gradient step."""

    title = "REINFORCE"
    config: ReinforceConfig
    policy: MalmenPolicy

    @property
    def steps_per_update(self) -> int:
        return self.config.rollouts * super().steps_per_update

    def learn(self) -> tuple[Sequence[Step], float]:
        config = self.config
        rollouts = [self.roll_out_noisy(i) for i in range(config.rollouts)]
        # A rollout that broke the model ended early, and earned nothing after that.
        returns = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(rewards_to_go(steps, config.discount)) for steps, _ in rollouts], batch_first=True
        )
        if config.credit == "step":
            returns = returns - torch.nn.functional.pad(returns[:, 1:], (0, 1))
        advantages = leave_one_out(returns)
        self.optimizer.zero_grad()
        for (steps, noises), of_rollout in zip(rollouts, advantages.tolist(), strict=True):
            for step, noise, advantage in zip(steps, noises, of_rollout[: len(steps)], strict=True):
                loss = -advantage * self.log_probability(step, noise)
                (loss / returns.numel()).backward()
        return [step for steps, _ in rollouts for step in steps], self.ascend()

    def roll_out_noisy(self, rollout: int) -> tuple[list[Step], list[dict[str, torch.Tensor]]]:
        """One episode on the current stream, and the standard normal noise of each step and module, ``(r, d_out)``."""
        seed = random.Random(f"{self.seed}/{self.trajectory}/{rollout}").getrandbits(63)
        generator = torch.Generator(self.lm.device).manual_seed(seed)
        noises: list[dict[str, torch.Tensor]] = []

        @torch.no_grad()
        def act(gradients: Mapping[str, Gradient], projected: dict[str, torch.Tensor] | None) -> dict[str, LowRank]:
            deltas = self.policy(gradients, projected)
            noise = {
                name: torch.randn(delta.right.shape, generator=generator, device=self.lm.device)
                for name, delta in deltas.items()
            }
            noises.append(noise)
            return {
                name: LowRank(
                    delta.left,
                    delta.right
                    + torch.linalg.solve(self.gram(name, gradients, delta), self.deviation(name) * noise[name]),
                )
                for name, delta in deltas.items()
            }

        return play(self, act, again=rollout > 0), noises

    def log_probability(self, step: Step, noise: dict[str, torch.Tensor]) -> torch.Tensor:
        """Of the action taken, up to a constant and to first order around the acting policy: its gradient is the
        score.
        """
        deltas = self.policy(step.gradients, step.projected)
        parts = [
            (noise[name] / self.deviation(name) * (self.gram(name, step.gradients, delta) @ delta.right)).sum()
            for name, delta in deltas.items()
        ]
        return torch.stack(parts).sum()

    def gram(self, name: str, gradients: Mapping[str, Gradient], delta: LowRank) -> torch.Tensor:
        """``M^-1 = U P U^T + lambda I``, ``(r, r)``, at the policy as it is; a constant."""
        keys = gradients[name].keys
        ridge = self.policy.ridge(name, self.preconditioner is not None).detach()
        return keys @ delta.left + ridge * torch.eye(len(keys), device=keys.device)

    def deviation(self, name: str) -> float:
        """s: standard deviation of each entry of V."""
        scale = float(self.policy.value_scale[self.policy.names.index(name)])
        return self.config.noise * (scale / self.policy.shapes[name][1]) ** 0.5


def leave_one_out(returns: torch.Tensor) -> torch.Tensor:
    """Each of ``(rollouts, steps)`` returns less the mean of the other rollouts at that step, of the same shape."""
    count = len(returns)
    return (returns - returns.mean(0)) * count / (count - 1)


class ReinforceAgent(HypernetworkAgent):
    """RLEdit's network, trained by REINFORCE."""

    trainer = ReinforceTrainer

    def __init__(self, config: ReinforceConfig | None = None, train: bool = True) -> None:
        super().__init__(config or ReinforceConfig(), train=train)


@dataclass
class Args(train_command.Args):
    """Arguments of the command.

    Attributes:
        train: Training and policy.
    """

    train: ReinforceConfig = field(default_factory=ReinforceConfig)


if __name__ == "__main__":
    import tyro

    train_command.run(tyro.cli(Args, description=__doc__), ReinforceTrainer)
