"""Commands that module descriptions and the README show must be accepted as they stand."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import tyro

ROOT = Path(__file__).parent.parent
SHOWN = [*(path for room in ("agents", "benchmarks", "editenv") for path in sorted((ROOT / room).rglob("*.py")))]
SHOWN += [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if path.exists()]
COMMAND = re.compile(r"^ *(?:\$ )?(?:\.venv/bin/)?python -m ((?:agents|benchmarks)(?:\.\w+)+) ([^#\n]*)", re.MULTILINE)
TEXTS = [path.read_text(encoding="utf-8").replace("\\\n", " ") for path in SHOWN]
COMMANDS = sorted({(module, rest.strip()) for text in TEXTS for module, rest in COMMAND.findall(text)})


def test_there_are_commands():
    assert {"agents.rledit", "agents.rl.sb3", "benchmarks.run"} <= {module for module, _ in COMMANDS}


@pytest.mark.parametrize(("module", "arguments"), COMMANDS, ids=[" ".join(command) for command in COMMANDS])
def test_a_shown_command_is_accepted(module, arguments):
    arguments = [part for part in shlex.split(arguments) if part != "--help"]
    options = "agents.hypernetwork.train_command" if module in ("agents.rledit", "agents.rl.online") else module
    tyro.cli(importlib.import_module(options).Args, args=arguments)
