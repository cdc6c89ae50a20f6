"""What is shipped: the wheel's files and commands, and what pyproject.toml, constraints and workflows say of each other."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import editenv

ROOT = Path(__file__).parents[1]
PACKAGES = ("editenv", "agents", "benchmarks")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def files_of(package):
    """Every file of a package's folder, as paths from the repository's root."""
    paths = (path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in paths}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel out of a source distribution of a copy in which large files are empty: what is tested is names."""
    source = tmp_path_factory.mktemp("source")
    for path in set().union(*map(files_of, PACKAGES)):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / path).stat().st_size < 10**6:
            shutil.copy(ROOT / path, source / path)
        else:
            (source / path).touch()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    (source / "tests").mkdir()
    (source / "tests" / "test_nothing.py").touch()
    (source / "docs").mkdir()
    (source / "docs" / "page.md").touch()
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(source / "dist"), str(source)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (source / "dist").glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == set().union(*map(files_of, PACKAGES))
    suffixes = {Path(name).suffix for name in names}
    assert {".py", ".typed", ".json", ".csv", ".safetensors", ".html", ".yaml"} <= suffixes
    assert {f"{package}/py.typed" for package in PACKAGES} <= names


def test_the_wheels_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_string(archive.read(path).decode())
        names = archive.namelist()
    assert metadata["Name"] == "lifelongedit"
    assert metadata["Version"] == editenv.__version__
    assert metadata["License-Expression"] == "MIT"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert {"sb3", "lora", "capability", "ray", "interop", "large", "dev"} <= set(metadata.get_all("Provides-Extra"))


def test_an_installed_wheel_answers_outside_the_checkout(wheel, tmp_path):
    target, folder = tmp_path / "target", tmp_path / "empty"
    folder.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": str(target)}

    def output(*command):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = f"import {', '.join(PACKAGES)}; print(*(p.__path__[0] for p in ({', '.join(PACKAGES)})))"
    assert output(sys.executable, "-c", where).split() == [str(target / package) for package in PACKAGES]
    editenv_command = str(target / "bin" / "editenv")
    assert "methods" in output(editenv_command, "--help")
    assert "rledit" in output(editenv_command, "methods")
    assert "atlas-50x20-v1" in output(sys.executable, "-m", "benchmarks.suites")


def all_requirements():
    """Every requirement of pyproject.toml: of the package and of its extras."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    return [Requirement(line) for lines in (PROJECT["project"]["dependencies"], *extras) for line in lines]


def test_every_requirement_has_a_floor_that_the_constraints_are_above():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        name, version = line.split("==")
        pins[canonicalize_name(name)] = version
    for requirement in all_requirements():
        assert ">=" in str(requirement.specifier), f"{requirement} has no floor"
        name = canonicalize_name(requirement.name)
        if name in ("setuptools",):  # pip and torch agree on its version
            continue
        assert requirement.specifier.contains(pins[name]), f"{requirement}, but constraints.txt has {pins[name]}"


def test_what_is_imported_is_required():
    """By the package or an extra of it, or by one of its requirements."""
    required = {canonicalize_name(requirement.name) for requirement in all_requirements()}
    for name in list(required):
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # an extra that is not installed
            continue
        required |= {canonicalize_name(Requirement(line).name) for line in lines}
    distributions = importlib.metadata.packages_distributions()
    unknown = {}
    for path in set().union(*map(files_of, PACKAGES)):
        if not path.endswith(".py"):
            continue
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            for top in {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - set(PACKAGES):
                names = {canonicalize_name(name) for name in distributions.get(top, [top])}
                if not names & required:
                    unknown.setdefault(top, path)
    assert unknown == {}


def test_one_oldest_python_everywhere():
    project = PROJECT["project"]
    oldest = re.fullmatch(r">=(\d\.\d+)", project["requires-python"])[1]
    versions = [re.fullmatch(r"Programming Language :: Python :: (\d\.\d+)", line) for line in project["classifiers"]]
    classified = [match[1] for match in versions if match]
    tested = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]["test"]
    assert classified == tested["strategy"]["matrix"]["python"]
    assert min(classified, key=lambda version: int(version.partition(".")[2])) == oldest
    assert PROJECT["tool"]["mypy"]["python_version"] == oldest
    assert "target-version" not in PROJECT["tool"]["ruff"]  # ruff takes it from requires-python
    assert SpecifierSet(project["requires-python"]).contains(f"{sys.version_info.major}.{sys.version_info.minor}")


def workflow_steps():
    """The shell lines of all workflows."""
    for path in sorted((ROOT / ".github/workflows").glob("*.yml")):
        workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert workflow["permissions"] == {"contents": "read"}, path
        for job in workflow["jobs"].values():
            yield from (line for step in job["steps"] for line in step.get("run", "").splitlines())


def test_workflows_call_what_there_is():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    lines = list(workflow_steps())
    called = {line.split()[1] for line in lines if line.startswith("make ")}
    assert {"test", "test-slow", "lint", "docs"} <= called <= targets
    scripts = {line.split()[0] for line in lines if line.startswith(".github/")}
    assert scripts
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


def test_every_make_target_says_what_it_does():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    # The tests may themselves run under make, which then says which folder it enters.
    command = ["make", "--no-print-directory", "help"]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert {line.split()[1] for line in shown.splitlines()} == set(phony.split())


def test_changelog_and_citation_name_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[([\d.]+)\]", changelog, re.MULTILINE)[0] == editenv.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == editenv.__version__
    assert citation["license"] == PROJECT["project"]["license"]
