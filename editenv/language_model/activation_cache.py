"""What the layers below the first edited one make of prompts: kept in memory, and in a file between runs of one
stream.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from editenv.atomic_files import atomic_write

CacheKey = tuple[int, tuple[int, ...]]
"""How many of the tokens are the prompt's, and the tokens."""


class ActivationCache:
    """What the frozen layers made of prompts met before, the oldest dropped first; models may share one.

    What is kept of a prompt with its answer is there for the prompt alone, too, and for the answer without its last
    token: no token sees those behind it.

    Args:
        limit: Bytes.

    Attributes:
        whole_answers: Whether prompts are run to the end of their answers, a token further than teacher forcing reads:
            generation asks what comes behind an answer that was said.
        token_ids: By prompt and answer, the ids of both: tokenizing takes as long as a product with an edited weight.
        written: By prompt and limit of new tokens, what the unedited model writes, unfinished texts included.
    """

    def __init__(self, limit: int = 256 * 2**20) -> None:
        self.limit = limit
        self.whole_answers = False
        self.token_ids: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
        self.written: dict[tuple[str, int], str | None] = {}
        self._source: ActivationCache | None = None
        self._bytes = 0
        self._outputs: dict[CacheKey, torch.Tensor] = {}
        self._longer: dict[CacheKey, CacheKey] = {}

    def __contains__(self, key: CacheKey) -> bool:
        return self._key_of(key) is not None or (self._source is not None and key in self._source)

    def __getitem__(self, key: CacheKey) -> torch.Tensor:
        """The frozen layers' outputs, ``(tokens, d)``, of one prompt with its answer.

        Raises:
            KeyError: If they are not here.
        """
        if self._source is not None and self._key_of(key) is None:
            self.put({key: self._source[key].clone()})  # not a view into what the source has of other prompts
        kept = self._key_of(key)
        if kept is None:
            raise KeyError(key)
        return without_last(self._outputs[kept], len(kept[1]) - len(key[1]))

    def _key_of(self, key: CacheKey) -> CacheKey | None:
        """What the outputs of a prompt with its answer are part of; None if they are not here."""
        return key if key in self._outputs else self._longer.get(key)

    @contextmanager
    def copying_from(self, source: "ActivationCache") -> Iterator[None]:
        """Within the context what is looked up and not here is taken over from another cache.

        So a cache can be given what some prompts became, and no more: afterwards nothing leads to the other one.
        """
        self._source = source
        try:
            yield
        finally:
            self._source = None

    def put(self, outputs: Mapping[CacheKey, torch.Tensor]) -> None:
        """Takes in new outputs, ``(tokens, d)`` each, and drops the oldest ones until all fit the limit."""
        self._outputs.update(outputs)
        self._longer.update((shorter, key) for key in outputs for shorter in _beginnings(key))
        self._bytes += sum(output.nbytes for output in outputs.values())
        while self._bytes > self.limit:
            oldest = next(iter(self._outputs))  # a dict keeps the order in which its keys came in
            self._bytes -= self._outputs.pop(oldest).nbytes
            for shorter in _beginnings(oldest):
                if self._longer.get(shorter) == oldest:
                    del self._longer[shorter]

    def clear(self) -> None:
        """Drops all outputs, token ids and texts."""
        self._outputs.clear()
        self._longer.clear()
        self.token_ids.clear()
        self.written.clear()
        self._bytes = 0

    def to(self, device: torch.device) -> None:
        """Moves the outputs of this cache."""
        self._outputs = {key: output.to(device) for key, output in self._outputs.items()}

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Writes the outputs as safetensors, and what the unedited model writes.

        Args:
            path: The file; it appears whole or not at all.
            identity: What the outputs are of (model, stream), as JSON takes it; :meth:`load` compares it.

        Raises:
            OSError: If there is no room for it.
        """
        keys, outputs = list(self._outputs), list(self._outputs.values())
        tensors = {
            "prompt_tokens": torch.tensor([prompt_tokens for prompt_tokens, _ in keys], dtype=torch.int32),
            "text_tokens": torch.tensor([len(ids) for _, ids in keys], dtype=torch.int32),
            "tokens": torch.tensor([token for _, ids in keys for token in ids], dtype=torch.int32),
            "rows": torch.tensor([len(output) for output in outputs], dtype=torch.int32),
            "outputs": torch.cat(outputs).cpu() if outputs else torch.zeros(0),
        }
        with atomic_write(path) as partial:
            try:
                about = {"of": json.dumps(identity, sort_keys=True), "written": json.dumps(list(self.written.items()))}
                save_file(tensors, partial, about)
            except SafetensorError as error:  # what the library makes of a full disk
                raise OSError(f"{path}: {error}") from error

    def load(self, path: Path, identity: Mapping[str, Any]) -> bool:
        """Takes in what :meth:`save` wrote, on the CPU.

        Returns:
            Whether there was such a file, of the same identity. If not, the outputs will be computed anew.
        """
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                if about.get("of") != json.dumps(identity, sort_keys=True):
                    return False
                saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (FileNotFoundError, SafetensorError):  # none, or one that was cut off
            return False
        texts = [tuple(ids.tolist()) for ids in saved["tokens"].split(saved["text_tokens"].tolist())]
        keys = zip(saved["prompt_tokens"].tolist(), texts, strict=True)
        self.put(dict(zip(keys, saved["outputs"].split(saved["rows"].tolist()), strict=True)))
        self.written.update({(prompt, limit): text for (prompt, limit), text in json.loads(about.get("written", "[]"))})
        return True


def without_last(output: torch.Tensor, tokens: int) -> torch.Tensor:
    """An output, ``(tokens, d)``, without so many of its last tokens: itself if there are none, or a view."""
    return output[: len(output) - tokens] if tokens else output


def _beginnings(key: CacheKey) -> set[CacheKey]:
    """The prompt alone, and the answer without its last token; without those that are the whole."""
    prompt_tokens, tokens = key
    return {
        (prompt_tokens, tokens[:end]) for end in (prompt_tokens, len(tokens) - 1) if prompt_tokens <= end < len(tokens)
    }
