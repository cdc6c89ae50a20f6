"""What hypernetwork methods share (RLEdit, MEND, MALMEN, and the RL trainings): networks, options, training, its command."""

from importlib import import_module
from typing import Any

_HOMES = {"PolicyConfig": "agents.hypernetwork.config"}
_HOMES |= dict.fromkeys(
    ("GradientPolicy", "MalmenPolicy", "MendPolicy", "Normalizer", "load_policy", "make_policy", "save_policy"),
    "agents.hypernetwork.networks",
)


def __getattr__(name: str) -> Any:
    """In version 0.1 this was a module that held all of these."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__} has no attribute {name!r}")
