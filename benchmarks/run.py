"""Runs agents on a suite and writes one record for each agent and seed.

    python -m benchmarks.run --suite smoke --agents no-edit fine-tune --seeds 0 --out runs/smoke
    python -m benchmarks.run --suite atlas-50x20 --agents rledit my_file.py:MyPolicy --seeds 0-2 --out runs/mine
    python -m benchmarks.run --suite zsre-50x20 --data DIR --model runs/models/real --agents rledit-p --out runs/zsre

What OUT/results.jsonl already holds is not run again. Each cell runs in a process of its own, so that its peak memory is
its own and a crash costs one cell; a failed cell is reported and makes the command fail at the end.
"""

import multiprocessing
import os
import sys
import threading
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks import records, table
from benchmarks.records import Record
from benchmarks.suites import SUITES, Suite


@dataclass
class Args:
    suite: str
    """Name of the suite; a wrong one lists them."""
    agents: tuple[str, ...]
    """Rows: names of agents.registry, or file.py:Class."""
    out: Path
    """Folder; results go to OUT/results.jsonl."""
    seeds: str = "0"
    """Like 0 or 0-2 or 0,3,5; each seeds training and the stream's order."""
    model: str | None = None
    """Name, folder or hub id of the language model; the suite's by default."""
    data: Path | None = None
    """Folder of the data sets, for suites that read real records."""


def parse_seeds(text: str) -> list[int]:
    """``"0-2,7"`` is 0, 1, 2, 7.

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
    return seeds


def run_cell(suite: Suite, name: str, seed: int, out: Path) -> Record:
    """One agent, one seed; runs in its own process and shows how far it is. Policies are kept in OUT/policies."""
    from agents.registry import make_agent
    from benchmarks.progress import console_progress
    from benchmarks.rollout import run

    threading.Thread(target=_end_with_parent, daemon=True).start()

    agent = make_agent(name)
    agent.workspace = out / "policies" / f"{name.replace('/', '_')}-seed{seed}"
    with console_progress(f"{name}, seed {seed}") as progress:
        return run(suite, name, agent, seed, progress)


def _end_with_parent() -> None:
    """A killed command must not leave its cell running."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main(args: Args) -> int:
    if args.suite not in SUITES:
        raise SystemExit(f"unknown suite {args.suite!r}; there are {', '.join(SUITES)}")
    try:
        suite = SUITES[args.suite].at(args.model, args.data)
        cells = [(args.suite, agent, seed) for seed in parse_seeds(args.seeds) for agent in args.agents]
    except ValueError as error:
        raise SystemExit(str(error)) from None
    results = args.out / "results.jsonl"
    done = {(r.suite, r.agent, r.seed) for r in records.read(results)} if results.exists() else set()
    failed = []
    context = multiprocessing.get_context("spawn")
    for i, cell in enumerate(cells, start=1):
        label = f"[{i}/{len(cells)}] {cell[0]}, {cell[1]}, seed {cell[2]}"
        if cell in done:
            print(f"{label}: already there", flush=True)
            continue
        try:
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                record = pool.submit(run_cell, suite, *cell[1:], args.out).result()
        except Exception:
            failed.append(label)
            traceback.print_exc()
            continue
        records.append(results, record)
        print(f"{label}: {table.one_line(record)}", flush=True)
    if results.exists():
        table.show([r for r in records.read(results) if r.suite == args.suite])
    for label in failed:
        print(f"failed: {label}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    import tyro

    sys.exit(main(tyro.cli(Args, description=__doc__)))
