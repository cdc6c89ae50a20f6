"""Options of ``editenv edit``; imported without torch, so that the help and usage errors come at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from agents.editing.guard import Guard
from editenv.arguments import PositiveInt, check_fields
from editenv.models import EMBEDDED


@dataclass
class EditArgs:
    """Corrects a model: applies a file of edits in order, batch by batch, and saves what came of it.

    OUTPUT gets the edited model (OUTPUT/model, for plain transformers), the deltas (OUTPUT/deltas.safetensors), a
    report (OUTPUT/report.json), what became of each edit (OUTPUT/results.jsonl) and a journal. Killed at any
    moment, the same command goes on to the same weights, bit for bit; edits added at the file's end are made by the
    same command, too. The model given is not changed.

    editenv edit --edits corrections.jsonl --output out

    editenv edit --model ./my-model --edits corrections.csv --method fine-tune --output out
    """

    edits: str
    """File of edits, as docs/reference/data_formats.md has it."""
    output: Path
    """Folder for the results; an interrupted run's is gone on with."""
    model: str = EMBEDDED
    """A name of `editenv models`, a Hugging Face folder, a GGUF file or a hub id."""
    method: str = "rledit"
    """A row of `editenv methods`, or file.py:Class. rledit needs a trained policy; the embedded model has one (with the
    preconditioner: the settings of rledit-p)."""
    policy: Path | None = None
    """Folder of a policy from `editenv train`."""
    settings: Path | None = None
    """JSON file with the method's constructor arguments, such as {"steps": 10}, or one that `python -m
    benchmarks.tune` wrote. By default those chosen for the embedded model, and the method's own for any other; what
    makes a row that row stays.
    """
    training: str | None = None
    """Data set that the method may learn from, for methods that need one."""
    text: str | None = None
    """Text that the method may take statistics of (ROME, MEMIT and their kin): a .txt or .jsonl file, a hub data
    set, or a folder made by python -m agents.covariance.
    """
    edits_per_step: PositiveInt = 20
    """Edits in a batch; the last may be smaller."""
    train_eos: bool = False
    """Teach the model to stop after each target, and to go on stopping after other answers: for a model that
    answers questions and stops. Without it the target's own tokens are all that is taught, as in the paper.
    """
    observed_tokens: Literal["answers", "all", "subject"] = "answers"
    """Which tokens of a batch the method sees the gradient of: those that predict an answer token, all that have one,
    or of each edit its subject's last. They differ where several layers are edited; a policy needs those that it was
    trained with.
    """
    modules: tuple[str, ...] = ()
    """Edited modules, as endings of dotted names; the model's default if none are given."""
    preset: str | None = None
    """Modules of the paper's Table 3, such as mistral-7b/zsre, or by rule, not run here, such as qwen3-0.6b/gradients;
    `editenv models` lists them."""
    device: str = "cpu"
    """Torch device, or auto."""
    dtype: str = "float32"
    """Type of the weights: float32, bfloat16 or float16. Edits add up in float32 in any case."""
    chat: bool = False
    """Ask every prompt in a chat, too, through the model's own chat template: each correction is made and judged as plain
    text and in chat form. Records with messages are in any case.
    """
    columns: str | None = None
    """Which column or field of the file is which, where they have other names: prompt=Question,target=Answer."""
    bad_records: Literal["error", "skip"] = "error"
    """error stops at a record that cannot be used, before anything is edited; skip leaves such records out."""
    guard: Guard = field(default_factory=Guard)
    """What one batch may do to the model before it is taken back."""
    save_model: bool = True
    """Write OUTPUT/model; the deltas alone are enough to make it again with `editenv apply`."""
    gguf: Path | None = None
    """llama.cpp's convert_hf_to_gguf.py, with which OUTPUT/model.gguf is written too, in the precision of --dtype."""
    push_to_hub: str | None = None
    """Put the saved model on the Hugging Face hub under this name, such as me/my-model; a new repository is private. You
    are logged in with `hf auth login`.
    """
    seed: int = 0
    json: bool = False
    """Print the report as one JSON object instead of a summary."""

    def __post_init__(self) -> None:
        check_fields(self)
