"""How cells are distributed, with a cluster of plain Python; the real one is in test_ray_cluster.py."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_records import RECORD

from benchmarks.running.cells import Cell, Failure
from benchmarks.running.ray_runner import ATTEMPTS, LostWorkerError, RayCluster, distribute, run_in_worker, too_large
from benchmarks.suites import find


class Machines:
    """Runs what was submitted last first; loses a cell's worker as often as it is told to."""

    def __init__(self, losses=None, failing=()):
        self.losses, self.failing = dict(losses or {}), failing
        self.submitted, self.waiting = [], []

    def submit(self, cell):
        self.submitted.append(cell.seed)
        self.waiting.append((len(self.submitted), cell))
        return self.waiting[-1][0]

    def wait(self, handles):
        assert sorted(handles) == [handle for handle, _ in self.waiting]
        return self.waiting[-1][0]

    def outcome(self, handle):
        (cell,) = [cell for number, cell in self.waiting if number == handle]
        self.waiting = [(number, cell) for number, cell in self.waiting if number != handle]
        if self.losses.get(cell.seed, 0) > 0:
            self.losses[cell.seed] -= 1
            raise LostWorkerError("gone")
        return Failure("of its own") if cell.seed in self.failing else replace(RECORD, seed=cell.seed)


@pytest.fixture
def cells(tmp_path):
    return [Cell(find("smoke"), {"model": None, "edits": None}, "no-edit", seed, tmp_path) for seed in range(4)]


def test_each_cell_comes_back_once_in_the_order_it_finished(cells):
    machines = Machines()
    outcomes = list(distribute(cells, machines))
    assert [cell.seed for cell, _ in outcomes] == [record.seed for _, record in outcomes] == [3, 2, 1, 0]
    assert machines.submitted == [0, 1, 2, 3]


def test_a_lost_worker_is_made_up_for_and_no_result_comes_twice(cells):
    machines = Machines({1: 1, 3: 2})
    outcomes = list(distribute(cells, machines))
    assert sorted(cell.seed for cell, _ in outcomes) == [0, 1, 2, 3]
    assert all(cell.seed == record.seed for cell, record in outcomes)
    assert sorted(machines.submitted) == [0, 1, 1, 2, 3, 3, 3]


def test_a_cell_that_always_loses_its_worker_ends_as_failed(cells):
    machines = Machines({2: 10**6})
    by_seed = {cell.seed: outcome for cell, outcome in distribute(cells, machines)}
    assert by_seed[2] == Failure(f"its worker was lost {ATTEMPTS} times: gone")
    assert machines.submitted.count(2) == ATTEMPTS
    assert len(by_seed) == 4


def test_a_cell_that_fails_by_itself_is_not_tried_again(cells):
    machines = Machines(failing=(0,))
    by_seed = {cell.seed: outcome for cell, outcome in distribute(cells, machines)}
    assert by_seed[0] == Failure("of its own")
    assert machines.submitted == [0, 1, 2, 3]


def test_deltas_that_stayed_on_another_machine_are_a_failure(cells):
    class Elsewhere(Machines):
        def outcome(self, handle):
            return replace(super().outcome(handle), deltas="0" * 64)

    cells[1].deltas_path.parent.mkdir(parents=True)
    cells[1].deltas_path.touch()
    by_seed = {cell.seed: outcome for cell, outcome in distribute(cells[:2], Elsewhere())}
    assert "OUT must be on a file system that all share" in by_seed[0].error
    assert by_seed[1].seed == 1


def test_nothing_to_do_is_done(cells):
    assert list(distribute([], Machines())) == []


def test_what_a_cell_raises_on_a_worker_is_its_failure(cells, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("benchmarks.suites.Suite.check_fingerprints", lambda suite: {"model": None, "edits": None})
    outcome = run_in_worker(replace(cells[0], agent="nobody"), str(Path.cwd()))
    assert outcome.error.startswith("ValueError: unknown agent 'nobody'")
    assert "Traceback" in outcome.traceback
    missing = run_in_worker(cells[0], str(tmp_path / "elsewhere"))
    assert missing.error.startswith("FileNotFoundError")


def test_a_worker_with_another_model_or_other_edits_makes_no_record(cells, tmp_path):
    fingerprints = cells[0].suite.check_fingerprints()
    outcome = run_in_worker(replace(cells[0], fingerprints=fingerprints | {"edits": "0" * 64}), str(tmp_path))
    assert "has another edits than" in outcome.error


def test_what_a_machine_cannot_run_is_that_cells_failure(monkeypatch):
    """Whatever Ray raises that is no loss of a worker or a machine: not the end of the command."""

    class RayError(Exception):
        pass

    class TaskError(RayError):
        pass

    kinds = ("WorkerCrashedError", "NodeDiedError", "ObjectLostError", "OutOfMemoryError", "LocalRayletDiedError")
    lost = {name: type(name, (RayError,), {}) for name in kinds}
    raised = []

    def get(handle):
        raise raised[-1]

    ray = SimpleNamespace(
        remote=lambda **options: lambda function: None, get=get, exceptions=SimpleNamespace(RayError=RayError, **lost)
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    cluster = RayCluster(1, 0)
    raised.append(TaskError("on machine 7:\nModuleNotFoundError: No module named 'benchmarks'"))
    outcome = cluster.outcome(None)
    assert isinstance(outcome, Failure)
    assert outcome.error == "TaskError: ModuleNotFoundError: No module named 'benchmarks'"
    assert "on machine 7" in outcome.traceback
    raised.append(lost["NodeDiedError"]("gone"))
    with pytest.raises(LostWorkerError):
        cluster.outcome(None)


def test_cells_that_fit_no_machine_are_told():
    machines = [{"CPU": 4.0, "memory": 1e9}, {"CPU": 2.0, "GPU": 1.0}]
    assert too_large(4, 0, machines) == too_large(1, 1, machines) == []
    (line,) = too_large(8, 0.5, machines)
    assert line.startswith("--cores: no machine of the cluster has 8 CPUs (the largest has 4)")
    assert [line.split(":")[0] for line in too_large(8, 2, machines)] == ["--cores", "--gpus"]
