"""``editenv edit``: a model and a file of corrections in, the corrected model out, gone on with after a kill."""

import json
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from agents.editing import corrections
from agents.editing.arguments import EditArgs
from agents.editing.editor import LifelongEditor, TooManyDeltasError
from agents.editing.saving import check_place
from agents.progress import progress_bars
from editenv.atomic_files import atomic_write_text
from editenv.data.files import EditFile, FileOptions, load_file_edits
from editenv.data.records import BadRecordError
from editenv.models.modules import modules_of


def edit(args: EditArgs) -> None:
    """Runs it: edits what the journal does not have yet, saves, asks the model and reports.

    Raises:
        ValueError: If an argument, the file of edits or the folder is not fit for it; nothing was edited then.
    """
    from rich.console import Console
    from rich.progress import TimeRemainingColumn

    console = Console(stderr=True, soft_wrap=True)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    if args.edits_per_step < 1:
        raise ValueError(f"--edits-per-step must be at least 1, not {args.edits_per_step}")
    if args.save_model:
        check_place(args.output / "model", args.model)
    if (args.output / "report.json").exists() and not (args.output / "journal.jsonl").exists():
        raise ValueError(f"{args.output} holds a report.json of something else; choose another folder")
    edits = edits_for(args.edits, args.bad_records, args.model, args.device, args.dtype)
    if (stored := _stored_type(args.model)) not in (None, args.dtype):
        say(
            f"note: {args.model} is {stored}, and is edited and saved in {args.dtype}; --dtype {stored} keeps its precision"
        )

    with progress_bars(TimeRemainingColumn(), console=console, transient=True) as bars:
        bar = bars.add_task("preparing", total=len(edits))
        editor = LifelongEditor(
            model=args.model,
            method=args.method,
            policy=args.policy,
            output=args.output,
            modules=modules_of(args.modules, args.preset) or None,
            settings=None if args.settings is None else _read_settings(args.settings),
            training=args.training,
            text=args.text,
            edits=f"batches of {args.edits_per_step}",
            to_come=edits,
            guard=args.guard,
            device=args.device,
            dtype=args.dtype,
            seed=args.seed,
            train_eos=args.train_eos,
            progress=lambda what, done, total: bars.update(bar, description=what),
        )
        with editor:
            first = corrections.done_already(editor, edits)
            if editor.batches:
                say(f"going on after batch {editor.batches}: {first} of {len(edits)} edits are done")
            started = time.perf_counter()
            for start in range(first, len(edits), args.edits_per_step):
                result = editor.edit(edits[start : start + args.edits_per_step])
                done = start + result.edits
                rate = (done - first) / (time.perf_counter() - started)
                told = f"{rate:.1f} edits/s, {result.efficacy or 0:.0f}% of the batch, {_memory():.1f} GB"
                bars.update(bar, completed=done, description=told)
                if not result.applied:
                    ids = ", ".join(edit.id for edit in edits[start:done])
                    say(f"batch {result.batch} was taken back: {result.reason} ({ids})")
            bars.update(bar, description="saving")
            saved = _save(args, editor, edits, say)
            bars.update(bar, description="evaluating")
            report = _report(args, editor, edits, say)
    saved += ["results.jsonl"] * ("not_evaluated" not in report) + ["report.json"]
    if args.json:
        print(json.dumps(report))
        return
    refused = len(corrections.not_applied(editor, edits))
    if "edits" in report:
        of = f"{report['edits']} edits" if not refused else f"{report['edits']} of {len(edits)} edits"
        show_scores(f"{of} of {args.edits}", report)
    if report.get("goes_on") and not args.train_eos:
        told = (
            "of the answers are right and go on: the end of an answer was not taught (--train-eos, in another folder)"
        )
        print(f"{report['goes_on']} {told}")
    if refused:
        print(f"{refused} edits were taken back with their batches: not-applied.jsonl has them, report.json why")
    print(f"Saved in {args.output}: {', '.join(saved)}")


