"""Lists the suites."""

import shutil
import textwrap

from benchmarks.suites import all_suites


def main() -> None:
    """Prints each with what it is, and the command that makes the rest of it, whole."""
    width = shutil.get_terminal_size().columns
    for suite in all_suites():
        print(f"{suite.id} ({suite.paper.where})" if suite.paper else suite.id)
        indent = " " * 4
        print(textwrap.fill(suite.about, width, initial_indent=indent, subsequent_indent=indent))
        if suite.command:
            print(f"{indent}{suite.command}")
    print("\nA file of records (--edits) and a suite's file of your own (--suite FILE.json) are suites, too.")


if __name__ == "__main__":
    main()
