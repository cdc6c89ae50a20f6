"""Makes links to the repository's other files work in the site: each linked file becomes a page of its own.

In the repository a document links to code by a relative path, as in ``../../agents/base.py``.
The site has no such file, so this hook adds a page ``source/agents/base.py`` that shows it, and points the link there.
"""

import json
import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

LINK = re.compile(r"\]\((?!\w+:|#)([^()\s#]+)(#[^()\s]*)?\)")
LANGUAGES = {".py": "python", ".json": "json", ".jsonl": "json", ".csv": "text", ".html": "html", ".yaml": "yaml"}


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for each file outside of docs/ that a page links to, and for those that these link to."""
    root = Path(config["config_file_path"]).parent
    waiting = [(f"docs/{file.src_uri}", _read(Path(str(file.abs_src_path)))) for file in files.documentation_pages()]
    seen: set[str] = set()
    while waiting:
        source, text = waiting.pop()
        for target in _outside(text, source) - seen:
            seen.add(target)
            if (root / target).exists():  # a link to nothing is left as it is, for mkdocs to report
                shown = _shown(root / target, target)
                files.append(File.generated(config, f"{_page(target)}", content=_linked(shown, target)))
                waiting.append((target, shown if target.endswith(".md") else ""))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Points links to files outside of docs/ to their pages."""
    generated = page.file.src_uri.startswith("source/")  # its links are right already
    return markdown if generated else _linked(markdown, f"docs/{page.file.src_uri}")


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Shows names in docstrings without the role in front of them, as in ``:class:`agents.base.Agent```."""
    return re.sub(r":(?:attr|class|data|exc|func|meth|mod):(?=<code>)", "", html)


def on_post_build(config: Any) -> None:
    """Lets the leaderboard, which is a file of its own, link to the site's pages instead of the repository's files."""
    page = Path(config["site_dir"]) / "results" / "leaderboard" / "index.html"
    page.write_text(_read(page).replace('data-docs-ending=".md"', 'data-docs-ending=".html"'), encoding="utf-8")


def _outside(text: str, source: str) -> set[str]:
    targets = {normpath(join(dirname(source), match[1])) for match in LINK.finditer(text)}
    return {target for target in targets if not target.startswith(("docs/", ".."))}


def _linked(text: str, source: str) -> str:
    """The text of a file of the repository with its links as the site has them."""
    here = source.removeprefix("docs/") if source.startswith("docs/") else _page(source)

    def replaced(match: re.Match[str]) -> str:
        target = normpath(join(dirname(source), match[1]))
        if target.startswith(".."):
            return match[0]
        in_site = target.removeprefix("docs/") if target.startswith("docs/") else _page(target)
        return f"]({relpath(in_site, dirname(here) or '.')}{match[2] or ''})"

    return LINK.sub(replaced, text)


def _page(target: str) -> str:
    return f"source/{target}" if target.endswith(".md") else f"source/{target}.md"


def _shown(path: Path, target: str) -> str:
    """What the page shows: a document as it is, a folder's names, a notebook's cells, any other file as code."""
    if path.is_dir():
        return f"# {target}\n\n" + "".join(f"* `{child.name}`\n" for child in sorted(path.iterdir()))
    text = _read(path)
    if path.suffix == ".md":
        return text
    if path.suffix == ".ipynb":
        return "\n\n".join(map(_cell, json.loads(text)["cells"]))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"# {target}\n\n{fence}{LANGUAGES.get(path.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"


def _cell(cell: Any) -> str:
    """A notebook's cell without its output."""
    text = "".join(cell["source"])
    return text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
