"""Runs agents on a suite; one record for each agent and seed.

    python -m benchmarks.suites
    python -m benchmarks.run --suite smoke --agents no-edit fine-tune --seeds 0 --out runs/smoke
    python -m benchmarks.run --suite atlas-50x20-v1 --agents rledit,my_file.py:MyPolicy --seeds 0-2 --out runs/mine
    python -m benchmarks.run --suite zsre-50x20 --data DIR --model real --agents rledit-p --out runs/zsre
    python -m benchmarks.run --suite atlas-50x20 --seeds 0-4 --runner ray --address HOST:6379 --out /shared/runs/atlas

The first line lists the suites. Each finished cell (agent and seed) is one file of OUT/cells, and OUT/results.jsonl
is made from them; what is there is not run again, what has failed is. Each cell runs in a process of its own, so
that its peak memory is its own and a crash costs one cell. A failed cell is reported and makes the command fail at
the end. See docs/benchmarks.md.
"""

import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from agents.registry import find_agent
from benchmarks.results import tables as table
from benchmarks.results.records import Record
from benchmarks.running import cells
from benchmarks.running.cells import Cell, Failure, ProgressCallback
from benchmarks.running.progress import cells_progress
from benchmarks.suites import find
from editenv.models.modules import modules_of

Runner = Callable[[list[Cell], ProgressCallback], Iterator[tuple[Cell, Record | Failure]]]
"""Runs cells, and yields each with what became of it, in any order."""


@dataclass
class Args:
    suite: str
    """NAME for its newest version, NAME-vN for that one, NAME@BATCHES for its first batches; a wrong one lists them."""
    out: Path
    """Folder; results go to OUT/results.jsonl, a cell's record to OUT/cells."""
    agents: tuple[str, ...] = ()
    """Rows: names of agents.registry, METHOD@FOLDER for a method with settings of your own (made by
    benchmarks.tune), or file.py:Class; those that the suite is about by default.
    """
    seeds: str = "0"
    """Like 0 or 0-2 or 0,3,5; each seeds training and the stream's order."""
    model: str | None = None
    """Name, folder or hub id of the language model; the suite's by default."""
    data: Path | None = None
    """Folder of the data sets, for suites that read real records."""
    modules: tuple[str, ...] = ()
    """Edited modules, as endings of dotted names; by default the suite's, or the model's own."""
    preset: str | None = None
    """Modules of the paper's Table 3, such as llama-3-8b/zsre; `editenv models` lists them."""
    device: str = "cpu"
    """A torch device, or auto for a model larger than one of them."""
    dtype: str = "float32"
    """float32, bfloat16 or float16."""
    keep_deltas: bool = False
    """Keep what is added to the weights in OUT/deltas, for benchmarks.validate and `editenv apply`."""
    runner: Literal["local", "ray"] = "local"
    """Where cells run: here, one after the other, or on a Ray cluster (the extra `ray`)."""
    address: str = "auto"
    """Of the Ray cluster; auto finds the one on this machine."""
    cores: int = 1
    """With Ray: cores, and with them threads, for each cell."""
    gpus: float = 0
    """With Ray: GPUs for each cell."""


