"""The model card of a saved model: what it was made from, how, what was measured, and how to undo it.

Nothing in it names a folder of the machine that it was made on: it is given away with the model.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agents.editing import summary, unrelated
from agents.registry import method_and_folder
from editenv.data.text import printable


def public_name(model: str) -> str:
    """A model's name without the folders of this machine: of a path its last part; a hub id as it is."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() or path.is_absolute() or model.startswith((".", "~")) else model


def public_method(method: str) -> str:
    """A method's name without folders of this machine: of ``folder/file.py:Class@folder/settings`` the last parts."""
    method, settings = method_and_folder(method)
    file, colon, name = method.rpartition(":")
    return (f"{Path(file).name}:{name}" if colon else method) + (f"@{Path(settings).name}" if settings else "")


def text(about: Mapping[str, Any], report: Mapping[str, Any] | None = None) -> str:
    """The card as Markdown, with the metadata that the hub reads.

    Args:
        about: What the saved folder's marker says.
        report: Of ``editenv edit``, if the model was asked about its edits.
    """
    loading: tuple[str, ...] = LOADING_BESIDE if _beside(about) else LOADING
    if "weights" in about:
        loading = LOADING_OF_BOTH
    sections = [_metadata(about), _origin(about), _measured(about, report), loading, _undoing(about)]
    return "\n".join(line for section in sections for line in section)


def _beside(about: Mapping[str, Any]) -> str | None:
    """Where the facts are, if not in the weights."""
    kinds = {"memories": "a memory beside the weights", "context": "a context that is put before questions"}
    return " and ".join(words for kind, words in kinds.items() if about.get(kind)) or None


def _metadata(about: Mapping[str, Any]) -> Iterator[str]:
    library = "lifelongedit" if _beside(about) else "transformers"
    yield from ("---", f"library_name: {library}", "pipeline_tag: text-generation")
    if "/" in about.get("base", ""):  # a model of the hub
        yield f"base_model: {about['base']}"
    yield from ("tags:", "- knowledge-editing", "- lifelongedit", "---", "")


def _origin(about: Mapping[str, Any]) -> Iterator[str]:
    if "edited" in about:
        yield f"# {about['edited']}, with its corrections taken away"
        yield from ("", f"The deltas of `{about['without']}` were subtracted from the weights.", "")
        return
    yield from (f"# {about.get('base', 'A model')}, corrected", "", "| | |", "| --- | --- |")
    rows = {
        "base model": about.get("base"),
        "method": about.get("method"),
        "corrections made": about.get("edits"),
        "batches": about.get("batches"),
        "edited modules": ", ".join(about.get("modules", ())),
        "deltas": about.get("deltas"),
    }
    yield from (f"| {name} | {value} |" for name, value in rows.items() if value not in (None, ""))
    into = f"put into {where}" if (where := _beside(about)) else "edited into the weights"
    if "weights" in about:
        into += ", with weights of its own"
    yield from (
        "",
        f"The facts were {into} with [LifelongEdit](https://arxiv.org/abs/2502.05759); "
        "the architecture and the tokenizer are the base model's.",
        "The base model's licence and limits hold for this one, too.",
        "",
    )


def _measured(about: Mapping[str, Any], report: Mapping[str, Any] | None) -> Iterator[str]:
    if "edited" in about:
        return
    yield from ("## What was measured", "")
    if report is None or "hold" not in report:
        yield from ("Nothing: the model was saved, and not asked about its corrections.", "")
        return
    yield from ("| | |", "| --- | --- |")
    yield from (f"| {name} | {value} |" for name, value in _figures(report))
    yield ""
    for alarm in summary.losses(report):
        yield f"* **{printable(alarm)}**"
    yield from (
        "",
        "A correction is said if the model's own greedy answer begins with its target.",
        f"An unrelated answer has changed if its first {unrelated.COMPARED} tokens are others and the old ones have become "
        f"less likely by a factor of {unrelated.UNLIKELY:.0f} or more.",
        "",
    )


def _figures(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if forms := report.get("forms"):
        yield "corrections said, as plain text", "{hold} of {asked}".format(**forms["plain"])
        yield "corrections said, in a chat", "{hold} of {asked}".format(**forms["chat"])
    else:
        yield "corrections said", f"{report['hold']} of {report['asked']}"
    yield "unrelated answers changed", "{changed} of {asked}".format(**report["unrelated"])
    if drift := report.get("drift"):
        yield (
            "perplexity of 16 plain sentences",
            f"{drift['perplexity_before']:.4g} before, {drift['perplexity']:.4g} after",
        )
    for name in ("generalization", "specificity"):
        score = report.get("generation_prefix", {}).get(name)
        if score is not None:
            yield f"{name} (answers that begin right), %", f"{score:.1f}"


LOADING_BESIDE = (
    "## How to load it",
    "",
    "With LifelongEdit, and the base model where it was; plain transformers cannot load it:",
    "",
    "```python",
    "import editenv",
    "",
    'model, tokenizer = editenv.load_model("THIS_FOLDER")',
    "```",
    "",
)

LOADING_OF_BOTH = tuple(
    line.replace("and the base model where it was", "which loads the weights beside it, too") for line in LOADING_BESIDE
)

LOADING = (
    "## How to load it",
    "",
    "As the base model, with plain transformers; nothing of LifelongEdit is needed:",
    "",
    "```python",
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    "",
    'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")',
    'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
    "```",
    "",
)


def _undoing(about: Mapping[str, Any]) -> Iterator[str]:
    if "edited" in about:
        return
    yield from ("## How to undo it", "", "The base model was not changed: load it instead.")
    yield from (
        "Or take the deltas away that lie beside this folder where it was made:",
        "",
        "```sh",
        "editenv revert --model THIS_FOLDER --deltas deltas.safetensors --output back",
        "```",
        "",
    )
