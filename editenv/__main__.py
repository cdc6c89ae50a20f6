"""``python -m editenv`` is the console script."""

from editenv.cli import main

main()
