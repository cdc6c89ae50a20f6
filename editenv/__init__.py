"""LifelongEdit: lifelong editing of language models as a Gymnasium environment.

Importing this package registers ``LifelongEdit-v1`` (and ``-v0``, whose reward is the paper's, without bound):

    import gymnasium as gym
    import editenv

    env = gym.make("LifelongEdit-v1", split="test", edits_per_step=20, horizon=50)

What ``__all__`` names is supported: it changes only with a new version, and old names go on working for one.
The rest is free to change. Names are imported when they are asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register, registry

from editenv import renamed
from editenv.collisions import warn_of_foreign_packages

if TYPE_CHECKING:
    from editenv.data import Edit, Locality, load_edits
    from editenv.deltas import LowRank, ridge_regression
    from editenv.env import LifelongEditEnv, RefusedActionError
    from editenv.language_model.editable_lm import EditableLM, Gradient
    from editenv.models import load_model
    from editenv.vector import LifelongEditVectorEnv

__version__ = "0.2.0"

_HOMES = {
    "Edit": "editenv.data",
    "EditableLM": "editenv.language_model.editable_lm",
    "Gradient": "editenv.language_model.editable_lm",
    "LifelongEditEnv": "editenv.env",
    "LifelongEditVectorEnv": "editenv.vector",
    "Locality": "editenv.data",
    "LowRank": "editenv.deltas",
    "RefusedActionError": "editenv.env",
    "load_edits": "editenv.data",
    "load_model": "editenv.models",
    "ridge_regression": "editenv.deltas",
}

__all__ = [
    "Edit",
    "EditableLM",
    "Gradient",
    "LifelongEditEnv",
    "LifelongEditVectorEnv",
    "Locality",
    "LowRank",
    "RefusedActionError",
    "load_edits",
    "load_model",
    "ridge_regression",
]

renamed.install()
warn_of_foreign_packages()

for version, reward in {"v0": "loss", "v1": "improvement"}.items():
    if f"LifelongEdit-{version}" not in registry:
        # A string entry point keeps the spec serialisable and this import light.
        register(
            id=f"LifelongEdit-{version}",
            entry_point="editenv.env:LifelongEditEnv",
            vector_entry_point="editenv.vector:LifelongEditVectorEnv",
            kwargs={"reward": reward},
        )


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'editenv' has no attribute {name!r}")
