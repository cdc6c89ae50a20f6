"""Where a model's facts pass through it: causal tracing (Meng et al. 2022, arXiv 2202.05262, section 2.1).

Three runs over a prompt that names a subject, of which the model knows the answer o:

* *clean*: the model as it is gives ``P[o]``;
* *corrupted*: normal noise on the embeddings of the subject's tokens, of three standard deviations of such embeddings,
  gives ``P*[o]``;
* *restored*: the same noise, but at one token a layer gives what it gave in the clean run, which gives
  ``P*, clean[o]``: its output (the hidden state), or what its MLP or its attention gives in a window of layers around
  it.

``P[o] - P*[o]`` is the total effect, ``P*, clean[o] - P*[o]`` the indirect effect of that state; their means over facts
are what is reported. o is the answer's first token. The noise of a fact depends on the seed and the fact alone.

A fact is an edit of a data set: its prompt, its subject and its old answer, which is true.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from agents.base import ProgressCallback
from agents.progress import silent
from editenv.atomic_files import atomic_write_text
from editenv.data import Edit
from editenv.data.text import end_of
from editenv.evaluation.prefix import PrefixMatcher
from editenv.language_model.editable_lm import EditableLM
from editenv.language_model.hooks import hooked
from editenv.language_model.prompts import asked
from editenv.models.modules import attention_and_mlp, layer_number, layer_stack, mlp_outputs

STATES = ("hidden state", "MLP", "attention")
"""What is restored of a layer."""

TOKENS = ("subject's last token", "last token")
"""Where it is restored."""

NOISE = 3.0
"""The noise's standard deviation, in those of the entries of subjects' embeddings."""

WINDOW_SHARE = 10 / 48
"""Layers whose MLPs or attentions are restored together, by the layers there are: the paper takes 10 of 48."""

ROWS_TOGETHER = 128
"""Runs of a fact in one forward pass."""

ASKED_TOGETHER = 64
"""Edits that are asked together whether the model knows them."""

SUBJECTS = 1000
"""Edits whose subjects' embeddings the noise is measured in."""


class Restored(NamedTuple):
    """What one run restores.

    Attributes:
        state: Of :data:`STATES`.
        layers: Whose.
        columns: At which tokens of the prompt, from 0.
    """

    state: str
    layers: range
    columns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FactTrace:
    """What tracing one fact gives, each a mean over the noise drawn.

    Attributes:
        fact: The edit's id.
        clean: ``P[o]``.
        corrupted: ``P*[o]``.
        restored: By state and token, for each layer in order, ``P*, clean[o]``.
    """

    fact: str
    clean: float
    corrupted: float
    restored: dict[str, dict[str, list[float]]]


