"""Contexts: text that is put before a question when it is asked, chosen by retrieval.

A context is entries, each a key and a text. When a model with a context is asked a question, the keys are compared with
it (:mod:`editenv.context_retrieval`), and the texts of the ``nearest`` keys that are alike by ``threshold`` or more
stand before it, the nearest last, in tokens: behind the beginning-of-sequence token, if the tokenizer writes one, and
before the question's own tokens, which stay as they are. The answer's stay, too.

A question to which no key is alike is asked as if there were no context. Of texts for which the model's window has no
room beside the question and its answer, the farthest are left out.
"""

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from editenv.arguments import NonNegativeInt, PositiveInt, check_fields
from editenv.atomic_files import atomic_write
from editenv.context_retrieval import FEATURES, SCOPE, TERMS, Retriever, check_retriever, make_retriever, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONTEXT = "context"
"""What an action calls its context, beside the names of modules."""

FORMAT = "lifelongedit-context-1"
"""In the file."""

DEFAULT_NEW_TOKENS = 20
"""What transformers generates if it is not told how much."""

_LIKE = "_like"
"""Of a context that came from another one, until it is searched: the other's retriever."""

_ATTRIBUTE = "lifelongedit_context"
"""Of a model that has one."""

_WITH_TEXT: ContextVar[torch.Tensor | None] = ContextVar("with_text", default=None)
"""See :func:`reading`."""


@dataclass(frozen=True, eq=False)
class Context:
    """A model's context; or, in an action, entries that are put into it, with how it is searched from then on.

    Attributes:
        entries: The text that is put before a question, by the key that the question is compared with, the latest last.
            A text that is not empty ends with a line break, so that the question begins with tokens of its own. In
            an action an empty text takes the key's entry out.
        retriever: Of :data:`editenv.context_retrieval.TERMS`, ``"scope"``, or a sentence-transformers encoder.
        nearest: How many texts at most are put before a question.
        threshold: How alike a key must be for its text to be.
        scope: The weights of the retriever ``"scope"``: the intercept and one for each of its features; of others none.
        background: Of the retrievers in ``TERMS``: how many other texts have each term of the keys, for how rare it is; a
            term that is not named is in none.
        background_texts: How many other texts those are; 0 if the keys alone say how rare a term is.

    Raises:
        ValueError: If a field is of a wrong type or out of range, a text does not end with a line break, or what the
            retriever needs is not installed; names it.
    """

    entries: Mapping[str, str]
    retriever: str = "words"
    nearest: PositiveInt = 1
    threshold: float = 0.5
    scope: tuple[float, ...] = ()
    background: Mapping[str, int] = field(default_factory=dict)
    background_texts: NonNegativeInt = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_retriever(self.retriever)
        if len(self.scope) != (needed := 1 + FEATURES if self.retriever == SCOPE else 0):
            raise ValueError(f"scope: the retriever {self.retriever!r} has {needed} weights, not {len(self.scope)}")
        if self.background_texts and self.retriever not in TERMS:
            raise ValueError(
                f"background_texts: the retriever {self.retriever!r} has none, not {self.background_texts}"
            )
        for term, count in self.background.items():
            if not 0 <= count <= self.background_texts:
                raise ValueError(f"background: {count} of {self.background_texts} texts have {term!r}")
        for key, text in self.entries.items():
            if not key.strip():
                raise ValueError(f"context: a key must not be empty; that of the text {text!r:.60} is {key!r}")
            if text and not text.endswith("\n"):
                raise ValueError(
                    f"context: a text must end with a line break; that of {key!r} ends with {text[-20:]!r}"
                )

    def __len__(self) -> int:
        """Entries."""
        return len(self.entries)

    def __deepcopy__(self, memo: Any) -> "Context":
        return self  # nothing of it changes

    def __reduce__(self) -> tuple[Any, ...]:
        return Context, tuple(getattr(self, each.name) for each in fields(self))

    @property
    def bytes(self) -> int:
        """Of the entries' texts, and of what the retriever keeps of the keys."""
        texts = sum(len(key.encode()) + len(text.encode()) for key, text in self.entries.items())
        return texts + self._retriever.bytes

    @cached_property
    def _retriever(self) -> Retriever:
        keys, like = list(self.entries), self.__dict__.pop(_LIKE, None)
        return make_retriever(self.retriever, keys, self.scope, self.background, self.background_texts, like)

    def make_retriever(self) -> None:
        """Makes what it is searched with, once, if there is anything in it: otherwise that is made for the first question.

        Raises:
            ValueError: If no key has a word.
        """
        if self.entries:
            _ = self._retriever

    @cached_property
    def chosen(self) -> dict[tuple[int, ...], tuple[str, ...]]:
        """What :func:`put_before` has found before which prompts: a model is asked the same again and again."""
        return {}

    def before(self, questions: Sequence[str]) -> list[tuple[str, ...]]:
        """The texts that stand before each question, the nearest last."""
        if not self.entries:
            return [()] * len(questions)
        texts = list(self.entries.values())
        rows = nearest(self._retriever, questions, self.nearest, self.threshold)
        return [tuple(texts[i] for i in reversed(row)) for row in rows]

    def as_json(self) -> dict[str, Any]:
        """What :func:`of_json` reads."""
        settings = {"retriever": self.retriever, "nearest": self.nearest, "threshold": self.threshold}
        scope = {"scope": list(self.scope)} if self.scope else {}
        background = {"background_texts": self.background_texts, "background": dict(self.background)}
        if not self.background_texts:
            background = {}
        return {"format": FORMAT, **settings, **scope, **background, "entries": dict(self.entries)}


