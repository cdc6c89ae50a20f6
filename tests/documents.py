"""The project's Markdown as tests read it: documents, their blocks of code, and the command lines in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *(path for room in ("docs", "agents", "benchmarks", "editenv", "examples") for path in (ROOT / room).rglob("*.md")),
]
MARKDOWN = MarkdownIt("commonmark").enable("table")
SHELL = ("", "sh")


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        document: Its file, from the repository's root.
        line: Its first line in the file, from 1.
        language: First word of the fence's info string.
        options: The rest of it.
        code: The block.
    """

    document: str
    line: int
    language: str
    options: str
    code: str

    @property
    def title(self) -> str | None:
        """The file that the block is, or is a part of, if it names one."""
        named = re.search(r'title="(.*?)"', self.options)
        return named[1] if named else None

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks_of(path: Path) -> list[Block]:
    found = []
    for token in MARKDOWN.parse(path.read_text(encoding="utf-8")):
        if token.type == "fence":
            language, _, options = token.info.strip().partition(" ")
            found.append(Block(name_of(path), token.map[0] + 1, language, options, token.content))
    return found


def command_lines(text: str) -> list[list[str]]:
    """The words of each command in shell code: without prompts, environment variables, comments and .venv/bin/."""
    commands = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if words:
            commands.append([words[0].removeprefix(".venv/bin/"), *words[1:]])
    return commands
