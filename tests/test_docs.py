"""The project's Markdown: lines, links, paths, names of rows, and blocks of Python, which are run as they stand."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from itertools import pairwise
from pkgutil import resolve_name

import pytest
from documents import DOCUMENTS, MARKDOWN, ROOT, blocks_of, name_of

from agents.rows import ROWS
from editenv.evaluation.greedy import generate

LONGEST_LINE = 120
ROOMS = ("agents", "benchmarks", "docs", "editenv", "examples", "tests", ".github")
ids = {"argvalues": DOCUMENTS, "ids": name_of}

NOT_RUN = {
    "docs/guides/add_a_method.md": "a part of agents/rows.py: test_a_guide_can_be_followed puts it there",
    "docs/guides/own_table.md": "a file of one's own: test_own_suites.py follows the page",
    "docs/reference/language_agents.md": "needs a server and an extra: test_openenv.py and test_verifiers.py play it",
    "docs/guides/add_a_data_set.md": "parts of editenv/data/formats.py: test_a_guide_can_be_followed puts them there",
}
"""Documents that have blocks of Python with a title, and why these are not run by themselves."""


def tokens_of(path):
    """All tokens of a document, those inside of paragraphs included."""
    for token in MARKDOWN.parse(path.read_text(encoding="utf-8")):
        yield token
        yield from token.children or ()


def prose_of(path):
    """The numbered lines of a document without tables, blocks of code, and comments that say what a table is made of."""
    lines = path.read_text(encoding="utf-8").splitlines()
    left_out = {i for i, line in enumerate(lines) if re.fullmatch(r"<!-- \w+: .* -->", line)}
    for token in MARKDOWN.parse("\n".join(lines)):
        if token.type in ("table_open", "fence", "code_block"):
            left_out |= set(range(*token.map))
    return [(i + 1, line) for i, line in enumerate(lines) if i not in left_out]


def anchors_of(path):
    """The anchors of a document's headings as GitHub makes them, and those that are set by hand."""
    text = path.read_text(encoding="utf-8")
    anchors, tokens = set(re.findall(r'(?:id|name)="([^"]+)"', text)), MARKDOWN.parse(text)
    for heading, inline in pairwise(tokens):
        if heading.type == "heading_open":
            shown = "".join(token.content for token in inline.children if token.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
            copies = sum(
                anchor == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", anchor) is not None for anchor in anchors
            )
            anchors.add(f"{slug}-{copies}" if copies else slug)
    return anchors


def test_the_documents_are_found():
    names = {name_of(path) for path in DOCUMENTS}
    assert {"README.md", "CONTRIBUTING.md", "agents/README.md", "benchmarks/README.md", "docs/index.md"} <= names
    assert len(names) > 25


@pytest.mark.parametrize("path", **ids)
def test_no_line_of_prose_is_too_long(path):
    too_long = [f"{name_of(path)}:{number}" for number, line in prose_of(path) if len(line) > LONGEST_LINE]
    assert not too_long


@pytest.mark.parametrize("path", **ids)
def test_every_link_leads_somewhere(path):
    for token in tokens_of(path):
        target = token.attrs.get("href", token.attrs.get("src"))
        if target is None or re.match(r"(https?|mailto):", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{name_of(path)}: {target}"
        assert there.is_relative_to(ROOT), f"{name_of(path)}: {target}"
        if anchor and there.suffix == ".md":
            assert anchor in anchors_of(there), f"{name_of(path)}: {target}"


@pytest.mark.parametrize("path", **ids)
def test_every_path_and_name_of_code_exists(path):
    """Capitals in a path that does not exist (NAME, N) stand for anything; the changelog tells of what has gone, too."""
    if name_of(path) == "CHANGELOG.md":
        return
    for token in tokens_of(path):
        if token.type != "code_inline":
            continue
        code = token.content
        if re.fullmatch(rf"(?:{'|'.join(map(re.escape, ROOMS))})/[\w./*-]*", code):
            pattern = re.sub("[A-Z]+", "*", code).rstrip("/")
            assert (ROOT / code).exists() or list(ROOT.glob(pattern)), f"{name_of(path)}: {code}"
        elif re.fullmatch(r"(?:agents|benchmarks|editenv)(?:\.\w+)+", name := code.partition("(")[0]):
            with warnings.catch_warnings():
                warnings.simplefilter("error", FutureWarning)  # a name of an earlier version
                resolve_name(name)


def test_documents_that_code_names_exist():
    for room in ("agents", "benchmarks", "editenv", "examples"):
        for path in (ROOT / room).rglob("*.py"):
            for document in re.findall(r"\bdocs/[\w/.-]+\.\w+", path.read_text(encoding="utf-8")):
                assert (ROOT / document).exists(), f"{name_of(path)}: {document}"


def test_every_row_is_explained():
    """By its line in the table of methods, by its own line in that of rows, or by such a line and suffixes."""
    methods = (ROOT / "docs/reference/methods.md").read_text(encoding="utf-8").partition("## The methods")[2]
    rows = (ROOT / "docs/reference/rows.md").read_text(encoding="utf-8").partition("## Names of your own")[0]
    first_cells = re.findall(r"^\| (`.*?) \|", methods.partition("\n## ")[0] + rows, re.MULTILINE)
    explained = {name for cell in first_cells for name in re.findall(r"`([\w-]+)`", cell)}
    suffixes = {name for name in explained if name.startswith("-")}
    assert {"-p", "-k4", "-fixed"} <= suffixes
    for row in ROWS:
        name = row
        while name not in explained and (fitting := [suffix for suffix in suffixes if name.endswith(suffix)]):
            name = name.removesuffix(max(fitting, key=len))
        assert name in explained, f"{row}: neither docs/reference/methods.md nor docs/reference/rows.md says what it is"
    names = explained - suffixes
    assert names <= set(ROWS), "a row that does not exist"


PYTHON = {
    name_of(path): blocks for path in DOCUMENTS if (blocks := [b for b in blocks_of(path) if b.language == "python"])
}


def run_blocks(document, folder, monkeypatch):
    """Runs a document's blocks of Python one after the other, beside the examples; gives their names."""
    (folder / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(folder)
    names = {"__name__": "__main__"}
    for block in PYTHON[document]:
        code = "\n" * block.line + block.code  # errors name the line of the document
        if block.title is None:
            exec(compile(code, ROOT / document, "exec"), names)
    return names


@pytest.mark.parametrize("document", [name for name in PYTHON if name != "README.md"])
def test_blocks_of_python_run(document, tmp_path, monkeypatch, capsys):
    run_blocks(document, tmp_path, monkeypatch)


def test_what_is_not_run_is_known():
    assert {block.document for blocks in PYTHON.values() for block in blocks if block.title} == set(NOT_RUN)
    assert not [str(b) for blocks in PYTHON.values() for b in blocks if b.options and not b.title], (
        "run it, or say why not"
    )


def test_the_first_edit_of_the_readme_is_what_the_model_says(tmp_path, monkeypatch, capsys):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    editor = run_blocks("README.md", tmp_path, monkeypatch)["editor"]
    table = re.search(r"^\| the model is asked .*\n\|[ |-]*\n((?:\|.*\n)+)", text, re.MULTILINE)
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table[1].splitlines()]
    prompts = [row[0] for row in rows]
    assert len(prompts) >= 3
    said = {}
    for when in ("after", "before"):
        said[when] = generate(editor.lm.model, editor.lm.tokenizer, prompts, limit=10)
        editor.revert()
    assert [row[1] for row in rows] == said["before"]
    assert [row[2] for row in rows] == said["after"]


BEFORE = {
    "agents/rows.py": ['    "no-edit": Row('],
    "editenv/data/formats.py": ["# By format its forms", '    "counterfact": (\n'],
    "docs/reference/methods.md": ["| `rledit` |"],
    "docs/reference/data_formats.md": ["| `zsre` |"],
}
"""Files that a guide adds to, and the text of them before which each of its blocks goes, in the guide's order."""


def copy_or_link(source, target):
    os.symlink(source, target) if source.endswith(".safetensors") else shutil.copy(source, target)


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["docs/guides/add_a_method.md", "docs/guides/add_a_data_set.md"])
def test_a_guide_can_be_followed(guide, tmp_path):
    """In a copy of the project, word by word; the guide's own tests and those of the registry and documents pass."""
    for name in ("agents", "benchmarks", "docs", "editenv", "examples", "tests", "README.md", "CONTRIBUTING.md"):
        if (source := ROOT / name).is_dir():
            skipped = shutil.ignore_patterns("__pycache__", "*.jsonl", "*.png")
            shutil.copytree(source, tmp_path / name, ignore=skipped, copy_function=copy_or_link)
        else:
            shutil.copy(source, tmp_path)
    before = {name: list(places) for name, places in BEFORE.items()}
    tests = []
    for block in blocks_of(ROOT / guide):
        if block.title is None:
            continue
        path = tmp_path / block.title
        if path.exists():
            start, place, end = path.read_text(encoding="utf-8").partition(before[block.title].pop(0))
            assert place
            path.write_text(start + block.code + place + end, encoding="utf-8")
        else:
            path.write_text(block.code, encoding="utf-8")
        tests += [block.title] if block.title.startswith("tests/") else []
    assert tests
    tests += ["tests/agents/test_registry.py", "tests/test_docs.py::test_every_row_is_explained"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), *tests]
    command += ["-o", "pythonpath=. tests", "-W", "ignore"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("path", **ids)
def test_blocks_of_data_and_code_are_valid(path):
    for block in blocks_of(path):
        if block.language == "json":
            json.loads(block.code)
        elif block.language == "python" and not block.code.startswith(" "):  # or a part of something
            ast.parse(block.code)
        else:
            assert block.language in ("", "sh", "text", "markdown", "bibtex", "python"), str(block)


def test_the_site_shows_every_document():
    """mkdocs.yml names all pages in its navigation, and no others."""
    named = re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))