def of_json(content: Any) -> Context:
    """The context of :meth:`Context.as_json`.

    Raises:
        ValueError: If it is none, naming what is wrong.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"not a context: its format is not {FORMAT!r}")
    arguments = {name: value for name, value in content.items() if name != "format"}
    if isinstance(scope := arguments.get("scope"), list):
        arguments["scope"] = tuple(scope)
    try:
        return Context(**arguments)
    except TypeError as error:
        raise ValueError(f"not a context: {error}") from None


def merged(context: Context | None, action: Context) -> Context | None:
    """The context after an action; None if nothing is left in it.

    An entry whose key is there already takes its place, as the latest. Counts of a background go together if they are
    over as many texts; otherwise the action's alone hold.

    Args:
        context: Before it; None if there is none.
        action: The entries to put in.
    """
    entries = {} if context is None else dict(context.entries)
    for key, text in action.entries.items():
        entries.pop(key, None)
        if text:
            entries[key] = text
    background = action.background
    if context is not None and context.background_texts == action.background_texts:
        background = {**context.background, **background}
    if not entries:
        return None
    # Without the checks: both parts had theirs when they were made, and those of many entries take long.
    together = object.__new__(Context)
    values = {each.name: getattr(action, each.name) for each in fields(action)}
    together.__dict__.update(values, entries=entries, background=background)
    if context is not None and context.retriever == action.retriever and "_retriever" in context.__dict__:
        together.__dict__[_LIKE] = context._retriever
    return together


def removal(action: Context) -> Context:
    """The action that takes another one's entries out again."""
    return replace(action, entries=dict.fromkeys(action.entries, ""))


def as_tensor(context: Context) -> torch.Tensor:
    """A context as the bytes of its JSON, for files of tensors."""
    return torch.frombuffer(bytearray(json.dumps(context.as_json()).encode()), dtype=torch.uint8)


def of_tensor(tensor: torch.Tensor) -> Context:
    """What :func:`as_tensor` wrote.

    Raises:
        ValueError: If it is not that.
    """
    return of_json(json.loads(tensor.cpu().numpy().tobytes()))


def save_context(path: Path, context: Context) -> None:
    """Writes a context as a JSON file, whole or not at all.

    Raises:
        OSError: If the disk is full or read-only; what was there is as it was.
    """
    with atomic_write(path) as unfinished:
        text = json.dumps(context.as_json(), indent=1, ensure_ascii=False)
        unfinished.write_text(text + "\n", encoding="utf-8")


