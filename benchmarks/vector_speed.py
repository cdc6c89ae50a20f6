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
import multiprocessing.connection
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editenv.atomic_files import atomic_write_text

MODES = ("sync", "vector_entry_point")


@dataclass
class Args:
    num_envs: int = 8
    """N: streams."""
    threads: int = 2
    """Torch threads of each process."""
    steps: int = 10
    """Steps of the vector that are timed, each time."""
    warm_steps: int = 30
    """Steps between the two timings."""
    split: str = "validation"
    """Of the embedded world: validation has 1,000 edits, train 8,350."""
    horizon: int = 25
    """Batches of an episode."""
    seed: int = 0
    """Of the streams."""
    out: Path | None = None
    """File for the figures as JSON."""


def serve(connection: "multiprocessing.connection.Connection", mode: str, args: Args) -> None:
    """Answers each number of steps with what they took; runs in a process of its own."""
    import gymnasium as gym
    import numpy as np
    import torch

    import editenv  # noqa: F401 - registers
    from benchmarks.running.rollout import peak_memory_bytes
    from editenv.models import load_model

    torch.set_num_threads(args.threads)
    load_model("atlas")
    before = peak_memory_bytes(torch.device("cpu"))
    arguments: dict[str, Any] = {"split": args.split, "horizon": args.horizon}
    envs = gym.make_vec("LifelongEdit-v0", args.num_envs, vectorization_mode=mode, **arguments)
    envs.reset(seed=args.seed)
    spaces: Any = envs.action_space
    nothing = {name: np.zeros(space.shape, np.float32) for name, space in spaces.items()}
    connection.send(None)
    while (steps := connection.recv()) is not None:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            envs.step(nothing)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = peak_memory_bytes(torch.device("cpu"))
        connection.send({"wall": wall, "cpu": cpu, "peak_bytes": peak, "above_bytes": peak - before})


def main(args: Args) -> None:
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for mode in MODES:
        pipes[mode], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, mode, args), daemon=True).start()
    for pipe in pipes.values():
        pipe.recv()

    def ask(mode: str, steps: int) -> dict[str, float]:
        pipes[mode].send(steps)
        found: dict[str, float] = pipes[mode].recv()
        return found

    def timed(phase: str) -> dict[str, dict[str, float]]:
        total = {mode: {"wall": 0.0, "cpu": 0.0} for mode in MODES}
        for _ in range(args.steps):
            for mode in MODES:
                part = ask(mode, 1)
                total[mode] = {k: total[mode][k] + part[k] for k in total[mode]} | {
                    k: part[k] for k in ("peak_bytes", "above_bytes")
                }
        for mode, row in total.items():
            row["steps_per_second"] = args.num_envs * args.steps / row["wall"]
            figures = (
                f"{row['steps_per_second']:6.2f} steps/s, {row['cpu'] / args.steps / args.num_envs:.3f} CPU s a step"
            )
            memory = (
                f"{row['peak_bytes'] / 2**20:.0f} MiB at most, {row['above_bytes'] / 2**20:.0f} above the loaded model"
            )
            print(f"{phase}: {mode:>18}: {figures}, {memory}", flush=True)
        sync, native = (total[mode] for mode in MODES)
        print(
            f"{phase}: {native['steps_per_second'] / sync['steps_per_second']:.2f} times the steps per second, "
            f"{native['peak_bytes'] / sync['peak_bytes']:.2f} of the memory, "
            f"{native['above_bytes'] / sync['above_bytes']:.2f} of that above the loaded model",
            flush=True,
        )
        return total

    found = {"from the start": timed("from the start")}
    for mode in MODES:
        ask(mode, args.warm_steps)
    found["warm"] = timed("warm")
    for pipe in pipes.values():
        pipe.send(None)
    if args.out is not None:
        atomic_write_text(args.out, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
