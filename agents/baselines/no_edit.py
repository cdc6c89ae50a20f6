"""The row every table needs: nothing is done."""

from typing import Any

import torch

from agents.base import Agent, Observation
from editenv.deltas import LowRank
from editenv.env import Action


class NoEdit(Agent):
    """Answers every observation with no change."""

    independent_batches = True
    changes = ()

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        return {
            name: LowRank(torch.zeros(gradient.keys.shape[1], 0), torch.zeros(0, gradient.value_grads.shape[1]))
            for name, gradient in observation.items()
        }
