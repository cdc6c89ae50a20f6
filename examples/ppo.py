"""Proximal policy optimization in one file, on LifelongEdit-v1: to be read, and to be changed.

    python examples/ppo.py
    python examples/ppo.py --steps 1000 --seed 1

After Schulman et al. 2017 (the clipped objective, eq. 7) and Schulman et al. 2016 (generalized advantage estimation,
eq. 16). Two small networks see the statistics of a batch's gradient; the policy is a Gaussian over two numbers a module,
step size and ridge. What it prints is the mean return of the episodes that ended since the last line.
"""

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import nn

import editenv  # noqa: F401 - registers the environment
from editenv.wrappers import GradientStatistics, LayerStatistics, StepSizeAction


@dataclass
class Args:
    """What may be changed on the command line."""

    steps: int = 400
    """Environment steps in all."""
    rollout: int = 50
    """Steps between updates."""
    epochs: int = 10
    """Passes over a rollout."""
    minibatch: int = 25
    learning_rate: float = 3e-3
    discount: float = 0.9
    trace: float = 0.9
    """Lambda of the advantages."""
    clip: float = 0.2
    """How far a probability ratio may move from 1 and still count."""
    value_weight: float = 0.5
    gradient_norm: float = 0.5
    """Longer gradients are shortened to this."""
    log_std: float = -1.0
    """Of the policy's noise at the start."""
    seed: int = 0
    """Seeds the networks, the noise and the streams."""


def make_env() -> gym.Env:
    """Ten batches of five facts, a flat observation and two numbers as action."""
    env = gym.make("LifelongEdit-v1", redraw=True, edits_per_step=5, horizon=10)
    return gym.wrappers.FlattenObservation(LayerStatistics(GradientStatistics(StepSizeAction(env))))


class Policy(nn.Module):
    """A Gaussian whose mean depends on the observation, and a value function."""

    def __init__(self, observations: int, actions: int, log_std: float) -> None:
        super().__init__()
        self.mean = self._network(observations, actions)
        self.value = self._network(observations, 1)
        self.log_std = nn.Parameter(torch.full((actions,), log_std))
        nn.init.zeros_(self.mean[-1].weight)  # the first action is 0 for every observation

    @staticmethod
    def _network(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, outputs))

    def distribution(self, observations: torch.Tensor) -> torch.distributions.Independent:
        normal = torch.distributions.Normal(self.mean(observations), self.log_std.exp())
        return torch.distributions.Independent(normal, 1)

    def values(self, observations: torch.Tensor) -> torch.Tensor:
        return self.value(observations).squeeze(-1)


def advantages_of(rewards, values, ends, last_value, discount, trace):
    """``A_t = sum_l (discount trace)^l delta_{t+l}`` up to the end of t's episode, eq. 16.

    Args:
        rewards: ``(T,)``; where an episode was truncated, the discounted value of its last state is in the reward.
        values: ``(T,)`` of the states acted in.
        ends: ``(T,)`` bool: whether the episode ended with the step.
        last_value: Of the state after the last step.
    """
    advantages, advantage, next_value = torch.zeros_like(rewards), 0.0, last_value
    for t in reversed(range(len(rewards))):
        goes_on = 1.0 - float(ends[t])
        delta = rewards[t] + discount * goes_on * next_value - values[t]
        advantage = delta + discount * trace * goes_on * advantage
        advantages[t], next_value = advantage, values[t]
    return advantages


def update(policy, optimizer, rollout, args: Args) -> None:
    """Several passes of eq. 7 over one rollout: observations, actions, log-probabilities, advantages and returns."""
    observations, actions, old_log_probs, advantages, returns = rollout
    for _ in range(args.epochs):
        for rows in torch.randperm(len(actions)).split(args.minibatch):
            ratio = (policy.distribution(observations[rows]).log_prob(actions[rows]) - old_log_probs[rows]).exp()
            scaled = (advantages[rows] - advantages[rows].mean()) / (advantages[rows].std(correction=0) + 1e-8)
            objective = torch.min(ratio * scaled, ratio.clamp(1 - args.clip, 1 + args.clip) * scaled).mean()
            value_loss = (policy.values(observations[rows]) - returns[rows]).square().mean()
            optimizer.zero_grad()
            (args.value_weight * value_loss - objective).backward()
            nn.utils.clip_grad_norm_(policy.parameters(), args.gradient_norm)
            optimizer.step()


def train(env: gym.Env, args: Args) -> tuple[Policy, list[float]]:
    """Returns the policy, and the return of every episode."""
    torch.manual_seed(args.seed)
    policy = Policy(env.observation_space.shape[0], env.action_space.shape[0], args.log_std)
    optimizer = torch.optim.Adam(policy.parameters(), lr=args.learning_rate, eps=1e-5)
    tensor = lambda observation: torch.as_tensor(observation, dtype=torch.float32)  # noqa: E731
    observation, _ = env.reset(seed=args.seed)
    returns, episode = [], 0.0
    for first in range(0, args.steps, args.rollout):
        steps = []
        printed = len(returns)
        for _ in range(args.rollout):
            with torch.no_grad():
                distribution = policy.distribution(tensor(observation))
                action = distribution.sample()
                log_prob, value = distribution.log_prob(action), policy.values(tensor(observation))
            clipped = np.clip(action.numpy(), env.action_space.low, env.action_space.high)
            following, reward, terminated, truncated, _ = env.step(clipped)
            episode += float(reward)
            credited = float(reward)
            if truncated:  # the episode would have gone on
                with torch.no_grad():
                    credited += args.discount * float(policy.values(tensor(following)))
            steps.append((tensor(observation), action, log_prob, value, credited, terminated or truncated))
            observation = following
            if terminated or truncated:
                returns.append(episode)
                observation, episode = env.reset()[0], 0.0
        observations, actions, log_probs, values = (
            torch.stack(column) for column in list(zip(*steps, strict=True))[:4]
        )
        rewards, ends = torch.tensor([step[4] for step in steps]), [step[5] for step in steps]
        with torch.no_grad():
            last = policy.values(tensor(observation))
        advantages = advantages_of(rewards, values, ends, last, args.discount, args.trace)
        update(policy, optimizer, (observations, actions, log_probs, advantages, advantages + values), args)
        recent = returns[printed:]
        shown = f"mean return {np.mean(recent):.2f}" if recent else "no episode ended"
        print(f"step {first + args.rollout}: {shown}", flush=True)
    return policy, returns


if __name__ == "__main__":
    train(make_env(), tyro.cli(Args, description=__doc__))
