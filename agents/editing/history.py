"""What a run of edits has done, and what the model says before it and after it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from agents.editing.arguments import OPTIONS
from agents.editing.names import Names
from agents.editing.run import key_of, read_lines
from agents.editing.valid_json import valid_json
from editenv.data.text import one_line, printable
from editenv.journal import UNDONE, standing


def ask(
    output: Path,
    prompts: Sequence[str],
    model: str | None = None,
    tokens: int = 24,
    device: str = "cpu",
    dtype: str = "float32",
    as_json: bool = False,
    chat: bool = False,
) -> None:
    """Prints what the base model and the edited one write at each prompt.

    Args:
        output: Folder of a run.
        prompts: What is asked.
        model: The base model; that of the run's report by default.
        tokens: Of an answer, at most.
        device: A torch device.
        dtype: The precision that the run edited in.
        as_json: One JSON object a line.
        chat: Ask through the model's chat template.

    Raises:
        FileNotFoundError: If the folder holds no deltas.
        ValueError: If there is nothing to ask, or the model is not the one that the deltas were made for; if it has no
            chat template and is to be asked in a chat.
    """
    if not prompts:
        raise ValueError('ask: no prompt was given; editenv ask OUT "The capital of Norway is"')
    deltas = output / "deltas.safetensors"
    if not deltas.exists():
        raise FileNotFoundError(
            f"{deltas} is not there: {output} is no folder of a finished `editenv edit`, or none of its batches was kept"
        )
    from editenv.data.chat import ChatTemplate
    from editenv.data.edits import Message
    from editenv.delta_files import apply_file, modules_of
    from editenv.evaluation.greedy import generate
    from editenv.language_model.editable_lm import EditableLM
    from editenv.models import load_model

    base = model or base_model(output)
    lm = EditableLM(*load_model(base, device, dtype), modules_of(deltas))
    texts = list(prompts)
    if chat:
        template = ChatTemplate(lm.tokenizer, base)
        texts = [template.prompt([Message("user", prompt)]).text for prompt in prompts]
    before = generate(lm.model, lm.tokenizer, texts, tokens, unfinished=True)
    apply_file(lm, deltas, allow_rounding=True)
    now = generate(lm.model, lm.tokenizer, texts, tokens, unfinished=True)
    rows = [
        {"prompt": prompt, "before": old, "now": new} for prompt, old, new in zip(prompts, before, now, strict=True)
    ]
    if as_json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return
    table = Table("prompt", "before", "now", show_lines=True)
    for row in rows:
        table.add_row(*(printable(str(row[name])) for name in ("prompt", "before", "now")))
    Console().print(table, markup=False)


def base_model(output: Path) -> str:
    """The model that a run edited, as its options or its report name it."""
    path = output / (OPTIONS if (output / OPTIONS).exists() else "report.json")
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, LookupError, TypeError):
        raise ValueError(f"{path} does not say which model was edited: name it with --model") from None


def log(output: Path, as_json: bool = False) -> None:
    """Prints what each batch of a run's journal was.

    Args:
        output: Folder of a run, which may be going on.
        as_json: One JSON object a correction, with the id that ``editenv undo`` takes.

    Raises:
        FileNotFoundError: If it has no journal.
        ValueError: If it is not one.
    """
    lines = read_lines(output / "journal.jsonl")
    stands = {entry["batch"] for entry in standing(lines)}
    if as_json:
        names = Names.of(lines, output).names
        for line in lines:
            for content in line["content"]:
                what = {name: line.get(name) for name in ("batch", "time", "applied", "reason")}
                what["undone"] = line.get("batch") not in stands
                correction = {"id": names[key_of(content)], "prompt": content["prompt"], "target": content["target"]}
                print(valid_json(what | correction, ensure_ascii=False))
        return
    table = Table("batch", "when (UTC)", "edits", "what became of it", "the first of them")
    for line in lines:
        first = line["content"][0] if line["content"] else None
        table.add_row(
            str(line.get("batch", "")),
            str(line.get("time") or "not noted").removesuffix("+00:00").replace("T", " "),
            str(len(line["content"]) or line.get("retried") or 0),
            printable(_undoing(line) if UNDONE in line else _outcome(line, line["batch"] in stands)),
            printable(one_line(f"{first['prompt']} -> {first['target']}")) if first else "",
        )
    Console().print(table, markup=False)


def _undoing(line: dict[str, Any]) -> str:
    if not line[UNDONE]:
        return "undone, not made again"
    return f"undone, with batch {', '.join(map(str, line[UNDONE]))}; what else was in there is made again"


def _outcome(entry: dict[str, Any], stands: bool) -> str:
    if entry["applied"]:
        since = "" if stands else "; undone since"
        made = "made again, as they were lost" if entry.get("rehearsal") else "made"
        return (
            f"{made}{since}" if entry["efficacy"] is None else f"{made}, {entry['efficacy']:.0f}% right after it{since}"
        )
    again = "tried again in halves" if entry.get("retried") else "taken back"
    return f"{again}: {entry['reason']}"
