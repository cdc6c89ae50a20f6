"""Other distributions that bring a top-level package of our name: ``agents`` (openai-agents), ``benchmarks`` (torchrl).

Whichever is installed last overwrites the other's files, and whichever comes first on the path hides the other.
"""

import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

OURS = {"agents": '"""Agents: everything that proposes deltas.', "benchmarks": '"""Benchmarks: agents on suites'}
"""How the package's own ``__init__.py`` begins."""

HOME = Path(__file__).parents[1]
"""The folder that holds our packages."""

REMEDY = (
    "install LifelongEdit into a virtual environment without the other distribution (openai-agents has a package "
    "'agents', torchrl one called 'benchmarks'); if its files were overwritten, install it again there"
)


def foreign_packages() -> dict[str, str]:
    """By package name the file that Python would import in place of ours.

    A package that is nowhere counts as none: a part of LifelongEdit may be used without the rest.
    """
    foreign = {}
    for name, beginning in OURS.items():
        installed = HOME / name / "__init__.py"
        if installed.exists() and not _begins(installed, beginning):
            foreign[name] = str(installed)  # overwritten
            continue
        if name == "benchmarks":
            continue  # a folder of this name beside someone's own code is no fault, and nothing here imports ours
        loaded = sys.modules.get(name)
        origin = loaded.__file__ if loaded is not None else getattr(find_spec(name), "origin", None)
        if origin is not None and not _begins(Path(origin), beginning):
            foreign[name] = origin  # hidden
    return foreign


def find_own_first(name: str) -> None:
    """Lets Python find our package of this name, in this process and in those that :mod:`multiprocessing` starts.

    To be called before it is imported; other packages are found where they were.
    """
    spec = find_spec(name)
    own = HOME / name
    if spec is None or own not in map(Path, spec.submodule_search_locations or ()):
        sys.path.insert(0, str(HOME))


def warn_of_foreign_packages() -> None:
    """Says so, once, when this package is imported."""
    for name, origin in foreign_packages().items():
        warnings.warn(
            f"the package {name!r} that Python finds, {origin}, is not LifelongEdit's: {REMEDY}", stacklevel=3
        )


def _begins(path: Path, beginning: str) -> bool:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(len(beginning)) == beginning
