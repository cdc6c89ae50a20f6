"""The runs of benchmarks.rl as a figure and a table: the return at each number of environment steps.

    python -m benchmarks.rl_report runs/rl --figure docs/results/rl.png

A return after x steps is that of the first policy that was made of x steps or more. Over seeds: the mean, with the lowest
and the highest seed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks.results.charts import Chart, Panel, Series, choose_highlighted, save
from benchmarks.results.tables import markdown
from benchmarks.rl import FIGURES, MARKS, Run, read

PERCENTAGES = FIGURES[1:]
LOWEST_SHOWN = 4.0
"""Of the returns' axis: below it nothing is told apart that a reader would ask about; a line that goes there ends."""


def at_mark(run: Run, mark: int) -> float | None:
    """The return of the policy that was judged for a mark: the first one after it; None behind the budget."""
    if mark > run.steps:
        return None
    return next((point["episode_return"] for point in run.points if point["steps"] >= mark), None)


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """By algorithm, in the order in which they come; of each algorithm the runs with its largest budget."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.algorithm, []).append(run)
    longest = {name: max(run.steps for run in group) for name, group in groups.items()}
    return {name: [run for run in group if run.steps == longest[name]] for name, group in groups.items()}


def as_markdown(runs: Sequence[Run]) -> str:
    """One row an algorithm: mean returns at the marks, and what the last policies are like."""
    groups = grouped(runs)
    marks = [mark for mark in MARKS if any(run.steps >= mark for group in groups.values() for run in group)]
    headings = ["return after", "seeds", *(f"{mark:,}" for mark in marks), "last: lowest, highest"]
    headings += ["efficacy / general. / spec.", "CPU ms a step"]
    body = []
    for name, group in groups.items():
        returns = [[at_mark(run, mark) for run in group] for mark in marks]
        means = ["-" if None in values else f"{np.mean(values):.2f}" for values in returns]  # type: ignore[arg-type]
        last = [run.points[-1] for run in group]
        ends = [point["episode_return"] for point in last]
        scores = " / ".join(f"{np.mean([point[figure] for point in last]):.0f}" for figure in PERCENTAGES)
        cost = 1000 * np.mean([point["seconds"] / point["steps"] for point in last])
        body.append([name, str(len(group)), *means, f"{min(ends):.2f}, {max(ends):.2f}", scores, f"{cost:.0f}"])
    return markdown(headings, body)


def choice_as_markdown(runs: Sequence[Run]) -> str:
    """One row an algorithm, one column a rate factor: the mean return of the last policies; and which one is chosen."""
    factors = sorted({run.rate_factor for run in runs})
    body = []
    for name in dict.fromkeys(run.algorithm for run in runs):
        ends = [
            [run.points[-1]["episode_return"] for run in runs if (run.algorithm, run.rate_factor) == (name, factor)]
            for factor in factors
        ]
        means = [float(np.mean(values)) if values else None for values in ends]
        tried = {factor: mean for factor, mean in zip(factors, means, strict=True) if mean is not None}
        cells = [f"{tried[factor]:.2f}" if factor in tried else "-" for factor in factors]
        body.append([name, *cells, f"{chosen_factor(tried):g}"])
    return markdown(["return; rates times", *(f"{factor:g}" for factor in factors), "chosen"], body)


AS_GOOD = 0.1
"""Returns that differ by less are taken for equal: one seed tells no more."""


def chosen_factor(returns: Mapping[float, float]) -> float:
    """The smallest rate factor that is as good as the best one: trainings are longer than the looks."""
    return min(factor for factor, value in returns.items() if value >= max(returns.values()) - AS_GOOD)


TABLES = {"steps": as_markdown, "choice": choice_as_markdown}
"""By the word that a document asks for them with."""


def chart(runs: Sequence[Run], chosen: Iterable[str] = ()) -> Chart:
    """The returns against environment steps, on a logarithmic axis.

    Args:
        runs: Of all algorithms.
        chosen: Algorithms in colour; the first ones by default.
    """
    groups = grouped(runs)
    last = max(run.points[-1]["steps"] for group in groups.values() for run in group)
    highest = max(point["episode_return"] for group in groups.values() for run in group for point in run.points)
    panel = Panel(
        "LifelongEdit-v1, 10 batches of 5 edits",
        "environment steps; the leftmost points are before training",
        tuple(_series(name, group) for name, group in groups.items()),
        "return (10 at most, 0: no editing)",
        log=True,
        y_limits=(LOWEST_SHOWN, max(9.0, highest + 0.1)),
        x_limits=(FIRST, last),
    )
    note = "mean of three validation streams; lines: mean over seeds, bands: lowest and highest seed"
    highlighted = choose_highlighted(list(groups), chosen)
    return Chart("Learning on the bounded reward", note, (panel,), 1, "lines", highlighted=highlighted)


FIRST = 30.0
"""Where the policies that have learned nothing stand on a logarithmic axis, which has no 0."""


def _series(algorithm: str, group: Sequence[Run]) -> Series:
    points = range(min(len(run.points) for run in group))
    steps = [np.mean([run.points[i]["steps"] for run in group]) for i in points]
    returns = [[run.points[i]["episode_return"] for run in group] for i in points]
    return Series(
        algorithm,
        tuple(max(FIRST, float(x)) for x in steps),
        tuple(float(np.mean(values)) for values in returns),
        tuple((min(values), max(values)) for values in returns),
    )


def draw(runs: Sequence[Run], path: Path, chosen: Iterable[str] = ()) -> None:
    """The chart as a picture; written whole or not at all."""
    save(chart(runs, chosen), path)


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        folder: Folder that benchmarks.rl has written to.
        figure: Draw here; FOLDER/rl.png by default.
        algorithms: In colour, at most eight; the first ones by default.
    """

    folder: tyro.conf.Positional[Path]
    figure: Path | None = None
    algorithms: tuple[str, ...] = ()


def main(args: Args) -> None:
    path = args.folder / "rl.jsonl"
    if not path.exists():
        raise SystemExit(f"{path} does not exist; make it with: python -m benchmarks.rl --out {args.folder}")
    try:
        runs = read(path)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    if len({(run.algorithm, run.rate_factor) for run in runs}) > len({run.algorithm for run in runs}):
        print(choice_as_markdown(runs))
        return
    print(as_markdown(runs))
    try:
        draw(runs, args.figure or args.folder / "rl.png", args.algorithms)
    except ValueError as error:
        raise SystemExit(f"--algorithms: {error}") from None


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
