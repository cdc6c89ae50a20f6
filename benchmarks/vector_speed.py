"""The native vector environment beside Gymnasium's SyncVectorEnv: steps per second and memory.

    python -m benchmarks.vector_speed
    python -m benchmarks.vector_speed --split train --warm-steps 200 --out runs/vector_speed.json

Each runs in a process of its own on the embedded model, with the same arguments, seeds and actions. Both are timed
twice: from the start, when no prompt has been met, and after `warm-steps` more, when the native one has met most
prompts of the split. The two are also run in turn for a few steps each, so that a busy machine slows both down. CPU
seconds are those of all threads. Memory is the peak resident size, and how much of it is above that of the process
with the model loaded and nothing made.
"""

import json
import multiprocessing
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from editenv.atomic_files import atomic_write_text

MODES = ("sync", "vector_entry_point")
"""Gymnasium's vectorization modes: SyncVectorEnv, and the native environment."""


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        num_envs: N: streams.
        threads: Torch threads of each process.
        steps: Steps of the vector that are timed, each time.
        warm_steps: Steps between the two timings.
        split: Of the embedded world: validation has 1,000 edits, train 8,350.
        horizon: Batches of an episode.
        seed: Of the streams.
        out: File for the figures as JSON.
    """

    num_envs: int = 8
    threads: int = 2
    steps: int = 10
    warm_steps: int = 30
    split: str = "validation"
    horizon: int = 25
    seed: int = 0
    out: Path | None = None


def serve(connection: Connection, mode: str, args: Args) -> None:
    """Answers each number of steps with what they took; runs in a process of its own.

    Args:
        connection: Gets None once the environments are made, takes numbers of steps, and None to end.
        mode: Gymnasium's vectorization mode.
        args: The command's.
    """
    from benchmarks.running.processes import end_with_parent

    end_with_parent()
    import gymnasium as gym
    import numpy as np
    import torch

    import editenv  # noqa: F401 - registers
    from benchmarks.running.timing import peak_memory_bytes
    from editenv.models import load_model

    torch.set_num_threads(args.threads)
    load_model("atlas")
    before = peak_memory_bytes(torch.device("cpu"))
    arguments: dict[str, Any] = {"split": args.split, "horizon": args.horizon}
    envs = gym.make_vec("LifelongEdit-v1", args.num_envs, reward="loss", vectorization_mode=mode, **arguments)
    envs.reset(seed=args.seed)
    spaces: Any = envs.action_space
    no_change = {name: np.zeros(space.shape, np.float32) for name, space in spaces.items()}
    connection.send(None)
    while (steps := connection.recv()) is not None:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            envs.step(no_change)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = peak_memory_bytes(torch.device("cpu"))
        connection.send({"wall": wall, "cpu": cpu, "peak_bytes": peak, "above_bytes": peak - before})


def take_steps(connection: Connection, steps: int) -> dict[str, float]:
    """What so many steps took: seconds (``wall``, ``cpu``) and bytes (``peak_bytes``, ``above_bytes``)."""
    connection.send(steps)
    costs: dict[str, float] = connection.recv()
    return costs


def time_both(connections: Mapping[str, Connection], args: Args) -> dict[str, dict[str, float]]:
    """What ``args.steps`` steps of each mode take, one step in turn: a busy machine slows both down."""
    totals = {mode: {"wall": 0.0, "cpu": 0.0} for mode in MODES}
    for _ in range(args.steps):
        for mode in MODES:
            costs = take_steps(connections[mode], 1)
            totals[mode] = costs | {name: totals[mode][name] + costs[name] for name in ("wall", "cpu")}
    for total in totals.values():
        total["steps_per_second"] = args.num_envs * args.steps / total["wall"]
    return totals


def described(phase: str, totals: dict[str, dict[str, float]], args: Args) -> str:
    """The figures of :func:`time_both`: a line for each mode, and one that compares them."""
    lines = [
        f"{phase}: {mode:>18}: {total['steps_per_second']:6.2f} steps/s, "
        f"{total['cpu'] / args.steps / args.num_envs:.3f} CPU s a step, {total['peak_bytes'] / 2**20:.0f} MiB at most, "
        f"{total['above_bytes'] / 2**20:.0f} above the loaded model"
        for mode, total in totals.items()
    ]
    sync, native = (totals[mode] for mode in MODES)
    lines.append(
        f"{phase}: {native['steps_per_second'] / sync['steps_per_second']:.2f} times the steps per second, "
        f"{native['peak_bytes'] / sync['peak_bytes']:.2f} of the memory, "
        f"{native['above_bytes'] / sync['above_bytes']:.2f} of that above the loaded model"
    )
    return "\n".join(lines)


def main(args: Args) -> None:
    """Measures both modes twice, and prints."""
    context = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    for mode in MODES:
        connections[mode], other_end = context.Pipe()
        context.Process(target=serve, args=(other_end, mode, args), daemon=True).start()
    for connection in connections.values():
        connection.recv()
    results = {"from the start": time_both(connections, args)}
    print(described("from the start", results["from the start"], args), flush=True)
    for connection in connections.values():
        take_steps(connection, args.warm_steps)
    results["warm"] = time_both(connections, args)
    print(described("warm", results["warm"], args), flush=True)
    for connection in connections.values():
        connection.send(None)
    if args.out is not None:
        atomic_write_text(args.out, json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
