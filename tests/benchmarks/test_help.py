"""``--help`` of every command teaches: what it is for, and what each of its options does."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from agents.editing.arguments import AdviseArgs, EditArgs, UndoArgs
from agents.editing.guard import Guard
from editenv.data.files import FileOptions

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


def arguments_of(path):
    """Their class's docstring, and the options' names."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    (arguments,) = [node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "Args"]
    names = [field.target.id for field in arguments.body if isinstance(field, ast.AnnAssign)]
    return ast.get_docstring(arguments) or "", names


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_every_option_is_explained(path):
    """Under the class's Attributes, which is where ``--help`` takes it from."""
    text, names = arguments_of(path)
    assert re.findall(r"^    (\w+): .", text, re.MULTILINE) == names


@pytest.mark.parametrize(
    "text",
    [inspect.getdoc(arguments) for arguments in (EditArgs, UndoArgs, AdviseArgs, FileOptions, Guard)]
    + [arguments_of(path)[0] for path in COMMANDS],
)
def test_help_has_no_line_that_ends_early(text):
    """tyro starts a new line where a docstring's own next line does not begin with a letter."""
    _, _, attributes = text.partition("Attributes:\n")
    assert attributes
    assert re.findall(r"^ {8}[^a-zA-Z].*", attributes, re.MULTILINE) == []
