"""Checks a submission: replays its deltas on the base model and computes every figure again.

    python -m benchmarks.run --suite smoke --agents fine-tune --keep-deltas --out runs/mine
    python -m benchmarks.validate runs/mine
    python -m benchmarks.validate runs/facts --edits facts.jsonl --model ./my-model

A submission is the folder that benchmarks.run wrote with --keep-deltas. Each cell must be of a suite that this version
knows, or of the one that is given, on its very model and edits (fingerprints), and its deltas, replayed on the stream
of its seed, must give its figures again: percentages within --tolerance points, everything else (mean reward,
perplexity, KL) within --relative of its size. A replay cannot tell whether an agent saw what it is judged by, nor that
the deltas are the work of the agent that they are named after: --rerun N runs the agent's source on N new streams. What
is not checked at all (seconds, memory, hardware, ...) is named as not verified. Cells that failed, seeds that are left
out and curves that are not there are reported. Exit status 0 if every cell holds.
"""

import re
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tyro.conf import OmitArgPrefixes, Positional

from agents.base import ProgressCallback
from agents.registry import make_agent
from agents.rows import ROWS
from benchmarks.results import claims, verdicts
from benchmarks.results.files import read_text
from benchmarks.results.leaderboard import entries, read_failures
from benchmarks.results.records import Record, read
from benchmarks.results.texts import printable
from benchmarks.results.verdicts import Verdict
from benchmarks.running import cells, rerunning
from benchmarks.running.progress import cells_progress
from benchmarks.suites import Suite, find, id_of
from benchmarks.suites.own import OwnData
from editenv.models.modules import modules_of

RECOMPUTED = (
    "model",
    "dataset",
    "edits",
    "teacher_forced",
    "generation",
    "generation_prefix",
    "wild",
    "immediate",
    "retention",
    "failures",
    "probability",
    "drift",
    "portability",
    "probes",
    "mean_reward",
    "actions_per_batch",
    "modules",
)
"""Fields of a record that a replay gives again."""

PERCENTAGES = (
    "teacher_forced",
    "generation",
    "generation_prefix",
    "wild",
    "immediate",
    "retention",
    "probability",
    "portability",
    "probes",
)
"""Fields of percentages."""

NOT_PERCENTAGES = ("edits", "questions", "one_hop_questions", "two_hop_questions")
"""Entries of those fields that are no percentages."""

SAID_LATER = ("training", "text", "drift_text")
"""Fingerprints that older records do not have."""

SMALL = 0.01
"""A number below it in size may differ as much as one of this size."""


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        submission: The folder that benchmarks.run wrote.
        suite: FILE.json, if it is of a suite of your own; those of the package are known by their names.
        own: Records and text of your own, as they were given to benchmarks.run.
        model: Name or folder of the base model, for suites that leave it open.
        data: Folder of the data sets, for suites that read real records.
        modules: Edited modules, if they were named to benchmarks.run.
        preset: The same for --preset.
        device: A torch device.
        dtype: As it was given to benchmarks.run.
        tolerance: Largest difference of a percentage, in points. On the same machine with as many threads there is
            none; elsewhere rounding may turn a near tie, and in a stream of n edits one edit is 100/n points.
        relative: Largest relative difference of any other figure; below 0.01 in size, a hundredth of it is allowed.
        rerun: Run each row again, from its agent's source in a fresh process, on so many streams with seeds that
            nobody knew, and compare figures within the seeds' spread. This runs the agent's code: only where you would
            run it anyway.
        out: A file for what was found out about each record; `benchmarks.report --checked FILE` shows it.
    """

    submission: Positional[Path]
    suite: str | None = None
    own: OmitArgPrefixes[OwnData] = field(default_factory=OwnData)
    model: str | None = None
    data: Path | None = None
    modules: tuple[str, ...] = ()
    preset: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    tolerance: float = 0.5
    relative: float = 0.01

    rerun: int = 0
    out: Path | None = None

    def __post_init__(self) -> None:
        if not (self.tolerance >= 0 and self.relative >= 0 and self.rerun >= 0):
            raise ValueError("tolerance, relative and rerun must not be negative")


@dataclass
class Checked:
    """What became of one cell.

    Attributes:
        path: Of its record.
        record: None if the file holds none.
        errors: What is wrong with it; nothing if it holds.
        unverified: What it claims that nothing here can check.
        rerun: Whether its agent did as well on new streams; None if it was not run again.
    """

    path: Path
    record: Record | None = None
    errors: list[str] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)
    rerun: bool | None = None

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.path.parent.name}/{self.path.stem}"


def check_file(path: Path, args: Args, progress: ProgressCallback) -> Checked:
    """Checks a cell.

    Args:
        path: Its record.
        args: Where model and data are, and how much figures may differ.
        progress: Called with how far the replay is.

    Raises:
        FileNotFoundError: If the model or the data set is not there.
    """
    checked = Checked(path)
    try:
        checked.record = record = _only_record(path)
        checked.errors += claims.wrong(record)
        checked.unverified += claims.unverified(record)
        replayed = replay(record, path, args, progress)
        checked.errors += [
            f"{name} is {in_record!r} in the record and {in_replay!r} in the replay"
            for field in RECOMPUTED
            if field != "modules" or record.modules is not None  # older records do not say them
            for name, in_record, in_replay in differences(field, getattr(record, field), getattr(replayed, field), args)
        ]
    except FileNotFoundError:  # --data or --model, the same for every cell
        raise
    except Exception as error:  # a record or deltas of whatever form
        checked.errors.append(str(error) if type(error) is ValueError else f"cannot be replayed: {described(error)}")
    return checked


def described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _only_record(path: Path) -> Record:
    """The record of a cell's file.

    Raises:
        ValueError: If it holds none, or several.
    """
    records = read(path)
    if len(records) != 1:
        raise ValueError(f"{path} holds {len(records)} records; a cell's file holds one")
    return records[0]


def replay(record: Record, path: Path, args: Args, progress: ProgressCallback) -> Record:
    """The record that the stored deltas give.

    Args:
        record: That was submitted.
        path: Its file.
        args: Where the submission, model and data are.
        progress: Called with how far the replay is.

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
    if not deltas.is_file():
        raise ValueError(f"its deltas are not a file: {deltas}")
    if digest(deltas) != record.deltas:
        raise ValueError(f"{deltas} does not hold the deltas that the record names (SHA-256)")
    # Of agents of one's own the record alone can tell whether they have a curve along the stream.
    looks_ahead = make_agent(record.agent).looks_ahead if record.agent in ROWS else len(record.retention) == 1
    agent = Replay(deltas, record.actions_per_batch, looks_ahead)
    return run(suite, record.agent, agent, record.seed, progress)


