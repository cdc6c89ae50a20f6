"""Which facts of a data set a model knows before any edit: the ids of those whose answer it says by itself.

    python -m benchmarks.known --dataset counterfact:DATA/counterfact --model smollm2-135m --out known.txt
    python -m benchmarks.run --suite real-counterfact-25x20-known --data DATA --out runs/known

A fact is an edit with an old answer, and is known if the model's free greedy continuation of the edit's own prompt
begins with that answer (editenv.evaluation.prefix). The file is what the dataset option `only` takes: one id a line,
below comments that say which model, which data and how many.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agents.base import ProgressCallback
from benchmarks.causal_trace import ASKED_TOGETHER, is_known
from benchmarks.running.progress import console_progress
from benchmarks.suites import model_fingerprint
from editenv.atomic_files import atomic_write_text
from editenv.data import Edit, load_edits
from editenv.language_model.editable_lm import EditableLM
from editenv.models import load_model
from editenv.models.modules import default_modules


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        dataset: What is asked: PATH or FORMAT:PATH, a file or a folder with a file for each split.
        out: The file of ids.
        split: Which of its edits; all of a single file.
        model: Name, folder or hub id of the language model.
        device: A torch device.
    """

    dataset: str
    out: Path
    split: Literal["train", "validation", "test", "all"] = "test"
    model: str = "smollm2-135m"
    device: str = "cpu"


def known_ids(lm: EditableLM, edits: Sequence[Edit], progress: ProgressCallback) -> Iterator[str]:
    """The ids of the edits whose old answer the model says, in order."""
    for first in range(0, len(edits), ASKED_TOGETHER):
        progress("asking", first, len(edits))
        facts = [edit for edit in edits[first : first + ASKED_TOGETHER] if edit.old_answer]
        yield from (fact.id for fact, known in zip(facts, is_known(lm, facts), strict=True) if known)


def main(args: Args) -> None:
    """Asks, and writes the file.

    Raises:
        SystemExit: If there is no such model or data set, or the data has no old answers.
    """
    try:
        edits = load_edits(args.dataset, args.split, options={"bad_records": "skip"})
        base, tokenizer = load_model(args.model, args.device, "float32")
        fingerprint = model_fingerprint(args.model)
    except (ValueError, OSError) as error:
        raise SystemExit(f"known: {error}") from None
    lm = EditableLM(base, tokenizer, default_modules(base, args.model))
    with console_progress("known") as progress:
        ids = list(known_ids(lm, edits, progress))
    if not ids:
        raise SystemExit(
            f"known: of {len(edits)} edits of {args.dataset} there is none whose old answer {args.model} says"
        )
    about = (
        f"# {len(ids)} of {len(edits)} edits of {Path(args.dataset).name}, split {args.split}, whose old answer "
        f"{Path(args.model).name} says before any edit.\n# Model: {fingerprint or 'of the hub'}\n"
    )
    atomic_write_text(args.out, about + "".join(f"{one}\n" for one in ids))
    print(f"{len(ids)} of {len(edits)} are known. Saved {args.out}.")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
