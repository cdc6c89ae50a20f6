from rich.progress import Progress

from benchmarks.running.progress import CellsProgress


def test_what_is_left_is_said_by_the_cells_that_are_done():
    now = [100.0]
    with Progress(disable=True) as bars:
        progress = CellsProgress(bars, 5, clock=lambda: now[0])
        assert progress.left() == ""
        for _ in range(2):
            progress.report("editing", 3, 10)
            now[0] += 60
            progress.finished()
        assert progress.left() == "left: 0:03:00"
        now[0] += 20  # in the third cell
        assert progress.left() == "left: 0:02:40"
        now[0] += 1000
        assert progress.left() == "left: 0:00:00"
