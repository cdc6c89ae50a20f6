"""Every command that a document or a module's description shows must be accepted as it stands.

The command itself is started, as ``python -m`` or the console script start it, until its arguments are parsed.
"""

import ast
import contextlib
import re
import runpy
import textwrap
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import tyro
from documents import DOCUMENTS, ROOT, SHELL, blocks_of, command_lines, name_of

from editenv.renamed import MODULES as OLD

PACKAGES = ("agents", "benchmarks", "editenv")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
OURS = ("editenv", "python -m agents", "python -m benchmarks", "python -m editenv")
FOREIGN = (
    "docker",
    "git",
    "make",
    "openenv validate",
    "pre-commit install",
    "python -m build",
    "python -m pip install",
    "python -m pytest",
    "python3 -m venv",
    "ray start",
    "vf-eval",
)
"""How other commands of the documents begin: they are not tried."""

WITHOUT_ARGUMENTS = {"benchmarks.suites"}
"""Modules that only print something."""


class ParsedError(Exception):
    """The arguments were accepted."""


def is_ours(words):
    return " ".join(words).startswith(OURS)


def docstrings(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield text


def shown_in_docstring(text):
    """A command stands in lines of its own: after a blank line or another command, or indented."""
    shown, before = [], ""
    for line in text.replace("\\\n", " ").splitlines():
        alone = not before.strip() or before.strip().startswith(OURS) or line.startswith("    ")
        if alone and line.strip().startswith(OURS) and not line.endswith((".", ":", ",")):
            shown += command_lines(line)
        before = line
    return shown


def shown_commands():
    for path in DOCUMENTS:
        for block in blocks_of(path):
            if block.language in SHELL:
                yield from ((str(block), words) for words in command_lines(textwrap.dedent(block.code)))
    for path in MODULES:
        for text in docstrings(path):
            yield from ((name_of(path), words) for words in shown_in_docstring(text))


SHOWN = list(shown_commands())
COMMANDS = sorted({tuple(words) for _, words in SHOWN if is_ours(words)})


def module_of(words):
    return "editenv" if words[0] == "editenv" else words[2]


def test_there_are_commands_of_every_kind():
    modules = {module_of(words) for words in COMMANDS}
    assert {"agents.rledit", "agents.rl.sb3", "benchmarks.run", "benchmarks.suites", "editenv"} <= modules
    assert {words[1] for words in COMMANDS if words[0] == "editenv"} >= {"edit", "train", "apply", "inspect", "methods"}


def test_no_line_of_a_shell_block_is_something_else():
    others = {where: " ".join(words) for where, words in SHOWN if not is_ours(words)}
    assert others
    unknown = {where: line for where, line in others.items() if not line.startswith(FOREIGN)}
    assert not unknown, "a command that nothing here tries, or the block is no shell code: call it text"


def test_every_module_that_is_named_can_be_run_and_none_is_skipped():
    """A module shown in a line of its own is among the commands that are tried, whatever its dots."""
    texts = {name_of(path): path.read_text(encoding="utf-8") for path in (*DOCUMENTS, *MODULES)}
    tried = {module_of(words) for words in COMMANDS}
    for name, text in texts.items():
        for indent, module in re.findall(
            r"(^ *)?python -m ((?:agents|benchmarks|editenv)[\w.]*\w)", text, re.MULTILINE
        ):
            spec = find_spec(module)
            assert spec is not None, f"{name}: there is no module {module}"
            if spec.submodule_search_locations:
                assert find_spec(f"{module}.__main__"), f"{name}: python -m {module} runs nothing"
            else:
                assert "__main__" in Path(spec.origin).read_text(encoding="utf-8"), f"{name}: {module} runs nothing"
            if len(indent) >= 4 or (name.endswith(".md") and f"\npython -m {module}" in text):
                assert module in tried, f"{name}: python -m {module} is shown, and skipped"


def test_old_names_are_not_shown():
    old = {name for name in OLD if not (ROOT / f"{name.replace('.', '/')}.py").exists()}
    assert not {module_of(words) for words in COMMANDS} & old


@pytest.fixture
def parsing(monkeypatch):
    """tyro.cli as it is, but nothing is done with what it has parsed."""
    parse = tyro.cli

    def parse_only(*args, **kwargs):
        parse(*args, **kwargs)
        raise ParsedError

    monkeypatch.setattr("tyro.cli", parse_only)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_shown_command_is_accepted(words, parsing, monkeypatch, capsys):
    module = module_of(words)
    arguments = list(words[1:] if words[0] == "editenv" else words[3:])
    if "--help" in arguments:
        arguments.remove("--help")
    monkeypatch.setattr("sys.argv", [module, *arguments])
    with warnings.catch_warnings(), contextlib.suppress(ParsedError):
        warnings.simplefilter("ignore", RuntimeWarning)  # the module has been imported before, by other tests
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as error:
            if error.code:
                pytest.fail(capsys.readouterr().err)
        assert module in WITHOUT_ARGUMENTS
        assert not arguments
