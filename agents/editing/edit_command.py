"""``editenv edit``: a model and a file of corrections in, the corrected model out, gone on with after a kill."""

import json
import resource
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from agents.base import Agent
from agents.editing import corrections, summary, unrelated
from agents.editing.arguments import OPTIONS, EditArgs, write_options
from agents.editing.changes import Changes, compare
from agents.editing.choice import choose_method, settings_file
from agents.editing.display import Display
from agents.editing.editor import BatchResult, LifelongEditor, TooManyDeltasError
from agents.editing.estimate import free_memory, memory_of
from agents.editing.giving_away import check_converter, check_hub, convert_to_gguf, push_to_hub
from agents.editing.preparation import choose_agent, modules_to_edit
from agents.editing.reading import edits_for
from agents.editing.rehearsal import rehearse
from agents.editing.run import Key, key_of_edit, left_to_retry
from agents.editing.saving import check_place, write_card
from agents.editing.trial import FILE as TRIAL
from agents.editing.trial import choose_by_trial, trial_of
from agents.editing.undoing import Plan, consent, duration
from agents.editing.valid_json import valid_json
from editenv.atomic_files import atomic_write_text
from editenv.data import Edit
from editenv.data.files import EditFile
from editenv.data.text import printable
from editenv.journal import JournalError
from editenv.models import load_model
from editenv.models.modules import default_modules, modules_of
from editenv.output_folders import check_output

GGUF_FILE = "model.gguf"

WORTH_SAYING = 60.0
"""Seconds from which on it is said after the first batch how long the others will take."""

EVALUATION = ("results.jsonl", "unrelated.jsonl", "report.html")
"""Files about what the model says."""

WRITTEN = (
    GGUF_FILE, "journal.jsonl", OPTIONS, TRIAL, "deltas.safetensors", "not-applied.jsonl", *EVALUATION, "report.json",
)  # fmt: skip
"""Files that the command writes, or removes, in the output folder."""


def edit(args: EditArgs) -> None:
    """Runs it: edits what the journal does not have yet, saves, asks the model and reports.

    Raises:
        ValueError: If an argument, the file of edits or the folder is not fit for it; nothing was edited then.
    """
    _check_arguments(args)
    edits = edits_for(
        args.edits,
        args.bad_records,
        args.model,
        args.device,
        args.dtype,
        _needs_subjects(args),
        args.chat,
        args.columns,
        args.taught_end,
    )
    with Display(len(edits)) as display:
        args = _with_method(_as_settings_say(args), edits, display)
        _check_convertible(args)
        _note_precision(args, display)
        _note_memory(args, edits, display)
        with open_editor(args, edits, display) as editor:
            changes = _settled_changes(args, editor, edits, display)
            write_options(args, edits.report.source)
            warning = _too_few_at_first(args, editor, edits)
            if warning is not None:
                display.say(f"warning: {warning}")
            if changes.left_out.any():
                display.say(
                    f"{changes.left_out.sum()} corrections of the file were undone and stay so; --undone make makes them again"
                )
            asked, rest = edits.where(~changes.left_out), edits.where(changes.to_make)
            held = held_before(args, editor, display)
            make_edits(args, editor, rest, len(asked), display)
            if args.rehearse:
                rehearse(editor, args.output, args.edits_per_step, held, display)
            about = Asked(asked, edits.report.source, dict(edits.report.bad), warning)
            finish(args, editor, about, held, display)


@dataclass(frozen=True)
class Asked:
    """What a run was asked for.

    Attributes:
        edits: The corrections.
        source: Name of their file.
        left_out: How many of its records could not be used, by kind.
        warning: What was said of the first batch, if anything.
    """

    edits: Sequence[Edit]
    source: str
    left_out: Mapping[str, int] = field(default_factory=dict)
    warning: str | None = None


