"""``--help`` of every command teaches: what it is for, and what each of its options does."""

import ast
from pathlib import Path

import pytest

COMMANDS = [
    path
    for path in sorted((Path(__file__).parents[2] / "benchmarks").glob("*.py"))
    if "\nclass Args:" in path.read_text(encoding="utf-8")
]


def test_there_are_commands():
    assert {"run", "report", "validate", "tune", "demo"} <= {path.stem for path in COMMANDS}


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_a_command_says_what_it_is_for_and_shows_itself(path):
    description = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert f"python -m benchmarks.{path.stem}" in description


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_every_option_is_explained(path):
    """By a text below it, which is what ``--help`` shows."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    (arguments,) = [node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "Args"]
    for field, following in zip(arguments.body, [*arguments.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            explained = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            assert explained, f"--{field.target.id}"
