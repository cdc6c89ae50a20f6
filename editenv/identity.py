"""What a model is: whatever can change an output of it, so that work on one is never gone on with on another.

Weights are told apart by two digests, of the edited modules (:func:`fingerprint`) and of all others
(:func:`frozen_fingerprint`); :func:`identity` has the rest: configuration, tokenizer, buffers and library versions.
Files from before there was an identity lack it; :func:`cautions` says what could not be checked then.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from editenv.contexts import CONTEXT, as_tensor
from editenv.language_model.editable_lm import EditableLM
from editenv.memories import Memory, attached

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Identity = Mapping[str, Any]
"""What :func:`identity` returns, as JSON has it."""

LIBRARIES = ("torch", "transformers", "tokenizers")

WITHOUT_EFFECT = {
    # By what it was saved.
    "transformers_version", "architectures",
    # The precision it is loaded in, which the weights' digests hold.
    "dtype", "torch_dtype",
    # What a call returns or keeps, not what it computes.
    "use_cache", "output_attentions", "output_hidden_states", "return_dict",
    # Of heads that a language model does not have.
    "id2label", "label2id", "problem_type",
    # Which modules are edited by default; those that are have a record of their own.
    "edited_modules",
}  # fmt: skip
"""Entries of a configuration that no logit depends on; so are those that begin with an underscore (paths and the like).
The generation config is left out as a whole: answers are greedy, whatever it says."""


def fingerprint(lm: EditableLM) -> str:
    """SHA-256 over the edited modules: names, shapes, types and every bit of the weights and memories as they are
    now; and the context.
    """
    digest = hashlib.sha256()
    for name in lm.modules:
        _add_tensor(digest, name, lm.model.get_parameter(f"{name}.weight"))
        if memory := lm.memories.get(name):
            _add_memory(digest, name, memory)
    if lm.context is not None:
        _add_tensor(digest, CONTEXT, as_tensor(lm.context))
    return digest.hexdigest()


def fingerprint_beside(lm: EditableLM) -> str:
    """SHA-256 over the memories beside the edited modules and the context, as they are now."""
    digest = hashlib.sha256()
    for name in lm.modules:
        if memory := lm.memories.get(name):
            _add_memory(digest, name, memory)
    if lm.context is not None:
        _add_tensor(digest, CONTEXT, as_tensor(lm.context))
    return digest.hexdigest()


def frozen_fingerprint(lm: EditableLM) -> str:
    """SHA-256 over every parameter that is not edited, memories beside modules that are not, and the tokenizer's
    vocabulary.

    Of parameters that were moved out of memory only names, shapes and types are in it.
    """
    digest = hashlib.sha256()
    edited = {f"{name}.weight" for name in lm.modules}
    for name, parameter in lm.model.named_parameters():
        if name not in edited:
            _add_tensor(digest, name, parameter)
    others = {name: module for name, module in lm.model.named_modules() if name not in lm.modules}
    for name, memory in attached(others).items():
        _add_memory(digest, name, memory)
    digest.update(json.dumps(sorted(lm.tokenizer.get_vocab().items())).encode())
    return digest.hexdigest()


def identity(lm: EditableLM) -> Identity:
    """Whatever can change an output besides the parameters.

    Returns:
        ``config``: the configuration without :data:`WITHOUT_EFFECT`. ``tokenizer``: SHA-256 of each of its parts.
        ``buffers``: SHA-256 over those that are saved with the model; the others are computed from the configuration.
        ``libraries``: versions of :data:`LIBRARIES`.
    """
    digest = hashlib.sha256()
    saved = lm.model.state_dict().keys()
    for name, buffer in lm.model.named_buffers():
        if name in saved:
            _add_tensor(digest, name, buffer)
    whole = {
        "config": _effective(lm.model.config.to_dict()),
        "tokenizer": tokenizer_parts(lm.tokenizer),
        "buffers": digest.hexdigest(),
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    as_json: Identity = json.loads(json.dumps(whole, default=str))
    return as_json


def tokenizer_parts(tokenizer: "PreTrainedTokenizerBase") -> dict[str, str]:
    """SHA-256 of each part of a tokenizer that decides about tokens or text.

    Padding and truncation are left out, which the last call of a tokenizer sets, and so is the chat template: what it
    makes of a question is an edit's prompt, which the journal has.
    """
    parts: dict[str, Any] = {"special tokens": tokenizer.special_tokens_map}
    parts["settings"] = [
        getattr(tokenizer, name, None) for name in ("clean_up_tokenization_spaces", "split_special_tokens")
    ]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        serialised = json.loads(backend.to_str())
        model = serialised.pop("model")
        parts |= {"vocabulary": model.pop("vocab", None), "merges": model.pop("merges", None), "model": model}
        parts |= {name: value for name, value in serialised.items() if name not in ("version", "truncation", "padding")}
    else:  # one in Python: its class, and the files that it writes
        parts |= {"class": type(tokenizer).__name__, "vocabulary": sorted(tokenizer.get_vocab().items())}
        with TemporaryDirectory() as folder:
            for path in map(Path, tokenizer.save_vocabulary(folder)):
                parts[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return {
        name: hashlib.sha256(json.dumps(part, sort_keys=True, default=str).encode()).hexdigest()
        for name, part in parts.items()
    }


def differences(there: Identity | None, here: Identity) -> list[str]:
    """In what a model on record, ``there``, was another than this one, in words; nothing if there is no record.

    Entries of the configuration that only one of them has count as long as both are of the same transformers: another
    version may have more or fewer of them.
    """
    if there is None:
        return []
    old, new = (dict(_flat(one["config"])) for one in (there, here))
    libraries = {name for name in LIBRARIES if there["libraries"].get(name) != here["libraries"][name]}
    keys = old.keys() & new.keys() if "transformers" in libraries else old.keys() | new.keys()
    said = [
        f"config: {key} was {old.get(key)!r}, is {new.get(key)!r}"
        for key in sorted(keys)
        if old.get(key) != new.get(key)
    ]
    parts = there["tokenizer"].keys() | here["tokenizer"].keys()
    changed = sorted(name for name in parts if there["tokenizer"].get(name) != here["tokenizer"].get(name))
    if changed:
        other = f", which {_versions(there)} made, {_versions(here)} now" if "tokenizers" in libraries else ""
        said.append(f"tokenizer: another {', '.join(changed)}{other}")
    if there["buffers"] != here["buffers"]:
        said.append("other buffers of the model")
    return said


def cautions(there: Identity | None, here: Identity) -> list[str]:
    """What may change outputs all the same, in words: other library versions, or parts that are not on record."""
    if there is None:
        return [
            "an earlier version wrote it, which did not note the configuration, the tokenizer beyond its vocabulary, "
            "buffers and library versions: these were not checked"
        ]
    if there["libraries"] != here["libraries"]:
        return [f"it was made with {_versions(there)}, this is {_versions(here)}: the last bits may differ"]
    return []


def same(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether two records of what something was made of agree: identities by :func:`differences`, the rest exactly."""
    theirs, ours = dict(there), dict(here)
    other = differences(theirs.pop("identity", None), ours.pop("identity"))
    return not other and theirs == ours


def _add_tensor(digest: Any, name: str, tensor: torch.Tensor) -> None:
    digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
    if not tensor.is_meta:  # moved out of memory
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def _add_memory(digest: Any, name: str, memory: Memory) -> None:
    for part, tensor in memory.parts().items():
        _add_tensor(digest, f"{name}/{memory.gate}/{part}", tensor)


def _effective(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without what has no effect, also in the configurations of a model's parts."""
    kept = {name: value for name, value in config.items() if name not in WITHOUT_EFFECT and not name.startswith("_")}
    return {name: _effective(value) if isinstance(value, dict) else value for name, value in kept.items()}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Entries by dotted names."""
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _versions(one: Identity) -> str:
    return ", ".join(f"{name} {one['libraries'].get(name)}" for name in LIBRARIES)
