"""Fine-tuning with replay: every step is made on the batch together with a sample of the edits made before."""

import random
from typing import Any

import torch

from agents.base import Agent, Observation, ProgressCallback
from agents.baselines.target_loss import edit_prompts
from agents.baselines.weight_training import (
    WeightTraining,
    as_tensor,
    draws_seed,
    encode_targets,
    latest_targets,
    of_tensor,
)
from editenv.arguments import PositiveFloat, PositiveInt
from editenv.env import Action, LifelongEditEnv
from editenv.language_model.prompts import Prompts


class FineTuneReplay(Agent):
    """Fine-tuning of the edited modules with experience replay (Chaudhry et al. 2019, algorithm 1).

    Every Adam step goes down the mean loss of the batch B and of M, drawn anew for it without replacement from the
    edits of all earlier batches:

        (sum_B -log p + sum_M -log p) / (|B| + |M|)        of each edit the mean over its target's tokens

    All earlier prompts and targets are remembered, which the paper's memory of limited size is not. A prompt that is
    edited again is remembered with its last target alone, and not drawn while that is being edited.

    Precomputes nothing; needs the model and the edits' prompts and targets.

    Args:
        steps: Adam steps on each batch.
        learning_rate: Adam's.
        replayed: Earlier edits in each step, at most.
        actions_per_batch: K.
    """

    looks_at_model = True

    def __init__(
        self,
        steps: PositiveInt = 20,
        learning_rate: PositiveFloat = 3e-3,
        replayed: PositiveInt = 20,
        actions_per_batch: PositiveInt = 1,
    ) -> None:
        self.steps, self.learning_rate, self.replayed = steps, learning_rate, replayed
        self.actions_per_batch = actions_per_batch

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        self._seed = seed

    def begin(self, env: LifelongEditEnv) -> None:
        self._env = env
        self._memory: dict[str, str] = {}
        self._last_batch: dict[str, str] = {}

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        if info["attempt"] == 0:
            self._remember(self._last_batch)  # which has stayed
        self._last_batch = {}
        env, lm = self._env, self._env.language_model
        batch = edit_prompts(env.training_targets)
        earlier = [pair for pair in self._memory.items() if pair[0] not in {edit.prompt for edit in env.batch}]
        draws = random.Random(draws_seed(self._seed, info["attempt"], env.batch))
        training = WeightTraining(lm, self.learning_rate)
        with lm.unchanged():
            for _ in range(self.steps):
                sample = draws.sample(earlier, min(self.replayed, len(earlier)))
                replay = [encode_targets(lm, sample, env.train_eos)] if sample else []
                training.step(Prompts.join([batch, *replay]))
        self._last_batch = latest_targets(env.batch)
        return training.deltas()

    def _remember(self, targets: dict[str, str]) -> None:
        for prompt, target in targets.items():
            self._memory.pop(prompt, None)
            self._memory[prompt] = target

    def revert_batch(self) -> None:
        self._last_batch = {}

    def batch_state(self) -> dict[str, torch.Tensor]:
        return {"targets": as_tensor(self._last_batch)} if self._last_batch else {}

    def load_batch_state(self, state: dict[str, torch.Tensor]) -> None:
        if state:
            self._remember(of_tensor(state["targets"]))
