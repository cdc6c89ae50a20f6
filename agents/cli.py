"""The console script ``editenv``; also ``python -m agents``."""

import json
import resource
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from agents import corrections
from agents.editor import BadEditError, Guard, LifelongEditor, TooManyDeltasError
from agents.registry import AGENTS
from agents.saving import check_place, save_model
from editenv.data.files import EditFile, FileOptions, load_file_edits
from editenv.data.records import BadRecordError
from editenv.models import EMBEDDED, PACKAGED
from editenv.models.modules import PRESETS, preset
from editenv.whole_files import write_whole


@dataclass
class Edit:
    """Corrects a model: applies a file of edits in order, batch by batch, and saves what came of it.

    OUTPUT gets the edited model (OUTPUT/model, for plain transformers), the deltas (OUTPUT/deltas.safetensors), a report
    (OUTPUT/report.json), what became of each edit (OUTPUT/results.jsonl) and a journal. Killed at any moment, the same command goes
    on to the same weights, bit for bit; edits added at the file's end are made by the same command, too. The model given is not
    changed.

    editenv edit --edits corrections.jsonl --output out

    editenv edit --model ./my-model --edits corrections.csv --method fine-tune --output out
    """

    edits: str
    """File of edits, as docs/data.md has it."""
    output: Path
    """Folder for the results; an interrupted run's is gone on with."""
    model: str = EMBEDDED
    """Embedded model, Hugging Face folder or hub id."""
    method: str = "rledit"
    """A row of `editenv methods`, or file.py:Class. rledit needs a trained policy; the embedded model has one (with the
    preconditioner: the settings of rledit-p)."""
    policy: Path | None = None
    """Folder of a policy from `editenv train`."""
    settings: Path | None = None
    """JSON file with the method's constructor arguments, such as {"steps": 10}, or one that `python -m benchmarks.tune` wrote.
    By default those chosen for the embedded model, and the method's own for any other; what makes a row that row stays."""
    training: str | None = None
    """Data set that the method may learn from, for methods that need one."""
    text: str | None = None
    """Text that the method may take statistics of (ROME, MEMIT and their kin): a .txt or .jsonl file, a hub data set, or a folder
    made by python -m agents.covariance."""
    edits_per_step: int = 20
    """Edits in a batch; the last may be smaller."""
    end_of_answer: bool = False
    """Teach the model to stop after each target, and to go on stopping after other answers: for a model that answers questions
    and stops. Without it the target's own tokens are all that is taught, as in the paper."""
    modules: tuple[str, ...] = ()
    """Edited modules, as endings of dotted names; the model's default if none are given."""
    preset: str | None = None
    """Modules of the paper's Table 3, such as mistral-7b/zsre; `editenv models` lists them."""
    device: str = "cpu"
    """Torch device, or auto."""
    dtype: str = "float32"
    """Type of the weights: float32, bfloat16 or float16. Edits add up in float32 in any case."""
    bad_records: Literal["error", "skip"] = "error"
    """error stops at a record that cannot be used, before anything is edited; skip leaves such records out."""
    guard: Guard = field(default_factory=Guard)
    """What one batch may do to the model before it is taken back."""
    save_model: bool = True
    """Write OUTPUT/model; the deltas alone are enough to make it again with `editenv apply`."""
    seed: int = 0
    json: bool = False
    """Print the report as one JSON object instead of a summary."""


@dataclass
class Train:
    """Trains an RLEdit policy for a model; what `python -m agents.rledit` does, with all its options.

    editenv train --output policy --model ./my-model --dataset my-edits/ --train.trajectories 20
    """


@dataclass
class Evaluate:
    """Asks a model about a file of edits: how many it says, on prompts and rephrases, and what else it keeps.

    editenv evaluate --model out/model --edits corrections.jsonl --base ./my-model
    """

    edits: str
    """File of edits."""
    model: str = EMBEDDED
    """The model that is asked."""
    base: str | None = None
    """The model before the edits; specificity is agreement with it. Without one, MODEL is compared with itself."""
    device: str = "cpu"
    dtype: str = "float32"
    bad_records: Literal["error", "skip"] = "error"
    json: bool = False
    """Print one JSON object."""


