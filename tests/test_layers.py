import ast
from pathlib import Path

import pytest

import agents
import benchmarks
import editenv

ABOVE = {"editenv": {"agents", "benchmarks"}, "agents": {"benchmarks"}, "benchmarks": set()}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", [editenv, agents, benchmarks], ids=lambda package: package.__name__)
def test_imports_point_one_way(package):
    files = sorted(Path(package.__path__[0]).rglob("*.py"))
    assert len(files) > 5
    for path in files:
        assert not ABOVE[package.__name__] & set(imported(path)), path
