"""The row every table needs: nothing is done."""

from typing import Any

import torch

from agents.base import Agent
from editenv.deltas import LowRank
from editenv.env import Action, LifelongEditEnv, Observation


class NoEdit(Agent):
    """Answers every observation with a delta of rank zero."""

    def begin(self, env: LifelongEditEnv) -> None:
        self._shapes = {name: env.language_model.shape(name) for name in env.language_model.modules}

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        return {
            name: LowRank(torch.zeros(d_in, 0), torch.zeros(0, d_out)) for name, (d_in, d_out) in self._shapes.items()
        }
