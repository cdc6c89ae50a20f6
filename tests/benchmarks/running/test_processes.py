"""A command that is killed takes its processes with it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.running.processes import end_with_parent

ROOT = Path(__file__).parents[3]

SCRIPT = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from benchmarks.running import processes
folder = sys.argv[1]
if sys.argv[3] == "no-signal":
    processes.sys = type("elsewhere", (), {"platform": "another"})  # the pipe alone, as on other systems

def work(start_watching=True):
    if start_watching:
        processes.end_with_parent()
    open(os.path.join(folder, str(os.getpid())), "w").close()
    time.sleep(60)

if __name__ != "__main__" and sys.argv[2] == "early":
    open(os.path.join(folder, str(os.getpid())), "w").close()
    time.sleep(1)  # still importing what it needs while its parent is killed

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    if sys.argv[2] == "pool":
        with ProcessPoolExecutor(1, mp_context=context, initializer=processes.end_with_parent) as pool:
            pool.submit(work, False).result()
    else:
        context.Process(target=work).start()
        time.sleep(60)
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(reached, seconds=30):
    end = time.monotonic() + seconds
    while not (value := reached()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)
    return value


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes through /proc")
@pytest.mark.parametrize("means", ["signal", "no-signal"])
@pytest.mark.parametrize("started", ["process", "pool", "early"])
def test_a_killed_parent_takes_its_process_with_it(tmp_path, started, means):
    script, pids = tmp_path / "script.py", tmp_path / "pids"
    script.write_text(SCRIPT)
    pids.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, script, pids, started, means], env=environment)
    try:
        (pid,) = wait_for(lambda: [int(path.name) for path in pids.iterdir()])
        assert alive(pid)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    try:
        wait_for(lambda: not alive(pid), seconds=5)
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def test_outside_of_a_started_process_it_is_refused():
    with pytest.raises(RuntimeError, match="not started by multiprocessing"):
        end_with_parent()


def test_every_place_that_starts_processes_watches_the_parent():
    """A new one is found here: it has to call end_with_parent in what it starts."""
    starts = re.compile(r"ProcessPoolExecutor\(|context\.Process\(|\.Pool\(|SubprocVecEnv\(|Popen\(")
    found = set()
    for package in ("benchmarks", "agents", "editenv"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if starts.search(text):
                found.add(path.relative_to(ROOT).as_posix())
                assert "end_with_parent" in text, path
                pools = re.findall(r"ProcessPoolExecutor\((.*)\)", text)
                assert all("initializer=end_with_parent" in arguments for arguments in pools), path
    assert found == {
        "benchmarks/agreement.py",
        "benchmarks/run.py",
        "benchmarks/speed.py",
        "benchmarks/vector_speed.py",
    }
