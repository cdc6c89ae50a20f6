"""How far this project's methods are from public code: both run on one tiny model, and their results are compared.

    python -m benchmarks.agreement --public clones
    python -m benchmarks.agreement --public clones --methods rledit memit --output runs/agreement.json

Both sides get the same weights, records, seeds, statistics and, where there is one, the same network, in float32 on the
CPU. Documented differences are taken away one after the other by this project's options; what is left has to be
rounding, or is explained. Public code is imported as it is from clones, each at the commit that is named here; a clone
that is missing is named with the command that makes it.

The result is a table, and with ``--output`` a JSON file, of which ``benchmarks.documents`` makes the table of
docs/reference/papers_and_code.md.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import chdir, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.agreement_cases import CASES
from benchmarks.agreement_cases.comparison import Comparison
from benchmarks.agreement_cases.public_code import OnCPU, Package, Repository
from benchmarks.results.records import versions
from benchmarks.results.tables import markdown
from benchmarks.running.processes import end_with_parent
from editenv.atomic_files import atomic_write_text

HEADINGS = ("method", "compared with", "what", "options", "relative difference", "cosine", "what explains it")


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        public: Folder of the clones, each under its repository's name.
        methods: Compare these only; all by default.
        output: Write the figures to this file, as JSON.
    """

    public: Path
    methods: tuple[str, ...] = ()
    output: Path | None = None


@dataclass(frozen=True)
class Agreement:
    """A comparison, with what it was made with.

    Attributes:
        repository: ``owner/name``, or the name of a package.
        commit: The repository's commit, or the package's version.
        comparison: What was found.
    """

    repository: str
    commit: str
    comparison: Comparison

    def as_dict(self) -> dict[str, Any]:
        """As it is written: figures to three significant digits, cosines to eight places."""
        figures = asdict(self.comparison)
        figures["relative_difference"] = float(f"{self.comparison.relative_difference:.3g}")
        figures["cosine"] = round(self.comparison.cosine, 8)
        return {"repository": self.repository, "commit": self.commit, **figures}


def chosen_cases(methods: Sequence[str]) -> list[str]:
    """The comparisons that are about some of these methods; all if none is named.

    Raises:
        ValueError: For a method that is compared nowhere.
    """
    known = sorted({method for names in CASES.values() for method in names})
    for method in methods:
        if method not in known:
            raise ValueError(f"methods: {method!r} is not compared with public code; there are {', '.join(known)}")
    return [case for case, names in CASES.items() if not methods or set(names) & set(methods)]


def sources(cases: Sequence[str], public: Path) -> dict[str, tuple[Repository | Package, str]]:
    """For each comparison what it is with, and the commit that is there.

    Raises:
        ValueError: If clones are missing or stand at another commit; names them all.
    """
    found, problems = {}, []
    for case in cases:
        source = import_module(f"benchmarks.agreement_cases.{case}").SOURCE
        try:
            found[case] = source, source.checked_out(public)
        except (FileNotFoundError, ValueError) as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    return found


def run_case(case: str, clone: Path) -> list[Comparison]:
    """Makes the comparisons of one repository, in a temporary folder; what public code prints is dropped."""
    import torch
    from transformers.utils import logging

    from benchmarks.agreement_cases.tiny_model import TinyModel

    torch.set_num_threads(1)  # the order of sums, and with it the last bits, depends on it
    logging.disable_progress_bar()
    module = import_module(f"benchmarks.agreement_cases.{case}")
    with (
        TemporaryDirectory() as folder,
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        chdir(folder),
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        tiny = TinyModel.made_in(Path(folder))
        with OnCPU() if isinstance(module.SOURCE, Repository) else nullcontext():
            return list(module.compare(clone.absolute(), tiny))


def in_own_process(case: str, clone: Path) -> list[Comparison]:
    """:func:`run_case` in a fresh process: repositories have modules of the same names, and change global state."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        return pool.submit(run_case, case, clone.absolute()).result()


def agreements(args: Args) -> Iterator[Agreement]:
    """All comparisons, repository after repository.

    Raises:
        ValueError: As :func:`chosen_cases` and :func:`sources` do, before anything is compared.
        RuntimeError: If public code, or what runs it, fails; names the repository.
    """
    for case, (source, commit) in sources(chosen_cases(args.methods), args.public).items():
        try:
            comparisons = in_own_process(case, source.clone(args.public))
        except Exception as error:
            raise RuntimeError(f"the comparison with {source.name} failed: {error}") from error
        for comparison in comparisons:
            if not args.methods or comparison.method in args.methods:
                yield Agreement(source.name, commit, comparison)


def read(path: Path) -> list[dict[str, Any]]:
    """The comparisons in a file of ``--output``.

    Raises:
        ValueError: If it is none.
    """
    try:
        comparisons: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["comparisons"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of python -m benchmarks.agreement ({error!r})") from None
    return comparisons


def as_markdown(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """A table of the comparisons as they are written, ordered by method."""
    return markdown(HEADINGS, [_cells(row) for row in sorted(comparisons, key=lambda row: str(row["method"]))])


def closest(comparisons: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of all comparisons of one thing that with the least difference, in order: with as little between as possible."""
    least: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for row in comparisons:
        thing = tuple(row[name] for name in ("method", "repository", "compared"))
        least[thing] = min(least.get(thing, row), row, key=lambda row: float(row["relative_difference"]))
    return list(least.values())


def _cells(row: Mapping[str, Any]) -> list[str]:
    difference = row["relative_difference"]
    shown = f"{difference:.3f}" if difference >= 1e-3 else f"{difference:.0e}" if difference else "0"
    return [
        row["method"],
        f"{row['repository']} {row['commit'][:7]}",
        row["compared"],
        row["options"],
        shown,
        f"{row['cosine']:.4f}",
        row["explanation"],
    ]


def main(args: Args) -> None:
    """Compares, prints the table, and writes the file."""
    try:
        rows = [agreement.as_dict() for agreement in agreements(args)]
    except ValueError as error:
        raise SystemExit(str(error)) from None
    print(as_markdown(rows), end="")
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        result = {"versions": versions(), "comparisons": rows}
        atomic_write_text(args.output, json.dumps(result, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
