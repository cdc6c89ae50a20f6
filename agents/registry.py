"""Agents by name, and what they were made of.

A name is a row of :data:`agents.rows.ROWS`.
``METHOD@FOLDER`` is a row with the settings of another folder of agents/settings, or with a slash in it of your own
(``memit@./mine``, made by benchmarks.tune).
``some_file.py:Name`` and ``package.module:Name`` name an :class:`agents.base.Agent` of your own, made without arguments;
``some_file.py:Name@./mine`` is it with the settings of your folder's ``Name.json``.
"""

import difflib
import hashlib
import importlib
import importlib.util
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.rows import ROWS, Row
from agents.settings import build, read_environment, read_settings

if TYPE_CHECKING:
    from agents.base import Agent


def takes_settings(name: str) -> bool:
    """Whether there is a row of this name that takes settings."""
    return name in ROWS and ROWS[name].settings is not None


def is_own(name: str) -> bool:
    """Whether this is a ``file.py:Class`` or a ``module:Class``, with a folder of settings or without."""
    return name not in ROWS and _parts_of(name) is not None


def settings_name(name: str) -> str:
    """The file of settings that a method reads, without its ending: an untrained network's is that of the row that
    trains it, and a class of one's own has one by its own name.
    """
    parts = None if name in ROWS else _parts_of(name)
    return parts["attribute"] if parts else str(ROWS[name].settings).rpartition("/")[2]


def _parts_of(name: str) -> "re.Match[str] | None":
    """``source``, ``attribute`` and perhaps ``folder`` of ``file.py:Class@FOLDER``; None if it is no such name."""
    return re.fullmatch(r"(?P<source>.+):(?P<attribute>\w+)(?:@(?P<folder>.+))?", name)


def with_absolute_paths(name: str) -> str:
    """The name by which an agent is found from any folder: a file, and a folder of settings, by its absolute path."""
    if name in ROWS:
        return name
    method, folder = method_and_folder(name)
    if (parts := _parts_of(name)) and parts["source"].endswith(".py"):
        method = f"{Path(parts['source']).absolute()}:{parts['attribute']}"
    if folder is None:
        return method
    return f"{method}@{Path(folder).expanduser().absolute() if '/' in folder else folder}"


def method_and_folder(name: str) -> tuple[str, str | None]:
    """The two parts of ``METHOD@FOLDER`` or ``file.py:Class@FOLDER``; the folder is None if none is named."""
    if parts := _parts_of(name):
        return f"{parts['source']}:{parts['attribute']}", parts["folder"]
    method, at, folder = name.partition("@")
    return method, folder if at else None


def make_method(name: str, settings: Mapping[str, Any]) -> "Agent":
    """A method with these settings, in place of those chosen for the embedded model; its own defaults elsewhere.

    Args:
        name: Of :data:`ROWS`, or ``file.py:Class``.
        settings: Constructor arguments, dataclasses as objects.

    Raises:
        ValueError: If a setting is unknown, naming it, or if there is no such method or it takes none.
    """
    if is_own(name):
        return _checked(name, build(find_agent(name), settings))
    if not takes_settings(name):
        with_settings = ", ".join(name for name in ROWS if takes_settings(name))
        raise ValueError(f"method {name!r} takes no settings; those that do are {with_settings}")
    return ROWS[name].make(settings)


def make_agent(name: str) -> "Agent":
    """An agent by its name in :data:`ROWS`, ``METHOD@FOLDER``, or one of your own by ``file.py:Class`` or ``module:Class``.

    Raises:
        ValueError: If there is no such agent, or if the method has no such setting as the folder's file says.
        FileNotFoundError: If the folder has no settings of the method.
    """
    return _checked(name, find_agent(name)())


def _checked(name: str, agent: Any) -> "Agent":
    from agents.base import Agent

    if not isinstance(agent, Agent):
        raise ValueError(f"agent {name!r} is not an agents.base.Agent")
    return agent


def environment_of(name: str) -> Mapping[str, Any]:
    """Where a row edits, if its settings say so (:attr:`agents.base.Agent.environment`), without making it.

    Raises:
        ValueError: If the settings' file is not one.
        FileNotFoundError: If the folder has no settings of the method.
    """
    if takes_settings(name):
        return ROWS[name].read_environment()
    method, at, folder = name.partition("@")
    if at and takes_settings(method):
        return ROWS[method].read_environment(folder)
    parts = None if name in ROWS else _parts_of(name)
    return read_environment(parts["attribute"], parts["folder"]) if parts and parts["folder"] else {}


