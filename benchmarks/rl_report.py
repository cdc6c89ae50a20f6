"""The runs of benchmarks.rl as a figure and two tables: after equal steps, and after equal seconds.

    python -m benchmarks.rl_report runs/rl --figure docs/results/rl.png

A run's figure at x steps (or seconds) is that of the last policy it had by then. Over seeds, the interquartile mean
with its 95% stratified bootstrap interval; there is one validation stream, hence one stratum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.results import figures
from benchmarks.results.statistics import Estimate, estimate
from benchmarks.results.tables import markdown, readable
from benchmarks.rl import FIGURES, Run, read

Unit = Literal["steps", "seconds"]
UNITS: tuple[Unit, ...] = ("steps", "seconds")
TITLES = dict(zip(FIGURES, ("return", "efficacy", "generalization", "specificity"), strict=True))
GRID = 41
"""Places at which the curves are drawn."""


def figure_at(run: Run, unit: Unit, place: float, figure: str) -> float:
    """Of the last policy by then; of the first one if there was none yet."""
    before = [point for point in run.points if point[unit] <= place]
    return (before or run.points[:1])[-1][figure]


def over_seeds(runs: Sequence[Run], unit: Unit, place: float, figure: str) -> Estimate:
    return estimate([[figure_at(run, unit, place, figure) for run in runs]])


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """By algorithm, in the order they come."""
    return {name: [run for run in runs if run.algorithm == name] for name in dict.fromkeys(r.algorithm for r in runs)}


def as_markdown(runs: Sequence[Run], unit: Unit) -> str:
    """One row an algorithm, at the end of a budget."""
    budget = float(getattr(runs[0], unit))
    other: Unit = "seconds" if unit == "steps" else "steps"
    headings = [f"after {budget:g} {unit}", "seeds", *TITLES.values(), other]
    body = []
    for name, group in grouped(runs).items():
        cells = [name, str(len(group))]
        cells += [shown(over_seeds(group, unit, budget, figure)) for figure in FIGURES]
        cells.append(f"{np.mean([figure_at(run, unit, budget, other) for run in group]):.0f}")
        body.append(cells)
    return markdown(headings, body)


def shown(found: Estimate) -> str:
    value, *ends = (readable(number, 1) for number in (found.value, *(found.interval or ())))
    return f"{value} [{', '.join(ends)}]" if ends else value


def draw(runs: Sequence[Run], path: Path) -> None:
    """Every figure against steps and against seconds; written whole or not at all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    groups = grouped(runs)
    figure, axes = plt.subplots(len(UNITS), len(FIGURES), figsize=(15, 7.2), sharey="col", constrained_layout=True)
    for row, unit in zip(axes, UNITS, strict=True):
        grid = np.linspace(0, float(getattr(runs[0], unit)), GRID)
        for axis, name in zip(row, FIGURES, strict=True):
            for i, (algorithm, group) in enumerate(groups.items()):
                _curve(axis, grid, [over_seeds(group, unit, x, name) for x in grid], i, algorithm)
            if name == "episode_return":
                axis.set_ylim(_limits(runs))
            axis.set(xlabel=f"environment {unit}" if unit == "steps" else unit, xlim=(0, grid[-1]))
            axis.grid(alpha=0.3)
    for axis, name in zip(axes[0], FIGURES, strict=True):
        axis.set_title(TITLES[name])
    for row in axes:
        row[0].set_ylabel("sum of rewards, validation stream")
        row[1].set_ylabel("% of all its edits, teacher-forced")
    handles = axes[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=5, frameon=False)
    figures.save(figure, path)
    plt.close(figure)


def _limits(runs: Sequence[Run]) -> tuple[float, float]:
    """Of the returns' axis: a policy that breaks the model is off it, or nothing else could be told apart."""
    returns = [point["episode_return"] for run in runs for point in run.points]
    low, high = np.quantile(returns, [0.1, 1.0])
    return 1.1 * low - 0.1 * high, 1.1 * high - 0.1 * low


def _curve(axis: Any, grid: np.ndarray, estimates: Sequence[Estimate], place: int, label: str) -> None:
    colour, line = f"C{place % 10}", "-" if place < 5 else "--"
    values = [e.value for e in estimates]
    axis.plot(grid, values, color=colour, linestyle=line, linewidth=1.6, drawstyle="steps-post", label=label)
    bands = [e.interval or (e.value, e.value) for e in estimates]
    axis.fill_between(grid, *zip(*bands, strict=True), color=colour, alpha=0.1, linewidth=0, step="post")


@dataclass
class Args:
    folder: tyro.conf.Positional[Path]
    """Folder that benchmarks.rl has written to."""
    figure: Path | None = None
    """Draw here; FOLDER/rl.png by default."""


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
    draw(runs, args.figure or args.folder / "rl.png")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