@dataclass
class Apply:
    """Adds a file of deltas to the base model and saves the edited one, the same to the bit as the editing run's.

    editenv apply --model ./my-model --deltas out/deltas.safetensors --output edited
    """

    deltas: Path
    output: Path
    """Folder for the model; must not exist."""
    model: str = EMBEDDED
    """The base model that the deltas were made for."""
    dtype: str = "float32"
    """The precision they were made in."""
    allow_rounding: bool = False
    """Save a result that differs from the editing run's, as it may by rounding on another machine; without it that is an error."""


@dataclass
class Revert:
    """Takes a file of deltas away from an edited model; says whether the result is the base model to the bit.

    editenv revert --model edited --deltas out/deltas.safetensors --output back
    """

    deltas: Path
    output: Path
    """Folder for the model; must not exist."""
    model: str
    """The edited model."""
    dtype: str = "float32"
    """The precision it was edited in."""


@dataclass
class Inspect:
    """Reads a file of edits from end to end and reports what is in it: counts, duplicates, contradictions, lengths, what a
    model believes already, overlap with a training file, and the traps that published files are known for.

    editenv inspect corrections.csv

    editenv inspect counterfact-edit.json --train counterfact-train.json --json
    """

    file: tyro.conf.Positional[str]
    """A .json, .jsonl or .csv file of edits; its format is found by its fields, or named before a colon, as in
    zsre:edits.json."""
    train: Path | None = None
    """A training file to compare with."""
    model: str | None = None
    """Embedded model, Hugging Face folder or hub id: its tokens are counted, and it is asked what it believes. By default the
    embedded model: name your own."""
    sample: int = 200
    """How many edits the model is asked about; 0 for none."""
    json: bool = False
    """Print one JSON object."""


@dataclass
class Methods:
    """Lists the methods that `--method` and benchmarks take.

    With --json also what each needs besides the gradient: the model and the edits' texts, edits to learn from, text to take
    statistics of, the edits' subjects.
    """

    json: bool = False


@dataclass
class Models:
    """Lists the embedded model and the presets of the paper's Table 3: which modules of which model are edited."""

    json: bool = False


