"""``python -m agents`` is the console script."""

from agents.cli import main

main()
