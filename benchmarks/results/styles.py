"""How a row looks: the same colour, line and marker in every figure, and on the leaderboard page.

A name is a family and what follows it (``rledit-p-long`` is ``rledit-p`` and ``long``): the family has the colour and
the marker, the variant has the dashes. Names of neither kind get theirs from a hash of the name, so that an agent of
your own looks the same tomorrow.
"""

import hashlib
from dataclasses import dataclass

from benchmarks.results.leaderboard import LOWER_REFERENCE, UPPER_REFERENCE, is_upper_reference


@dataclass(frozen=True, slots=True)
class Style:
    """Attributes:
    colour: ``#rrggbb``, at a contrast of 3 or more on white.
    dashes: Lengths of strokes and gaps in line widths; empty for a solid line.
    marker: One of matplotlib's.
    hollow: Whether the marker is not filled.
    """

    colour: str
    dashes: tuple[float, ...]
    marker: str
    hollow: bool = False


FAMILIES: dict[str, tuple[str, str]] = {
    # The paper's method, its network before training, and both with the preconditioner.
    "rledit": ("#1f66b5", "o"),
    "untrained": ("#5f8fdc", "v"),
    "rledit-p": ("#b3203f", "s"),
    "untrained-p": ("#e0657c", "^"),
    "demo-rledit": ("#b3203f", "s"),
    "demo-untrained": ("#e0657c", "^"),
    # Locate, then edit.
    "rome": ("#7c9416", "P"),
    "memit": ("#14753f", "D"),
    "memit-rehearsed": ("#2b9c7a", "D"),
    "memit-reworded": ("#6a3fb0", "D"),
    "prune": ("#7d6a4f", "<"),
    "rect": ("#2b9c7a", "p"),
    "alphaedit": ("#6a3fb0", "X"),
    "rlsedit": ("#14753f", "o"),
    "simie": ("#2b9c7a", "8"),
    "o-edit": ("#6a3fb0", "s"),
    "pmet": ("#14753f", "<"),
    "nse": ("#7c9416", "*"),
    "anyedit": ("#6a3fb0", "^"),
    "kn": ("#7d6a4f", "v"),
    "ece": ("#7c9416", "o"),
    # Fine-tuning.
    "fine-tune": ("#d1660f", "h"),
    "ft-l": ("#93400a", ">"),
    "lora": ("#b08500", "d"),
    "crispedit": ("#d1660f", "p"),
    "locft-bf": ("#d1660f", "8"),
    # Networks that turn gradients into updates.
    "mend": ("#c2358f", "*"),
    "malmen": ("#7d1f66", "8"),
    "dafnet": ("#a374dd", "H"),
    "hiedit": ("#1f66b5", "P"),
    "ke": ("#c2358f", "o"),
    # Beside the weights: memories, and text before a question.
    "grace": ("#33606f", "s"),
    "t-patcher": ("#33606f", "v"),
    "wise": ("#33606f", "D"),
    "rag": ("#0b93ad", "o"),
    "ike": ("#0b93ad", "X"),
    "serac": ("#0b93ad", "s"),
    "oneedit": ("#0b93ad", "P"),
    "lte": ("#1f66b5", "X"),
    "lte-gated": ("#d1660f", "X"),
    # Normalised gradients and a regression.
    "ultraedit": ("#0b93ad", "d"),
    "stableedit": ("#33606f", "p"),
    # General reinforcement learning.
    "online-rledit": ("#0b93ad", "^"),
    "reinforce": ("#d1660f", "D"),
    "evolution": ("#14753f", "v"),
    "ppo": ("#6a3fb0", "P"),
    "a2c": ("#c2358f", "X"),
    "sac": ("#7d6a4f", "*"),
    "td3": ("#33606f", "<"),
    "ddpg": ("#b08500", ">"),
    "tqc": ("#7c9416", "h"),
}
"""Colour and marker by family; relatives are of one hue, or next to each other."""

DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (4.5, 1.6),
    (1.2, 1.4),
    (6, 1.6, 1.2, 1.6),
    (4, 1.4, 1.2, 1.4, 1.2, 1.4),
    (9, 2.5),
    (2.5, 2.5),
    (9, 1.6, 4, 1.6),
)

VARIANTS: dict[str, int] = {
    "": 0,
    "k4": 1,
    "seq": 1,
    "fixed": 2,
    "retrained": 2,
    "long": 3,
    "rledit": 3,
    "seq-long": 3,
    "no-memory": 3,
    "step-credit": 4,
    "long-fixed": 5,
    "no-regularization": 5,
    "batch": 1,
    "merge": 2,
    "replay": 2,
    "seq-nas": 4,
    "long-step-credit": 6,
    "previous-reference": 6,
    "packaged": 7,
}
"""Index in :data:`DASHES` of what follows a family's name; within a family no two are the same."""

REFERENCES = {
    LOWER_REFERENCE: Style("#6b727b", DASHES[1], "o", hollow=True),
    UPPER_REFERENCE: Style("#6b727b", DASHES[2], "D", hollow=True),
}
"""No editing, and joint fine-tuning: what the others are measured by."""

STATES = {
    "hidden state": Style("#22262c", DASHES[0], "o"),
    "MLP": Style("#22262c", DASHES[1], "s", hollow=True),
    "attention": Style("#8b6f1d", DASHES[2], "x"),
}
"""Of a causal trace: what is restored of a layer. No row has these colours."""

REST = "#cdd1d6"
"""Of the lines that are there to be compared with, and have no name in the legend."""

MARKERS = "osDv^P*X"


def style_of(agent: str) -> Style:
    """The row's style, whatever else is in the figure."""
    if agent == LOWER_REFERENCE or is_upper_reference(agent):
        return REFERENCES[UPPER_REFERENCE if is_upper_reference(agent) else LOWER_REFERENCE]
    if agent in STATES:
        return STATES[agent]
    name = agent.removeprefix("sb3-")
    family = max(
        (family for family in FAMILIES if f"{name}-".startswith((f"{family}-", f"{family}@"))), key=len, default=""
    )
    if not family:
        return _style_of_stranger(agent)
    colour, marker = FAMILIES[family]
    variant = name[len(family) :].removeprefix("-")
    index = VARIANTS[variant] if variant in VARIANTS else _hash(variant, 1, len(DASHES))
    return Style(colour, DASHES[index], marker)


def _style_of_stranger(agent: str) -> Style:
    colours = sorted({colour for colour, _ in FAMILIES.values()})
    return Style(
        colours[_hash(f"colour of {agent}", 0, len(colours))],
        DASHES[_hash(f"dashes of {agent}", 1, len(DASHES))],
        MARKERS[_hash(f"marker of {agent}", 0, len(MARKERS))],
    )


def _hash(text: str, low: int, high: int) -> int:
    """A number from low to below high, the same on every machine (Python's own hash is not)."""
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
    return low + int.from_bytes(digest[:4], "big") % (high - low)
