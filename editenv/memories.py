"""Side memories: what an action puts beside the weight of an edited module, and what the module then says.

A memory of ``m`` entries has keys ``k_i``, values ``v_i`` and a threshold ``t_i`` for each. Every token's input ``x`` of
the module is a query of its own. With ``y = W x + b`` the module's output without the memory, its gate is one of the
following; the values of ``margin`` and ``context`` are matrices ``V_i``, and their keys are empty.

=========== ==================================================================== ==================================
``relu``    ``y + sum_i relu(k_i . x - t_i) v_i``                                T-Patcher (Huang et al. 2023, eq. 4)
``ball``    ``v_i`` in place of ``y`` where the key nearest to ``x`` by           GRACE (Hartvigsen et al. 2023)
            Euclidean distance, ``k_i``, is no farther than ``t_i``
``nearest`` ``y + v_i`` where the key nearest to ``x`` by cosine, ``k_i``,        retrieval by similarity
            has a cosine of at least ``t_i``
``margin``  ``y + x V_i`` for the longest ``x V_i`` of those longer than ``t_i``   WISE (Wang et al. 2024, eq. 2 and 9)
``context`` ``y + sum_i x V_i`` at all tokens of a prompt that is read with a     SERAC's counterfactual model
            text of the context before it (:mod:`editenv.contexts`)               (Mitchell et al. 2022)
=========== ==================================================================== ==================================
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import normalize

from editenv.atomic_files import atomic_write
from editenv.contexts import Context, rows_with_text
from editenv.deltas import Delta, as_stored

Gate = Literal["relu", "ball", "nearest", "margin", "context"]

MATRICES = ("margin", "context")
"""Gates whose values are matrices."""

PARTS = ("keys", "values", "thresholds")
"""A memory's tensors; there may be a fourth, ``rows``."""

CANDIDATES = 16
"""Keys whose distances from a query are computed: those that one product says are nearest."""

AT_ONCE = 256
"""Queries whose candidates are compared together."""

FORMAT = "lifelongedit-memory-1"
"""In the file's metadata."""


@dataclass(frozen=True, eq=False)
class Memory:
    """The side memory of one module, or some of its entries; the tensors are not to be changed in place.

    Attributes:
        gate: What a query does with the keys.
        keys: ``(m, d_in)``, real numbers; ``(m, 0)`` with the gates ``margin`` and ``context``.
        values: ``(m, d_out)``; ``(m, d_in, d_out)`` with those gates.
        thresholds: ``(m,)``: minus the neurons' biases (``relu``), radii (``ball``), least cosines (``nearest``) or lengths
            (``margin``); of the gate ``context`` they say nothing.
        rows: ``(m,)`` integers: in an action, which entries of the memory these are, so that a memory that grows by a
            batch is not written as a whole each time. Those beyond its end make it longer; the others stay as they are.
            None means that these are all.

    Raises:
        ValueError: If the gate is unknown or the tensors do not fit each other; names what.
    """

    gate: Gate
    keys: torch.Tensor
    values: torch.Tensor
    thresholds: torch.Tensor
    rows: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.gate not in get_args(Gate):
            raise ValueError(f"memory: gate must be one of {', '.join(get_args(Gate))}, not {self.gate!r}")
        for part in PARTS:
            tensor = getattr(self, part)
            if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
                raise ValueError(f"memory: {part} must be a tensor of real numbers, not {_said(tensor)}")
        keys, values = tuple(self.keys.shape), tuple(self.values.shape)
        if self.gate in MATRICES:
            if len(values) != 3 or keys != (values[0], 0):
                raise ValueError(
                    f"memory: keys (m, 0) and values (m, d_in, d_out) do not fit: they are {keys} and {values}"
                )
        elif len(keys) != 2 or len(values) != 2 or keys[0] != values[0]:
            raise ValueError(f"memory: keys (m, d_in) and values (m, d_out) do not fit: they are {keys} and {values}")
        if self.thresholds.shape != keys[:1]:
            raise ValueError(
                f"memory: thresholds must be one for each of the {len(self)} keys, not {tuple(self.thresholds.shape)}"
            )
        if self.rows is None:
            return
        if self.rows.dtype != torch.int64 or self.rows.shape != keys[:1] or len(self.rows.unique()) < len(self.rows):
            raise ValueError(f"memory: rows must be {len(self)} different int64 numbers, one for each key")

    def __len__(self) -> int:
        """m, entries."""
        return len(self.keys)

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_in, d_out)`` of the module that it is for."""
        d_in = self.values.shape[1] if self.gate in MATRICES else self.keys.shape[1]
        return (d_in, self.values.shape[-1])

    @cached_property
    def half_squares(self) -> torch.Tensor:
        """``(m,)`` half of each key's squared length: what a query need not compute again."""
        return self.keys.square().sum(1) / 2

    @cached_property
    def sum_of_values(self) -> torch.Tensor:
        """``(d_out,)``, or ``(d_in, d_out)`` of matrices."""
        return self.values.sum(0)

    @property
    def bytes(self) -> int:
        """Of its tensors."""
        return sum(tensor.nbytes for tensor in self.parts().values())

    def parts(self) -> dict[str, torch.Tensor]:
        """Its tensors by name."""
        parts = {part: getattr(self, part) for part in PARTS}
        return parts if self.rows is None else parts | {"rows": self.rows}

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Memory":
        """On another device, or in another precision too; the very tensors where nothing needs to change."""
        rows = None if self.rows is None else self.rows.to(device)
        parts = {part: getattr(self, part).to(device, dtype) for part in PARTS}
        return Memory(self.gate, **parts, rows=rows)

    def select(self, rows: torch.Tensor) -> "Memory":
        """These entries, for an action that changes or adds them."""
        return Memory(self.gate, self.keys[rows], self.values[rows], self.thresholds[rows], rows)