def edit(args: Edit) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, soft_wrap=True)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    if args.edits_per_step < 1:
        raise ValueError(f"--edits-per-step must be at least 1, not {args.edits_per_step}")
    if args.save_model:
        check_place(args.output / "model", args.model)
    if (args.output / "report.json").exists() and not (args.output / "journal.jsonl").exists():
        raise ValueError(f"{args.output} holds a report.json of something else; choose another folder")
    edits = _edits_for(args.edits, args.bad_records, args.model, args.device, args.dtype)
    if (stored := _stored_type(args.model)) not in (None, args.dtype):
        say(
            f"note: {args.model} is {stored}, and is edited and saved in {args.dtype}; --dtype {stored} keeps its precision"
        )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("preparing", total=len(edits))
        editor = LifelongEditor(
            model=args.model,
            method=args.method,
            policy=args.policy,
            output=args.output,
            modules=args.modules or (preset(args.preset).modules if args.preset else None),
            settings=None if args.settings is None else _read_settings(args.settings),
            training=args.training,
            text=args.text,
            edits=f"batches of {args.edits_per_step}",
            to_come=edits,
            guard=args.guard,
            device=args.device,
            dtype=args.dtype,
            seed=args.seed,
            end_of_answer=args.end_of_answer,
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
            refused = corrections.not_applied(editor, edits)
            if refused:
                corrections.write_lines(
                    args.output / "not-applied.jsonl", [corrections.as_record(edit) for edit, _ in refused]
                )
                saved.append("not-applied.jsonl")
            bars.update(bar, description="evaluating")
            report: dict[str, Any] = {"model": args.model, "method": args.method, "edits_file": args.edits}
            report |= {"asked": len(edits), "left_out": dict(edits.report.bad)}
            try:
                report |= editor.evaluate()
                outcomes = corrections.outcomes(editor, edits)
                corrections.write_lines(args.output / "results.jsonl", outcomes)
                saved.append("results.jsonl")
                report["goes_on"] = sum(row["applied"] and row["begins_right"] and not row["right"] for row in outcomes)
            except (RuntimeError, TypeError, ValueError, LookupError) as error:
                # Whatever a model or tokenizer of somebody's own may fail with: the edited one is saved, and this is told.
                report["not_evaluated"] = f"{type(error).__name__}: {error}"
                say(f"the edited model is saved, but could not be asked about its edits: {report['not_evaluated']}")
            text = json.dumps(report, indent=2)
            write_whole(args.output / "report.json", text + "\n")
            saved.append("report.json")
    if args.json:
        print(json.dumps(report))
        return
    if "edits" in report:
        of = f"{report['edits']} edits" if not refused else f"{report['edits']} of {len(edits)} edits"
        _show_scores(f"{of} of {args.edits}", report)
    if report.get("goes_on") and not args.end_of_answer:
        told = "of the answers are right and go on: the end of an answer was not taught (--end-of-answer, in another folder)"
        print(f"{report['goes_on']} {told}")
    if refused:
        print(f"{len(refused)} edits were taken back with their batches: not-applied.jsonl has them, report.json why")
    print(f"Saved in {args.output}: {', '.join(saved)}")


def _edits_for(file: str, bad_records: Literal["error", "skip"], model: str, device: str, dtype: str) -> EditFile:
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


def evaluate(args: Evaluate) -> None:
    from editenv import metrics
    from editenv.dynamics import EditableLM
    from editenv.models import load_model
    from editenv.models.modules import mlp_outputs
    from editenv.questions import ask

    found = _edits_for(args.edits, args.bad_records, args.model, args.device, args.dtype)
    edits = found[:]
    model, tokenizer = load_model(args.model, args.device, args.dtype)
    modules = mlp_outputs(model)[-1:]
    lm = EditableLM(model, tokenizer, modules)
    questions = ask(lm, edits)
    before = None
    if args.base is not None:
        other, other_tokenizer = load_model(args.base, args.device, args.dtype)
        base = EditableLM(other, other_tokenizer, mlp_outputs(other)[-1:])
        asked = ask(base, edits)
        questions.before, before = asked.before, metrics.generate_before(base, asked)
    report: dict[str, Any] = {
        "edits": len(edits),
        "left_out": dict(found.report.bad),
        "teacher_forced": metrics.teacher_forced(lm, questions).percentages(),
        "generation": metrics.generation(lm, questions, before).percentages(),
    }
    if any(edit.old_answer for edit in edits):
        report["probability"] = metrics.probability(lm, edits).percentages()
    if args.json:
        print(json.dumps(report))
    else:
        _show_scores(f"{args.model}: {len(edits)} edits of {args.edits}", report)


def apply(args: Apply) -> None:
    from editenv.delta_files import apply_file, modules_of, read_delta_file

    lm = _load_editable(args.model, args.dtype, modules_of(read_delta_file(args.deltas)[0], args.deltas), args.output)
    exact = apply_file(lm, args.deltas, args.allow_rounding)
    save_model(lm, args.output, {"base": args.model, "deltas": str(args.deltas)}, args.model)
    how = "the same to the bit as the editing run's" if exact else "not to the bit the editing run's"
    print(f"{args.output}: the edited model, {how}")


def revert(args: Revert) -> None:
    from editenv.delta_files import modules_of, read_delta_file, revert_file

    lm = _load_editable(args.model, args.dtype, modules_of(read_delta_file(args.deltas)[0], args.deltas), args.output)
    exact = revert_file(lm, args.deltas)
    save_model(lm, args.output, {"edited": args.model, "without": str(args.deltas)}, args.model)
    print(f"{args.output}: the base model, {'bit for bit' if exact else 'within rounding'}")


def inspect(args: Inspect) -> None:
    from rich.console import Console
    from rich.table import Table

    from editenv.inspection import inspect as read

    model = args.model or EMBEDDED
    found = read(args.file, args.train, model, args.sample)
    if args.model is None:
        found.notes.append(f"lengths and beliefs are those of the embedded model, {model}: name yours with --model")
    if args.json:
        print(json.dumps(asdict(found)))
        return
    console = Console(soft_wrap=True)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), title_justify="left")
    table.title = f"{found.file} ({found.format})"
    table.add_row("records", f"{found.records:,}")
    table.add_row("usable edits", f"{found.edits:,}")
    for kind, count in found.left_out.items():
        table.add_row(f"  left out: {kind}", f"{count:,}")
    table.add_row("subjects", f"{found.subjects:,}")
    table.add_row("rephrases, locality prompts", f"{found.rephrases:,}, {found.locality_prompts:,}")
    if found.target_tokens:
        low, middle, high, top = found.target_tokens
        table.add_row("tokens of a target", f"{low:.0f} to {top:.0f}, median {middle:.0f}, 90% up to {high:.0f}")
        table.add_row("targets of one token", f"{found.one_token_targets}%")
    if found.already_believed is not None:
        table.add_row(f"{model} says the target already", f"{found.already_believed}% of {found.asked} asked")
    if found.old_answer_known is not None:
        table.add_row(f"{model} says the old answer", f"{found.old_answer_known}%")
    if found.overlap is not None:
        table.add_row(
            "prompts in the training file too",
            "{prompts:,}, {contradicting:,} with another target".format(**found.overlap),
        )
        table.add_row("edits with a subject of it", f"{found.overlap['subjects']:,}")
    console.print(table)
    for note in found.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    for kind, example in found.examples.items():
        console.print(f"first {kind}: {example}", markup=False, highlight=False)


