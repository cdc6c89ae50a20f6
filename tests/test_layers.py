"""Imports point one way: between the three packages, and between the rooms inside each of them."""

import ast
from pathlib import Path

import pytest

import agents
import benchmarks
import editenv

PACKAGES = (editenv, agents, benchmarks)
ABOVE = {"editenv": {"agents", "benchmarks"}, "agents": {"benchmarks"}, "benchmarks": set()}

# The rooms of a package from the bottom up; those of a line do not know each other.
# A file that lies in no folder is a room of its own.
FLOORS = {
    "editenv": [
        {"atomic_files", "renamed", "collisions", "arguments"},
        {"deltas", "sealed_json", "context_retrieval"},
        {"contexts"},
        {"memories"},
        {"models", "data"},
        {"language_model", "output_folders"},
        {"identity"},
        {"rounding"},
        {"evaluation", "delta_files", "journal"},
        {"rewards", "inspection"},
        {"rendering"},
        {"env"},
        {"wrappers"},
        {"language_agents"},
        {"vector"},
        {"__main__"},
    ],
    "agents": [
        {"base", "settings", "progress"},
        {"self_written"},
        {"covariance", "preconditioner", "view"},
        {"hypernetwork"},
        {"rledit", "baselines", "rl"},
        {"rows"},
        {"registry"},
        {"editing"},
        {"cli"},
        {"__main__"},
    ],
}


def imported(path):
    """Dotted names of what a file imports, functions' own imports included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(package):
    home = Path(package.__path__[0])
    return [(path, path.relative_to(home).with_suffix("").parts[0]) for path in sorted(home.rglob("*.py"))]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_packages_point_one_way(package):
    files = files_of(package)
    assert len(files) > 5
    for path, _ in files:
        assert not ABOVE[package.__name__] & {name.split(".")[0] for name in imported(path)}, path


@pytest.mark.parametrize("package", PACKAGES[:2], ids=lambda package: package.__name__)
def test_rooms_inside_a_package_point_one_way(package):
    floor_of = {room: number for number, rooms in enumerate(FLOORS[package.__name__]) for room in rooms}
    files = [(path, room) for path, room in files_of(package) if room != "__init__"]
    assert {room for _, room in files} <= set(floor_of), "a new room: say on which floor it is"
    for path, room in files:
        rooms = {name.split(".")[1] for name in imported(path) if name.startswith(f"{package.__name__}.")}
        for other in rooms & set(floor_of) - {room}:
            assert floor_of[other] < floor_of[room], f"{path} imports {package.__name__}.{other}"


def test_an_older_method_does_not_stand_on_rledit():
    for room in ("baselines", "hypernetwork"):
        for path in (Path(agents.__path__[0]) / room).rglob("*.py"):
            assert not any(name.startswith("agents.rledit") for name in imported(path)), path


def test_what_all_names_can_be_imported():
    for package in (editenv, agents):
        for name in package.__all__:
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError, match="no_such_name"):
            package.no_such_name  # noqa: B018
    assert len(editenv.__all__) + len(agents.__all__) <= 20
