"""Hyperparameters as files: one for each method and model. Each file says how its values were chosen; most were by
`python -m benchmarks.tune` on the validation split.

A file ``MODEL/METHOD.json`` is an object with ``settings`` (constructor arguments; dataclasses as objects) and ``chosen`` (how).
"""

import json
import types
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from importlib import resources
from inspect import signature
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")


def settings_path(method: str, model: str = "atlas") -> Path:
    """Where a method's settings for a model are, or would be."""
    return Path(str(resources.files(__package__))) / model / f"{method}.json"


def read_settings(method: str, model: str = "atlas") -> dict[str, Any]:
    """The constructor arguments chosen for a method.

    Raises:
        FileNotFoundError: If there are none for this model.
    """
    path = settings_path(method, model)
    if not path.exists():
        raise FileNotFoundError(f"no settings of {method!r} for {model!r}: there is no {path}")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["settings"]
    return found


def merged(settings: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with the values of ``over`` in their place, object by object."""
    found = dict(settings)
    for name, value in over.items():
        known = found.get(name)
        found[name] = merged(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return found


def build(kind: Callable[..., T], settings: Mapping[str, Any]) -> T:
    """``kind(**settings)``, with an object made of each dictionary that stands for a dataclass.

    Raises:
        ValueError: If an argument is unknown, naming it and the known ones, or is none of the choices there are for it.
    """
    hints = {name: parameter.annotation for name, parameter in signature(kind, eval_str=True).parameters.items()}
    for name in settings:
        if name not in hints:
            raise ValueError(f"{getattr(kind, '__name__', kind)} has no setting {name!r}; known are {', '.join(hints)}")
    return kind(**{name: _as_hinted(name, hints[name], value) for name, value in settings.items()})


def _as_hinted(name: str, hint: Any, value: Any) -> Any:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if get_origin(option) is Literal and value not in get_args(option):
            raise ValueError(f"setting {name!r} is one of {', '.join(map(repr, get_args(option)))}, not {value!r}")
        if isinstance(option, type) and is_dataclass(option) and isinstance(value, Mapping):
            return build(option, value)
    return value