def methods(args: Methods) -> None:
    if args.json:
        print(json.dumps({name: {"about": what, "needs": make().needs} for name, (what, make) in AGENTS.items()}))
        return
    width = max(map(len, AGENTS))
    for name, (what, _) in AGENTS.items():
        print(f"{name:<{width}}  {what}")


def models(args: Models) -> None:
    if args.json:
        print(json.dumps({**dict.fromkeys(PACKAGED), **{name: asdict(row) for name, row in PRESETS.items()}}))
        return
    print("In the package:")
    for name, what in PACKAGED.items():
        print(f"  {name:<24} knows {what}")
    print("\nPresets (RLEdit, Table 3):")
    for name, row in PRESETS.items():
        print(f"  {name:<24} rank {row.rank}, locality {row.locality}: {row.modules[0]} ... {row.modules[-1]}")
    print("\nAny other causal language model: a Hugging Face folder or hub id; --modules says what is edited.")


def _load_editable(model: str, dtype: str, modules: Sequence[str], output: Path) -> Any:
    from editenv.dynamics import EditableLM
    from editenv.models import load_model

    if output.exists():
        raise ValueError(f"{output} exists already; choose a folder that does not")
    return EditableLM(*load_model(model, dtype=dtype), modules)


def _memory() -> float:
    """Peak of this process, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def _show_scores(title: str, report: dict[str, Any]) -> None:
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


COMMANDS: dict[Any, Callable[[Any], None]] = {
    Edit: edit,
    Evaluate: evaluate,
    Apply: apply,
    Revert: revert,
    Inspect: inspect,
    Methods: methods,
    Models: models,
}


def main() -> None:
    """Entry point; errors about the input go to stderr, in one line, with exit status 1."""
    if sys.argv[1:2] == ["train"]:
        from agents import rledit

        told = tyro.cli(rledit.Args, prog="editenv train", args=sys.argv[2:], description=rledit.__doc__)
        _run(rledit.main, told, told.output / "checkpoint.pt")
        return
    named = {kind.__name__.lower(): kind for kind in (Edit, Train, Evaluate, Apply, Revert, Inspect, Methods, Models)}
    union: Any = None
    for name, kind in named.items():
        one = Annotated[kind, tyro.conf.subcommand(name)]  # type: ignore[valid-type]
        union = one if union is None else union | one
    args: Any = tyro.cli(union, prog="editenv", description="Lifelong editing of language models.")
    kept = args.output / "journal.jsonl" if isinstance(args, Edit) else None
    _run(COMMANDS[type(args)], args, kept)


def _run(command: Callable[[Any], None], args: Any, kept: Path | None) -> None:
    """Runs it; ``kept`` is the file, if there is one, with which the same command goes on."""
    try:
        command(args)
    except (ValueError, FileNotFoundError, FloatingPointError, BadEditError, ImportError) as error:
        print(f"editenv: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:
        hint = "; what was finished before is kept, and the same command goes on" if kept and kept.exists() else ""
        print(f"editenv: {error}{hint}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        hint = "; the same command goes on from here" if kept and kept.exists() else ""
        print(f"editenv: interrupted{hint}", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
