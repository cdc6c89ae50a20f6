"""What undoing corrections comes to, said before it is done: which batches go, what is made again, and how long."""

import sys
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from agents.editing.run import Key, Run, key_of


@dataclass(frozen=True)
class Plan:
    """What undoing some corrections comes to.

    Attributes:
        keys: Of the corrections.
        entries: Of the batches that go.
        again: How many other corrections are to be made again.
        seconds: How long that takes if it takes as long as it did.
    """

    keys: Collection[Key]
    entries: list[dict[str, Any]]
    again: int
    seconds: float

    @classmethod
    def of(cls, run: Run, keys: Collection[Key], independent: bool) -> "Plan":
        """As :meth:`agents.editing.run.Run.batches_with` has it; what an earlier undoing left is made again, too."""
        entries = run.batches_with(keys, independent)
        made = [entry for entry in entries if not entry.get("rehearsal")]
        again = {key_of(content) for entry in made for content in entry["content"]} | run.pending.keys()
        again -= set(keys)
        timed = entries or run.entries
        edits = sum(entry["edits"] for entry in timed)
        seconds = sum(entry["seconds"] for entry in timed) * len(again) / edits if edits else 0.0
        return cls(keys, entries, len(again), seconds)

    def in_words(self, method: str) -> str:
        """The cost, in a sentence."""
        corrections = f"{len(self.keys)} correction{'s' if len(self.keys) != 1 else ''}"
        if not self.keys:
            left = (
                f"; {self.again} others are still to be made again, about {duration(self.seconds)}"
                if self.again
                else ""
            )
            return f"all of this was undone before{left}"
        if not self.again:
            return f"{corrections} will be undone; no other is made again"
        why = f"{method} makes each batch on top of those before it"
        return (
            f"{corrections} will be undone, and {self.again} others that were made with or after them are made again, "
            f"about {duration(self.seconds)}: {why}"
        )


def duration(seconds: float) -> str:
    """A length of time for people: ``40 s``, ``3.3 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.2g} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def consent(plan: Plan, cost: str, yes: bool) -> None:
    """Asks on a terminal whether what costs time is to be done; nothing is asked if nothing is made again.

    Raises:
        ValueError: If the answer is no, or if there is no terminal to ask on and ``yes`` is not given.
    """
    if yes or not plan.again:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ValueError(f"{cost}. Nothing was done yet: --yes does it")
    print(f"{cost}. Do it? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ValueError("nothing was done")