Change = Delta | Memory | Context
"""What an action may hold: for a module a delta for its weight; or a memory in place of the one beside it, or entries of
that (:attr:`Memory.rows`); and under :data:`editenv.contexts.CONTEXT` entries of the context."""


def no_memory(shape: tuple[int, int]) -> Memory:
    """One without entries, for a module of shape ``(d_in, d_out)``: it removes what is there."""
    return Memory("ball", torch.zeros(0, shape[0]), torch.zeros(0, shape[1]), torch.zeros(0))


def merged(memory: Memory | None, entries: Memory) -> Memory:
    """The memory of a module after an action.

    Args:
        memory: Before it; None if there is none.
        entries: The action's.

    Raises:
        ValueError: If entries are for a memory of another gate or size, or leave a gap behind its end.
    """
    if entries.rows is None:
        return entries
    size = 0 if memory is None else len(memory)
    if memory is None:
        memory = Memory(entries.gate, entries.keys[:0], entries.values[:0], entries.thresholds[:0])
    if memory.gate != entries.gate or memory.shape != entries.shape:
        raise ValueError(
            f"memory: entries of gate {entries.gate} for {entries.shape} do not fit one of gate {memory.gate} for {memory.shape}"
        )
    rows = entries.rows.to(memory.keys.device)
    added = rows[rows >= size]
    if (rows < 0).any() or (len(added) and int(added.max()) != size + len(added) - 1):
        raise ValueError(f"memory: rows {added.tolist()} do not go on a memory of {size} entries")
    parts = []
    for part in PARTS:
        old, new = getattr(memory, part), getattr(entries, part)
        whole = torch.cat([old, old.new_zeros(len(added), *old.shape[1:])])
        parts.append(whole.index_copy(0, rows, new.to(old)))
    return Memory(memory.gate, *parts)


def update(before: Memory | None, after: Memory) -> Memory:
    """The entries in which a memory differs from what it was, for an action; the whole one if it has become shorter."""
    if before is None or before.gate != after.gate or before.shape != after.shape or len(after) < len(before):
        return after
    same = torch.zeros(len(after), dtype=torch.bool, device=after.keys.device)
    same[: len(before)] = True
    for part in PARTS:
        old, new = getattr(before, part), getattr(after, part)[: len(before)]
        same[: len(before)] &= (old == new).flatten(1).all(1) if old.ndim > 1 else old == new
    return after.select((~same).nonzero().flatten())


def deltas_of(changes: Mapping[str, Change]) -> dict[str, Delta]:
    """Those of the changes that a weight is changed by."""
    return {name: change for name, change in changes.items() if not isinstance(change, Memory | Context)}


