"""GRACE (Hartvigsen et al. 2023): a codebook beside one module, whose entries replace the module's output near a key."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from agents.base import Agent, Observation, ProgressCallback
from agents.baselines.side_memory import SMALLEST, memory_beside, one_module, queries, root_mean_square
from agents.baselines.target_loss import edit_prompts, negative_log_likelihood
from editenv.arguments import PositiveFloat, PositiveInt
from editenv.env import Action, LifelongEditEnv
from editenv.language_model.prompts import Prompts
from editenv.memories import Memory, nearest_keys, no_memory, update

SAME_KEY = 1e-3
"""Two keys that are closer than this share of the first radius are one, computed in two ways."""


@dataclass(frozen=True)
class Codebook:
    """A memory with balls, and what each entry is for.

    Attributes:
        memory: ``m`` entries.
        labels: ``(m,)`` the answer token that an entry's value is to bring about.
    """

    memory: Memory
    labels: torch.Tensor


class GRACE(Agent):
    """Puts a codebook beside the one edited module; no weight is changed.

    Every token that predicts an answer token is a query: its input of the module, with the answer token as its label.
    With ``r`` the first radius, and the nearest entry of radius ``r_i`` at distance ``d``,

    * ``d > r + r_i``: a new entry with radius ``r``;
    * else, with the same label: the entry's ball grows to hold the query, ``r_i <- max(r_i, d)``;
    * else the balls are split: ``r_i <- min(r_i, d / 2)``, and a new entry with radius ``min(r, d / 2)``.

    This is done again until each of the batch's queries falls to an entry of its own label, for an entry that came
    later may be nearer. The values of these entries are then found by Adam on the batch's loss. A new one begins with
    what the module says. Precomputes nothing; needs the model and the edits' prompts and targets.

    The units are the model's own, for inputs and outputs of a module measure 1 in one model and 700 in the next: lengths
    are taken of the first batch.

    Args:
        radius: A new entry's, as a share of the mean length of the module's inputs.
        steps: Adam steps on each batch.
        learning_rate: Adam's, as a share of the root mean square of the module's outputs.
    """

    looks_at_model = True
    changes = ("side memory",)

    def __init__(
        self, radius: PositiveFloat = 0.3, steps: PositiveInt = 50, learning_rate: PositiveFloat = 0.2
    ) -> None:
        self.radius, self.steps, self.learning_rate = radius, steps, learning_rate

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        one_module(env.language_model, "grace")

    def begin(self, env: LifelongEditEnv) -> None:
        self._env = env
        lm = env.language_model
        self._module = one_module(lm, "grace")
        empty = torch.zeros(0, dtype=torch.long, device=lm.device)
        self._codebook = self._before = Codebook(no_memory(lm.shape(self._module)).to(lm.device), empty)
        self._scales = self._scales_before = torch.zeros(0, dtype=torch.float64)

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        self._before, self._scales_before, lm = self._codebook, self._scales, self._env.language_model
        prompts = edit_prompts(self._env.training_targets)
        keys, outputs = queries(lm, self._module, prompts)
        if not len(self._scales):
            scales = [max(SMALLEST, float(keys.norm(dim=1).mean())), root_mean_square(outputs)]
            self._scales = torch.tensor(scales, dtype=torch.float64)
        radius = self.radius * float(self._scales[0])
        codebook, entries = assigned(self._codebook, keys, outputs, prompts.labels, radius)
        self._codebook = replace(codebook, memory=self._trained(codebook.memory, entries, prompts))
        return {self._module: update(self._before.memory, self._codebook.memory)}

    def _trained(self, memory: Memory, entries: torch.Tensor, prompts: Prompts) -> Memory:
        """The memory with values of these entries that bring the prompts' answers about."""
        lm = self._env.language_model
        loss = negative_log_likelihood(prompts, len(self._env.batch))
        chosen = entries.unique()
        values = memory.values[chosen].clone().requires_grad_()
        optimizer = torch.optim.Adam([values], lr=self.learning_rate * float(self._scales[1]))
        with lm.unchanged(), torch.enable_grad():
            for _ in range(self.steps):
                lm.apply({self._module: replace(memory, values=memory.values.index_put((chosen,), values))})
                optimizer.zero_grad()
                loss(lm.logits(prompts)).backward()
                optimizer.step()
        return replace(memory, values=memory.values.index_put((chosen,), values.detach()))

    def revert_batch(self) -> None:
        self._codebook, self._scales = self._before, self._scales_before

    def batch_state(self) -> dict[str, torch.Tensor]:
        return {"labels": self._codebook.labels, "scales": self._scales}

    def load_batch_state(self, state: dict[str, torch.Tensor]) -> None:
        """Takes the codebook itself from the model, where the batch has put it."""
        memory = memory_beside(self._env.language_model, self._module)
        self._before = self._codebook = Codebook(memory, state["labels"])
        self._scales_before = self._scales = state["scales"].cpu()


def assigned(
    codebook: Codebook, keys: torch.Tensor, outputs: torch.Tensor, labels: torch.Tensor, radius: float
) -> tuple[Codebook, torch.Tensor]:
    """The codebook after ``A`` queries, one after another, as :class:`GRACE` says, and ``(A,)`` which entry each falls to.

    Args:
        codebook: Before.
        keys: ``(A, d_in)``.
        outputs: ``(A, d_out)`` with which new values begin.
        labels: ``(A,)``.
        radius: A new entry's.
    """
    for key, output, label in zip(keys, outputs, labels, strict=True):
        codebook = _with_query(codebook, key, output, label, radius)
    for _ in range(len(keys)):  # each time one query more is an entry of its own
        memory = codebook.memory
        entries = nearest_keys(memory.keys, keys)
        inside = (keys - memory.keys[entries]).norm(dim=1) <= memory.thresholds[entries]
        astray = (~inside | (codebook.labels[entries] != labels)).nonzero().flatten()
        if not len(astray):
            break
        first = int(astray[0])
        codebook = _with_query(codebook, keys[first], outputs[first], labels[first], radius)
    return codebook, nearest_keys(codebook.memory.keys, keys)


def _with_query(
    codebook: Codebook, key: torch.Tensor, output: torch.Tensor, label: torch.Tensor, radius: float
) -> Codebook:
    """The codebook after one query."""
    memory, labels = codebook.memory, codebook.labels
    thresholds, new_radius = memory.thresholds.clone(), radius
    if len(memory):
        nearest = int(nearest_keys(memory.keys, key))
        distance = float((key - memory.keys[nearest]).norm())
        close = distance <= radius + float(thresholds[nearest])
        if distance <= SAME_KEY * radius or (close and labels[nearest] == label):
            # The same token again, whose answer may be another now; or one with the same answer.
            thresholds[nearest] = thresholds[nearest].clamp(min=distance)
            labels = labels.clone()
            labels[nearest] = label
            return Codebook(replace(memory, thresholds=thresholds), labels)
        if close:
            new_radius = min(radius, distance / 2)
            thresholds[nearest] = thresholds[nearest].clamp(max=distance / 2)
    grown = Memory(
        "ball",
        torch.cat([memory.keys, key[None]]),
        torch.cat([memory.values, output[None]]),
        torch.cat([thresholds, thresholds.new_tensor([new_radius])]),
    )
    return Codebook(grown, torch.cat([labels, label[None]]))