def _settled_changes(args: EditArgs, editor: LifelongEditor, edits: EditFile, display: Display) -> Changes:
    """What is to be made, once what the file does not have any more is undone, if the command was told to do that.

    Raises:
        ValueError: If it was not, or if nobody agreed to the cost; nothing is changed then.
    """
    changes = compare(editor.run, edits, edits.report.source, args.undone == "make")
    if not changes.to_undo:
        return changes
    keys = [key_of_edit(edit) for edit in changes.to_undo]
    plan = Plan.of(editor.run, keys, editor.agent.independent_batches)
    what = "\n".join((f"{args.edits} is not what the run in {args.output} has made:", *changes.in_words()))
    cost = plan.in_words(args.method)
    if args.changed == "error":
        raise JournalError(f"{what}\n--changed undo follows the file: {cost}. Or choose another folder")
    display.say(what)
    display.pause()
    consent(plan, cost, args.yes)
    display.resume()
    display.say(cost)
    editor.undo(changes.to_undo, by_file=True)
    return compare(editor.run, edits, edits.report.source, args.undone == "make")


def finish(args: EditArgs, editor: LifelongEditor, asked: Asked, held: Collection[Key], display: Display) -> None:
    """Saves, asks the model and reports.

    Args:
        args: Of the command that the run was begun with.
        editor: After the last batch.
        asked: What the run was asked for.
        held: Corrections that held before anything was done.
        display: Told what goes on.
    """
    display.show("saving")
    saved = _save(args, editor, asked, display)
    display.show("evaluating")
    report = _evaluate(args, editor, asked, held, display)
    display.pause()
    if "not_evaluated" not in report:
        saved += EVALUATION
    saved.append("report.json")
    try:
        saved += _give_away(args)
    finally:  # what was edited and measured is told in any case
        _tell(args, editor, asked, report, saved)


def _tell(args: EditArgs, editor: LifelongEditor, asked: Asked, report: dict[str, Any], saved: list[str]) -> None:
    """The report, for programs or for people."""
    if args.json:
        print(valid_json(report))
    else:
        _print_summary(args, asked, report, len(corrections.not_applied(editor.run, asked.edits)), saved)


def _give_away(args: EditArgs) -> list[str]:
    """The GGUF file and the repository of the hub, if they are wanted; gives their names."""
    given = []
    if args.gguf is not None:
        convert_to_gguf(args.output / "model", args.output / GGUF_FILE, args.gguf, args.dtype)
        given.append(GGUF_FILE)
    if args.push_to_hub is not None:
        given.append(push_to_hub(args.output / "model", args.push_to_hub))
    return given


def _with_method(args: EditArgs, edits: EditFile, display: Display) -> EditArgs:
    """The arguments with the method that ``auto`` stands for, which is said."""
    if args.method != "auto":
        return args
    choice = choose_by_trial(args, choose_method(args, edits), edits, display.say, display.show)
    where = f" in {', '.join(choice.modules)}" if choice.modules else ""
    if choice.method != "rledit":
        display.say(f"method: {choice.method}{where}: {choice.reason} (--method takes another)")
    return replace(args, method=choice.method, modules=choice.modules or args.modules)


def _as_settings_say(args: EditArgs) -> EditArgs:
    """The arguments with what the file of settings says of the environment, where the command does not."""
    if args.settings is None:
        return args
    environment = settings_file(args.settings)[1]
    if args.modules or args.preset:
        environment.pop("modules", None)
    if args.observed_tokens != EditArgs.observed_tokens:
        environment.pop("observed_tokens", None)
    return replace(args, **environment)


