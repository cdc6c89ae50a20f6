"""Options of ``editenv edit`` and ``editenv advise``; imported without torch, so that the help and usage errors come at once."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import tyro

from agents.editing.guard import Guard
from editenv.arguments import PositiveInt, check_fields
from editenv.models import EMBEDDED, PACKAGED, PUBLIC
from editenv.sealed_json import read_sealed, write_sealed


@dataclass
class EditArgs:
    """Corrects a model: applies a file of edits in order, batch by batch, and saves what came of it.

    OUTPUT gets the edited model (OUTPUT/model, for plain transformers), the deltas (OUTPUT/deltas.safetensors), a
    report (OUTPUT/report.json), what became of each edit (OUTPUT/results.jsonl) and a journal. Killed at any
    moment, the same command goes on to the same weights, bit for bit; edits added to the file are made by the same
    command, too. The model given is not changed.

    editenv edit --edits corrections.jsonl --output out

    editenv edit --model ./my-model --edits corrections.csv --output out

    Attributes:
        edits: File of edits, as docs/reference/data_formats.md has it.
        output: Folder for the results; an interrupted run's is gone on with.
        model: A name of `editenv models`, a Hugging Face folder, a GGUF file or a hub id.
        method: A row of `editenv methods`, or file.py:Class. rledit needs a trained policy; the embedded model has
            one (with the preconditioner: the settings of rledit-p). auto is rledit with --policy or on the embedded
            model; else memit-rehearsed (with --training memit-reworded) if every correction has a subject in its
            prompt, and fine-tune-replay if not. Of 240 corrections or more (160 without subjects) eight are tried
            first, with these two and ultraedit, and one that is clearly better is taken. Which one, and why, is said.
        policy: Folder of a policy from `editenv train`.
        settings: JSON file with the method's constructor arguments, such as {"steps": 10}, or one that `python -m
            benchmarks.tune` wrote. By default those chosen for the embedded model, and the method's own for any other;
            what makes a row that row stays.
        training: Data set that the method may learn from, for methods that need one.
        text: Text that the method may take statistics of (ROME, MEMIT and their kin): a .txt or .jsonl file, a hub
            data set, or a folder made by python -m agents.covariance. Without it, and without --training, the model
            writes some by itself first (self-written).
        edits_per_step: Edits in a batch; the last may be smaller.
        train_eos: Teach the model to stop after each target, and to go on stopping after other answers: for a model
            that answers questions and stops. Without it the target's own tokens are all that is taught, as in the
            paper.
        target_end: Taught after a target of one line that ends with a letter or a digit, so that the model
            says "Amber" and not "Amberley": auto is a full stop if the unedited model does not stop by itself after
            its answers, and nothing if it does; none, or a text of your own. After several lines it is a blank one,
            and in a chat the end of the turn. With --train-eos the end is that.
        observed_tokens: Which tokens of a batch the method sees the gradient of: those that predict an answer token,
            all that have one, or of each edit its subject's last. They differ where several layers are edited; a
            policy needs those that it was trained with.
        modules: Edited modules, as endings of dotted names; if none are given, early layers for methods that look
            facts up at their subject, the upper half for lte and lte-gated, else the model's default.
        preset: Modules of the paper's Table 3, such as mistral-7b/zsre, or by rule, not run here, such as
            qwen3-0.6b/gradients; `editenv models` lists them.
        device: Torch device, or auto.
        dtype: Type of the weights: float32, bfloat16 or float16. Edits add up in float32 in any case.
        chat: Ask every prompt in a chat, too, through the model's own chat template: each correction is made and
            judged as plain text and in chat form. Records with messages are in any case.
        columns: Which column or field of the file is which, where they have other names:
            prompt=Question,target=Answer.
        bad_records: error stops at a record that cannot be used, before anything is edited; skip leaves such records
            out.
        guard: What one batch may do to the model before it is taken back.
        save_model: Write OUTPUT/model; the deltas alone are enough to make it again with `editenv apply`.
        gguf: llama.cpp's convert_hf_to_gguf.py, with which OUTPUT/model.gguf is written too, in the precision
            of --dtype.
        push_to_hub: Put the saved model on the Hugging Face hub under this name, such as me/my-model; a new repository
            is private. You are logged in with `hf auth login`.
        changed: Where corrections that were made are not in the file any more, or otherwise: error says which and
            stops; undo undoes them, as `editenv undo` does, and makes what has taken their place.
        undone: Corrections of the file that `editenv undo` has undone are left out, or made again.
        rehearse: Make earlier corrections again, once, that held before this run went on and that the new ones have
            undone; what is made so stays if more corrections hold with it.
        yes: Do not ask before corrections are made again.
        json: Print the report as one JSON object instead of a summary.
    """

    edits: str
    output: Path
    model: str = EMBEDDED
    method: str = "auto"
    policy: Path | None = None
    settings: Path | None = None
    training: str | None = None
    text: str | None = None
    edits_per_step: PositiveInt = 20
    train_eos: bool = False
    target_end: str = "auto"
    observed_tokens: Literal["answers", "all", "subject"] = "answers"
    modules: tuple[str, ...] = ()
    preset: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    chat: bool = False
    columns: str | None = None
    bad_records: Literal["error", "skip"] = "error"
    guard: Guard = field(default_factory=Guard)
    save_model: bool = True
    gguf: Path | None = None
    push_to_hub: str | None = None
    changed: Literal["error", "undo"] = "error"
    undone: Literal["leave-out", "make"] = "leave-out"
    rehearse: bool = True
    yes: bool = False
    seed: int = 0
    json: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def taught_end(self) -> str | None:
        """``target_end`` as the editor takes it."""
        if self.train_eos or self.target_end == "none":
            return ""
        return None if self.target_end == "auto" else self.target_end


@dataclass
class AdviseArgs:
    """Tries two or three methods on a few of the corrections and prints what each would cost. Nothing is saved.

    editenv advise --model ./my-model --edits corrections.jsonl

    Attributes:
        edits: File of edits.
        model: A name of `editenv models`, a Hugging Face folder, a GGUF file or a hub id.
        methods: Rows of `editenv methods` to try, with their own settings; by default what `editenv edit` would take,
            and what it takes for corrections without a subject.
        corrections: How many are tried, spread evenly over the file.
        text: Text that methods may take statistics of, as for `editenv edit`.
        training: Data set that methods may learn from, as for `editenv edit`.
        json: Print one JSON object a method.
    """

    edits: str
    model: str = EMBEDDED
    methods: tuple[str, ...] = ()
    corrections: PositiveInt = 8
    text: str | None = None
    training: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    json: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass
class UndoArgs:
    """Takes corrections back out of a run of `editenv edit`, finished or stopped, as if they had never been in the file.

    What was made with them or after them is made again, unless the method makes each batch by itself; how many these
    are, and about how long it takes, is said first. Killed at any moment, the same command goes on.

    editenv undo out corrections.jsonl/3 case-7

    editenv undo out 3 --yes

    Attributes:
        output: Folder of the run.
        ids: Ids of corrections as results.jsonl or `editenv log --json` has them, or numbers of their records.
        model: The base model, if it does not lie where the run found it.
        yes: Do not ask before corrections are made again.
        json: Print the report as one JSON object instead of a summary.
    """

    output: tyro.conf.Positional[Path]
    ids: tyro.conf.Positional[tuple[str, ...]]
    model: str | None = None
    yes: bool = False
    json: bool = False


OPTIONS = "command.json"
"""File in a run's folder with the options that it was last given."""


def write_options(args: EditArgs, source: str) -> None:
    """Keeps the options of a run, for commands that go on with it without being told them again, from any folder.

    Args:
        args: Of the command.
        source: Name of the file of edits, as ids begin with it.
    """
    options = asdict(args) | _from_any_folder(args) | {"source": source}
    write_sealed(args.output / OPTIONS, json.loads(json.dumps(options, default=str)))


def _from_any_folder(args: EditArgs) -> dict[str, Any]:
    """The options that name files and folders, by absolute paths; what names something else is as it was."""
    from agents.registry import with_absolute_paths
    from agents.self_written import SELF_WRITTEN
    from editenv.data.files import format_and_source

    def data_set(name: str) -> str:
        format_name, source = format_and_source(name)
        return f"{format_name}:{_absolute(source)}" if format_name else _absolute(source)

    paths = {name: getattr(args, name) for name in ("output", "policy", "settings", "gguf")}
    return {name: None if path is None else str(path.expanduser().absolute()) for name, path in paths.items()} | {
        "edits": data_set(args.edits),
        "model": args.model if args.model in (*PACKAGED, *PUBLIC) else _absolute(args.model),
        "method": with_absolute_paths(args.method),
        "training": args.training if args.training in (None, EMBEDDED) else data_set(args.training),
        "text": args.text if args.text in (None, SELF_WRITTEN) else _absolute(args.text),
    }


def _absolute(name: str) -> str:
    """The absolute path of a file or a folder that is there; what is none, such as the name of a data set, as it is."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def read_options(output: Path) -> tuple[EditArgs, str]:
    """The options of a run, and the name of its file of edits.

    Raises:
        ValueError: If the folder does not have them, or they were changed.
    """
    path = output / OPTIONS
    if not path.exists():
        raise ValueError(
            f"{path} is not there: no finished or stopped `editenv edit` of this version. A run of an earlier one is changed "
            "by its own command, with a file without the corrections and --changed undo"
        )
    options = read_sealed(path)
    source = str(options.pop("source"))
    known = {one.name for one in fields(EditArgs)}
    if unknown := options.keys() - known:
        raise ValueError(f"{path} has options that this version does not know: {', '.join(sorted(unknown))}")
    options["push_to_hub"] = None  # which is asked for each time
    for name in ("output", "policy", "settings", "gguf"):
        options[name] = None if options.get(name) is None else Path(options[name])
    options |= {"modules": tuple(options["modules"]), "guard": Guard(**options["guard"]), "output": output}
    return EditArgs(**options), source
