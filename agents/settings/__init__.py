"""Hyperparameters as files: one for each method and model. Each file says how its values were chosen; most were by
`python -m benchmarks.tune` on the validation split.

A file ``FOLDER/METHOD.json`` is an object with ``settings`` (constructor arguments; dataclasses as objects) and
``chosen`` (how). FOLDER is one of this package, or with a slash in it (``./mine``) one of your own.
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


def settings_path(method: str, folder: str = "atlas") -> Path:
    """Where a method's settings are in a folder, or would be."""
    home = Path(folder).expanduser() if "/" in folder else Path(str(resources.files(__package__))) / folder
    return home / f"{method}.json"


def read_settings(method: str, folder: str = "atlas") -> dict[str, Any]:
    """The constructor arguments chosen for a method.

    Raises:
        FileNotFoundError: If the folder has none.
        ValueError: If the file is not one of settings.
    """
    path = settings_path(method, folder)
    if not path.exists():
        hint = "" if "/" in folder else f"; a folder of your own is named with a slash: ./{folder}"
        raise FileNotFoundError(f"no settings of {method!r} in {folder!r}: there is no {path}{hint}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("settings"), dict):
            raise ValueError(
                'must be an object with "settings", an object, as `python -m benchmarks.tune --write` writes it'
            )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    settings: dict[str, Any] = content["settings"]
    return settings


def merged(settings: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with the values of ``over`` in their place, object by object."""
    result = dict(settings)
    for name, value in over.items():
        known = result.get(name)
        result[name] = merged(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return result


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