WHERE = (
    "editenv/rewards.py",
    "agents/preconditioner.py",
    "agents/editing/editor.py",
    "examples/my_policy.py",
    "benchmarks/results/statistics.py",
    "editenv/evaluation/batch.py",
    "editenv/deltas.py",
    "agents/hypernetwork/config.py",
    "editenv/journal.py",
    "agents/baselines/memit.py",
    "editenv/data/formats.py",
    "agents/rows.py",
)


@pytest.mark.parametrize("file", WHERE)
def test_a_stranger_finds_it_in_three_clicks(file):
    """From the README, by links; most of these are two clicks away, by the table of docs/reference/architecture.md."""
    pages, clicks = {ROOT / "README.md"}, 0
    while ROOT / file not in pages:
        clicks += 1
        assert clicks <= 3
        pages |= {target for page in pages if page.suffix == ".md" for target in files_linked(page)}


def test_what_is_said_to_be_in_a_file_is_in_it():
    table = (ROOT / "docs/reference/architecture.md").read_text(encoding="utf-8").partition("## Where is")[2]
    rows = re.findall(r"^\| .*\?.* \| (.*) \| `(\w+)` \|$", table, re.MULTILINE)
    assert len(rows) > 12
    for files, name in rows:
        texts = [(ROOT / file).read_text(encoding="utf-8") for file in re.findall(r"\[(.*?)\]", files)]
        assert any(re.search(rf"^(?:def|class) {name}\b|^{name}\b.* = ", text, re.MULTILINE) for text in texts), name


def files_linked(page):
    targets = (token.attrs.get("href", "") for token in tokens_of(page))
    paths = (
        (page.parent / target.partition("#")[0]).resolve() for target in targets if not re.match(r"\w+:|#|$", target)
    )
    return {path for path in paths if path.is_file()}