def _is_same_file(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _check_arguments(args: EditArgs) -> None:
    """Refuses what would fail after hours, before anything is read."""
    check_output(args.output, args.model, policy=args.policy, training=args.training, text=args.text)
    if args.save_model:
        check_place(args.output / "model", args.model)
    for read in (args.edits, args.edits.partition(":")[2], args.settings, args.training, args.text):
        if read and any(_is_same_file(args.output / name, Path(read)) for name in WRITTEN):
            raise ValueError(
                f"{read} would be written over: this command writes a file of that name; choose another --output"
            )
    if not args.save_model and (args.gguf is not None or args.push_to_hub is not None):
        raise ValueError("gguf and push-to-hub give away the saved model: leave --no-save-model out")
    if args.gguf is not None:
        check_converter(args.gguf)
    if args.push_to_hub is not None:
        check_hub(args.push_to_hub)
    if (args.output / "report.json").exists() and not (args.output / "journal.jsonl").exists():
        raise ValueError(f"{args.output} holds a report.json of something else; choose another folder")


def _check_convertible(args: EditArgs) -> None:
    """Whether what the method makes can be written as a GGUF file, if one is wanted.

    Raises:
        ValueError: If it puts something beside the weights, which the file has no place for.
    """
    agent = _agent_without_policy(args) if args.gguf is not None else None
    if agent is not None and tuple(agent.changes) != ("weights",):
        puts = " and ".join(summary.BESIDE[kind] for kind in agent.changes if kind != "weights")
        raise ValueError(
            f"--gguf: method {args.method!r} puts a {puts} beside the weights, for which a GGUF file has no place: leave --gguf "
            "out, or choose a method that changes weights"
        )


def _needs_subjects(args: EditArgs) -> bool:
    """Whether the method looks facts up by their subject; those that take a policy do not."""
    agent = _agent_without_policy(args)
    return agent is not None and "subjects" in agent.needs


def _agent_without_policy(args: EditArgs) -> Agent | None:
    """The method, to look at what it declares; None if it takes a policy."""
    if args.policy is not None or args.method in ("auto", "rledit"):
        return None
    return choose_agent(args.method, None, args.model, settings_of_file(args.settings))


def _note_precision(args: EditArgs, display: Display) -> None:
    """Says so if the model's weights are kept in another precision than they are edited in."""
    stored = _stored_dtype(args.model)
    if stored not in (None, args.dtype):
        keeps = f"--dtype {stored} keeps its precision"
        display.say(f"note: {args.model} is {stored}, and is edited and saved in {args.dtype}; {keeps}")


def _note_memory(args: EditArgs, edits: Sequence[Edit], display: Display) -> None:
    """Says how much memory the run takes, before anything is prepared."""
    model, tokenizer = load_model(args.model, args.device, args.dtype)
    agent, modules = _agent_without_policy(args), modules_of(args.modules, args.preset)
    if not modules and agent is not None:
        modules = tuple(modules_to_edit(agent, args.model, args.device, args.dtype, args.output))
    modules = modules or tuple(default_modules(model, args.model))
    estimate = memory_of(agent, model, tokenizer, modules, edits, args.edits_per_step)
    if (line := estimate.in_words(free_memory(args.device))) is not None:
        display.say(line)


def _stored_dtype(model: str) -> str | None:
    """The precision in which a folder's weights are kept, if its config says."""
    path = Path(model).expanduser() / "config.json"
    if not path.is_file():  # in the package or on the hub
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    return config.get("dtype") or config.get("torch_dtype")


def open_editor(args: EditArgs, edits: Sequence[Edit], display: Display) -> LifelongEditor:
    return LifelongEditor(
        model=args.model,
        method=args.method,
        policy=args.policy,
        output=args.output,
        modules=modules_of(args.modules, args.preset) or None,
        settings=settings_of_file(args.settings),
        training=args.training,
        text=args.text,
        edits=f"batches of {args.edits_per_step}",
        to_come=edits,
        guard=args.guard,
        device=args.device,
        dtype=args.dtype,
        seed=args.seed,
        train_eos=args.train_eos,
        observed_tokens=args.observed_tokens,
        target_end=args.taught_end,
        progress=lambda what, done, total: display.show(what),
    )


def settings_of_file(path: Path | None) -> dict[str, Any] | None:
    """Of a file of settings, if there is one."""
    return None if path is None else settings_file(path)[0]


def held_before(args: EditArgs, editor: LifelongEditor, display: Display) -> set[Key]:
    """The corrections of the run that held when it was last reported; without a report, those that hold now."""
    if (held := corrections.held_in(args.output, editor.run)) is not None:
        return held
    if editor.edits:
        display.show("asking earlier corrections")
    return corrections.holding(editor.lm, list(editor.run.made.values()))


def make_edits(args: EditArgs, editor: LifelongEditor, edits: Sequence[Edit], asked: int, display: Display) -> None:
    """Makes edits batch by batch.

    Args:
        args: Of the command.
        editor: Where the journal ends.
        edits: Those that it does not have.
        asked: How many there are with those that it has.
        display: Told what goes on.
    """
    first = asked - len(edits)
    if editor.batches:
        display.say(f"going on after batch {editor.results[-1].batch}: {first} of {asked} edits are done")
    started, said_how_long = time.perf_counter(), False
    done = 0
    while done < len(edits):
        size = _next_size(editor.results, args.edits_per_step)
        batch = list(edits[done : done + size])
        if not done:  # later the last batch's figures stay in view
            display.show("editing the first batch")
        result = editor.edit(batch, retried=args.guard.retry and len(batch) > 1)
        done += result.edits
        seconds = time.perf_counter() - started
        rate = done / seconds
        if not said_how_long and done and (left := (len(edits) - done) / rate) > WORTH_SAYING:
            display.say(
                f"{done} edits took {duration(seconds)}: about {duration(left)} for the other {len(edits) - done}"
            )
        said_how_long = said_how_long or done > 0
        efficacy = f"{result.efficacy or 0:.0f}% of the batch"
        display.show(f"{rate:.1f} edits/s, {efficacy}, {_peak_memory():.1f} GB", first + done)
        if result.retried:
            display.say(f"batch {result.batch} was taken back: {result.reason}; its edits are tried again in halves")
        elif not result.applied:
            ids = ", ".join(edit.id for edit in batch)
            display.say(f"batch {result.batch} was taken back: {result.reason} ({ids})")


def _next_size(results: Sequence[BatchResult], edits_per_step: int) -> int:
    """How many edits are made next: a batch; or of one that was bad half as many, and then twice as many as went well.

    All of it is in the journal, so that a run that was killed goes on with the same batches.

    Args:
        results: Of all batches so far.
        edits_per_step: Edits of a batch.
    """
    left = 0  # of the batch that is tried again in smaller ones
    for result in results:
        left = left_to_retry(left, result.retried, result.edits)
    if not left:
        return edits_per_step
    last = results[-1]
    if last.retried:
        return max(1, last.retried // 2)
    return min(left, 2 * last.edits if last.applied else last.edits)


def _too_few_at_first(args: EditArgs, editor: LifelongEditor, edits: EditFile) -> str | None:
    """Says so if the first batch is too small for a method whose statistics begin with it; None if it is not."""
    first, fair = min(args.edits_per_step, len(edits)), editor.agent.fair_first_batch
    if first >= fair:
        return None
    larger = "a larger --edits-per-step or another --method" if len(edits) >= fair else "another --method"
    return (
        f"{args.method} takes its statistics from the edits themselves, and of a first batch of {first} they say "
        f"little: fewer than {fair} are made badly; {larger} will do better"
    )


def _peak_memory() -> float:
    """Peak of this process, in GB."""
    # Linux counts in kilobytes, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def _save(args: EditArgs, editor: LifelongEditor, asked: Asked, display: Display) -> list[str]:
    """The deltas, the model and the edits that were taken back; gives their names."""
    saved = ["journal.jsonl"]
    for earlier in ("deltas.safetensors", "not-applied.jsonl", GGUF_FILE):  # of fewer edits
        (args.output / earlier).unlink(missing_ok=True)
    try:
        if any(result.applied for result in editor.results):
            editor.save_deltas(args.output / "deltas.safetensors")
            saved.append("deltas.safetensors")
    except TooManyDeltasError as error:
        display.say(str(error))
    if args.save_model:
        editor.save(args.output / "model")
        saved.append("model")
    elif (args.output / "model").exists():
        display.say(f"{args.output / 'model'} is of an earlier run, which saved it")
    refused = corrections.refused_records(editor.run, asked.edits, asked.source)
    if refused:
        corrections.write_lines(args.output / "not-applied.jsonl", refused)
        saved.append("not-applied.jsonl")
    return saved


def _evaluate(
    args: EditArgs, editor: LifelongEditor, asked: Asked, held: Collection[Key], display: Display
) -> dict[str, Any]:
    """What came of the edits, in results.jsonl, unrelated.jsonl, report.json and report.html.

    Args:
        args: Of the command.
        editor: After the last batch.
        asked: What the run was asked for.
        held: Earlier corrections that held when this run began.
        display: Told what goes wrong.
    """
    report: dict[str, Any] = {"model": args.model, "method": args.method, "edits_file": args.edits}
    report |= {"asked": len(asked.edits), "left_out": dict(asked.left_out)}
    report["changes"] = list(editor.agent.changes)
    report["last_batch"] = editor.results[-1].batch if editor.results else 0
    report |= {"warning": asked.warning} if asked.warning is not None else {}
    report |= {"target_end": editor.target_end} if editor.target_end else {}
    try:
        report |= {"trial": tried} if (tried := trial_of(args.output, args.method)) else {}
    except ValueError as error:
        display.say(str(error))
    try:
        report |= editor.evaluate()
        outcomes = corrections.outcomes(editor.lm, editor.run, asked.edits, held)
        corrections.write_lines(args.output / "results.jsonl", outcomes)
        if editor.run.undone:
            report["undone"] = corrections.undone(editor.lm, editor.run)
        answers = [answer.as_row() for answer in unrelated.answers(editor.lm, editor.edits)]
        corrections.write_lines(args.output / "unrelated.jsonl", answers)
        report |= summary.of(outcomes, answers, report.get("drift"))
        atomic_write_text(args.output / "report.html", summary.page(report, outcomes, answers))
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        # Whatever a model or tokenizer of somebody's own may fail with: the edited one is saved, and this is told.
        report["not_evaluated"] = f"{type(error).__name__}: {error}"
        for earlier in EVALUATION:  # of fewer edits
            (args.output / earlier).unlink(missing_ok=True)
        display.say(f"the edited model is saved, but could not be asked about its edits: {report['not_evaluated']}")
    atomic_write_text(args.output / "report.json", valid_json(report, indent=2) + "\n")
    if args.save_model:
        write_card(args.output / "model", report)
    return report


def _print_summary(args: EditArgs, asked: Asked, report: dict[str, Any], refused: int, saved: list[str]) -> None:
    """The report for people.

    Args:
        args: Of the command.
        asked: What the run was asked for.
        report: Of :func:`_evaluate`.
        refused: How many edits were taken back.
        saved: Names of what is in the output folder.
    """
    if "hold" in report:
        for line in summary.headline(report):
            print(printable(line))
        if alarms := summary.alarms(report):
            text = "\n".join(printable(line) for line in alarms)
            Console().print(Panel(Text(text), title="the model has lost something", border_style="red", expand=False))
    if "edits" in report:
        count = f"{report['edits']} edits" if not refused else f"{report['edits']} of {len(asked.edits)} edits"
        show_scores(printable(f"{count} of {args.edits}"), report)
    if report.get("goes_on") and not args.train_eos and not report.get("target_end"):
        hint = "the end of an answer was not taught (--train-eos, in another folder)"
        print(f"{report['goes_on']} of the answers are right and go on: {hint}")
    kinds = " and a ".join(summary.BESIDE[kind] for kind in report["changes"] if kind in summary.BESIDE)
    if "model" in saved and kinds:
        folder = args.output / "model"
        beside = "weights of its own" if "weights" in report["changes"] else args.model
        print(
            printable(
                f"{folder} is a {kinds} beside {beside}, no plain transformers folder: load both by "
                f"editenv.load_model({str(folder)!r})"
            )
        )
    if refused:
        print(f"{refused} edits were taken back with their batches: not-applied.jsonl has them, report.json why")
    print(printable(f"Saved in {args.output}: {', '.join(saved)}"))


def show_scores(title: str, report: dict[str, Any]) -> None:
    """Prints the three scores of each protocol as a table."""
    table = Table("%", "efficacy", "generalization", "specificity", title=title, title_justify="left")
    for protocol in ("teacher_forced", "generation", "generation_prefix", "probability"):
        if protocol in report:
            scores = report[protocol]
            cells = (scores[name] for name in ("efficacy", "generalization", "specificity"))
            table.add_row(protocol.replace("_", "-"), *("-" if v is None else f"{v:.1f}" for v in cells))
    Console().print(table)
    if drift := report.get("drift"):
        print("perplexity of held-out text: {perplexity_before:.4g} before, {perplexity:.4g} after".format(**drift))