def load_context(path: Path) -> Context:
    """What :func:`save_context` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a file of a context, or not all of one; names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        return of_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


# -- of a model ---------------------------------------------------------------------------------------------------------


def context_of(model: torch.nn.Module) -> Context | None:
    """The context that a model has; None if it has none."""
    context: Context | None = getattr(model, _ATTRIBUTE, None)
    return context


def set_context(model: torch.nn.Module, context: Context | None) -> None:
    """Gives a model a context in place of the one it has; None takes that away."""
    setattr(model, _ATTRIBUTE, context)


def put_before(
    context: Context,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    room: Sequence[int],
) -> list[list[int]]:
    """The tokens of prompts with the context's texts before them.

    Args:
        context: What they are asked with.
        tokenizer: The model's.
        prompts: ``B`` prompts as token ids.
        room: ``B`` tokens that may be added to each.
    """
    chosen = context.chosen
    keys = [tuple(prompt) for prompt in prompts]
    if new := [key for key in dict.fromkeys(keys) if key not in chosen]:
        questions = [tokenizer.decode(key, skip_special_tokens=True) for key in new]
        chosen.update(zip(new, context.before(questions), strict=True))
    ids: dict[str, list[int]] = {text: [] for key in keys for text in chosen[key]}
    if ids:
        ids = dict(zip(ids, tokenizer(list(ids), add_special_tokens=False)["input_ids"], strict=True))
    longer = []
    for key, most in zip(keys, room, strict=True):
        first = int(key[:1] == (tokenizer.bos_token_id,))
        tokens: list[int] = []
        for text in reversed(chosen[key]):
            if len(tokens) + len(ids[text]) > most:
                break
            tokens = ids[text] + tokens
        longer.append([*key[:first], *tokens, *key[first:]])
    return longer


@contextmanager
def reading(with_text: torch.Tensor | None) -> Iterator[None]:
    """Within it a model is run over prompts of which some are read with a text of the context before them: memories with
    the gate ``context`` (:mod:`editenv.memories`) ask which.

    Args:
        with_text: ``(B,)`` bool for each prompt, or one for all of them; None if no text stands before any. A prompt may
            be several rows of what the model is run over, one after the other: its beams, say, or its tokens.
    """
    token = _WITH_TEXT.set(with_text)
    try:
        yield
    finally:
        _WITH_TEXT.reset(token)


def rows_with_text(rows: int) -> torch.Tensor | None:
    """``(rows,)`` bool, within :func:`reading`: which rows of what the model is run over belong to a prompt with a text
    before it; None if no text stands before any.

    Args:
        rows: Of them all.

    Raises:
        ValueError: If they are not as many of each prompt, so that it cannot be told.
    """
    with_text = _WITH_TEXT.get()
    if with_text is None:
        return None
    of_each, left = divmod(rows, len(with_text))
    if left or not of_each:
        raise ValueError(f"{rows} rows are not those of {len(with_text)} prompts, so many of each")
    return with_text.repeat_interleave(of_each)


def window_of(model: "PreTrainedModel") -> int:
    """Tokens that a model can read; a number beyond any text if that is not limited."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**30