def _suite(record: Record, args: Args) -> Suite:
    """The suite of a record as this version knows it, with the model and the edits that are here.

    Raises:
        ValueError: If there is none, or if it says something else than the record.
    """
    assert record.configuration is not None
    suite = _named_suite(record, args).at(
        args.model,
        args.data,
        modules_of(args.modules, args.preset),
        args.device,
        args.dtype,
        record.configuration.get("suite", {}).get("observed_tokens"),
        args.own.text,
        args.own.drift_text,
    )
    current: dict[str, dict[str, Any]] = {"suite": suite.setting(), "fingerprints": suite.check_fingerprints()}
    for part, here in current.items():
        recorded = record.configuration.get(part, {})
        differing = [
            f"{key} is {recorded.get(key)!r} in the record and {here.get(key)!r} here"
            for key in sorted({*recorded, *here})
            if recorded.get(key) != here.get(key) and not (key in SAID_LATER and recorded.get(key) is None)
        ]
        if differing:
            raise ValueError(f"{part}: {'; '.join(differing)}")
    return suite


def _named_suite(record: Record, args: Args) -> Suite:
    """The suite that the record names, if it is the package's or the one that is given.

    Raises:
        ValueError: If it is neither.
    """
    if args.suite is not None or args.own.edits is not None:
        given = args.own.suite(args.suite, "test", args.data)
        if given.label == record.suite:
            return given
    try:
        return find(id_of(record.suite))
    except ValueError as error:
        raise ValueError(
            f"{error}; give a suite of your own as it was given to benchmarks.run, with --suite FILE.json or --edits"
        ) from None


def differences(name: str, in_record: Any, in_replay: Any, args: Args) -> Iterator[tuple[str, Any, Any]]:
    """Where two values differ by more than is allowed.

    Args:
        name: Of both.
        in_record: A value as JSON has it, of any depth.
        in_replay: The other.
        args: How much they may differ.

    Yields:
        A dotted name, and what has it in the record and in the replay.
    """
    if isinstance(in_record, dict) and isinstance(in_replay, dict) and in_record.keys() == in_replay.keys():
        for key in in_record:
            yield from differences(f"{name}.{key}", in_record[key], in_replay[key], args)
    elif isinstance(in_record, list) and isinstance(in_replay, list) and len(in_record) == len(in_replay):
        for i, pair in enumerate(zip(in_record, in_replay, strict=True)):
            yield from differences(f"{name}[{i}]", *pair, args)
    elif isinstance(in_record, float) or isinstance(in_replay, float):
        numbers = isinstance(in_record, int | float) and isinstance(in_replay, int | float)
        # Written so that NaN, which no comparison holds for, is a difference.
        if not numbers or not abs(in_record - in_replay) <= _allowed_difference(name, in_replay, args):
            yield name, in_record, in_replay
    elif in_record != in_replay:
        yield name, in_record, in_replay


def _allowed_difference(name: str, value: float, args: Args) -> float:
    field, entry = re.split(r"[.\[]", name)[0], name.rpartition(".")[2]
    if field in PERCENTAGES and entry not in NOT_PERCENTAGES:
        return args.tolerance
    return args.relative * max(abs(value), SMALL)


def main(args: Args) -> int:
    """Checks the submission; 0 if all of it holds.

    Raises:
        SystemExit: If there is no submission, or its model or data set is not there, with a message.
    """
    args.submission = args.submission.resolve()
    try:
        return check(args)
    except FileNotFoundError as error:  # --data or --model, the same for every cell
        raise SystemExit(str(error)) from None


