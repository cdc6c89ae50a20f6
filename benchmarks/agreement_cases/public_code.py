"""Public repositories: where their clones lie, and how their code is imported as it is.

Some of it needs packages that the compared part does not use, or a GPU; this module puts empty modules in the place of
the former, and the CPU in the place of the latter.
"""

import importlib
import subprocess
import sys
from contextlib import chdir
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Repository:
    """A public repository on GitHub.

    Attributes:
        name: ``owner/name``.
        commit: The commit that the records are about.
    """

    name: str
    commit: str

    def clone(self, public: Path) -> Path:
        """The clone's folder.

        Args:
            public: The folder of all clones.

        Raises:
            FileNotFoundError: If it is not there; says what to clone.
        """
        folder = public / self.name.partition("/")[2]
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} is not there: git clone https://github.com/{self.name} {folder} && "
                f"git -C {folder} checkout {self.commit}"
            )
        return folder

    def checked_out(self, public: Path) -> str:
        """The commit that the clone stands at.

        Raises:
            FileNotFoundError: As :meth:`clone`.
            ValueError: If it is another one than :attr:`commit`, or the folder is no clone, or its Python files were changed.
        """
        folder = self.clone(public)
        head = _git(folder, "rev-parse", "HEAD")
        if head != self.commit:
            raise ValueError(
                f"{folder} stands at {head or 'no commit'}; the comparison is with {self.commit}: "
                f"git -C {folder} checkout {self.commit}"
            )
        changed = _git(folder, "diff", "--name-only", "HEAD", "--", "*.py").splitlines()
        if changed:
            raise ValueError(f"{folder}: {changed[0]} is not as it was committed ({len(changed)} such files)")
        return head


@dataclass(frozen=True)
class Package:
    """A package of the package index, in the place of a repository; its version is its commit.

    Attributes:
        name: Its name there.
    """

    name: str

    def clone(self, public: Path) -> Path:
        """Nothing has to be cloned."""
        return public

    def checked_out(self, public: Path) -> str:
        """The installed version.

        Raises:
            FileNotFoundError: If it is not installed.
        """
        try:
            return version(self.name)
        except PackageNotFoundError:
            raise FileNotFoundError(f"{self.name} is not installed: pip install {self.name}") from None


def _git(folder: Path, *arguments: str) -> str:
    """What git prints about the clone itself, not about a repository around it; empty if it fails."""
    if not (folder / ".git").exists():
        return ""
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


class _Empty(ModuleType):
    """A module of which anything can be imported, and nothing does anything."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=f"{self.__name__}.{name}")


def leave_out(*names: str) -> None:
    """Puts empty modules in the place of those that the compared code imports and does not use."""
    for name in names:
        sys.modules[name] = _Empty(name)


def without_init(name: str, folder: Path) -> None:
    """Makes a package known whose ``__init__`` is not run: its modules can be imported one by one."""
    package = ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package


def imported(folder: Path, name: str) -> Any:
    """A module of a clone, imported as from the clone's root: some read files there."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    with chdir(folder):
        return importlib.import_module(name)


class OnCPU(TorchFunctionMode):
    """Within the context, whatever public code puts on a GPU goes to the CPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        return func(*map(_cpu, args), **{name: _cpu(value) for name, value in (kwargs or {}).items()})


def _cpu(argument: Any) -> Any:
    is_gpu = str(argument).startswith("cuda") if isinstance(argument, str | torch.device) else False
    return torch.device("cpu") if is_gpu else argument
