"""The row every table needs: nothing is done."""

import math
from typing import Any

import torch

from agents.base import Agent
from editenv.deltas import LowRank
from editenv.env import Action, LifelongEditEnv, Observation
from editenv.language_model.editable_lm import EditableLM


def zero_action(lm: EditableLM) -> Action:
    """A delta of rank zero for each edited module."""
    shapes = {name: lm.shape(name) for name in lm.modules}
    return {name: LowRank(torch.zeros(d_in, 0), torch.zeros(0, d_out)) for name, (d_in, d_out) in shapes.items()}


def nan_action(lm: EditableLM) -> Action:
    """NaN for each edited module, which environments refuse: of a method that has nothing finite to offer."""
    return {name: torch.full(lm.shape(name), math.nan) for name in lm.modules}


class NoEdit(Agent):
    """Answers every observation with no change."""

    def begin(self, env: LifelongEditEnv) -> None:
        self._nothing = zero_action(env.language_model)

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        return self._nothing
