"""The key covariance of ordinary text, ``C = E[u u^T]`` of each edited module's inputs at theta_0.

    python -m agents.covariance --text wiki.txt --model ./my-model --output stats
    editenv edit --model ./my-model --edits corrections.jsonl --method memit --text stats --output out

ROME (Meng et al. 2022, section 3.1), MEMIT (Meng et al. 2023, eq. 15) and AlphaEdit (Fang et al. 2025, section 3.1)
take it over 100,000 samples of Wikipedia. The text is read as a stream, sums are saved now and then, and the same
command goes on where it was stopped.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file

from agents.base import ProgressCallback
from agents.progress import silent
from agents.self_written import MOST, SELF_WRITTEN, TOGETHER, written_texts
from editenv.atomic_files import atomic_write
from editenv.data import Edit, load_edits
from editenv.env import LifelongEditEnv
from editenv.identity import differences, fingerprint, frozen_fingerprint, identity
from editenv.language_model.editable_lm import EditableLM
from editenv.language_model.hooks import StopForward
from editenv.models import EMBEDDED, load_model
from editenv.models.modules import default_modules
from editenv.output_folders import check_output
from editenv.sealed_json import read_sealed, write_sealed

RECORD = "covariance.json"
PORTION = 512
"""Texts between two saves, and between two reports of progress."""


class KeyStatistics:
    """Sums of ``u u^T`` over the tokens seen so far; with BOS, or without.

    Attributes:
        sums: For each edited module ``(d_in, d_in)``, float32.
        tokens: How many tokens they are over.
        texts: How many texts.
    """

    def __init__(self, lm: EditableLM, bos: bool = False) -> None:
        self.bos = bos
        self.sums = {name: torch.zeros(lm.shape(name)[0], lm.shape(name)[0], device=lm.device) for name in lm.modules}
        self.tokens = 0
        self.texts = 0

    @torch.no_grad()
    def add(self, lm: EditableLM, texts: Sequence[str], batch_size: int = 128) -> None:
        """Takes in texts, each cut to the model's context; the keys are those at theta_0."""
        context = getattr(lm.model.config.get_text_config(), "max_position_embeddings", None)
        rows = [ids[:context] for ids in lm.tokenizer(list(texts))["input_ids"]]
        with lm.at_initial_weights():
            for keys in keys_of_tokens(lm, rows, batch_size, self.bos):
                for name, matrix in keys.items():
                    self.sums[name].addmm_(matrix.T, matrix)
                self.tokens += len(next(iter(keys.values())))
        self.texts += len(texts)

    def covariance(self) -> dict[str, torch.Tensor]:
        """The mean of ``u u^T`` over all tokens, ``(d_in, d_in)`` for each module."""
        return {name: matrix / self.tokens for name, matrix in self.sums.items()}


@torch.no_grad()
def keys_of_tokens(
    lm: EditableLM, rows: Sequence[list[int]], batch_size: int = 128, bos: bool = True
) -> Iterator[dict[str, torch.Tensor]]:
    """What each edited module is given at every token, at the current weights; a dictionary for each batch of rows.

    Args:
        lm: The model.
        rows: Token ids, a text each. Texts of like length come together, so that there is little padding.
        batch_size: Texts that are run together.
        bos: Whether tokens that begin a text, BOS, are among them.

    Yields:
        ``(tokens, d_in)`` for each module, float32 on the model's device.
    """
    ordered = sorted(rows, key=len)
    with _module_inputs(lm) as inputs:
        for start in range(0, len(ordered), batch_size):
            ids, real = _padded(ordered[start : start + batch_size], lm.device)
            if not bos and lm.tokenizer.bos_token_id is not None:
                real &= ids != lm.tokenizer.bos_token_id
            # Without an attention mask: the padding is to the right, and a causal model does not see it.
            inputs.clear()
            with suppress(StopForward):
                lm.model.get_decoder()(input_ids=ids, use_cache=False)
            # Some models give their MLPs all tokens of a batch in one dimension.
            yield {n: x.reshape(*real.shape, -1).to(lm.device)[real].float() for n, x in inputs.items()}


