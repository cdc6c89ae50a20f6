"""The agents by name, as benchmarks list them.

A name is a row of a table: a method with its options. ``some_file.py:Name`` and ``package.module:Name`` name an
:class:`agents.base.Agent` of your own, made without arguments.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path

from agents.base import Agent
from agents.fine_tune import FineTune
from agents.hypernetwork import PolicyConfig
from agents.no_edit import NoEdit
from agents.rledit import RLEdit, TrainConfig

# Chosen on the validation split (docs/results/atlas.md says how). One budget for every trained row.
PAPER = TrainConfig(trajectories=40, horizon=25, memory_samples=3)
PRECONDITIONED = replace(PAPER, preconditioner=True)
CLOSED_LOOP = replace(PRECONDITIONED, actions_per_batch=4)


def packaged_policy(name: str) -> Path:
    """Folder of a policy that ships with the package."""
    return Path(str(resources.files("agents"))) / "policies" / name


AGENTS: dict[str, tuple[str, Callable[[], Agent]]] = {
    "no-edit": ("nothing is done", NoEdit),
    "fine-tune": ("Adam on the edited modules, batch after batch", FineTune),
    "untrained": ("RLEdit's network as it is initialised", lambda: RLEdit(PAPER, train=False)),
    "rledit": ("RLEdit as the paper has it, one action per batch", lambda: RLEdit(PAPER)),
    "rledit-fixed": (
        "the same network and budget, trained on the fixed initial model",
        lambda: RLEdit(replace(PAPER, environment="fixed")),
    ),
    "rledit-step-credit": (
        "RLEdit with each delta answering for its own reward only",
        lambda: RLEdit(replace(PAPER, credit="step")),
    ),
}

__all__ = ["AGENTS", "PolicyConfig", "make_agent", "packaged_policy"]


def make_agent(name: str) -> Agent:
    """An agent by its name in :data:`AGENTS`, or one of your own by ``file.py:Class`` or ``module:Class``.

    Raises:
        ValueError: If there is no such agent.
    """
    if name in AGENTS:
        return AGENTS[name][1]()
    place, colon, attribute = name.rpartition(":")
    if not colon:
        raise ValueError(f"unknown agent {name!r}; known are {', '.join(AGENTS)}, or file.py:Class")
    if place.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        if spec is None or spec.loader is None or not Path(place).exists():
            raise ValueError(f"agent {name!r}: there is no file {place}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    if not hasattr(module, attribute):
        raise ValueError(f"agent {name!r}: {place} has no {attribute}")
    agent = getattr(module, attribute)()
    if not isinstance(agent, Agent):
        raise ValueError(f"agent {name!r}: {attribute} is not an agents.base.Agent")
    return agent
