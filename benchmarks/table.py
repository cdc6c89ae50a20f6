"""Records as a table and as a picture.

python -m benchmarks.table --results runs/smoke/results.jsonl --figure runs/smoke/retention.png
"""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import figures
from benchmarks.results.records import read
from benchmarks.results.tables import as_details, as_markdown, as_portability


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        results: A results.jsonl.
        figure: Draw the retention curves of its one suite here (of several suites: benchmarks.report).
        agents: Only these rows: of more than a dozen curves none is seen.
    """

    results: Path
    figure: Path | None = None
    agents: tuple[str, ...] = ()


def main(args: Args) -> None:
    """Prints Markdown tables for each suite and model.

    Raises:
        SystemExit: If the file has no such row, or a figure cannot show its suites.
    """
    records = read(args.results)
    if missing := sorted(set(args.agents) - {record.agent for record in records}):
        raise SystemExit(f"--agents: {args.results} has no row {', '.join(missing)}")
    records = [record for record in records if record.agent in args.agents or not args.agents]
    if args.figure is not None and len(suites := {record.suite for record in records}) > 1:
        raise SystemExit(
            f"--figure draws one suite, but {args.results} has {', '.join(sorted(suites))}: use benchmarks.report"
        )
    for suite, model in dict.fromkeys((record.suite, record.model) for record in records):
        group = [record for record in records if (record.suite, record.model) == (suite, model)]
        print(f"{suite} on {model}:\n\n{as_markdown(group)}")
        if any(record.drift for record in group):
            print(as_details(group))
        if any(record.portability for record in group):
            print(as_portability(group))
    if args.figure is not None:
        figures.draw_retention(records, args.figure)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
