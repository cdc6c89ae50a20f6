"""Hyperparameters as files: one for each method and model. Each file says how its values were chosen; most were by
`python -m benchmarks.tune` on the validation split.

A file ``FOLDER/METHOD.json`` is an object with ``settings`` (constructor arguments; dataclasses as objects), ``chosen``
(how) and, where the place belongs to the settings, ``environment`` (:data:`ENVIRONMENT`).
FOLDER is one of this package, or with a slash in it (``./mine``) one of your own.
"""

import json
import types
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from editenv.arguments import check, hints_of

T = TypeVar("T")

ENVIRONMENT = ("modules", "observed_tokens")
"""Arguments of the environment that may be part of a method's settings: where it edits, and which tokens it observes."""


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
    settings: dict[str, Any] = _read(method, folder)["settings"]
    return settings


def read_environment(method: str, folder: str) -> dict[str, Any]:
    """The arguments of the environment that these settings were chosen for, if their file says: see :data:`ENVIRONMENT`.

    Raises:
        FileNotFoundError: If the folder has no settings of the method.
        ValueError: If the file is not one of settings, or says something else of the environment.
    """
    return environment_in(_read(method, folder), settings_path(method, folder))


def environment_in(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The same of what a file of settings holds.

    Raises:
        ValueError: If it says something else of the environment; names the file.
    """
    environment = content.get("environment", {})
    if not isinstance(environment, dict) or (unknown := sorted(environment.keys() - set(ENVIRONMENT))):
        known = ", ".join(ENVIRONMENT)
        what = f"has no {unknown[0]!r}; known are {known}" if isinstance(environment, dict) else "must be an object"
        raise ValueError(f"{path}: environment {what}")
    return environment


def _read(method: str, folder: str) -> dict[str, Any]:
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
    return content


def merged(settings: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with the values of ``over`` in their place, object by object.

    Raises:
        ValueError: If a value is to take the place of an object; names the setting.
    """
    result = dict(settings)
    for name, value in over.items():
        known = result.get(name)
        if isinstance(known, Mapping) and not isinstance(value, Mapping):
            raise ValueError(f"{name} must be an object of settings, not {value!r}")
        result[name] = merged(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return result


def build(kind: Callable[..., T], settings: Mapping[str, Any]) -> T:
    """``kind(**settings)``, with an object made of each dictionary that stands for a dataclass.

    Raises:
        ValueError: As :func:`check_settings`, or if two settings do not fit together.
    """
    check_settings(kind, settings)
    hints = hints_of(kind)
    return kind(**{name: _built(hints[name], value) for name, value in settings.items()})


def check_settings(kind: Callable[..., Any], settings: Mapping[str, Any], within: str = "") -> None:
    """Checks settings by the annotations of what they are for, also some of them alone.

    Args:
        kind: A class, of an agent or a dataclass.
        settings: Its arguments; a dictionary may stand for a dataclass, and have some of its fields.
        within: What stands before their names in messages, as in ``config.policy.``

    Raises:
        ValueError: If one is unknown, of a wrong type or out of range; names it by its dotted name.
    """
    hints = hints_of(kind)
    for name, value in settings.items():
        if name not in hints:
            setting = f"{within}{name}"
            raise ValueError(f"{_name_of(kind)} has no setting {setting!r}; known are {', '.join(hints)}")
        part = _dataclass_of(hints[name])
        if part is not None and isinstance(value, Mapping):
            check_settings(part, value, f"{within}{name}.")
        else:
            check(f"{within}{name}", hints[name], value)


def _built(hint: Any, value: Any) -> Any:
    part = _dataclass_of(hint)
    return build(part, value) if part is not None and isinstance(value, Mapping) else value


def _dataclass_of(hint: Any) -> Callable[..., Any] | None:
    """The dataclass that is one of the types of an argument, if there is one."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return next((option for option in options if isinstance(option, type) and is_dataclass(option)), None)


def _name_of(kind: Callable[..., Any]) -> str:
    return getattr(kind, "__name__", str(kind))