@contextmanager
def _module_inputs(lm: EditableLM) -> Iterator[dict[str, torch.Tensor]]:
    """Within the context: what each edited module was given in the last forward pass, ``(texts, tokens, d_in)``.

    The pass ends with :class:`StopForward` when all of them are known.
    """
    inputs: dict[str, torch.Tensor] = {}

    def hook_of(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            inputs[name] = args[0]
            if len(inputs) == len(lm.modules):
                raise StopForward

        return hook

    handles = [module.register_forward_pre_hook(hook_of(name)) for name, module in lm.modules.items()]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _padded(rows: Sequence[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids ``(rows, longest)``, and which of them are no padding."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    ends = torch.tensor([[len(row)] for row in rows], device=device)
    return ids, torch.arange(width, device=device) < ends


def key_covariance(
    lm: EditableLM, texts: Sequence[str], batch_size: int = 128, bos: bool = False
) -> dict[str, torch.Tensor]:
    """Second moment of each edited module's inputs at theta_0 over every token, with BOS or without.

    Returns:
        ``(d_in, d_in)`` for each module.
    """
    statistics = KeyStatistics(lm, bos)
    statistics.add(lm, texts, batch_size)
    return statistics.covariance()


def effective_dimension(covariance: torch.Tensor) -> float:
    """Participation ratio of the spectrum, ``tr(C)^2 / tr(C^2)``: how many directions the keys really use."""
    return float(covariance.trace() ** 2 / covariance.square().sum())


# -- text ---------------------------------------------------------------------------------------------------------


def training_edits(env: LifelongEditEnv) -> Sequence[Edit]:
    """The training split of an environment's data set, as it is published."""
    arguments = env.model_arguments
    return load_edits(arguments["dataset"], "train", options=arguments.get("dataset_options"))


def sample_text(edits: Sequence[Edit], count: int = 3000) -> list[str]:
    """Sentences that the model is taken to believe, made from edits; the same ones at every call."""
    texts: list[str] = []
    for edit in edits:
        texts += [f"{text} {edit.old_answer or ''}".rstrip() for text in (edit.prompt, *edit.rephrases)]
        texts += [f"{item.prompt} {item.answer}" for item in edit.locality]
    return random.Random(0).sample(texts, min(count, len(texts)))


def read_texts(source: str) -> Iterator[str]:
    """Texts of a file (``.txt``: one a line; ``.jsonl``: the field ``text``) or of a hub data set, one at a time.

    Args:
        source: A path; or ``wise:`` and the path of a file of WISE, whose locality prompts are beginnings of web
            texts; or a hub id, with a configuration behind a colon if the data set has several, as in
            ``wikimedia/wikipedia:20231101.en``; its training split's column ``text`` is read.

    Raises:
        ValueError: If a line is not such a record, or if the data set has no such column.
        FileNotFoundError: If ``source`` looks like a file that is not there.
    """
    if source.startswith("wise:"):
        for edit in load_edits(source, "all", options={"bad_records": "skip"}):
            yield from (item.prompt for item in edit.locality)
        return
    path = Path(source)
    if path.suffix in (".txt", ".jsonl"):
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield line.strip() if path.suffix == ".txt" else _text_of(line, path, number)
        return
    if path.exists():
        raise ValueError(
            f"{source}: text is read from .txt (a text a line) or .jsonl (a field 'text'), or from a hub data set"
        )
    from datasets import load_dataset

    name, _, configuration = source.partition(":")
    for record in load_dataset(name, configuration or None, split="train", streaming=True):
        if not isinstance(record.get("text"), str):
            raise ValueError(f"{source}: has no column 'text'; there are {', '.join(record)}")
        if record["text"].strip():
            yield record["text"].strip()


def texts_of(lm: EditableLM, source: str, samples: int) -> Iterator[str]:
    """The first so many texts of a source: what :func:`read_texts` takes, or ``"self-written"`` for text that the model
    writes by itself, of which there are at most :data:`agents.self_written.MOST`.

    Raises:
        ValueError, FileNotFoundError: As :func:`read_texts` does.
    """
    if source == SELF_WRITTEN:
        return written_texts(lm, min(samples, MOST))
    return islice(read_texts(source), samples)


def _text_of(line: str, path: Path, number: int) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}, line {number}: is not a JSON object with a field 'text' ({error})") from None
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{path}, line {number}, field 'text': must be text that is not blank")
    return text.strip()


# -- on disk ------------------------------------------------------------------------------------------------------


def collect(
    lm: EditableLM,
    source: str,
    folder: Path,
    samples: int,
    progress: Callable[[int], None] = lambda texts: None,
    portion: int = PORTION,
) -> KeyStatistics:
    """Statistics over the first so many texts of a source, BOS included, kept in a folder; goes on with what is there.

    Args:
        lm: The model; its state at theta_0 is what counts.
        source: As :func:`texts_of` takes it.
        folder: Holds covariance.json and the sums it names.
        samples: Texts.
        progress: Called with how many texts are done.
        portion: Texts between two saves.

    Raises:
        ValueError: If the folder's statistics are of another model, other modules, another source, or if what was
            read of it has changed; or if the source has no text.
    """
    statistics = KeyStatistics(lm, bos=True)
    record: dict[str, Any] = {}
    about: dict[str, Any] = {"modules": list(lm.modules), **fingerprints(lm), "source": source, "bos": True}
    digest = hashlib.sha256()  # of the texts read so far
    if (folder / RECORD).exists():
        record = _resume(statistics, folder, about)
    texts = texts_of(lm, source, max(samples, statistics.texts))
    if record:
        for text in islice(texts, statistics.texts):
            digest.update(_as_read(text))
        if record["read_sha256"] != digest.hexdigest():
            raise ValueError(
                f"{source}: its first {statistics.texts:,} texts are not those that {folder / RECORD} is of; choose another folder"
            )
    while batch := list(islice(texts, portion)):
        statistics.add(lm, batch)
        for text in batch:
            digest.update(_as_read(text))
        _save(statistics, folder, about | {"read_sha256": digest.hexdigest(), "finished": False})
        progress(statistics.texts)
    if not statistics.tokens:
        raise ValueError(f"{source}: has no text")
    if not record.get("finished") or record["texts"] != statistics.texts:  # else the files stay as they are
        _save(statistics, folder, about | {"read_sha256": digest.hexdigest(), "finished": True})
    return statistics


def write_statistics(lm: EditableLM, statistics: KeyStatistics, folder: Path, source: str) -> None:
    """Keeps statistics as :func:`collect` does, for :func:`load_covariance`.

    Args:
        lm: The model with the edited modules that the folder is for.
        statistics: Of the same model; may be of more modules, taken in one pass.
        folder: Where they go.
        source: Of the texts.
    """
    own = KeyStatistics(lm, statistics.bos)
    own.sums = {name: statistics.sums[name] for name in lm.modules}
    own.tokens, own.texts = statistics.tokens, statistics.texts
    about = {"modules": list(lm.modules), **fingerprints(lm), "source": source, "bos": own.bos}
    _save(own, folder, about | {"finished": True})


def _resume(statistics: KeyStatistics, folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Loads what a folder has, if it is about the same model and source; its record."""
    record = read_sealed(folder / RECORD)
    check_model(folder, record, about)
    for name, value in about.items():
        if name != "identity" and record.get(name) != value:
            raise ValueError(f"{folder / RECORD}: {name} is {record.get(name)!r}, not {value!r}; choose another folder")
    _load_sums(statistics, folder, record)
    return record


def load_covariance(lm: EditableLM, folder: Path) -> dict[str, torch.Tensor]:
    """What :func:`collect` has kept, checked against the model.

    Raises:
        ValueError: If it is of another model, or lacks a module, or if its making was interrupted.
        FileNotFoundError: If there is nothing in the folder.
    """
    if not (folder / RECORD).exists():
        raise FileNotFoundError(f"{folder} holds no {RECORD}; make it with python -m agents.covariance")
    record = read_sealed(folder / RECORD)
    here = fingerprints(lm)
    if any(record.get(name) != here[name] for name in ("model", "frozen")):
        raise ValueError(f"{folder / RECORD} was made for other weights or other edited modules than these")
    check_model(folder, record, here)
    if not record.get("finished", True):  # older ones do not say
        raise ValueError(
            f"{folder / RECORD}: its making was interrupted after {record['texts']:,} texts of {record['source']}; give the same "
            "command again (python -m agents.covariance) and it goes on"
        )
    statistics = KeyStatistics(lm)
    _load_sums(statistics, folder, record)
    return statistics.covariance()


def covariance_of(
    env: LifelongEditEnv,
    text: str | None,
    samples: int,
    progress: ProgressCallback = silent,
) -> dict[str, torch.Tensor]:
    """C for an agent.

    Args:
        env: Whose model, and whose training split if no text is named.
        text: A folder of :func:`collect`, or what :func:`texts_of` takes: over every token, as in ROME's and
            MEMIT's public code. Or None for sentences of the training split: over every token but BOS.
        samples: Texts, at most.
        progress: Called with how many are done.

    Returns:
        ``(d_in, d_in)`` for each module.

    Raises:
        ValueError: If there is no text, or it cannot be read, or the folder's statistics are of another model.
        FileNotFoundError: If there is no such file or the folder holds no statistics.
    """
    activity = "covariance of the keys"
    progress(activity, 0, samples)
    lm = env.language_model
    if text is None:
        return key_covariance(lm, sample_text(training_edits(env), samples))
    if Path(text).is_dir():
        return load_covariance(lm, Path(text))
    statistics = KeyStatistics(lm, bos=True)
    texts = texts_of(lm, text, samples)
    while batch := list(islice(texts, TOGETHER if text == SELF_WRITTEN else PORTION)):
        statistics.add(lm, batch)
        progress(activity, statistics.texts, samples)
    if not statistics.tokens:
        raise ValueError(f"{text}: has no text")
    return statistics.covariance()


def fingerprints(lm: EditableLM) -> dict[str, Any]:
    """Of the model before any edit: of the edited modules, and of the rest, which makes their keys."""
    with lm.at_initial_weights():
        return {"model": fingerprint(lm), "frozen": frozen_fingerprint(lm), "identity": identity(lm)}


def check_model(folder: Path, record: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Whether what is not a weight is the same of the model that statistics were made for, as far as they say.

    Raises:
        ValueError: If not.
    """
    if other := differences(record.get("identity"), here["identity"]):
        raise ValueError(f"{folder / RECORD} was made for another model: {'; '.join(other)}")


def _as_read(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass") + b"\n"


def _load_sums(statistics: KeyStatistics, folder: Path, record: dict[str, Any]) -> None:
    path = folder / record["file"]
    if not path.is_file():
        raise ValueError(f"{path} is missing, of which {folder / RECORD} speaks; remove {folder} and start again")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != record["sha256"]:
        raise ValueError(f"{path} is not the file that {RECORD} describes; remove {folder} and start again")
    sums = load(content)
    for name, total in statistics.sums.items():
        total.copy_(sums[name])
    statistics.tokens, statistics.texts = record["tokens"], record["texts"]


def _save(statistics: KeyStatistics, folder: Path, about: dict[str, Any]) -> None:
    """New sums get a file of their own and the record is replaced last: a kill leaves the old pair or the new one."""
    sums = folder / f"covariance-{statistics.texts}.safetensors"
    with atomic_write(sums) as partial:
        save_file({name: total.cpu() for name, total in statistics.sums.items()}, partial)
    digest = hashlib.sha256(sums.read_bytes()).hexdigest()
    counts = {"texts": statistics.texts, "tokens": statistics.tokens}
    write_sealed(folder / RECORD, about | counts | {"file": sums.name, "sha256": digest})
    for old in set(folder.glob("covariance-*.safetensors")) - {sums}:
        old.unlink()


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        text: A .txt file (a text a line), a .jsonl file (field 'text'), or a hub data set with a column 'text', as in
            wikimedia/wikipedia:20231101.en (behind the colon the configuration, if there are several); or
            self-written, which the model writes by itself.
        output: Folder for the statistics; an interrupted run's is gone on with.
        model: A name of `editenv models`, a Hugging Face folder, a GGUF file or a hub id.
        modules: Edited modules, as endings of dotted names; the model's default if none are given.
        samples: Texts; ROME, MEMIT and AlphaEdit take 100,000.
        device: Torch device.
        dtype: Type of the weights; sums are float32.
    """

    text: str
    output: Path
    model: str = EMBEDDED
    modules: tuple[str, ...] = ()
    samples: int = 100_000
    device: str = "cpu"
    dtype: str = "float32"


def main(args: Args) -> None:
    from rich.progress import Progress

    try:
        check_output(args.output, args.model)
        base, tokenizer = load_model(args.model, args.device, args.dtype)
        lm = EditableLM(base, tokenizer, args.modules or default_modules(base, args.model))
        with Progress(transient=True) as bars:
            bar = bars.add_task("texts", total=args.samples)
            statistics = collect(lm, args.text, args.output, args.samples, lambda n: bars.update(bar, completed=n))
    except (ValueError, OSError) as error:
        raise SystemExit(f"covariance: {error}") from None
    for name, matrix in statistics.covariance().items():
        print(
            f"{name}: {statistics.tokens:,} tokens of {statistics.texts:,} texts, "
            f"effective dimension {effective_dimension(matrix):.1f}"
        )


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
