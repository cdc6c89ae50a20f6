"""The console script ``editenv``; also ``python -m editenv``.

The commands are those of :mod:`agents.cli`, and ``editenv bench``, which runs a command of
:mod:`benchmarks`.
They are looked up by name, after it is clear that ``agents`` is ours: a foreign package of that name would end in an
error that says nothing of it.
"""

import runpy
import sys
from collections.abc import Sequence
from importlib import import_module

from editenv.collisions import HOME, REMEDY, find_own_first, foreign_packages


def main() -> None:
    """Entry point.

    Raises:
        SystemExit: If ``agents`` is not ours, after saying so on stderr.
    """
    if sys.argv[1:2] == ["bench"]:
        bench(sys.argv[2:])
        return
    if foreign := foreign_packages().get("agents"):
        print(
            f"editenv: the package 'agents' that Python finds, {foreign}, is not LifelongEdit's: {REMEDY}",
            file=sys.stderr,
        )
        raise SystemExit(1)
    import_module("agents.cli").main()


def bench(words: Sequence[str]) -> None:
    """Runs a command of the package ``benchmarks``, wherever it is run and whatever else has a package of that name.

    Args:
        words: Name of the command and its arguments.

    Raises:
        SystemExit: Without a command of ours, with a message; and as the command ends.
    """
    files = sorted((HOME / "benchmarks").glob("*.py"))
    names = [path.stem for path in files if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]
    names = sorted([*names, "suites"] if names else [])
    if not names:
        print(f"editenv bench: there is no package benchmarks beside {HOME / 'editenv'}", file=sys.stderr)
        raise SystemExit(1)
    if not words or words[0] not in names:
        asks_for_help = not words or words[0] in ("-h", "--help")
        print(f"usage: editenv bench NAME [--help] ...\nNAME is one of {', '.join(names)}", file=sys.stderr)
        raise SystemExit(0 if asks_for_help else 2)
    find_own_first("benchmarks")
    sys.argv = [f"editenv bench {words[0]}", *words[1:]]
    runpy.run_module(f"benchmarks.{words[0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
