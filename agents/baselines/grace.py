"""GRACE (Hartvigsen et al. 2023): a codebook beside one module, whose entries replace the module's output near a key."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from agents.base import Agent, Observation, ProgressCallback
from agents.baselines.target_loss import edit_prompts, negative_log_likelihood
from editenv.arguments import PositiveFloat, PositiveInt
from editenv.env import Action, LifelongEditEnv
from editenv.language_model.editable_lm import EditableLM
from editenv.language_model.prompts import Prompts
from editenv.memories import Memory, nearest_keys, no_memory

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

    The values of the entries that the batch's queries fell to are then found by Adam on the batch's loss. A new one
    begins with what the module says. Precomputes nothing; needs the model and the edits' prompts and targets.

    Args:
        radius: A new entry's, in the units of the module's inputs; 1 in the public code.
        steps: Adam steps on each batch; 200 in the public code for GPT-2 XL.
        learning_rate: Adam's; 1 in the public code.
    """

    looks_at_model = True
    changes = ("side memory",)

    def __init__(
        self, radius: PositiveFloat = 1.0, steps: PositiveInt = 200, learning_rate: PositiveFloat = 1.0
    ) -> None:
        self.radius, self.steps, self.learning_rate = radius, steps, learning_rate

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        if len(env.language_model.modules) > 1:
            raise ValueError(f"modules: grace edits one module, not {', '.join(env.language_model.modules)}")

    def begin(self, env: LifelongEditEnv) -> None:
        self._env = env
        lm = env.language_model
        (self._module,) = lm.modules
        empty = torch.zeros(0, dtype=torch.long, device=lm.device)
        self._codebook = self._before = Codebook(no_memory(lm.shape(self._module)).to(lm.device), empty)

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        self._before, lm = self._codebook, self._env.language_model
        prompts = edit_prompts(self._env.training_targets)
        keys, outputs = queries(lm, self._module, prompts)
        codebook, entries = assigned(self._codebook, keys, outputs, prompts.labels, self.radius)
        self._codebook = replace(codebook, memory=self._trained(codebook.memory, entries, prompts))
        return {self._module: self._codebook.memory}

    def _trained(self, memory: Memory, entries: torch.Tensor, prompts: Prompts) -> Memory:
        """The memory with values of these entries that bring the prompts' answers about."""
        lm = self._env.language_model
        loss = negative_log_likelihood(prompts, len(self._env.batch))
        chosen = entries.unique()
        values = memory.values[chosen].clone().requires_grad_()
        optimizer = torch.optim.Adam([values], lr=self.learning_rate)
        with lm.unchanged(), torch.enable_grad():
            for _ in range(self.steps):
                lm.apply({self._module: replace(memory, values=memory.values.index_put((chosen,), values))})
                optimizer.zero_grad()
                loss(lm.logits(prompts)).backward()
                optimizer.step()
        return replace(memory, values=memory.values.index_put((chosen,), values.detach()))

    def revert_batch(self) -> None:
        self._codebook = self._before

    def batch_state(self) -> dict[str, torch.Tensor]:
        return self._codebook.memory.parts() | {"labels": self._codebook.labels}

    def load_batch_state(self, state: dict[str, torch.Tensor]) -> None:
        parts = {name: tensor for name, tensor in state.items() if name != "labels"}
        self._before = self._codebook = Codebook(Memory("ball", **parts), state["labels"])


@torch.no_grad()
def queries(lm: EditableLM, name: str, prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
    """``(A, d_in)`` inputs of a module at the tokens that predict an answer token, and ``(A, d_out)`` what it makes of
    them without its memory.
    """
    with torch.enable_grad():
        _, gradients = lm.gradients(prompts, lambda logits: logits.sum(), "answers")
    keys, module = gradients[name].keys, lm.modules[name]
    with lm.unchanged():
        lm.apply({name: no_memory(lm.shape(name))})
        return keys, module(keys.to(module.get_parameter("weight"))).to(keys)


def assigned(
    codebook: Codebook, keys: torch.Tensor, outputs: torch.Tensor, labels: torch.Tensor, radius: float
) -> tuple[Codebook, torch.Tensor]:
    """The codebook after ``A`` queries one after another, as :class:`GRACE` says, and ``(A,)`` which entry each is for.

    Args:
        codebook: Before.
        keys: ``(A, d_in)``.
        outputs: ``(A, d_out)`` with which new values begin.
        labels: ``(A,)``.
        radius: A new entry's.
    """
    memory, of_entry = codebook.memory, codebook.labels
    entries = []
    for key, output, label in zip(keys, outputs, labels, strict=True):
        thresholds, new_radius = memory.thresholds.clone(), radius
        if len(memory):
            nearest = int(nearest_keys(memory.keys, key))
            distance = float((key - memory.keys[nearest]).norm())
            same = bool(of_entry[nearest] == label)
            if distance <= SAME_KEY * radius or (same and distance <= radius + float(thresholds[nearest])):
                # The same token again, whose answer may be another now; or one with the same answer.
                thresholds[nearest] = max(float(thresholds[nearest]), distance)
                memory = replace(memory, thresholds=thresholds)
                of_entry = of_entry.clone()
                of_entry[nearest] = label
                entries.append(nearest)
                continue
            if distance <= radius + float(thresholds[nearest]):
                thresholds[nearest] = min(float(thresholds[nearest]), distance / 2)
                new_radius = min(radius, distance / 2)
        entries.append(len(memory))
        added = thresholds.new_tensor([new_radius])
        memory = Memory(
            "ball",
            torch.cat([memory.keys, key[None]]),
            torch.cat([memory.values, output[None]]),
            torch.cat([thresholds, added]),
        )
        of_entry = torch.cat([of_entry, label[None]])
    return Codebook(memory, of_entry), torch.tensor(entries, device=keys.device)
