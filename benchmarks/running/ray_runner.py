"""Cells over the machines of a Ray cluster.

A cell whose worker or machine is lost runs again on another one; its record is written once, by the command that
asked for it. Every machine needs this package in the same version, and OUT and the working directory on a file
system that all share.
"""

import logging
import os
import socket
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from agents.progress import silent
from benchmarks.results.records import Record
from benchmarks.running.cells import Cell, Failure

ATTEMPTS = 3
"""How often a cell is tried whose worker is lost each time; a cell that brings its worker down ends as failed."""


class LostWorkerError(RuntimeError):
    """The worker, or the machine it was on, is gone; the cell itself has not failed."""


class Cluster(Protocol):
    """Somewhere that cells can run."""

    def submit(self, cell: Cell) -> Any:
        """A handle for the run that this begins."""

    def wait(self, handles: list[Any]) -> Any:
        """The first handle whose run has ended."""

    def outcome(self, handle: Any) -> Record | Failure:
        """What came of a run that has ended.

        Raises:
            LostWorkerError: If its worker or machine is gone.
        """


def distribute(todo: Iterable[Cell], cluster: Cluster) -> Iterator[tuple[Cell, Record | Failure]]:
    """Each cell once, in the order they finish; a lost one is submitted again, up to :data:`ATTEMPTS` times in all."""
    running = {cluster.submit(cell): (cell, 1) for cell in todo}
    while running:
        handle = cluster.wait(list(running))
        cell, attempt = running.pop(handle)
        try:
            outcome = cluster.outcome(handle)
        except LostWorkerError as error:
            if attempt < ATTEMPTS:
                running[cluster.submit(cell)] = (cell, attempt + 1)
                continue
            outcome = Failure(f"its worker was lost {attempt} times: {error}")
        if isinstance(outcome, Record) and outcome.deltas is not None and not cell.deltas_path.exists():
            outcome = Failure(
                f"its deltas are not here ({cell.deltas_path}): OUT must be on a file system that all share"
            )
        yield cell, outcome


def run_in_worker(cell: Cell, folder: str) -> Record | Failure:
    """Runs a cell on some machine of the cluster; never raises, since an error is the cell's own.

    Args:
        cell: The cell.
        folder: Working directory of the command; agents may be named by a file relative to it.
    """
    try:
        os.chdir(folder)
        fingerprints = cell.suite.check_fingerprints()
        if fingerprints != cell.fingerprints:
            differing = ", ".join(name for name in fingerprints if fingerprints[name] != cell.fingerprints[name])
            return Failure(
                f"{socket.gethostname()} has another {differing} than the machine of the command (fingerprints)"
            )
        return cell.run(silent)
    except Exception as error:
        return Failure(f"{type(error).__name__}: {error}", traceback.format_exc())


class RayCluster:
    """The :class:`Cluster` that Ray is connected to.

    Args:
        cores: Of each cell; also its threads.
        gpus: Of each cell.
    """

    def __init__(self, cores: int, gpus: float) -> None:
        import ray

        self._ray = ray
        # A new process for each cell: its peak memory is its own. Losses are dealt with by distribute.
        options = {"num_cpus": cores, "num_gpus": gpus, "max_calls": 1, "max_retries": 0}
        self._task = ray.remote(**options)(run_in_worker)

    def submit(self, cell: Cell) -> Any:
        return self._task.remote(cell, str(Path.cwd()))

    def wait(self, handles: list[Any]) -> Any:
        return self._ray.wait(handles, num_returns=1)[0][0]

    def outcome(self, handle: Any) -> Record | Failure:
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(handle)
        except (
            exceptions.WorkerCrashedError,
            exceptions.NodeDiedError,
            exceptions.ObjectLostError,
            exceptions.OutOfMemoryError,
            exceptions.LocalRayletDiedError,
        ) as error:
            raise LostWorkerError(str(error).splitlines()[0]) from error
        except exceptions.RayError as error:  # the cell's own: a machine without the package, say
            return Failure(f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}", str(error))


def too_large(cores: int, gpus: float, machines: Sequence[Mapping[str, float]]) -> list[str]:
    """Warnings about what no machine of a cluster has, so that cells wait for one that has it.

    A cluster that grows by itself may get such a machine.

    Args:
        cores: Of each cell.
        gpus: Of each cell.
        machines: Of each machine its resources, as Ray counts them: ``CPU`` and ``GPU``.
    """
    messages = []
    for resource, option, needed in (("CPU", "--cores", cores), ("GPU", "--gpus", gpus)):
        largest = max((machine.get(resource, 0) for machine in machines), default=0)
        if needed > largest:
            messages.append(
                f"{option}: no machine of the cluster has {needed:g} {resource}s (the largest has {largest:g}): "
                "cells wait for one"
            )
    return messages


def run_on_ray(todo: list[Cell], address: str, cores: int, gpus: float) -> Iterator[tuple[Cell, Record | Failure]]:
    """All cells over the cluster at an address.

    Args:
        todo: The cells.
        address: ``HOST:PORT``, or ``auto`` for the cluster on this machine.
        cores: Of each cell.
        gpus: Of each cell.

    Yields:
        Each cell with what became of it, in the order they finish.

    Raises:
        ValueError: If Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError('the runner ray needs the extra: pip install "lifelongedit[ray]"') from None
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except OSError as error:  # ConnectionError among them
        raise ValueError(f"address: no Ray cluster was found at {address!r} ({error})") from error
    for warning in too_large(cores, gpus, [node["Resources"] for node in ray.nodes() if node["Alive"]]):
        warnings.warn(warning, stacklevel=2)
    try:
        yield from distribute(todo, RayCluster(cores, gpus))
    finally:
        ray.shutdown()
