"""One episode of a hypernetwork through the environment's public face, for algorithms that need rewards alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from agents.hypernetwork.config import TrainConfig
from agents.hypernetwork.training import Step, Trainer, project
from editenv.deltas import LowRank
from editenv.language_model.editable_lm import Gradient
from editenv.rewards import RewardTerms

Act = Callable[[Mapping[str, Gradient], dict[str, torch.Tensor] | None], Mapping[str, LowRank]]
"""From the observation, and ``P U^T`` where there is a preconditioner, to a delta for each module."""


def check_config(config: TrainConfig) -> None:
    """Refuses what only the differentiable reward has.

    Raises:
        ValueError: If the stream is not a lifelong one or the memory term is to be sampled.
    """
    if config.environment != "lifelong":
        raise ValueError(
            f"environment must be 'lifelong' where the policy plays whole episodes, not {config.environment!r}"
        )
    if config.memory_samples is not None:
        raise ValueError(
            f"memory_samples must be None: env.step looks back at all of the last k batches, not at {config.memory_samples}"
        )


def play(trainer: Trainer, act: Act, again: bool) -> list[Step]:
    """Edits the trainer's current stream from theta_0; every call for one ``trainer.trajectory`` meets the same stream.

    The reward of each step is the environment's own: of eq. 10, or the improvement, with which an episode ends where the
    model breaks.

    Args:
        trainer: Whose environment, preconditioner and stream.
        act: The policy.
        again: The stream was played just before: what the frozen layers made of its prompts is kept, at a fraction
            of the cost. Nothing is kept from one stream to the next, so that a resumed training goes on to the last
            bit.
    """
    env, config, preconditioner = trainer.env, trainer.config, trainer.preconditioner
    env.reset(seed=trainer.stream_seed, options={"keep_cache": again})
    if preconditioner is not None:
        preconditioner.reset()
    steps = []
    for _ in range(config.horizon):
        for attempt in range(config.actions_per_batch):
            gradients = env.gradients
            projected = project(preconditioner, gradients)
            deltas = act(gradients, projected)
            if attempt == config.actions_per_batch - 1 and preconditioner is not None:
                preconditioner.absorb(gradients, dict.fromkeys(gradients, config.absorb_noise), projected)
            _, reward, _, _, info = env.step(deltas)
            terms = replace(RewardTerms(**info["reward_terms"]), reward=reward)
            steps.append(Step(gradients, projected, terms))
            if env.rewards_improvement and info["broken"]:
                return steps
    return steps


def rewards_to_go(steps: Sequence[Step], discount: float) -> list[float]:
    """``sum_{k>=t} gamma^k r_k`` for each step t of an episode; the first is the return of eq. 11."""
    later, sums = 0.0, []
    for t in reversed(range(len(steps))):
        later += discount**t * steps[t].terms.reward
        sums.append(later)
    return sums[::-1]
