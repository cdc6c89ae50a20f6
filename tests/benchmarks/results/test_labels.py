import itertools
import random

import pytest

from benchmarks.results.labels import MARKER, place_names

PANEL = (0.0, 0.0, 300.0, 220.0)


def meet(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@pytest.mark.parametrize("seed", range(20))
def test_names_cover_neither_names_nor_points(seed):
    """Twelve points on a rising line, as on a Pareto front, some of them close together."""
    chance = random.Random(seed)
    x, y = sorted(chance.uniform(5, 290) for _ in range(12)), sorted(chance.uniform(5, 190) for _ in range(12))
    points = list(zip(x, y, strict=True))
    labels = place_names(points, [f"agent-{i:02}" for i in range(12)], PANEL, 8)
    for a, b in itertools.combinations(labels, 2):
        assert not meet(a.box, b.box)
    for label, (x, y) in itertools.product(labels, points):
        assert not meet(label.box, (x - MARKER, y - MARKER, x + MARKER, y + MARKER))
    for label in labels:
        assert label.box[0] >= 0
        assert label.box[1] >= 0
        assert label.box[2] <= 300
        assert label.box[3] <= 220


def test_a_name_alone_is_next_to_its_point():
    (label,) = place_names([(150.0, 100.0)], ["alone"], PANEL, 8)
    assert not label.far
    assert max(map(abs, label.offset)) < 10


def test_at_the_left_edge_it_is_on_the_right():
    (label,) = place_names([(2.0, 216.0)], ["a name of some length"], PANEL, 8)
    assert label.side == "left"
    assert label.box[0] > 2


def test_without_room_each_point_still_has_its_name():
    labels = place_names([(5.0, 5.0)] * 30, ["crowded"] * 30, (0.0, 0.0, 60.0, 30.0), 8)
    assert len(labels) == 30