def find_agent(name: str) -> "Callable[[], Agent]":
    """What makes the agent of this name, without making it.

    Raises:
        ValueError: If there is no such agent.
        FileNotFoundError: If the folder has no settings of the method.
    """
    method, at, folder = name.partition("@")
    row, own_folder = (name, None) if name in ROWS else (method, folder)
    if name in ROWS or (at and takes_settings(method)):
        settings = ROWS[row].read_settings(own_folder)  # a missing file is told at once
        environment = environment_of(name)

        def make() -> "Agent":
            agent = ROWS[row].make(settings)
            if environment:
                agent.environment = environment
            return agent

        return make
    parts = _parts_of(name)
    if parts is None:
        raise ValueError(f"unknown agent {name!r}; known are {', '.join(ROWS)}, METHOD@FOLDER, or file.py:Class")
    kind = _of_a_module(name, parts["source"], parts["attribute"])
    return _with_settings(kind, parts["attribute"], parts["folder"]) if parts["folder"] else kind


def _with_settings(kind: "Callable[..., Agent]", attribute: str, folder: str) -> "Callable[[], Agent]":
    """What makes a class of one's own with the settings of a folder, which are read at once."""
    settings, environment = read_settings(attribute, folder), read_environment(attribute, folder)

    def make() -> "Agent":
        agent = build(kind, settings)
        if environment:
            agent.environment = environment
        return agent

    return make


def _of_a_module(name: str, source: str, attribute: str) -> "Callable[[], Agent]":
    """What a file or a module has under this name."""
    if source.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(source).stem, source)
        if spec is None or spec.loader is None or not Path(source).exists():
            raise ValueError(f"agent {name!r}: there is no file {source}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(source)
        except ModuleNotFoundError as error:
            raise ValueError(f"agent {name!r}: {error}") from error
    if not hasattr(module, attribute):
        raise ValueError(f"agent {name!r}: {source} has no {attribute}")
    kind: Callable[[], Agent] = getattr(module, attribute)
    return kind


def settings_of(name: str, agent: "Agent") -> dict[str, Any]:
    """What an agent was constructed with, as JSON has it, with the digest of a trained policy or of a file of one's own.

    An argument that was left out counts as what the constructor made of it, if it keeps that under the same name.
    """
    arguments = {"actions_per_batch": agent.actions_per_batch}
    for argument, value in agent.constructor_arguments.items():
        arguments[argument] = _plain(getattr(agent, argument, None) if value is None else value)
    if agent.environment:
        arguments["environment"] = _plain(dict(agent.environment))
    parts = None if name in ROWS else _parts_of(name)
    files = {"source": Path(parts["source"])} if parts else {}
    if (policy := agent.constructor_arguments.get("policy")) is not None:
        files["policy_file"] = Path(policy) / "policy.safetensors"
        arguments.pop("policy")  # where it lies is this machine's affair
    digests = {what: hashlib.sha256(path.read_bytes()).hexdigest() for what, path in files.items() if path.is_file()}
    return {argument: value for argument, value in (arguments | digests).items() if value is not None}


def _plain(value: Any) -> Any:
    """A setting as JSON has it; None for what is none (a network, a tensor)."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return None


@dataclass(frozen=True)
class Resolved:
    """One hyperparameter of a row.

    Attributes:
        name: Dotted where it is an option of a dataclass, as in ``config.policy.rank``.
        value: As JSON has it.
        source: ``row`` (it makes the row that row), ``settings`` (the file of agents/settings), or ``default``.
    """

    name: str
    value: Any
    source: str


def resolved_settings(name: str) -> list[Resolved]:
    """Every hyperparameter of a row, or of ``METHOD@FOLDER``, and where its value comes from.

    Raises:
        ValueError: If there is no such row.
        FileNotFoundError: If the folder has no settings of the method.
    """
    row, folder = row_and_folder(name)
    agent = make_agent(name)
    chosen = row.read_settings(folder) | {"environment": row.read_environment(folder)}
    settings, arguments, fixed = (_flat(part) for part in (chosen, row.arguments, row.fixed))
    resolved = []
    for argument, value in _flat(settings_of(name, agent)).items():
        if argument in fixed or (argument in arguments and value == arguments[argument]):
            source = "row"
        else:
            source = "settings" if argument in settings else "default"
        resolved.append(Resolved(argument, value, source))
    return resolved


def row_and_folder(name: str) -> tuple[Row, str | None]:
    """The row of a name in :data:`ROWS` or of ``METHOD@FOLDER``, and the folder, if it names one.

    Raises:
        ValueError: If there is no such row, or if it takes no settings and a folder is named.
    """
    method, folder = (name, None) if name in ROWS else method_and_folder(name)
    if method not in ROWS:
        near = " or ".join(difflib.get_close_matches(method, ROWS, n=3))
        hint = f"is it {near}? " if near else ""
        raise ValueError(f"unknown row {method!r}; {hint}`editenv methods` lists all of them")
    if folder is not None and not takes_settings(method):
        raise ValueError(f"{method} takes no settings, so that there is none of {folder!r}")
    return ROWS[method], folder


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
