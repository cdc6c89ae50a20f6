"""The console script ``editenv``; also ``python -m editenv``.

The commands are those of :mod:`agents.cli`.
They are looked up by name, after it is clear that ``agents`` is ours: a foreign package of that name would end in an
error that says nothing of it.
"""

import sys
from importlib import import_module

from editenv.collisions import REMEDY, foreign_packages


def main() -> None:
    """Entry point.

    Raises:
        SystemExit: If ``agents`` is not ours, after saying so on stderr.
    """
    if foreign := foreign_packages().get("agents"):
        print(
            f"editenv: the package 'agents' that Python finds, {foreign}, is not LifelongEdit's: {REMEDY}",
            file=sys.stderr,
        )
        raise SystemExit(1)
    import_module("agents.cli").main()


if __name__ == "__main__":
    main()