def parse_seeds(text: str) -> list[int]:
    """``"0-2,7"`` is 0, 1, 2, 7, each once.

    Raises:
        ValueError: If it is anything else.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            found = range(int(first), int(last if dash else first) + 1)
            if not found:
                raise ValueError
            seeds += found
        except ValueError:
            raise ValueError(f"seeds: {part!r} is neither a number nor a range like 0-2") from None
    return list(dict.fromkeys(seeds))


def parse_agents(given: Iterable[str]) -> list[str]:
    """``a,b c`` are a, b and c, each once."""
    return list(dict.fromkeys(name for part in given for name in part.split(",") if name))


def run_here(todo: list[Cell], report: ProgressCallback) -> Iterator[tuple[Cell, Record | Failure]]:
    """Each cell in a process of its own, one after the other; the frozen layers run over a stream's prompts in its
    first.
    """
    context = multiprocessing.get_context("spawn")
    streams = [cell.stream for cell in todo]
    for number, cell in enumerate(todo):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_in_process, args=(cell, sender, streams.count(cell.stream) > 1))
        process.start()
        sender.close()
        outcome: Record | Failure | None = None
        try:
            while outcome is None:
                told = receiver.recv()
                if isinstance(told, tuple):
                    report(f"{cell.label}: {told[0]}", *told[1:])
                else:
                    outcome = told
        except (EOFError, ConnectionResetError):  # it died without a word
            process.join()
            outcome = Failure(f"the cell's process died (exit code {process.exitcode})")
        process.join()
        if cell.stream not in streams[number + 1 :]:
            with suppress(OSError):  # another command may fill this folder, too
                for left in cell.stream.parent.glob(f"{cell.stream.name}.*.partial"):  # by a command that was killed
                    left.unlink(missing_ok=True)
                cell.stream.unlink(missing_ok=True)
                cell.stream.parent.rmdir()
                cell.stream.parent.parent.rmdir()
        yield cell, outcome


def _in_process(cell: Cell, sender: Connection, shares: bool) -> None:
    from benchmarks.running.rollout import ROOM
    from editenv.language_model.activation_cache import ActivationCache

    threading.Thread(target=end_with_parent, daemon=True).start()
    activation_cache = ActivationCache(ROOM)
    try:
        there = shares and activation_cache.load(cell.stream, cell.stream_identity)
        sender.send(cell.run(lambda what, done, total: sender.send((what, done, total)), activation_cache))
    except Exception as error:
        sender.send(Failure(f"{type(error).__name__}: {error}", traceback.format_exc()))
        return
    if shares and not there:
        try:
            activation_cache.save(cell.stream, cell.stream_identity)
        except OSError as error:  # other cells run the frozen layers themselves
            print(f"{cell.label}: what its stream's other cells could share was not kept: {error}", file=sys.stderr)


def end_with_parent() -> None:
    """A killed command must not leave its cell running."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def run_cells(wanted: list[Cell], out: Path, runner: Runner) -> list[str]:
    """Runs what is missing, and writes each cell as it finishes.

    Returns:
        The failed ones, each with its error.
    """
    todo = [cell for cell in wanted if not cell.finished()]
    for cell in wanted:
        if cell not in todo:
            print(f"{cell.label}: already there", flush=True)
    failed = []
    with cells_progress(len(todo)) as progress:
        for number, (cell, outcome) in enumerate(runner(todo, progress.report), start=1):
            cell.write(outcome)
            cells.collect(out)
            progress.finished()
            if isinstance(outcome, Failure):
                failed.append(f"{cell.label}: {outcome.error} (see {cell.failure_path})")
            line = f"failed: {outcome.error}" if isinstance(outcome, Failure) else table.one_line(outcome)
            print(f"[{number}/{len(todo)}] {cell.label}: {line}", flush=True)
    return failed


def make_runner(args: Args) -> Runner:
    """Where cells run."""
    if args.runner == "local":
        return run_here
    from benchmarks.running.ray_runner import run_on_ray

    return lambda todo, report: run_on_ray(todo, args.address, args.cores, args.gpus)


def main(args: Args) -> int:
    try:
        modules = modules_of(args.modules, args.preset)
        suite = find(args.suite).at(args.model, args.data, modules, args.device, args.dtype)
        agents = parse_agents(args.agents) or suite.agents
        if not agents:
            raise ValueError(f"suite {suite.id} is about no agents in particular: name some with --agents")
        for name in agents:
            find_agent(name)  # a misspelt one is told before hours of others
        seeds = parse_seeds(args.seeds)
        prints = suite.check_fingerprints()
        out = args.out.resolve()
        wanted = [Cell(suite, prints, agent, seed, out, args.keep_deltas) for seed in seeds for agent in agents]
        failed = run_cells(wanted, args.out, make_runner(args))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    table.show([record for record in cells.collect(args.out) if record.suite == suite.label])
    if suite.command:
        print(f"\nThe rest of what {suite.id} is about:\n{suite.command}")
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    import tyro

    sys.exit(main(tyro.cli(Args, description=__doc__)))