def _save(args: EditArgs, editor: LifelongEditor, edits: EditFile, say: Callable[[str], None]) -> list[str]:
    """The deltas, the model and the edits that were taken back; gives their names."""
    saved = ["journal.jsonl"]
    for earlier in ("deltas.safetensors", "results.jsonl", "not-applied.jsonl"):  # of fewer edits
        (args.output / earlier).unlink(missing_ok=True)
    try:
        if any(result.applied for result in editor.results):
            editor.save_deltas(args.output / "deltas.safetensors")
            saved.append("deltas.safetensors")
    except TooManyDeltasError as error:
        say(str(error))
    if args.save_model:
        editor.save(args.output / "model")
        saved.append("model")
    elif (args.output / "model").exists():
        say(f"{args.output / 'model'} is of an earlier run, which saved it")
    refused = [corrections.as_record(edit) for edit, _ in corrections.not_applied(editor, edits)]
    if refused:
        corrections.write_lines(args.output / "not-applied.jsonl", refused)
        saved.append("not-applied.jsonl")
    return saved


def _report(args: EditArgs, editor: LifelongEditor, edits: EditFile, say: Callable[[str], None]) -> dict[str, Any]:
    """What came of the edits, in results.jsonl and report.json."""
    report: dict[str, Any] = {"model": args.model, "method": args.method, "edits_file": args.edits}
    report |= {"asked": len(edits), "left_out": dict(edits.report.bad)}
    try:
        report |= editor.evaluate()
        outcomes = corrections.outcomes(editor, edits)
        corrections.write_lines(args.output / "results.jsonl", outcomes)
        report["goes_on"] = sum(row["applied"] and row["begins_right"] and not row["right"] for row in outcomes)
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        # Whatever a model or tokenizer of somebody's own may fail with: the edited one is saved, and this is told.
        report["not_evaluated"] = f"{type(error).__name__}: {error}"
        say(f"the edited model is saved, but could not be asked about its edits: {report['not_evaluated']}")
    atomic_write_text(args.output / "report.json", json.dumps(report, indent=2) + "\n")
    return report


def edits_for(file: str, bad_records: Literal["error", "skip"], model: str, device: str, dtype: str) -> EditFile:
    """The file's edits that fit into the model, read and checked to the end before anything is done."""
    from editenv.models import load_model

    options = FileOptions(bad_records=bad_records)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what was left out is said below
            edits = load_file_edits(file, "all", options)
        loaded, tokenizer = load_model(model, device, dtype)
        context = getattr(loaded.config.get_text_config(), "max_position_embeddings", None)
        edits = edits.check_lengths(tokenizer, context, options) if context else edits
    except BadRecordError as error:
        told = str(error).replace("the dataset option bad_records=skip", "--bad-records skip")
        raise ValueError(told) from None
    for line in edits.report.refused:
        print(f"left out: {line}", file=sys.stderr)
    if more := edits.report.bad.total() - len(edits.report.refused):
        print(f"left out: {more:,} more", file=sys.stderr)
    return edits


def show_scores(title: str, report: dict[str, Any]) -> None:
    """Prints the three scores of each protocol as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("%", "efficacy", "generalization", "specificity", title=title, title_justify="left")
    for protocol in ("teacher_forced", "generation", "probability"):
        if protocol in report:
            scores = report[protocol]
            cells = (scores[name] for name in ("efficacy", "generalization", "specificity"))
            table.add_row(protocol.replace("_", "-"), *("-" if v is None else f"{v:.1f}" for v in cells))
    Console().print(table)
    if drift := report.get("drift"):
        print("perplexity of held-out text: {perplexity_before:.4g} before, {perplexity:.4g} after".format(**drift))


def _stored_type(model: str) -> str | None:
    """The precision in which a folder's weights are kept, if its config says."""
    path = Path(model).expanduser() / "config.json"
    if not path.is_file():  # in the package or on the hub
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    return config.get("dtype") or config.get("torch_dtype")


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    found = found.get("settings", found) if isinstance(found, dict) else found
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold an object of arguments, not {found!r}")
    return found


def _memory() -> float:
    """Peak of this process, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
