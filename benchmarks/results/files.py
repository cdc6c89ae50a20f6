"""Reading files that strangers may have written: whatever they hold, the outcome is a value or one ValueError."""

import json
import stat
from pathlib import Path
from typing import Any

LARGEST_FILE = 500 * 10**6
"""Bytes of a file of results; one of ours is below 10 MB."""

DEEPEST = 40
"""Levels of nesting; a record has six."""


def read_text(path: Path) -> str:
    """The content of a file.

    Raises:
        ValueError: If it is none (a folder, a pipe, a device), too large, not to be read, or not UTF-8; names it.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a file")
        if status.st_size > LARGEST_FILE:
            raise ValueError(f"{path} has {status.st_size:,} bytes, more than a file of results has ({LARGEST_FILE:,})")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start} is not") from error


def parse(text: str) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: If it is none, or nested deeper than anything of ours.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"is nested deeper than {DEEPEST} levels") from None
    level = [value]
    for _ in range(DEEPEST):
        level = [
            part
            for one in level
            if isinstance(one, dict | list)
            for part in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return value
    raise ValueError(f"is nested deeper than {DEEPEST} levels")
