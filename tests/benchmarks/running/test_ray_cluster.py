"""A real two-node Ray cluster on this machine, one node of which is killed in the middle of a run.

It takes minutes and is run by its own command:

    pip install "lifelongedit[ray]"
    LIFELONGEDIT_RAY=1 python -m pytest tests/benchmarks/test_ray_cluster.py
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from benchmarks.results.records import read

pytestmark = pytest.mark.skipif(
    os.environ.get("LIFELONGEDIT_RAY") != "1", reason="takes minutes; set LIFELONGEDIT_RAY=1 to run it"
)
ROOT = Path(__file__).parents[3]
SUITE = "smoke@1"
ASIDE = ("setup_seconds", "edit_seconds", "floor_ratio", "peak_memory_bytes", "commit")
"""Times, memory, and the commit, which may have moved on between two runs."""

AGENT = """
import os, socket, time
from pathlib import Path
from agents.baselines.fine_tune import FineTune
class Slow(FineTune):
    # Tells which process it runs in, then waits until the node was killed.
    def begin(self, env):
        super().begin(env)
        folder = Path({folder!r})
        (folder / f"started-{{os.getpid()}}").write_text(str(os.getpgid(0)))
        while not (folder / "go-on").exists():
            time.sleep(0.05)
"""


def free_port():
    with socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        return connection.getsockname()[1]


def descendants(pid):
    """Of a process, itself included, from /proc."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Node:
    """``ray start --block`` and everything it starts."""

    def __init__(self, *arguments):
        ray = str(Path(sys.executable).with_name("ray"))
        words = [ray, "start", "--block", "--num-cpus=1", "--disable-usage-stats", *arguments]
        environment = os.environ | {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3"}
        self.process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)

    def kill(self):
        """With SIGKILL, its workers too: as if the machine had lost its power."""
        everything = descendants(self.process.pid)
        for pid in everything:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        end = time.monotonic() + 20
        while any(alive(pid) for pid in everything):
            assert time.monotonic() < end, "Ray left processes behind"
            time.sleep(0.1)


@pytest.fixture
def cluster():
    """Address, head and second node; nothing of it is left afterwards."""
    pytest.importorskip("ray")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # short: Ray puts sockets in it
        head = Node(
            "--head",
            "--node-ip-address=127.0.0.1",
            f"--port={port}",
            f"--temp-dir={folder}/a",
            "--include-dashboard=false",
        )
        second = None
        try:
            wait_for_nodes(f"127.0.0.1:{port}", 1)
            second = Node(f"--address=127.0.0.1:{port}", "--node-ip-address=127.0.0.2", f"--temp-dir={folder}/b")
            wait_for_nodes(f"127.0.0.1:{port}", 2)
            yield f"127.0.0.1:{port}", head, second
        finally:
            if second is not None:
                second.kill()
            head.kill()


def wait_for_nodes(address, count):
    """In a process of its own, since a process can be part of one cluster only."""
    code = (
        "import ray, sys\n"
        f"ray.init(address={address!r}, log_to_driver=False, logging_level=50)\n"
        f"sys.exit(sum(node['Alive'] for node in ray.nodes()) != {count})\n"
    )
    end = time.monotonic() + 120
    while subprocess.run([sys.executable, "-c", code], capture_output=True).returncode != 0:
        assert time.monotonic() < end, f"there are not {count} nodes"
        time.sleep(0.5)


def command(*arguments):
    return [sys.executable, "-m", "benchmarks.run", "--suite", SUITE, "--seeds", "0-1", *arguments]


def table(out):
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ASIDE} for row in rows]


def test_a_table_made_by_a_cluster_that_loses_a_node_is_the_local_one(cluster, tmp_path):
    address, _, second = cluster
    slow = tmp_path / "slow.py"
    slow.write_text(AGENT.format(folder=str(tmp_path)))
    agents = ["--agents", "no-edit", f"{slow}:Slow"]
    out = tmp_path / "ray"
    running = subprocess.Popen(
        command(*agents, "--keep-deltas", "--out", str(out), "--runner", "ray", "--address", address),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 300
        while True:  # until both nodes hold a slow cell
            started = {int(path.name.partition("-")[2]) for path in tmp_path.glob("started-*")}
            lost = started & descendants(second.process.pid)
            if len(started) == 2 and lost:
                break
            assert time.monotonic() < end, f"{started} started, {lost} on the second node"
            time.sleep(0.2)
        assert len(read(out / "results.jsonl")) == 2
        second.kill()
        (tmp_path / "go-on").touch()
        output, _ = running.communicate(timeout=400)
    finally:
        running.kill()
    assert running.returncode == 0, output
    assert sum(line.startswith("[") for line in output.splitlines()) == 4
    assert len(list(tmp_path.glob("started-*"))) == 3  # the lost cell ran again, and no other did
    local = subprocess.run(
        command(*agents, "--keep-deltas", "--out", str(tmp_path / "local")),
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # as many as Ray gives a cell
        capture_output=True,
        text=True,
    )
    assert local.returncode == 0, local.stderr
    assert len(table(out)) == 4
    for on_ray, here in zip(table(out), table(tmp_path / "local"), strict=True):
        assert {k: (on_ray[k], here[k]) for k in on_ray if on_ray[k] != here[k]} == {}


def test_an_address_without_a_cluster_is_refused(tmp_path):
    pytest.importorskip("ray")
    wrong = subprocess.run(
        command(
            "--agents", "no-edit", "--out", str(tmp_path), "--runner", "ray", "--address", f"127.0.0.1:{free_port()}"
        ),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert wrong.returncode == 1
    assert "no Ray cluster was found" in wrong.stderr
