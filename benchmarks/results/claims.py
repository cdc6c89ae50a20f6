"""What a record says that no replay can tell: what contradicts this version, and what nobody has checked."""

import re
import shutil
import subprocess
from pathlib import Path

from agents.registry import make_agent, settings_of, takes_settings
from agents.rows import ROWS
from benchmarks.results.records import Record, commit, disagreements, versions
from benchmarks.results.texts import imitates, printable

NEVER_CHECKED = "seconds, memory and hardware"


def wrong(record: Record) -> list[str]:
    """What of a record contradicts itself or this version: its agent's name and settings."""
    errors = []
    for field in ("suite", "agent", "model", "dataset"):
        if imitates(name := getattr(record, field)):
            errors.append(f"{field} {printable(name)} mixes alphabets, so that it reads as another name")
    method, at, _ = record.agent.partition("@")
    if record.agent not in ROWS and not (at and takes_settings(method)) and ":" not in record.agent:
        errors.append(
            f"agent {record.agent!r} is no row of `editenv methods`, METHOD@FOLDER or file.py:Class: nothing makes it"
        )
    settings = (record.configuration or {}).get("settings")
    if record.agent in ROWS and isinstance(settings, dict):
        here = settings_of(record.agent, make_agent(record.agent))
        differing = sorted({*disagreements(settings, here), *(settings.keys() ^ here.keys())})
        if differing:
            errors.append(f"settings: {', '.join(differing)} are not those of {record.agent} in this version")
    return errors


def unverified(record: Record) -> list[str]:
    """What of a record nothing here can check."""
    claims = [NEVER_CHECKED]
    configuration = record.configuration or {}
    fingerprints = configuration.get("fingerprints") or {}
    if fingerprints.get("training") is None:
        claims.append("what it learned from (the record has no fingerprint of the training edits)")
    if record.modules is None:
        claims.append("the shapes of its modules (the record does not say them)")
    if not configuration.get("settings"):
        claims.append("its settings (the record does not say them)")
    elif record.agent not in ROWS:
        claims.append("its settings and source (of an agent that is no row)")
    if (claim := _commit_claim(record.commit)) is not None:
        claims.append(claim)
    if record.versions != versions():
        claims.append("versions, which are not those here")
    return claims


def _commit_claim(recorded: str | None) -> str | None:
    """What cannot be known about a record's commit; None if the repository here has it, and nothing was changed."""
    if recorded is None:
        return "the commit (the record does not say it)"
    if recorded.endswith("-dirty"):
        return "the code (files differed from the commit)"
    if commit() is None or not _is_known(recorded):
        return "the commit (the repository here does not have it)"
    return None


def _is_known(recorded: str) -> bool:
    """Whether the repository of this package has the commit."""
    if shutil.which("git") is None or re.fullmatch(r"[0-9a-f]{40}", recorded) is None:
        return False
    git = ["git", "-C", str(Path(__file__).parent), "cat-file", "-e", f"{recorded}^{{commit}}"]
    return subprocess.run(git, capture_output=True).returncode == 0