def generate_with_context(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    **options: Any,
) -> Any:
    """``model.generate`` of a model with a context, which is put before each prompt.

    Args:
        model: The model; without a context it generates as always.
        tokenizer: Its tokenizer.
        input_ids: ``(B, T)``, padded on the left.
        attention_mask: ``(B, T)``; all tokens by default.
        options: Further ones of ``generate``. Stopping criteria are shown the prompts as they were given.

    Returns:
        What ``generate`` returns: the prompts as they were given, and the new tokens after them.
    """
    generate = partial(type(model).generate, model)
    prompts, longer = _longer(model, tokenizer, input_ids, attention_mask, options)
    with_text = torch.tensor([len(asked) > len(prompt) for prompt, asked in zip(prompts, longer, strict=True)])
    if not with_text.any():
        return generate(input_ids=input_ids, attention_mask=attention_mask, **options)
    width, wide = input_ids.shape[1], max(map(len, longer))
    for name in ("max_length", "min_length"):
        if (limit := _limit(model, options, name)) is not None:
            _set_limit(options, name, limit + wide - width)

    def as_given(sequences: torch.Tensor) -> torch.Tensor:
        repeated = input_ids.repeat_interleave(len(sequences) // len(input_ids), 0)  # of several beams or samples
        return torch.cat([repeated, sequences[:, wide:]], 1)

    if criteria := options.get("stopping_criteria"):
        from transformers import StoppingCriteriaList

        options["stopping_criteria"] = StoppingCriteriaList([_Shown(criterion, as_given) for criterion in criteria])
    pads = (options.get("pad_token_id"), tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    pad = next(token for token in pads if token is not None)  # masked: any will do
    with reading(with_text):
        written = generate(
            input_ids=torch.tensor([[pad] * (wide - len(row)) + row for row in longer]).to(input_ids.device),
            attention_mask=torch.tensor([[0] * (wide - len(row)) + [1] * len(row) for row in longer]).to(
                input_ids.device
            ),
            **options,
        )
    if isinstance(written, torch.Tensor):
        return as_given(written)
    written["sequences"] = as_given(written["sequences"])
    return written


def _longer(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    options: Mapping[str, Any],
) -> tuple[list[list[int]], list[list[int]]]:
    """The prompts of a batch, and the same with what stands before them; both without padding."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    prompts = [row[kept.bool()].tolist() for row, kept in zip(input_ids, mask, strict=True)]
    context = context_of(model)
    if context is None:
        return prompts, prompts
    width = input_ids.shape[1]
    new = _limit(model, options, "max_new_tokens")
    if new is None:
        longest = _limit(model, options, "max_length")
        new = DEFAULT_NEW_TOKENS if longest is None else longest - width
    # The last token is written, not read.
    return prompts, put_before(context, tokenizer, prompts, [window_of(model) - len(row) - new + 1 for row in prompts])


def _limit(model: "PreTrainedModel", options: Mapping[str, Any], name: str) -> int | None:
    """A length that ``generate`` is given, in its options or in a generation config, its own or else the model's; None if
    it is left to transformers.
    """
    if (given := options.get(name)) is not None:
        return int(given)
    default = getattr(type(model.generation_config)(), name)  # some versions write a number for no limit
    for config in (options.get("generation_config"), model.generation_config):
        limit = getattr(config, name, None)
        if limit is not None and limit != default:
            return int(limit)
    return None


def _set_limit(options: dict[str, Any], name: str, limit: int) -> None:
    """Sets a length where ``generate`` reads it first; a generation config of the caller's stays as it is."""
    config = options.get("generation_config")
    if config is None or options.get(name) is not None:
        options[name] = limit
    else:
        options["generation_config"] = copy.deepcopy(config)
        setattr(options["generation_config"], name, limit)


class _Shown:
    """A stopping criterion that is shown other token ids than it is called with.

    Args:
        criterion: The criterion.
        ids: What it is shown of them.
    """

    def __init__(self, criterion: Callable[..., Any], ids: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._criterion, self._ids = criterion, ids

    def __call__(self, input_ids: torch.Tensor, scores: Any, **options: Any) -> Any:
        return self._criterion(self._ids(input_ids), scores, **options)


def beside(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", context: Context) -> None:
    """Gives a model a context for use: its own ``generate`` puts it before each prompt.

    Its plain forward does not, which is not told where a question ends.
    """
    set_context(model, context)
    model.generate = partial(_generate, model, tokenizer)


@contextmanager
def generating_with_context(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> Iterator[None]:
    """Within it the model's own ``generate`` puts the context before each prompt, if it has one."""
    context = context_of(model)
    try:
        if context is not None:
            beside(model, tokenizer, context)
        yield
    finally:
        without_context(model)
        set_context(model, context)


def _generate(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", inputs: torch.Tensor | None = None, **options: Any
) -> Any:
    """``generate`` with the prompts in order, or by the names that transformers knows them by."""
    ids = options.pop("input_ids", inputs)
    if ids is None:
        raise ValueError(
            "generate: a model with a context is given token ids (input_ids): it reads the question in them"
        )
    return generate_with_context(model, tokenizer, ids, **options)


def without_context(model: "PreTrainedModel") -> Context | None:
    """Takes the context of a model and its own ``generate`` away, and gives the context."""
    context = context_of(model)
    set_context(model, None)
    vars(model).pop("generate", None)
    return context
