"""The runs of benchmarks.rl as a figure and two tables: after equal steps, and after equal seconds.

    python -m benchmarks.rl_report runs/rl --figure docs/results/rl.png

A run's figure at x steps (or seconds) is that of the last policy it had by then. Over seeds, the interquartile mean
with its 95% stratified bootstrap interval; there is one validation stream, hence one stratum.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from benchmarks.results.charts import PERCENT, Chart, Panel, Series, choose_highlighted, save
from benchmarks.results.statistics import Estimate, estimate
from benchmarks.results.tables import markdown, readable
from benchmarks.rl import FIGURES, Run, read

Unit = Literal["steps", "seconds"]
UNITS: tuple[Unit, ...] = ("steps", "seconds")
TITLES = dict(zip(FIGURES, ("return", "efficacy", "generalization", "specificity"), strict=True))
AXES: dict[Unit, str] = {"steps": "environment steps", "seconds": "CPU seconds"}
LABELS = {"episode_return": "sum of rewards", "efficacy": "over all edits (%)"}
"""Of the vertical axes; generalization and specificity share efficacy's."""
GRID = 41
"""Points of a curve."""


def figure_at(run: Run, unit: Unit, budget: float, figure: str) -> float:
    """Of the last policy within a budget of steps or seconds; of the first one if there was none yet."""
    before = [point for point in run.points if point[unit] <= budget]
    return (before or run.points[:1])[-1][figure]


def over_seeds(runs: Sequence[Run], unit: Unit, budget: float, figure: str) -> Estimate:
    """The interquartile mean of the runs' figures within a budget, with its interval."""
    return estimate([[figure_at(run, unit, budget, figure) for run in runs]])


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """By algorithm, in the order in which they come."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.algorithm, []).append(run)
    return groups


def as_markdown(runs: Sequence[Run], unit: Unit) -> str:
    """One row an algorithm, at the end of a budget."""
    budget = float(getattr(runs[0], unit))
    other: Unit = "seconds" if unit == "steps" else "steps"
    headings = [f"after {budget:g} {unit}", "seeds", *TITLES.values(), other]
    body = []
    for name, group in grouped(runs).items():
        cells = [name, str(len(group))]
        cells += [_with_interval(over_seeds(group, unit, budget, figure)) for figure in FIGURES]
        cells.append(f"{np.mean([figure_at(run, unit, budget, other) for run in group]):.0f}")
        body.append(cells)
    return markdown(headings, body)


def _with_interval(score: Estimate) -> str:
    """A return may be so low that only its exponent can be read."""
    value, *ends = (readable(number, 1) for number in (score.value, *(score.interval or ())))
    return f"{value} [{', '.join(ends)}]" if ends else value


def chart(runs: Sequence[Run], chosen: Iterable[str] = ()) -> Chart:
    """Every figure against steps and against seconds.

    Args:
        runs: Of all algorithms.
        chosen: Algorithms in colour; the first ones by default.
    """
    groups = grouped(runs)
    panels = []
    for unit in UNITS:
        budget = float(getattr(runs[0], unit))
        grid = tuple(float(x) for x in np.linspace(0, budget, GRID))
        for name in FIGURES:
            series = tuple(_series(algorithm, group, unit, name, grid) for algorithm, group in groups.items())
            panels.append(
                Panel(
                    TITLES[name].capitalize(),
                    AXES[unit],
                    series,
                    LABELS.get(name),
                    log=False,
                    y_limits=_limits(runs) if name == "episode_return" else PERCENT,
                    x_limits=(0.0, budget),
                )
            )
    note = "one validation stream, percentages teacher-forced; bands are 95% intervals over seeds"
    highlighted = choose_highlighted(list(groups), chosen)
    return Chart(
        "Learning by equal steps and by equal seconds",
        note,
        tuple(panels),
        len(FIGURES),
        "steps",
        highlighted=highlighted,
    )


def _series(algorithm: str, group: Sequence[Run], unit: Unit, figure: str, grid: tuple[float, ...]) -> Series:
    estimates = [over_seeds(group, unit, x, figure) for x in grid]
    return Series(algorithm, grid, tuple(e.value for e in estimates), tuple(e.interval for e in estimates))


def _limits(runs: Sequence[Run]) -> tuple[float, float]:
    """Of the returns' axis: a policy that breaks the model is off it, or nothing else could be told apart."""
    returns = [point["episode_return"] for run in runs for point in run.points]
    low, high = (float(value) for value in np.quantile(returns, [0.1, 1.0]))
    return 1.1 * low - 0.1 * high, 1.1 * high - 0.1 * low


def draw(runs: Sequence[Run], path: Path, chosen: Iterable[str] = ()) -> None:
    """The chart as a picture; written whole or not at all."""
    save(chart(runs, chosen), path)


@dataclass
class Args:
    folder: tyro.conf.Positional[Path]
    """Folder that benchmarks.rl has written to."""
    figure: Path | None = None
    """Draw here; FOLDER/rl.png by default."""
    algorithms: tuple[str, ...] = ()
    """In colour, at most eight; the first ones by default."""


def main(args: Args) -> None:
    path = args.folder / "rl.jsonl"
    if not path.exists():
        raise SystemExit(f"{path} does not exist; make it with: python -m benchmarks.rl --out {args.folder}")
    try:
        runs = read(path)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    for unit in UNITS:
        print(as_markdown(runs, unit))
    try:
        draw(runs, args.figure or args.folder / "rl.png", args.algorithms)
    except ValueError as error:
        raise SystemExit(f"--algorithms: {error}") from None


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
