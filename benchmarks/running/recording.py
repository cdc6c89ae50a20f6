"""The actions of a rollout, kept as a file of deltas, and played again from it."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch

from agents.base import Agent, Observation
from editenv.contexts import Context
from editenv.delta_files import read_delta_file, tensors_of, write_delta_file
from editenv.deltas import LowRank
from editenv.env import Action, LifelongEditEnv
from editenv.identity import fingerprint
from editenv.language_model.editable_lm import EditableLM
from editenv.memories import Change, Memory


class Recording:
    """What an agent did, action by action; all of it is held in memory until it is written.

    Attributes:
        actions: For each action the deltas and memories by module, in float32 on the CPU, and its context.
    """

    def __init__(self) -> None:
        self.actions: list[dict[str, Change]] = []

    def start(self, lm: EditableLM) -> None:
        """Notes which model is edited; to be called before the first action."""
        self._lm, self._before = lm, fingerprint(lm)

    def add(self, action: Action) -> None:
        """An action as it was given: low-rank where it is, and also if it was refused."""
        self.actions.append({name: _copy(delta) for name, delta in action.items()})

    def write(self, path: Path) -> None:
        """Writes a file of deltas, for ``editenv apply`` and :class:`Replay`; to be called after the last action."""
        write_delta_file(path, self.actions, self._before, fingerprint(self._lm), digest=False)


def digest(path: Path) -> str:
    """SHA-256 over what a file of deltas holds; the file itself may be written in another order the next time.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not a file of deltas.
    """
    actions, metadata = read_delta_file(path)
    content = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors_of(actions).items()):
        content.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        content.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def _copy(delta: Any) -> Change:
    if isinstance(delta, Context):
        return delta
    if isinstance(delta, Memory):
        return Memory(delta.gate, **{part: tensor.detach().clone() for part, tensor in delta.parts().items()}).to(
            "cpu", torch.float32
        )
    if isinstance(delta, LowRank):
        return LowRank(_tensor(delta.left), _tensor(delta.right))
    return _tensor(delta)


def _tensor(values: Any) -> torch.Tensor:
    """In float32, the precision in which the environment adds deltas up."""
    return torch.as_tensor(values, dtype=torch.float32).detach().cpu().clone()


class Replay(Agent):
    """Does what a file of deltas says, whatever it is shown.

    Args:
        path: The file.
        actions_per_batch: K of the agent that made it.
        looks_ahead: Whether that agent did: :attr:`agents.base.Agent.looks_ahead`.

    Raises:
        ValueError: If the file does not hold deltas.
    """

    looks_at_model = True

    def __init__(self, path: Path, actions_per_batch: int, looks_ahead: bool = False) -> None:
        self.path, self.actions_per_batch, self.looks_ahead = path, actions_per_batch, looks_ahead
        self.actions, self._metadata = read_delta_file(path)

    def begin(self, env: LifelongEditEnv) -> None:
        """Checks that the stream is one the deltas can be for.

        Raises:
            ValueError: If the model is another one, or the stream takes another number of actions.
        """
        if fingerprint(env.language_model) != self._metadata["before"]:
            raise ValueError(
                f"{self.path} was made for another base model: the fingerprints of the edited modules differ"
            )
        needed = math.ceil(len(env.stream) / env.edits_per_step) * self.actions_per_batch
        if len(self.actions) != needed:
            raise ValueError(f"{self.path} holds {len(self.actions)} actions; this stream takes {needed}")

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        return self.actions[info["batch"] * self.actions_per_batch + info["attempt"]]