def apply(memory: Memory, inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """What a module with a memory beside it says; carries gradient to the outputs and to the memory's values
    (and keys, with the gate ``relu``).

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
    keys, values, thresholds = (getattr(memory, part).to(inputs.device) for part in PARTS)
    queries = inputs.to(keys.dtype)
    if memory.gate == "margin":
        return outputs + _beyond_margin(queries, values, thresholds).to(outputs.dtype)
    if memory.gate == "context":
        return _with_text(queries, memory.sum_of_values.to(inputs.device), outputs)
    if memory.gate == "relu":
        return outputs + ((queries @ keys.T - thresholds).relu() @ values).to(outputs.dtype)
    if memory.gate == "ball":
        nearest = nearest_keys(keys, queries, memory.half_squares.to(inputs.device))
        inside = (queries - keys[nearest]).norm(dim=-1) <= thresholds[nearest]
        return torch.where(inside[..., None], values[nearest].to(outputs.dtype), outputs)
    cosines, nearest = (normalize(queries, dim=-1) @ normalize(keys, dim=-1).T).max(-1)
    alike = cosines >= thresholds[nearest]
    return outputs + (alike[..., None] * values[nearest]).to(outputs.dtype)


def _with_text(queries: torch.Tensor, matrix: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """``(..., d_out)`` the outputs, and ``x V`` added in the rows of prompts with a text before them."""
    rows = rows_with_text(len(outputs))
    if rows is None or not rows.any():
        return outputs
    if rows.all():
        return outputs + (queries @ matrix).to(outputs.dtype)
    rows = rows.to(outputs.device)
    return outputs.index_add(0, rows.nonzero().squeeze(1), (queries[rows] @ matrix).to(outputs.dtype))


def _beyond_margin(queries: torch.Tensor, values: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """``(..., d_out)`` the longest of the ``x V_i`` that are longer than their thresholds; zeros where none is."""
    products = torch.einsum("...a,mab->...mb", queries, values)
    lengths = products.norm(dim=-1)
    length, longest = lengths.masked_fill(lengths <= thresholds, -torch.inf).max(-1)
    chosen = products.gather(-2, longest[..., None, None].expand(*longest.shape, 1, products.shape[-1])).squeeze(-2)
    return torch.where(length[..., None] >= 0, chosen, 0)


def nearest_keys(keys: torch.Tensor, queries: torch.Tensor, half_squares: torch.Tensor | None = None) -> torch.Tensor:
    """``(...,)`` which of the ``(m, d)`` keys is nearest to each of the ``(..., d)`` queries by Euclidean distance.

    Args:
        keys: The keys.
        queries: The queries.
        half_squares: ``(m,)`` :attr:`Memory.half_squares` of the keys, if they are at hand.
    """
    # |k|^2 / 2 - x k, which takes one product, chooses candidates: it is a difference of large numbers, by whose rounding
    # keys near to each other may change places. Their distances decide.
    half_squares = keys.square().sum(1) / 2 if half_squares is None else half_squares
    nearest = []
    for some in queries.reshape(-1, keys.shape[1]).split(AT_ONCE):
        candidates = (half_squares - some @ keys.T).topk(min(CANDIDATES, len(keys)), -1, largest=False).indices
        distances = (some[:, None] - keys[candidates]).square().sum(-1)
        nearest.append(candidates.gather(1, distances.argmin(1, keepdim=True)).squeeze(1))
    return torch.cat(nearest).view(queries.shape[:-1])


def attach(modules: Mapping[str, nn.Module], memories: Mapping[str, Memory]) -> None:
    """From now on each module says what its memory makes of its output; memories may come and go in the dictionary."""
    for name, module in modules.items():
        module.register_forward_hook(partial(_recall, memories, name))


def attached(modules: Mapping[str, nn.Module]) -> dict[str, Memory]:
    """The memories beside these modules, by name; on any one model a module has one at most."""
    beside = {}
    for name, module in modules.items():
        for hook in module._forward_hooks.values():
            if isinstance(hook, partial) and hook.func is _recall and hook.args[1] in hook.args[0]:
                beside[name] = hook.args[0][hook.args[1]]
    return beside


def detach(modules: Mapping[str, nn.Module]) -> dict[str, Memory]:
    """Takes the memories of these modules away, and gives them."""
    memories = attached(modules)
    for module in modules.values():
        for number, hook in list(module._forward_hooks.items()):
            if isinstance(hook, partial) and hook.func is _recall:
                del module._forward_hooks[number]
    return memories


def _recall(
    memories: Mapping[str, Memory], name: str, _: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
) -> torch.Tensor | None:
    """A module's forward hook: what its memory makes of the output; None leaves it as it is."""
    memory = memories.get(name)
    return None if memory is None else apply(memory, args[0], output)


def save_memories(path: Path, memories: Mapping[str, Memory]) -> None:
    """Writes the memories of a model's modules, each in all its entries, as one safetensors file, whole or not at all.

    Raises:
        OSError: If the disk is full or read-only; what was there is as it was.
    """
    tensors = as_stored(
        {f"{name}/{part}": tensor for name, memory in memories.items() for part, tensor in memory.parts().items()}
    )
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
