"""Side memories: what an action puts beside the weight of an edited module, and what the module then says.

A memory of ``m`` entries has keys ``k_i``, values ``v_i`` and a threshold ``t_i`` for each. Every token's input ``x`` of
the module is a query of its own. With ``y = W x + b`` the module's output without the memory, its gate is one of

=========== ==================================================================== ==================================
``relu``    ``y + sum_i relu(k_i . x - t_i) v_i``                                T-Patcher (Huang et al. 2023, eq. 4)
``ball``    ``v_i`` in place of ``y`` where the key nearest to ``x`` by           GRACE (Hartvigsen et al. 2023)
            Euclidean distance, ``k_i``, is no farther than ``t_i``
``nearest`` ``y + v_i`` where the key nearest to ``x`` by cosine, ``k_i``,        retrieval by similarity
            has a cosine of at least ``t_i``
=========== ==================================================================== ==================================
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn.functional import normalize

from editenv.atomic_files import atomic_write
from editenv.deltas import Delta

Gate = Literal["relu", "ball", "nearest"]

PARTS = ("keys", "values", "thresholds")
"""A memory's tensors."""

FORMAT = "lifelongedit-memory-1"
"""In the file's metadata."""


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """The side memory of one module; the tensors are not to be changed in place.

    Attributes:
        gate: What a query does with the keys.
        keys: ``(m, d_in)``, real numbers.
        values: ``(m, d_out)``.
        thresholds: ``(m,)``: minus the neurons' biases (``relu``), radii (``ball``), or least cosines (``nearest``).

    Raises:
        ValueError: If the gate is unknown or the tensors do not fit each other; names what.
    """

    gate: Gate
    keys: torch.Tensor
    values: torch.Tensor
    thresholds: torch.Tensor

    def __post_init__(self) -> None:
        if self.gate not in get_args(Gate):
            raise ValueError(f"memory: gate must be one of {', '.join(get_args(Gate))}, not {self.gate!r}")
        for part in PARTS:
            tensor = getattr(self, part)
            if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
                raise ValueError(f"memory: {part} must be a tensor of real numbers, not {_said(tensor)}")
        entries = self.keys.shape[:1]
        if self.keys.ndim != 2 or self.values.ndim != 2 or entries != self.values.shape[:1]:
            shapes = f"{tuple(self.keys.shape)} and {tuple(self.values.shape)}"
            raise ValueError(f"memory: keys (m, d_in) and values (m, d_out) do not fit: they are {shapes}")
        if self.thresholds.shape != entries:
            raise ValueError(
                f"memory: thresholds must be one for each of the {len(self)} keys, not {tuple(self.thresholds.shape)}"
            )

    def __len__(self) -> int:
        """m, entries."""
        return len(self.keys)

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_in, d_out)`` of the module that it is for."""
        return (self.keys.shape[1], self.values.shape[1])

    def parts(self) -> dict[str, torch.Tensor]:
        """Its tensors by name."""
        return {part: getattr(self, part) for part in PARTS}

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Memory":
        """On another device, or in another precision too; the very tensors where nothing needs to change."""
        return Memory(self.gate, *(tensor.to(device, dtype) for tensor in self.parts().values()))


Change = Delta | Memory
"""What an action may hold for a module: a delta for its weight, or a memory in place of the one beside it."""


def no_memory(shape: tuple[int, int]) -> Memory:
    """One without entries, for a module of shape ``(d_in, d_out)``: it removes what is there."""
    return Memory("ball", torch.zeros(0, shape[0]), torch.zeros(0, shape[1]), torch.zeros(0))


def deltas_of(changes: Mapping[str, Change]) -> dict[str, Delta]:
    """Those of the changes that a weight is changed by."""
    return {name: change for name, change in changes.items() if not isinstance(change, Memory)}


def apply(memory: Memory, inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """What a module with a memory beside it says; carries gradient to the outputs and to the memory's values.

    Distances and cosines are taken in float32 or better, whatever the model computes in.

    Args:
        memory: Of ``m`` entries.
        inputs: ``(..., d_in)`` of the module.
        outputs: ``(..., d_out)`` of the module without the memory.

    Returns:
        ``(..., d_out)``, of the type of ``outputs``; ``outputs`` itself without entries.
    """
    if not len(memory):
        return outputs
    keys, values, thresholds = (tensor.to(inputs.device) for tensor in memory.parts().values())
    queries = inputs.to(keys.dtype)
    if memory.gate == "relu":
        return outputs + ((queries @ keys.T - thresholds).relu() @ values).to(outputs.dtype)
    if memory.gate == "ball":
        nearest = nearest_keys(keys, queries)
        inside = (queries - keys[nearest]).norm(dim=-1) <= thresholds[nearest]
        return torch.where(inside[..., None], values[nearest].to(outputs.dtype), outputs)
    cosines, nearest = (normalize(queries, dim=-1) @ normalize(keys, dim=-1).T).max(-1)
    alike = cosines >= thresholds[nearest]
    return outputs + (alike[..., None] * values[nearest]).to(outputs.dtype)


def nearest_keys(keys: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """``(...,)`` which of the ``(m, d)`` keys is nearest to each of the ``(..., d)`` queries by Euclidean distance."""
    # |k - x|^2 without |x|^2, by one product. In float32 the difference of large squares would decide among near keys.
    keys = keys.double()
    return (keys.square().sum(1) / 2 - queries.double() @ keys.T).argmin(-1)


def save_memories(path: Path, memories: Mapping[str, Memory]) -> None:
    """Writes the memories of a model's modules as one safetensors file, whole or not at all.

    Raises:
        OSError: If the disk is full or read-only; what was there is as it was.
    """
    tensors = {
        f"{name}/{part}": tensor.detach().cpu().contiguous()
        for name, memory in memories.items()
        for part, tensor in memory.parts().items()
    }
    gates = {name: memory.gate for name, memory in memories.items()}
    with atomic_write(path) as partial:
        save_file(tensors, partial, {"format": FORMAT, "gates": json.dumps(gates)})


def load_memories(path: Path) -> dict[str, Memory]:
    """What :func:`save_memories` wrote, by module, for ``EditableLM.apply``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a file of memories, or not all of one; names the file and the module.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or not all of one: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not a file of memories: its format is {metadata.get('format')!r}, not {FORMAT!r}")
    memories = {}
    for name, gate in json.loads(metadata["gates"]).items():
        if missing := [part for part in PARTS if f"{name}/{part}" not in tensors]:
            raise ValueError(f"{path}: the memory of {name} lacks {', '.join(missing)}")
        try:
            memories[name] = Memory(gate, **{part: tensors[f"{name}/{part}"] for part in PARTS})
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from error
    return memories


def _said(value: object) -> str:
    return f"one of {value.dtype}" if isinstance(value, torch.Tensor) else type(value).__name__
