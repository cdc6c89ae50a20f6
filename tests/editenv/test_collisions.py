"""Other distributions bring packages called agents and benchmarks: it is noticed, and said what to do."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import agents
import benchmarks
from editenv.collisions import OURS, foreign_packages

ROOT = Path(__file__).parents[2]


def run(code, path):
    environment = {"PYTHONPATH": str(path), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-S", "-c", f"import sys; sys.path += {sys.path!r}\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=path, timeout=120)


@pytest.fixture
def hidden(tmp_path):
    """A folder whose package ``agents`` comes first on the path."""
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text("class Agent: ...\n")
    return tmp_path


@pytest.fixture
def overwritten(tmp_path):
    """The packages as another distribution leaves them that is installed into the same folder after them."""
    for package in ("editenv", "agents", "benchmarks"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("*.safetensors", "*.csv"))
    for package in ("agents", "benchmarks"):
        (tmp_path / package / "__init__.py").write_text("class Agent: ...\n")
    return tmp_path


def test_ours_are_known_by_how_they_begin():
    for package in (agents, benchmarks):
        assert Path(package.__file__).read_text(encoding="utf-8").startswith(OURS[package.__name__])
    assert foreign_packages() == {}


@pytest.mark.parametrize("how", ["hidden", "overwritten"])
def test_the_first_import_says_what_to_do(request, how):
    ran = run("import editenv", request.getfixturevalue(how))
    assert ran.returncode == 0, ran.stderr
    assert "'agents' that Python finds" in ran.stderr
    assert "openai-agents" in ran.stderr
    assert ("'benchmarks' that Python finds" in ran.stderr) == (how == "overwritten")


@pytest.mark.parametrize("how", ["hidden", "overwritten"])
def test_the_command_says_so_in_a_line(request, how):
    ran = run(
        "from editenv.__main__ import main; sys.argv = ['editenv', 'methods']; main()", request.getfixturevalue(how)
    )
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith("editenv: the package 'agents' that Python finds")
    assert "Traceback" not in ran.stderr


def test_a_folder_called_benchmarks_beside_ones_own_code_is_no_fault(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").write_text("")
    ran = run("import editenv", tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.fixture
def beside_torchrl(tmp_path):
    """A folder in which Python finds another package called benchmarks, as in site-packages with torchrl."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").write_text("import nothing_of_the_kind\n")
    return tmp_path


def bench(folder, *words):
    environment = {"PYTHONPATH": f"{folder}:{ROOT}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "editenv", "bench", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=300)


def test_commands_of_the_benchmarks_run_beside_a_foreign_package(beside_torchrl):
    ran = bench(beside_torchrl, "suites")
    assert ran.returncode == 0, ran.stderr
    assert "smoke" in ran.stdout
    ran = bench(beside_torchrl, "report", "nowhere")
    assert (ran.returncode, ran.stderr.splitlines()[-1][:11]) == (1, "there is no"), ran.stderr


def test_a_command_that_is_none_is_told_the_names(tmp_path):
    ran = bench(tmp_path, "reprot")
    assert ran.returncode == 2
    assert "run," in ran.stderr
    assert "validate" in ran.stderr


BROKEN = """
def Broken():
    raise ValueError("in the cell's own process")
"""


@pytest.mark.slow  # two processes import torch
def test_processes_of_a_command_find_our_package_too(beside_torchrl):
    (beside_torchrl / "broken.py").write_text(BROKEN)
    ran = bench(beside_torchrl, "run", "--suite", "smoke@1", "--agents", "broken.py:Broken", "--out", "out")
    assert "failed: ValueError: in the cell's own process" in ran.stdout, ran.stderr
