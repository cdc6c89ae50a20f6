"""Where the names of points go, so that none covers another name or a point."""

from collections.abc import Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]
"""Left, bottom, right, top; as all lengths here in points (1/72 inch)."""

RADII = (7.0, 13.0, 21.0, 32.0, 45.0, 60.0)
# Above and left of a point on a Pareto front is no other one.
DIRECTIONS = ((-0.8, 0.6), (0.0, 1.0), (-1.0, 0.0), (0.8, 0.6), (1.0, 0.0), (0.8, -0.6), (0.0, -1.0), (-0.8, -0.6))
MARKER = 4.5
"""Half of a marker's width."""
FAR = 14.0
"""A name that is further from its point than this needs a line to it."""


@dataclass(frozen=True, slots=True)
class Label:
    """Where a name goes.

    Attributes:
        offset: From the point to the name's near edge.
        side: The edge of the name that is there: ``left``, ``right`` or ``center``.
        box: What it covers.
        far: Whether it needs a line to its point.
    """

    offset: tuple[float, float]
    side: str
    box: Box
    far: bool


def place_names(points: Sequence[tuple[float, float]], names: Sequence[str], within: Box, size: float) -> list[Label]:
    """A place for each name, as near to its point as there is room; the highest points choose first.

    Args:
        points: Their coordinates.
        names: One for each.
        within: Where names may be.
        size: Of the font.

    Returns:
        One for each point. Where there is no room at all, the place that covers least.
    """
    obstacles = [(x - MARKER, y - MARKER, x + MARKER, y + MARKER) for x, y in points]
    labels: dict[int, Label] = {}
    for i in sorted(range(len(points)), key=lambda i: -points[i][1]):
        taken = [*obstacles, *(label.box for label in labels.values())]
        labels[i] = min(_places(points[i], names[i], size), key=lambda label: _cost(label, taken, within))
    return [labels[i] for i in range(len(points))]


def _places(point: tuple[float, float], name: str, size: float) -> list[Label]:
    width, height = 0.62 * size * len(name), 1.1 * size
    labels = []
    for radius in RADII:
        for right, up in DIRECTIONS:
            dx, dy = radius * right, radius * up
            side = "center" if right == 0 else "left" if right > 0 else "right"
            left = point[0] + dx - {"left": 0.0, "center": width / 2, "right": width}[side]
            bottom = point[1] + dy - (0.5 - 0.5 * up) * height
            labels.append(Label((dx, dy), side, (left, bottom, left + width, bottom + height), radius > FAR))
    return labels


def _cost(label: Label, taken: Sequence[Box], within: Box) -> tuple[float, float]:
    """What is covered, and what stands outside; then the distance."""
    left, bottom, right, top = label.box
    area = (right - left) * (top - bottom)
    covered = sum(_common(label.box, other) for other in taken) + area - _common(label.box, within)
    return round(covered, 6), label.offset[0] ** 2 + label.offset[1] ** 2


def _common(a: Box, b: Box) -> float:
    """The area of what two boxes have in common."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
