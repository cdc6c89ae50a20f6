"""A taskset for the package verifiers, which finds tasksets by the name of a top-level module.

PYTHONPATH=examples vf-eval lifelongedit-text
"""

from editenv.language_agents.verifiers_env import LifelongEditTaskset, LifelongEditTextEnv

__all__ = ["LifelongEditTaskset", "LifelongEditTextEnv"]
