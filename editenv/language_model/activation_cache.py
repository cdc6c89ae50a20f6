"""What the layers below the first edited one make of prompts: kept in memory, and in a file between runs of one
stream.
"""

import json
from collections.abc import Mapping
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

    Args:
        limit: Bytes.
        below: Others that are looked up, and not added to.
    """

    def __init__(self, limit: int = 256 * 2**20, below: "ActivationCache | None" = None) -> None:
        self.limit = limit
        self.below = below
        self.tokens: dict[tuple[str, str], tuple[list[int], list[int]]] = {} if below is None else below.tokens
        """Of texts met before."""
        self._bytes = 0
        self._kept: dict[CacheKey, torch.Tensor] = {}

    def __contains__(self, text: CacheKey) -> bool:
        return text in self._kept or (self.below is not None and text in self.below)

    def __getitem__(self, text: CacheKey) -> torch.Tensor:
        if text in self._kept or self.below is None:
            return self._kept[text]
        return self.below[text]

    def keep(self, found: Mapping[CacheKey, torch.Tensor]) -> None:
        self._kept.update(found)
        self._bytes += sum(piece.nbytes for piece in found.values())
        while self._bytes > self.limit:
            self._bytes -= self._kept.pop(next(iter(self._kept))).nbytes

    def clear(self) -> None:
        self._kept.clear()
        self.tokens.clear()
        self._bytes = 0

    def to(self, device: torch.device) -> None:
        """Moves what is kept."""
        self._kept = {text: piece.to(device) for text, piece in self._kept.items()}

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Writes what is kept, with what it is of, as safetensors.

        Raises:
            OSError: If there is no room for it.
        """
        texts, pieces = list(self._kept), list(self._kept.values())
        tensors = {
            "prompt_tokens": torch.tensor([head for head, _ in texts], dtype=torch.int32),
            "text_tokens": torch.tensor([len(row) for _, row in texts], dtype=torch.int32),
            "tokens": torch.tensor([token for _, row in texts for token in row], dtype=torch.int32),
            "rows": torch.tensor([len(piece) for piece in pieces], dtype=torch.int32),
            "outputs": torch.cat(pieces).cpu() if pieces else torch.zeros(0),
        }
        with atomic_write(path) as partial:
            try:
                save_file(tensors, partial, {"of": json.dumps(identity, sort_keys=True)})
            except SafetensorError as error:  # what the library makes of a full disk
                raise OSError(f"{path}: {error}") from error

    def load(self, path: Path, identity: Mapping[str, Any]) -> bool:
        """Takes in what was saved of the same thing, on the CPU; whether there was such a file."""
        try:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("of") != json.dumps(identity, sort_keys=True):
                    return False
                saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (FileNotFoundError, SafetensorError):  # none, or not one of ours: it will be made again
            return False
        rows = saved["tokens"].split(saved["text_tokens"].tolist())
        texts = zip(saved["prompt_tokens"].tolist(), (tuple(row.tolist()) for row in rows), strict=True)
        self.keep(dict(zip(texts, saved["outputs"].split(saved["rows"].tolist()), strict=True)))
        return True
