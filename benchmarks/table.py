"""Records as a table and as a picture.

python -m benchmarks.table --results runs/smoke/results.jsonl --figure runs/smoke/retention.png
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.records import Record, read
from editenv.metrics import METRICS


def harmonic_mean(scores: Mapping[str, float | None]) -> float:
    """Of efficacy, generalization and specificity, those that were asked for; 0 if one of them is."""
    values = [value for metric in METRICS if (value := scores[metric]) is not None]
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)


def interval(values: Sequence[float], resamples: int = 2000) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean over seeds."""
    from scipy.stats import bootstrap

    if len(set(values)) < 2:
        return (float(values[0]), float(values[0]))
    found = bootstrap((np.asarray(values),), np.mean, n_resamples=resamples, method="percentile", rng=0)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def triple(scores: Sequence[Mapping[str, float | None]], between: str = " / ") -> str:
    """Efficacy, generalization and specificity, averaged; a dash where the data does not ask for one."""
    columns = [[value for s in scores if (value := s[metric]) is not None] for metric in METRICS]
    return between.join(f"{np.mean(column):.1f}" if column else "-" for column in columns)


def one_line(record: Record) -> str:
    """Both protocols and the costs in a line."""
    return (
        f"teacher-forced {triple([record.teacher_forced], '/')}, generation {triple([record.generation], '/')}, "
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
            line.append(triple(scores))
            means = [harmonic_mean(s) for s in scores]
            low, high = interval(means)
            line.append(f"{np.mean(means):.1f} [{low:.1f}, {high:.1f}]")
        line.append(triple([r.immediate for r in group]))
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


def as_details(records: Sequence[Record]) -> str:
    """A second table: the other protocol, drift, and the probes, where they were measured; means over seeds."""
    headings = [
        "agent",
        "probability Eff / Gen / Spe",
        "locality accuracy: forced, free",
        "perplexity before, after",
        "KL",
    ]
    headings += ["not", "distractor", "one hop (before; n)", "two hops (before; n)"]
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    for agent in dict.fromkeys(record.agent for record in records):
        group = [record for record in records if record.agent == agent and record.drift is not None]
        if not group:
            continue
        drifts = [record.drift for record in group if record.drift]
        line = [agent, triple([r.probability for r in group if r.probability]) if group[0].probability else "-"]
        accuracies = [[s.get("locality_accuracy") for s in (r.teacher_forced, r.generation)] for r in group]
        line.append(", ".join(_mean([pair[i] for pair in accuracies]) for i in range(2)))
        line.append(", ".join(_mean([d[key] for d in drifts], 2) for key in ("perplexity_before", "perplexity")))
        line.append(_mean([d["kl"] for d in drifts], 3))
        probes = [record.probes for record in group if record.probes]
        line += [_mean([p[key] for p in probes]) for key in ("negation", "distractor")]
        for key in ("one_hop", "two_hop"):
            shown = [
                _mean([p[f"{key}{part}"] for p in probes], d)
                for part, d in (("", 1), ("_before", 1), ("_questions", 0))
            ]
            line.append(f"{shown[0]} ({shown[1]}; {shown[2]})")
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float | None], digits: int = 1) -> str:
    found = [value for value in values if value is not None]
    return f"{np.mean(found):.{digits}f}" if found else "-"


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
            curves = np.array([[point[metric] for point in record.retention] for record in group], dtype=float)
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
        group = [record for record in found if record.suite == suite]
        print(f"{suite}:\n\n{as_markdown(group)}")
        if any(record.drift for record in group):
            print(as_details(group))
    if args.figure is not None:
        draw_retention(found, args.figure)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
