"""Checks a submission: replays its deltas on the base model and computes every figure again.

    python -m benchmarks.run --suite smoke --agents fine-tune --keep-deltas --out runs/mine
    python -m benchmarks.validate runs/mine

A submission is the folder that benchmarks.run wrote with --keep-deltas. Each cell must be of a suite that this version
knows, on its very model and edits (fingerprints), and its deltas, replayed on the stream of its seed, must give its
figures again: percentages within --tolerance points, everything else (mean reward, perplexity, KL) within
--relative of its size. Seconds and memory cannot be checked, nor whether an agent saw the test edits while it was
prepared, nor that the deltas are the work of the agent that they are named after. Cells that failed, seeds that are
left out and curves that are not there are told. Exit status 0 if every cell holds.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from agents.registry import make_agent
from agents.rows import ROWS
from benchmarks.results.leaderboard import entries, read_failures
from benchmarks.results.records import Record, read
from benchmarks.running import cells
from benchmarks.running.progress import cells_progress
from benchmarks.suites import Suite, find, id_of
from editenv.models.modules import modules_of

RECOMPUTED = (
    "model",
    "dataset",
    "edits",
    "teacher_forced",
    "generation",
    "immediate",
    "retention",
    "failures",
    "probability",
    "drift",
    "probes",
    "mean_reward",
    "actions_per_batch",
    "modules",
)
"""Fields of a record that a replay gives again."""

PERCENTAGES = ("teacher_forced", "generation", "immediate", "retention", "probability", "probes")

NOT_PERCENTAGES = ("edits", "one_hop_questions", "two_hop_questions")


@dataclass
class Args:
    submission: Positional[Path]
    """The folder that benchmarks.run wrote."""
    model: str | None = None
    """Name or folder of the base model, for suites that leave it open."""
    data: Path | None = None
    """Folder of the data sets, for suites that read real records."""
    modules: tuple[str, ...] = ()
    """Edited modules, if they were named to benchmarks.run."""
    preset: str | None = None
    """The same for --preset."""
    device: str = "cpu"
    """A torch device."""
    dtype: str = "float32"
    """As it was given to benchmarks.run."""
    tolerance: float = 0.5
    """Largest difference of a percentage, in points. On the same machine with as many threads there is none; elsewhere
    rounding may turn a near tie, and in a stream of n edits one edit is 100/n points."""
    relative: float = 0.01
    """Largest relative difference of any other figure; below 0.01 in size, a hundredth of it is allowed."""

    def __post_init__(self) -> None:
        if self.tolerance < 0 or self.relative < 0:
            raise ValueError("tolerance and relative must not be negative")


def check_file(path: Path, args: Args, report: cells.ProgressCallback) -> list[str]:
    """What is wrong with a cell; nothing if it holds.

    Args:
        path: Its record.
        args: Where model and data are, and how much figures may differ.
        report: Told how far the replay is.
    """
    try:
        (record,) = read(path)
        again = replay(record, path, args, report)
        return [
            f"{place} is {claimed!r} in the record and {found!r} in the replay"
            for name in RECOMPUTED
            if name != "modules" or record.modules is not None  # older records do not say them
            for place, claimed, found in differences(name, getattr(record, name), getattr(again, name), args)
        ]
    except FileNotFoundError:  # --data or --model, the same for every cell
        raise
    except Exception as error:  # a record or deltas of whatever form
        return [str(error) if type(error) is ValueError else f"cannot be replayed: {type(error).__name__}: {error}"]


def replay(record: Record, path: Path, args: Args, report: cells.ProgressCallback) -> Record:
    """The record that the stored deltas give.

    Raises:
        ValueError: If they cannot be replayed as what the record says they are.
    """
    from benchmarks.running.recording import Replay, digest
    from benchmarks.running.rollout import run

    if record.configuration is None or record.deltas is None or record.actions_per_batch is None:
        raise ValueError("it was made without --keep-deltas: there is nothing to replay")
    suite = _suite(record, args)
    if record.suite != suite.label:
        raise ValueError(f"the record calls its suite {record.suite!r}, which is {suite.label!r}")
    if path != cells.cell_path(args.submission, suite.id, record.agent, record.seed):
        raise ValueError(f"the record in it is of another cell: {suite.id}, {record.agent}, seed {record.seed}")
    deltas = cells.deltas_path(args.submission, suite.id, record.agent, record.seed)
    if not deltas.exists():
        raise ValueError(f"its deltas are missing: {deltas}")
    if digest(deltas) != record.deltas:
        raise ValueError(f"{deltas} does not hold the deltas that the record names (SHA-256)")
    # Of agents of one's own the record alone can tell whether they have a curve along the stream.
    ahead = make_agent(record.agent).looks_ahead if record.agent in ROWS else len(record.retention) == 1
    agent = Replay(deltas, record.actions_per_batch, looks_ahead=ahead)
    return run(suite, record.agent, agent, record.seed, report)


def _suite(record: Record, args: Args) -> Suite:
    """The suite of a record as this version knows it, with the model and the edits that are here."""
    assert record.configuration is not None
    suite = find(id_of(record.suite)).at(
        args.model, args.data, modules_of(args.modules, args.preset), args.device, args.dtype
    )
    found: dict[str, dict[str, Any]] = {"suite": suite.setting(), "fingerprints": suite.check_fingerprints()}
    for what, wanted in found.items():
        claimed = record.configuration.get(what, {})
        differing = [
            f"{key} is {claimed.get(key)!r} in the record and {wanted.get(key)!r} here"
            for key in sorted({*claimed, *wanted})
            if claimed.get(key) != wanted.get(key)
            and not (key == "training" and claimed.get(key) is None)  # older records
        ]
        if differing:
            raise ValueError(f"{what}: {'; '.join(differing)}")
    return suite


def differences(place: str, claimed: Any, found: Any, args: Args) -> Iterator[tuple[str, Any, Any]]:
    """Where two values differ by more than is allowed: a dotted name, and both."""
    if isinstance(claimed, dict) and isinstance(found, dict) and claimed.keys() == found.keys():
        for key in claimed:
            yield from differences(f"{place}.{key}", claimed[key], found[key], args)
    elif isinstance(claimed, list) and isinstance(found, list) and len(claimed) == len(found):
        for i, pair in enumerate(zip(claimed, found, strict=True)):
            yield from differences(f"{place}[{i}]", *pair, args)
    elif isinstance(claimed, float) or isinstance(found, float):
        numbers = isinstance(claimed, int | float) and isinstance(found, int | float)
        if not numbers or not abs(claimed - found) <= _allowed(place, found, args):
            yield place, claimed, found
    elif claimed != found:
        yield place, claimed, found


def _allowed(place: str, found: float, args: Args) -> float:
    first, last = place.partition(".")[0].partition("[")[0], place.rpartition(".")[2]
    if first in PERCENTAGES and last not in NOT_PERCENTAGES:
        return args.tolerance
    return args.relative * max(abs(found), 0.01)


def main(args: Args) -> int:
    args.submission = args.submission.resolve()
    try:
        return check(args)
    except FileNotFoundError as error:  # --data or --model, the same for every cell
        raise SystemExit(str(error)) from None


def check(args: Args) -> int:
    """Prints what holds and what does not; 0 if all of it holds."""
    files = cells.cell_files(args.submission)
    if not files:
        raise SystemExit(
            f"{args.submission} holds no finished cell: a submission is a folder that benchmarks.run wrote"
        )
    wrong = 0
    with cells_progress(len(files)) as progress:
        for path in files:
            label = f"{path.parent.name}/{path.stem}"
            found = check_file(path, args, progress.report)
            progress.finished()
            wrong += bool(found)
            print(f"{label}: {'does not hold' if found else 'holds'}", flush=True)
            for line in found:
                print(f"    {line}", flush=True)
    results = args.submission / "results.jsonl"
    if not results.exists():
        wrong += 1
        print(f"{results} is missing")
    elif not wrong and results.read_text(encoding="utf-8") != cells.as_lines(cells.records_of(args.submission)):
        wrong += 1
        print(f"{results} is not what the cells say")
    for line in told_beside(args.submission):
        print(line)
    print(f"{len(files)} cells, {'all hold' if not wrong else f'{wrong} wrong'}")
    return 1 if wrong else 0


def told_beside(submission: Path) -> list[str]:
    """What is no error, and a reader wants to know: what failed, which seeds are left out, which curves are not
    there.
    """
    failed = read_failures([submission])
    found = [f"{cell.suite}, {cell.agent}, seed {cell.seed}: failed ({cell.error})" for cell in failed]
    try:
        rows = entries(cells.records_of(submission))
    except ValueError:  # a cell that does not hold
        return found
    for row in rows:
        name = f"{row.task.suite}, {row.agent}"
        there = {record.seed for record in row.records}
        if gaps := sorted(set(range(max(there) + 1)) - there):
            found.append(f"{name}: seeds {', '.join(map(str, gaps))} are not there")
        if row.agent not in ROWS and any(map(_lacks_its_curve, row.records)):
            found.append(
                f"{name}: has no curve along the stream, which only an agent may lack that acts by where it ends"
            )
    return found


def _lacks_its_curve(record: Record) -> bool:
    suite = (record.configuration or {}).get("suite") or {}
    return len(record.retention) == 1 and suite.get("batches") != 1


if __name__ == "__main__":
    import tyro

    sys.exit(main(tyro.cli(Args, description=__doc__)))
