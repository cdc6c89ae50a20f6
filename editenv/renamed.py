"""Names of version 0.1 that have moved: they go on working for one version, with a warning that says the new name.

Everything about the old names is in this file, so that the next version can drop them by deleting it and its callers.
"""

import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

MODULES = {
    "agents.alphaedit": "agents.baselines.alphaedit",
    "agents.corrections": "agents.editing.corrections",
    "agents.dafnet": "agents.baselines.dafnet",
    "agents.edit_command": "agents.editing.edit_command",
    "agents.editor": "agents.editing.editor",
    "agents.episodes": "agents.rl.episodes",
    "agents.evolution": "agents.rl.evolution",
    "agents.export_trajectories": "agents.rl.export_trajectories",
    "agents.fine_tune": "agents.baselines.fine_tune",
    "agents.fixed": "agents.baselines.fixed_model",
    "agents.lora": "agents.baselines.lora",
    "agents.malmen": "agents.baselines.malmen",
    "agents.memit": "agents.baselines.memit",
    "agents.mend": "agents.baselines.mend",
    "agents.no_edit": "agents.baselines.no_edit",
    "agents.noise": "agents.rl.noise",
    "agents.online": "agents.rl.online",
    "agents.policy_gradient": "agents.hypernetwork.training",
    "agents.prune": "agents.baselines.prune",
    "agents.rect": "agents.baselines.rect",
    "agents.reinforce": "agents.rl.reinforce",
    "agents.rome": "agents.baselines.rome",
    "agents.saving": "agents.editing.saving",
    "agents.sb3": "agents.rl.sb3",
    "agents.sb3_streams": "agents.rl.sb3_streams",
    "agents.stableedit": "agents.baselines.stableedit",
    "agents.train_command": "agents.hypernetwork.train_command",
    "agents.ultraedit": "agents.baselines.ultraedit",
    "agents.values": "agents.baselines.values",
    "benchmarks.cells": "benchmarks.running.cells",
    "benchmarks.leaderboard": "benchmarks.results.leaderboard",
    "benchmarks.page": "benchmarks.results.page",
    "benchmarks.progress": "benchmarks.running.progress",
    "benchmarks.published": "benchmarks.results.published",
    "benchmarks.ray_runner": "benchmarks.running.ray_runner",
    "benchmarks.recording": "benchmarks.running.recording",
    "benchmarks.records": "benchmarks.results.records",
    "benchmarks.rollout": "benchmarks.running.rollout",
    "benchmarks.statistics": "benchmarks.results.statistics",
    "editenv.dynamics": "editenv.language_model.editable_lm",
    "editenv.frozen_outputs": "editenv.language_model.activation_cache",
    "editenv.generation": "editenv.evaluation.greedy",
    "editenv.metrics": "editenv.evaluation.metrics",
    "editenv.probes": "editenv.evaluation.probes",
    "editenv.prompts": "editenv.language_model.prompts",
    "editenv.questions": "editenv.evaluation.batch",
    "editenv.whole_files": "editenv.atomic_files",
}
"""Module of version 0.1 -> module of now; ``python -m`` takes either."""

OPTIONS = {"end_of_answer": "train_eos", "keep_encodings": "keep_cache"}
"""Keyword and command-line option of version 0.1 -> the one of now."""


def renamed_keywords(where: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords given, under the names of now.

    Args:
        where: The function they were given to, for the message.
        given: Keywords by name.

    Raises:
        TypeError: If a keyword is neither known as an old name nor taken; names it.
    """
    keywords = {}
    for name, value in given.items():
        if name not in OPTIONS:
            raise TypeError(f"{where} got an unexpected keyword argument {name!r}")
        warnings.warn(f"{where}: {name} is now called {OPTIONS[name]}", FutureWarning, stacklevel=3)
        keywords[OPTIONS[name]] = value
    return keywords


def renamed_options(words: Sequence[str]) -> list[str]:
    """A command line with its options under the names of now; tells on stderr about each old one."""
    options = {f"--{no}{old}": f"--{no}{new}" for old, new in OPTIONS.items() for no in ("", "no-")}
    options = {old.replace("_", "-"): new.replace("_", "-") for old, new in options.items()}
    new_words = []
    for word in words:
        option, equals, value = word.partition("=")
        if option.replace("_", "-") in options:
            new = options[option.replace("_", "-")]
            print(f"note: {option} is now called {new}", file=sys.stderr)
            word = new + equals + value
        new_words.append(word)
    return new_words


class _RenamedModule(Loader):
    """Gives the module of now under its old name."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(MODULES[spec.name])
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put the old name's there

    def get_code(self, name: str) -> CodeType:
        """What ``python -m OLD_NAME`` runs."""
        new = MODULES[name]
        print(f"note: python -m {name} is now python -m {new}", file=sys.stderr)
        code = compile(f"import runpy; runpy.run_module({new!r}, run_name='__main__', alter_sys=True)", name, "exec")
        assert isinstance(code, CodeType)
        return code

    def get_source(self, name: str) -> None:
        """None is had: the code is the new module's."""

    def is_package(self, name: str) -> bool:
        return False


class _RenamedModules(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in MODULES:
            return None
        if sys.argv[:1] != ["-m"]:  # `python -m` looks for its module: get_code tells then
            warnings.warn(f"module {name} is now {MODULES[name]}", FutureWarning, stacklevel=2)
        return ModuleSpec(name, _RenamedModule())


def install() -> None:
    """Lets the import system find the old names; done once, when the package is imported."""
    if not any(isinstance(finder, _RenamedModules) for finder in sys.meta_path):
        sys.meta_path.append(_RenamedModules())
