import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from editenv.atomic_files import atomic_write, atomic_write_text

KILLED = """
import os, signal, sys
from pathlib import Path
from editenv.atomic_files import atomic_write
with atomic_write(Path(sys.argv[1])) as partial:
    partial.write_text("half of the new")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "made" / "file.txt"
    atomic_write_text(path, "old: ä")

    def write():
        with atomic_write(path) as partial:
            partial.write_text("half of the new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert path.read_bytes() == "old: ä".encode()
    assert os.listdir(path.parent) == ["file.txt"]


def test_writers_of_two_machines_do_not_share_a_place(tmp_path, monkeypatch):
    """Processes of two machines may have the same number."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    path = tmp_path / "file.txt"
    with atomic_write(path) as first:
        first.write_text("first")
        with atomic_write(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
        assert first.read_text() == "first"
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_so_does_a_kill_and_the_next_writer_is_not_in_its_way(tmp_path):
    path = tmp_path / "file.txt"
    atomic_write_text(path, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    atomic_write_text(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_files_of_tensors_may_be_read_by_whom_the_umask_lets(tmp_path, umask):
    path = tmp_path / "tensors.safetensors"
    before = os.umask(umask)
    try:
        with atomic_write(path) as partial:
            save_file({"a": torch.arange(3)}, partial)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert load_file(path)["a"].tolist() == [0, 1, 2]
