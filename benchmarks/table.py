"""Records as a table and as a picture.

python -m benchmarks.table --results runs/smoke/results.jsonl --figure runs/smoke/retention.png
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.records import METRICS, Record, read


def harmonic_mean(scores: dict[str, float]) -> float:
    """Of efficacy, generalization and specificity, 0 if one of them is."""
    values = [scores[metric] for metric in METRICS]
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)


def interval(values: Sequence[float], resamples: int = 2000) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean over seeds."""
    from scipy.stats import bootstrap

    if len(set(values)) < 2:
        return (float(values[0]), float(values[0]))
    found = bootstrap((np.asarray(values),), np.mean, n_resamples=resamples, method="percentile", rng=0)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def one_line(record: Record) -> str:
    """Both protocols and the costs in a line."""
    forced, free = record.teacher_forced, record.generation
    return (
        f"teacher-forced {forced['efficacy']:.1f}/{forced['generalization']:.1f}/{forced['specificity']:.1f}, "
        f"generation {free['efficacy']:.1f}/{free['generalization']:.1f}/{free['specificity']:.1f}, "
        f"setup {record.setup_seconds:.0f} s, {1000 * record.edit_seconds:.2f} ms/edit"
    )


def rows(records: Sequence[Record]) -> list[list[str]]:
    """One row an agent: figures are means over seeds, with the half-width of the harmonic mean's interval."""
    lines = []
    for agent in dict.fromkeys(record.agent for record in records):
        group = [record for record in records if record.agent == agent]
        line = [agent, str(len(group))]
        for protocol in ("teacher_forced", "generation"):
            scores = [getattr(record, protocol) for record in group]
            line.append(" / ".join(f"{np.mean([s[metric] for s in scores]):.1f}" for metric in METRICS))
            means = [harmonic_mean(s) for s in scores]
            low, high = interval(means)
            line.append(f"{np.mean(means):.1f} [{low:.1f}, {high:.1f}]")
        line.append(" / ".join(f"{np.mean([r.immediate[metric] for r in group]):.1f}" for metric in METRICS))
        line.append(f"{np.mean([r.setup_seconds for r in group]):.0f}")
        line.append(f"{1000 * np.mean([r.edit_seconds for r in group]):.2f}")
        line.append(f"{np.mean([r.floor_ratio for r in group]):.2f}")
        line.append(f"{np.mean([r.peak_memory_bytes for r in group]) / 1e9:.2f}")
        line.append(str(sum(r.failures for r in group)))
        lines.append(line)
    return lines


HEADINGS = (
    "agent",
    "seeds",
    "teacher-forced Eff / Gen / Spe",
    "mean",
    "generation Eff / Gen / Spe",
    "mean ",
    "immediate",
    "setup s",
    "ms/edit",
    "x floor",
    "GB",
    "failed",
)


def as_markdown(records: Sequence[Record]) -> str:
    """The table for a document."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + " --- |" * len(HEADINGS)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows(records)]) + "\n"


def show(records: Sequence[Record]) -> None:
    """The table on the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    if not records:
        return
    first = records[0]
    view = Table(title=f"{first.suite}: {first.edits} edits of {first.dataset} in {first.model}", title_justify="left")
    view.box, view.padding, view.pad_edge = box.SIMPLE_HEAD, (0, 1, 0, 0), False
    for heading in (
        "",
        "teacher-forced\nEff/Gen/Spe",
        "generation\nEff/Gen/Spe",
        "mean",
        "setup\ns",
        "ms per\nedit",
        "x\nfloor",
    ):
        view.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for agent, _, forced, _, free, mean, _, setup, edit, floor, _, _ in rows(records):
        view.add_row(agent, forced.replace(" ", ""), free.replace(" ", ""), mean.split()[0], setup, edit, floor)
    Console().print(view)


def draw_retention(records: Sequence[Record], path: Path) -> None:
    """Efficacy, generalization and specificity over all edits so far, against their number; written whole or not at all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), sharey=True, constrained_layout=True)
    agents = list(dict.fromkeys(record.agent for record in records))
    styles = ["-", "--", "-.", ":"]
    for axis, metric in zip(axes, METRICS, strict=True):
        for i, agent in enumerate(agents):
            group = [record for record in records if record.agent == agent]
            edits = [point["edits"] for point in group[0].retention]
            curves = np.array([[point[metric] for point in record.retention] for record in group])
            colour = f"C{i % 10}"
            axis.plot(
                edits, curves.mean(0), color=colour, linestyle=styles[i % 4], marker="o", markersize=3, label=agent
            )
            if len(group) > 1:
                axis.fill_between(edits, curves.min(0), curves.max(0), color=colour, alpha=0.15, linewidth=0)
        axis.set(title=metric, xlabel="edits so far", xscale="log", ylim=(-3, 103))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("% of all edits so far, teacher-forced")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(agents)), frameon=False
    )
    partial = path.with_name(path.stem + ".partial.png")
    figure.savefig(partial, dpi=150)
    plt.close(figure)
    partial.replace(path)


@dataclass
class Args:
    results: Path
    """A results.jsonl."""
    figure: Path | None = None
    """Draw the retention curves here."""


def main(args: Args) -> None:
    """Prints one Markdown table for each suite."""
    found = read(args.results)
    for suite in dict.fromkeys(record.suite for record in found):
        print(f"{suite}:\n\n{as_markdown([record for record in found if record.suite == suite])}")
    if args.figure is not None:
        draw_retention(found, args.figure)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