def check(args: Args) -> int:
    """Prints what holds and what does not; 0 if all of it holds.

    Raises:
        FileNotFoundError: If the model or the data set is not there.
        SystemExit: If the folder holds no finished cell.
    """
    files = cells.cell_files(args.submission)
    if not files:
        raise SystemExit(
            f"{args.submission} holds no finished cell: a submission is a folder that benchmarks.run wrote"
        )
    all_checked = []
    with cells_progress(len(files)) as progress:
        for path in files:
            checked = check_file(path, args, progress.report)
            progress.finished()
            all_checked.append(checked)
            _say(f"{checked.label}: {'does not hold' if checked.errors else 'holds'}")
            for line in checked.errors:
                _say(f"    {line}")
    wrong = sum(bool(checked.errors) for checked in all_checked) + _wrong_results(args.submission, all_checked)
    if args.rerun:
        wrong += _run_again(all_checked, args)
    for line in [*remarks(args.submission, all_checked), *_unverified(all_checked)]:
        _say(line)
    if args.out is not None:
        verdicts.write(
            args.out,
            [
                Verdict(verdicts.digest_of(checked.record), not checked.errors, checked.rerun, checked.unverified)
                for checked in all_checked
                if checked.record is not None
            ],
        )
    _say(f"{len(files)} cells, {'all hold' if not wrong else f'{wrong} wrong'}")
    return 1 if wrong else 0


def _say(line: str) -> None:
    """Prints a line, of which a part may be a stranger's."""
    print(printable(line), flush=True)


def _wrong_results(submission: Path, all_checked: Sequence[Checked]) -> int:
    """Whether results.jsonl is there and what the cells say; says so if not."""
    path = submission / "results.jsonl"
    if not path.exists():
        _say(f"{path} is missing")
        return 1
    if any(checked.errors for checked in all_checked):
        return 0  # what it should be is not known
    try:
        content = read_text(path)
    except ValueError as error:
        _say(str(error))
        return 1
    if content != cells.as_lines(cells.records_of(submission)):
        _say(f"{path} is not what the cells say")
        return 1
    return 0


def _run_again(all_checked: Sequence[Checked], args: Args) -> int:
    """Runs each row again whose cells hold, notes what came of it, and says it; how many rows did not do as well."""
    by_cell = {id(checked.record): checked for checked in all_checked if checked.record is not None}
    rows = entries([checked.record for checked in all_checked if checked.record is not None and not checked.errors])
    wrong = 0
    for row in rows:
        problems = rerunning.problems(row, _suite(row.records[0], args), args.rerun)
        for record in row.records:
            by_cell[id(record)].rerun = not problems
        name, streams = f"{row.task.suite}, {row.agent}", f"{args.rerun} new stream{'s' if args.rerun > 1 else ''}"
        wrong += bool(problems)
        _say(f"{name}: {'not verified' if problems else 'verified'} by re-running on {streams}")
        for line in problems:
            _say(f"    {line}")
    return wrong


def _unverified(all_checked: Sequence[Checked]) -> list[str]:
    """A line for each claim that was not checked, with the cells that make it."""
    by_claim: dict[str, list[str]] = {}
    for checked in all_checked:
        for claim in checked.unverified:
            by_claim.setdefault(claim, []).append(checked.label)
    lines = []
    for claim, labels in by_claim.items():
        rest = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
        lines.append(f"not verified: {claim} ({', '.join(labels[:3])}{rest})")
    return lines


def remarks(submission: Path, all_checked: Sequence[Checked]) -> list[str]:
    """What is no error, but should be known: what failed, which seeds are left out, which curves are not there."""
    unreadable: list[str] = []
    failed = read_failures([submission], left_out=unreadable)
    lines = [f"{cell.suite}, {cell.agent}, seed {cell.seed}: failed ({cell.error})" for cell in failed] + unreadable
    for row in entries([checked.record for checked in all_checked if checked.record is not None]):
        name = f"{row.task.suite}, {row.agent}"
        seeds = {record.seed for record in row.records}
        if left_out := _ranges_left_out(seeds):
            lines.append(f"{name}: seeds {left_out} are not there")
        if row.agent not in ROWS and any(map(_lacks_its_curve, row.records)):
            lines.append(
                f"{name}: has no curve along the stream, which only an agent may lack that acts by where it ends"
            )
    return lines


def _ranges_left_out(seeds: Collection[int]) -> str:
    """The seeds below the highest that are not there, as in ``0, 3-7``; nothing if all are."""
    ranges, expected = [], 0
    for seed in sorted(seeds):
        if seed > expected:
            ranges.append(f"{expected}" if seed == expected + 1 else f"{expected}-{seed - 1}")
        expected = seed + 1
    return ", ".join(ranges)


def _lacks_its_curve(record: Record) -> bool:
    suite = (record.configuration or {}).get("suite") or {}
    return len(record.retention) == 1 and suite.get("batches") != 1


if __name__ == "__main__":
    import tyro

    sys.exit(main(tyro.cli(Args, description=__doc__)))
