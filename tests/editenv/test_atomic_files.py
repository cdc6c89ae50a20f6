import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from editenv.atomic_files import atomic_write, atomic_write_text, make_folder, put_back, replace_folder

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


@pytest.fixture
def calls(monkeypatch):
    """Renames and fsyncs in order, by the names of files and folders."""
    seen = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(handle):
        seen.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{handle}")).split(".")[0]))
        fsync(handle)

    def note_replace(source, target):
        seen.append(("replace", os.path.basename(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    return seen


def test_a_file_is_on_the_disk_before_its_name_and_the_name_before_it_returns(tmp_path, calls):
    atomic_write_text(tmp_path / "made/file.txt", "new")
    assert calls == [("fsync", tmp_path.name), ("fsync", "file"), ("replace", "file.txt"), ("fsync", "made")]


def test_so_is_everything_in_a_folder(tmp_path, calls):
    for name, text in (("partial", "new"), ("folder", "old")):
        make_folder(tmp_path / name / "deep")
        (tmp_path / name / "deep/file").write_text(text)
    calls.clear()
    replace_folder(tmp_path / "partial", tmp_path / "folder")
    before = [name for what, name in calls[:3]]
    assert sorted(before) == ["deep", "file", "partial"]
    assert calls[3:] == [
        ("replace", ".folder.old"), ("fsync", tmp_path.name), ("replace", "folder"), ("fsync", tmp_path.name),
    ]  # fmt: skip
    assert (tmp_path / "folder/deep/file").read_text() == "new"
    assert os.listdir(tmp_path) == ["folder"]


def test_a_folder_that_a_kill_left_without_its_name_gets_it_back(tmp_path):
    (tmp_path / ".folder.old").mkdir()
    (tmp_path / ".folder.old/file").write_text("old")
    put_back(tmp_path / "folder")
    assert (tmp_path / "folder/file").read_text() == "old"
    assert os.listdir(tmp_path) == ["folder"]


def test_no_other_file_of_the_project_renames():
    """What is renamed elsewhere would not be durable."""
    root = Path(__file__).parents[2]
    renames = re.compile(r"os\.(replace|rename)\(|shutil\.move\(|\.rename\(|partial\.replace\(")
    files = [path for name in ("editenv", "agents", "benchmarks") for path in (root / name).rglob("*.py")]
    assert [path.name for path in files if renames.search(path.read_text(encoding="utf-8"))] == ["atomic_files.py"]


def test_a_full_disk_is_an_error_that_names_the_file_whichever_library_wrote(tmp_path):
    path = tmp_path / "tensors.safetensors"
    atomic_write_text(path, "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for write in (
        lambda partial: save_file({"a": torch.zeros(10_000)}, partial),
        lambda partial: partial.write_bytes(bytes(40_000)),
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # takes part of a write, as a full disk does
        try:
            with pytest.raises(OSError, match=r"tensors\.safetensors"), atomic_write(path) as partial:
                write(partial)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == [path.name]


def test_a_name_that_is_too_long_is_named(tmp_path):
    with pytest.raises(OSError, match="x" * 260):
        atomic_write_text(tmp_path / ("x" * 260), "new")
