"""Agents: everything that proposes deltas. They see the environment only through its public face.

What ``__all__`` names is supported: it changes only with a new version, and old names go on working for one.
The rest is free to change. Names are imported when they are asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import editenv  # noqa: F401 - lets the import system find modules by the names they had in version 0.1

if TYPE_CHECKING:
    from agents.base import Agent, Observation
    from agents.editing.editor import LifelongEditor
    from agents.hypernetwork.config import PolicyConfig, TrainConfig
    from agents.hypernetwork.training import training_environment
    from agents.registry import make_agent
    from agents.rledit.agent import RLEdit
    from agents.rows import ROWS

_HOMES = {
    "Agent": "agents.base",
    "LifelongEditor": "agents.editing.editor",
    "Observation": "agents.base",
    "PolicyConfig": "agents.hypernetwork.config",
    "RLEdit": "agents.rledit.agent",
    "ROWS": "agents.rows",
    "TrainConfig": "agents.hypernetwork.config",
    "make_agent": "agents.registry",
    "training_environment": "agents.hypernetwork.training",
}

__all__ = [
    "ROWS",
    "Agent",
    "LifelongEditor",
    "Observation",
    "PolicyConfig",
    "RLEdit",
    "TrainConfig",
    "make_agent",
    "training_environment",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'agents' has no attribute {name!r}")