class Tracer:
    """Traces facts through one model.

    Args:
        lm: The model, at the weights as they are.
        deviation: Of the noise: :data:`NOISE` times :func:`embedding_deviation`.
        draws: Noises for each fact; the public code draws 10.
        window: Layers whose MLPs (or attentions) are restored together; None takes :data:`WINDOW_SHARE` of them.
        seed: Of the noise.

    Raises:
        ValueError: If a layer's attention or MLP is not found.
    """

    def __init__(
        self, lm: EditableLM, deviation: float, draws: int = 10, window: int | None = None, seed: int = 0
    ) -> None:
        self.lm, self.deviation, self.draws, self.seed = lm, deviation, draws, seed
        self.parts = parts_of_layers(lm)
        self.layers = len(self.parts["hidden state"])
        self.window = max(1, round(WINDOW_SHARE * self.layers)) if window is None else window

    def trace(self, fact: Edit) -> FactTrace:
        """One fact, at every layer.

        Raises:
            ValueError: If it has no subject in its prompt, or no old answer.
        """
        ids, answer = self._tokens(fact)
        subject = subject_tokens(self.lm, fact)
        columns = dict(zip(TOKENS, (subject[-1], len(ids) - 1), strict=True))
        runs = [
            Restored(
                state, self._layers_around(layer) if state != "hidden state" else range(layer, layer + 1), (column,)
            )
            for state, column in itertools.product(STATES, columns.values())
            for layer in range(self.layers)
        ]
        clean, corrupted, restored = self.probabilities(ids, subject, answer, self._noise(fact, len(subject)), runs)
        means = iter(restored.mean(1).tolist())
        by_state = {state: {token: list(itertools.islice(means, self.layers)) for token in columns} for state in STATES}
        return FactTrace(fact.id, clean, float(corrupted.mean()), by_state)

    @torch.no_grad()
    def probabilities(
        self, ids: Sequence[int], subject: Sequence[int], answer: int, noise: torch.Tensor, runs: Sequence[Restored]
    ) -> tuple[float, torch.Tensor, torch.Tensor]:
        """The answer's probability after a prompt: clean, corrupted and restored.

        Args:
            ids: The prompt's ``T`` tokens.
            subject: Columns of the subject's ``S`` tokens.
            answer: o.
            noise: ``(draws, S, d)``.
            runs: What is restored.

        Returns:
            ``P[o]``; ``P*[o]`` of each noise, ``(draws,)``; and for each of the runs, ``(runs, draws)``.
        """
        corrupted_and_restored = [None, *runs]
        together = max(1, ROWS_TOGETHER // len(noise))
        clean, parts = 0.0, []
        for start in range(0, len(corrupted_and_restored), together):
            chunk = corrupted_and_restored[start : start + together]
            # The first row is the clean run, whose states the others are given; then every noise for each of the runs.
            rows = 1 + len(chunk) * len(noise)
            with self._corrupted(subject, noise.repeat(len(chunk), 1, 1)), self._restored(chunk, len(noise)):
                batch = torch.tensor(ids, device=self.lm.device).expand(rows, -1)
                given = self._next_token_probabilities(batch)[:, answer]
            clean = float(given[0])
            parts.append(given[1:].view(len(chunk), len(noise)))
        corrupted, *restored = torch.cat(parts)
        return clean, corrupted, torch.stack(restored) if restored else corrupted.new_zeros(0, len(noise))

    # -- the runs ---------------------------------------------------------------------------------------------------

    def _next_token_probabilities(self, ids: torch.Tensor) -> torch.Tensor:
        """``(rows, vocabulary)`` after the last of ``(rows, T)`` tokens."""
        head = self.lm.model.get_output_embeddings()

        def last(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (args[0][:, -1:], *args[1:])

        with hooked(head.register_forward_pre_hook(last)):
            logits = self.lm.model(input_ids=ids, use_cache=False).logits
        return logits[:, -1].float().softmax(-1)

    @contextmanager
    def _corrupted(self, subject: Sequence[int], noise: torch.Tensor) -> Iterator[None]:
        """Within the context all rows but the first have noise on the embeddings of the subject's tokens.

        Args:
            subject: Columns of the tokens.
            noise: ``(rows - 1, S, d)``.
        """

        def add(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[1:, list(subject)] += noise.to(output)
            return output

        with hooked(self.lm.model.get_input_embeddings().register_forward_hook(add)):
            yield

    @contextmanager
    def _restored(self, runs: Sequence[Restored | None], draws: int) -> Iterator[None]:
        """Within the context the rows of each run have the first row's states where the run restores them."""
        with ExitStack() as stack:
            for (state, layer), cells in _cells(runs, draws).items():
                module = self.parts[state][layer]
                hook = _copy_from_first_row(1 + len(runs) * draws, *cells)
                stack.enter_context(hooked(module.register_forward_hook(hook)))
            yield

    def _layers_around(self, layer: int) -> range:
        """The window's, as far as there are layers."""
        return range(max(0, layer - self.window // 2), min(self.layers, layer + (self.window + 1) // 2))

    # -- the fact ---------------------------------------------------------------------------------------------------

    def _tokens(self, fact: Edit) -> tuple[list[int], int]:
        """The prompt's tokens, and the answer's first."""
        if not fact.old_answer:
            raise ValueError(f"{fact.id} has no old answer, whose probability would be traced")
        ((prompt, answer),) = self.lm.tokenize([fact.prompt], [fact.old_answer])
        return prompt, answer[0]

    def _noise(self, fact: Edit, tokens: int) -> torch.Tensor:
        """``(draws, tokens, d)``."""
        digest = hashlib.sha256(f"{self.seed}/{fact.id}/{fact.prompt}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
        return self.deviation * torch.randn(self.draws, tokens, self.lm.width, generator=generator)


def parts_of_layers(lm: EditableLM) -> dict[str, list[nn.Module]]:
    """By state the modules that give it, from the first layer to the last.

    Raises:
        ValueError: If a layer's attention or MLP is not found.
    """
    outputs = mlp_outputs(lm.model)
    if not outputs:
        raise ValueError("no MLP has a linear module at its end: this model's layers cannot be traced")
    stack = layer_stack(lm.model, outputs)
    parts: dict[str, list[nn.Module]] = {state: [] for state in STATES}
    for number, layer in enumerate(lm.model.get_submodule(stack).children()):
        own = [name for name in outputs if layer_number(stack, name) == number]
        attention, mlp = attention_and_mlp(layer, own, stack, number) if own else (None, None)
        if attention is None or mlp is None:
            raise ValueError(f"{stack}.{number} is not one attention and one MLP: this model's layers cannot be traced")
        for state, module in zip(STATES, (layer, mlp, attention), strict=True):
            parts[state].append(module)
    return parts


def _cells(runs: Sequence[Restored | None], draws: int) -> Mapping[tuple[str, int], tuple[list[int], list[int]]]:
    """By state and layer the rows and columns that are restored there.

    Args:
        runs: Each of as many rows as there are draws, behind the first row; None restores nothing.
        draws: Noises.
    """
    cells: dict[tuple[str, int], tuple[list[int], list[int]]] = {}
    for number, run in enumerate(runs):
        if run is None:
            continue
        for layer in run.layers:
            rows, columns = cells.setdefault((run.state, layer), ([], []))
            for column in run.columns:
                rows += range(1 + number * draws, 1 + (number + 1) * draws)
                columns += [column] * draws
    return cells


def _copy_from_first_row(height: int, rows: list[int], columns: list[int]) -> Callable[..., Any]:
    """A hook that gives some of a module's ``height`` rows the first one's output at a column each."""

    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output  # layers of some models return more
        vectors = hidden.reshape(height, -1, hidden.shape[-1])  # OPT gives its MLPs all tokens in one dimension
        restored = vectors.clone()
        restored[rows, columns] = vectors[0, columns]
        restored = restored.view_as(hidden)
        return (restored, *output[1:]) if isinstance(output, tuple) else restored

    return hook


# -- which facts ------------------------------------------------------------------------------------------------------


def subject_tokens(lm: EditableLM, fact: Edit) -> list[int]:
    """The columns of the prompt's tokens that hold a character of the subject's first occurrence.

    Raises:
        ValueError: If the edit has no subject, or it does not stand in the prompt.
    """
    end = end_of(fact.subject, fact.prompt) if fact.subject else None
    if not fact.subject or end is None:
        raise ValueError(f"{fact.id}: the subject {fact.subject!r} does not stand in the prompt {fact.prompt!r}")
    start = end - len(fact.subject)
    spans = lm.tokenizer(asked(fact.prompt), return_offsets_mapping=True)["offset_mapping"]
    return [column for column, (first, last) in enumerate(spans) if first < end and last > start and last > first]


@torch.no_grad()
def embedding_deviation(lm: EditableLM, facts: Sequence[Edit]) -> float:
    """The standard deviation of the entries of all subjects' tokens' embeddings, as the public code takes it."""
    ids = [token for subject in facts if subject.subject for token in _ids(lm, subject.subject)]
    return float(lm.model.get_input_embeddings()(torch.tensor(ids, device=lm.device)).float().std())


def _ids(lm: EditableLM, text: str) -> list[int]:
    tokens: list[int] = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokens


def is_traceable(fact: Edit) -> bool:
    """Whether it has a subject that stands in its prompt, and an answer that is true."""
    return bool(fact.subject and fact.old_answer and end_of(fact.subject, fact.prompt) is not None)


def is_known(lm: EditableLM, facts: Sequence[Edit]) -> list[bool]:
    """Whether the model's greedy continuation of each prompt begins with the old answer (:mod:`editenv.evaluation.prefix`)."""
    answers = [fact.old_answer or "" for fact in facts]
    lengths = [len(ids) for ids in lm.tokenizer(answers, add_special_tokens=False)["input_ids"]] if answers else [0]
    matcher = PrefixMatcher(lm, 2 * max(lengths) + 4)
    return matcher.matches([fact.prompt for fact in facts], answers).tolist()


# -- many facts, in a file ------------------------------------------------------------------------------------------------


def trace_known_facts(
    lm: EditableLM,
    edits: Sequence[Edit],
    count: int,
    path: Path,
    about: Mapping[str, Any],
    draws: int = 10,
    window: int | None = None,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> None:
    """Traces the first so many edits that the model knows, and writes each to a file once it is done.

    A file that is there is gone on with.

    Args:
        lm: The model, at theta_0.
        edits: Among which facts are looked for, in order.
        count: Facts.
        path: A JSON object with ``about``; ``examined``, how many edits were looked at; and ``facts``, of
            :class:`FactTrace`.
        about: What the file says of the model and the edits besides what is given here.
        draws, window, seed: As :class:`Tracer` takes them.
        progress: Called with each fact.

    Raises:
        ValueError: If the file is of another trace, or none of the edits can be traced.
    """
    candidates = [edit for edit in edits[:SUBJECTS] if is_traceable(edit)]
    if not candidates:
        raise ValueError("no edit has a subject in its prompt and an old answer: there is nothing to trace")
    deviation = NOISE * embedding_deviation(lm, candidates)
    tracer = Tracer(lm, deviation, draws, window, seed)
    own = {"draws": draws, "window": tracer.window, "seed": seed, "noise": round(deviation, 6)}
    content = _read(path, json.loads(json.dumps(dict(about) | own)))
    progress("looking for facts that it knows", len(content["facts"]), count)
    for number, fact in known_facts(lm, edits, content["examined"]):
        if len(content["facts"]) >= count:
            break
        content["facts"].append(asdict(tracer.trace(fact)))
        # With the fact, in one file: whatever is killed, none is traced twice and none is passed over.
        content["examined"] = number + 1
        atomic_write_text(path, json.dumps(content) + "\n")
        progress("tracing", len(content["facts"]), count)
    else:
        content["examined"] = len(edits)
    atomic_write_text(path, json.dumps(content) + "\n")


def known_facts(lm: EditableLM, edits: Sequence[Edit], start: int = 0) -> Iterator[tuple[int, Edit]]:
    """The edits that can be traced and that the model knows, from one on in order, each with its number."""
    for first in range(start, len(edits), ASKED_TOGETHER):
        numbers = [n for n in range(first, min(first + ASKED_TOGETHER, len(edits))) if is_traceable(edits[n])]
        answers = is_known(lm, [edits[n] for n in numbers])
        yield from ((n, edits[n]) for n, knows in zip(numbers, answers, strict=True) if knows)


def _read(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What a file has, if it is of this trace; else nothing yet.

    Raises:
        ValueError: If it is of another.
    """
    if not path.exists():
        return {"about": about, "examined": 0, "facts": []}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if content["about"] != about:
        raise ValueError(f"{path} was made with {content['about']}, not {about}; choose another --out")
    return content
