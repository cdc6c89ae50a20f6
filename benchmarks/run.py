"""Runs agents on a suite; one record for each agent and seed.

    python -m benchmarks.suites
    python -m benchmarks.run --suite smoke --agents no-edit fine-tune --seeds 0 --out runs/smoke
    python -m benchmarks.run --suite atlas-50x20-v1 --agents rledit,my_file.py:MyPolicy --seeds 0-2 --out runs/mine
    python -m benchmarks.run --suite zsre-50x20 --data DIR --model real --agents rledit-p --out runs/zsre
    python -m benchmarks.run --edits facts.jsonl --model ./my-model --agents no-edit my_file.py:MyPolicy --out runs/facts
    python -m benchmarks.run --suite ./mine.json --agents no-edit fine-tune@./mine --out runs/mine
    python -m benchmarks.run --suite atlas-50x20 --seeds 0-4 --runner ray --address HOST:6379 --out /shared/runs/atlas

The first line lists the suites; a file of records (--edits) and a suite's file of your own are suites, too.
Each finished cell (agent and seed) is one file of OUT/cells, and OUT/results.jsonl is made from them; what is there is
not run again, what has failed is. Each cell runs in a process of its own, so that its peak memory is its own and a
crash costs one cell. A failed cell is reported and makes the command fail at the end. See
docs/guides/run_benchmarks.md.
"""

import multiprocessing
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes

from agents.base import ProgressCallback
from agents.registry import find_agent
from benchmarks.results import tables
from benchmarks.results.records import Record
from benchmarks.results.texts import printable
from benchmarks.running import cells
from benchmarks.running.cells import Cell, Failure
from benchmarks.running.processes import end_with_parent
from benchmarks.running.progress import cells_progress
from benchmarks.suites import Suite
from benchmarks.suites.own import OwnData
from editenv.models.modules import modules_of

Runner = Callable[[list[Cell], ProgressCallback], Iterator[tuple[Cell, Record | Failure]]]
"""Runs cells, and yields each with what became of it, in any order."""


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        suite: NAME for its newest version, NAME-vN for that one, NAME@BATCHES for its first batches; or FILE.json, a
            suite of your own.
        out: Folder; results go to OUT/results.jsonl, a cell's record to OUT/cells.
        own: Records and text of your own.
        agents: Rows: names that `editenv methods` explains, METHOD@FOLDER for a method with settings of your own (made
            by benchmarks.tune), or file.py:Class; those that the suite is about by default.
        seeds: Like 0 or 0-2 or 0,3,5; each seeds training and the stream's order.
        model: Name, folder or hub id of the language model; the suite's by default.
        data: Folder of the data sets, for suites that read real records; a suite of your own finds them beside its
            file.
        modules: Edited modules, as endings of dotted names; by default the suite's, or the model's own.
        observed_tokens: Which tokens of a batch agents see the gradient of: those that predict an answer token, all
            that have one, or of each edit its subject's last; by default the suite's.
        preset: Modules of the paper's Table 3, such as llama-3-8b/zsre, or by rule, not run here, such as
            qwen3-0.6b/gradients; `editenv models` lists them.
        device: A torch device, or auto for a model larger than one of them.
        dtype: float32, bfloat16 or float16.
        keep_deltas: Keep what is added to the weights in OUT/deltas, for benchmarks.validate and `editenv apply`.
        runner: Where cells run: here, one after the other, or on a Ray cluster (the extra `ray`).
        address: Of the Ray cluster; auto finds the one on this machine.
        cores: With Ray: cores, and with them threads, for each cell.
        gpus: With Ray: GPUs for each cell.
    """

    suite: str | None = None
    out: Path = field(kw_only=True)
    own: OmitArgPrefixes[OwnData] = field(default_factory=OwnData)
    agents: tuple[str, ...] = ()
    seeds: str = "0"
    model: str | None = None
    data: Path | None = None
    modules: tuple[str, ...] = ()
    observed_tokens: Literal["answers", "all", "subject"] | None = None
    preset: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    keep_deltas: bool = False
    runner: Literal["local", "ray"] = "local"
    address: str = "auto"
    cores: int = 1
    gpus: float = 0


def parse_seeds(text: str) -> list[int]:
    """``"0-2,7"`` is 0, 1, 2, 7, each once.

    Raises:
        ValueError: If it is anything else.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            numbers = range(int(first), int(last if dash else first) + 1)
            if not numbers:
                raise ValueError
            seeds += numbers
        except ValueError:
            raise ValueError(f"seeds: {part!r} is neither a number nor a range like 0-2") from None
    return list(dict.fromkeys(seeds))


def parse_agents(words: Iterable[str]) -> list[str]:
    """``a,b c`` are a, b and c, each once."""
    return list(dict.fromkeys(name for word in words for name in word.split(",") if name))


