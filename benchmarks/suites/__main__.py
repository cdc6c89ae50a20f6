"""Lists the suites."""

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.suites import all_suites


def main() -> None:
    """Prints a table of them."""
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    view.add_column("suite", no_wrap=True)
    view.add_column("paper")
    view.add_column("what it is")
    for suite in all_suites():
        about = f"{suite.about}\n{suite.command}" if suite.command else suite.about
        view.add_row(suite.id, suite.paper.where if suite.paper else "", about)
    Console().print(view)


if __name__ == "__main__":
    main()