def run_here(todo: list[Cell], progress: ProgressCallback) -> Iterator[tuple[Cell, Record | Failure]]:
    """Each cell in a process of its own, one after the other; a :data:`Runner`.

    Cells of one suite and seed meet the same prompts: the first of them runs the frozen layers over these, and leaves
    what they make of them in a file for the others.
    """
    context = multiprocessing.get_context("spawn")
    caches = [cell.activation_cache_path for cell in todo]
    for number, cell in enumerate(todo):
        cache = cell.activation_cache_path
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_run_in_process, args=(cell, sender, caches.count(cache) > 1))
        process.start()
        sender.close()
        outcome: Record | Failure | None = None
        try:
            while outcome is None:
                message = receiver.recv()
                if isinstance(message, tuple):
                    what, done, total = message
                    progress(f"{cell.label}: {what}", done, total)
                else:
                    outcome = message
        except (EOFError, ConnectionResetError):  # it died without a word
            process.join()
            outcome = Failure(f"the cell's process died (exit code {process.exitcode})")
        process.join()
        if cache not in caches[number + 1 :]:
            _remove_cache(cache)
        yield cell, outcome


def _remove_cache(path: Path) -> None:
    """Removes a cache file, and its folders if they are empty: another command may fill this folder, too."""
    with suppress(OSError):
        for partial in path.parent.glob(f"{path.name}.*.partial"):  # by a command that was killed
            partial.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        path.parent.rmdir()
        path.parent.parent.rmdir()


def _run_in_process(cell: Cell, sender: Connection, shares_cache: bool) -> None:
    """Sends progress as tuples, and in the end the cell's record or failure."""
    end_with_parent()
    from benchmarks.running.rollout import ACTIVATION_CACHE_BYTES
    from editenv.language_model.activation_cache import ActivationCache

    cache = ActivationCache(ACTIVATION_CACHE_BYTES)
    try:
        loaded = shares_cache and cache.load(cell.activation_cache_path, cell.activation_cache_identity)
        sender.send(cell.run(lambda what, done, total: sender.send((what, done, total)), cache))
    except Exception as error:
        sender.send(Failure(f"{type(error).__name__}: {error}", traceback.format_exc()))
        return
    if shares_cache and not loaded:
        try:
            cache.save(cell.activation_cache_path, cell.activation_cache_identity)
        except OSError as error:  # other cells run the frozen layers themselves
            print(f"{cell.label}: what its stream's other cells could share was not kept: {error}", file=sys.stderr)


def run_cells(requested: list[Cell], out: Path, runner: Runner) -> list[str]:
    """Runs what is missing, and writes each cell as it finishes.

    Args:
        requested: All cells that are to be there in the end.
        out: Their folder.
        runner: Where the missing ones run.

    Returns:
        The failed ones, each with its error.

    Raises:
        ValueError: If a cell is there already, of another model, other edits or other settings.
    """
    todo = [cell for cell in requested if not cell.finished()]
    for cell in requested:
        if cell not in todo:
            print(printable(f"{cell.label}: already there"), flush=True)
    failed = []
    with cells_progress(len(todo)) as progress:
        for number, (cell, outcome) in enumerate(runner(todo, progress.report), start=1):
            cell.write(outcome)
            cells.collect(out)
            progress.finished()
            if isinstance(outcome, Failure):
                failed.append(f"{cell.label}: {outcome.error} (see {cell.failure_path})")
            line = f"failed: {outcome.error}" if isinstance(outcome, Failure) else tables.one_line(outcome)
            print(printable(f"[{number}/{len(todo)}] {cell.label}: {line}"), flush=True)
    return failed


def make_runner(args: Args) -> Runner:
    """Where cells run."""
    if args.runner == "local":
        return run_here
    from benchmarks.running.ray_runner import run_on_ray

    return lambda todo, progress: run_on_ray(todo, args.address, args.cores, args.gpus)


def suite_of(args: Args) -> Suite:
    """What is edited.

    Raises:
        ValueError: If the arguments do not say it, or say what does not fit together.
        FileNotFoundError: If a file of one's own is not there.
    """
    own = args.own
    return own.suite(args.suite, "test", args.data).at(
        args.model,
        args.data,
        modules_of(args.modules, args.preset),
        args.device,
        args.dtype,
        args.observed_tokens,
        own.text,
        own.drift_text,
    )


def main(args: Args) -> int:
    """Runs the table; 1 if a cell failed.

    Raises:
        SystemExit: For wrong arguments, with a message.
    """
    try:
        suite = suite_of(args)
        agents = parse_agents(args.agents) or suite.agents
        if not agents:
            raise ValueError(f"suite {suite.id} is about no agents in particular: name some with --agents")
        for name in agents:
            find_agent(name)  # a misspelt one is named before hours of others
        seeds = parse_seeds(args.seeds)
        fingerprints = suite.check_fingerprints()
        if suite.is_own:
            edited = f"{suite.batches} x {suite.edits_per_step} edits of {suite.dataset}, split {suite.split}"
            print(printable(f"{suite.id}: {edited}, in {suite.model}"), flush=True)
        out = args.out.resolve()
        requested = [
            Cell(suite, fingerprints, agent, seed, out, args.keep_deltas) for seed in seeds for agent in agents
        ]
        failed = run_cells(requested, args.out, make_runner(args))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    tables.show([record for record in cells.collect(args.out) if record.suite == suite.label])
    if suite.command:
        print(f"\nThe rest of what {suite.id} is about:\n{suite.command}")
    for line in failed:
        print(printable(f"failed: {line}"), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    import tyro

    sys.exit(main(tyro.cli(Args, description=__doc__)))
