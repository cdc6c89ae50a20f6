"""How many edits a model holds: quality against their number, for more or fewer edited weights, until it breaks.

    python -m benchmarks.capacity --out runs/capacity
    python -m benchmarks.capacity --suites capacity-1-layer@10 --agents untrained-p --ceiling 20 200 --out runs/try
    python -m benchmarks.capacity --suites capacity-wide --model runs/base --device cuda --out runs/capacity

One run of a lifelong method gives its whole curve: a stream's first edits are the stream of a shorter run. The
upper reference, joint fine-tuning (--ceiling), sees all its edits at once and is run anew for each number of them.
Quality is the harmonic mean of teacher-forced efficacy, generalization and specificity over all edits so far. A method
breaks where its curve first falls below 90% of its start, the first batch; between two points the curve is taken as
straight over the logarithm of the number of edits. One that starts below 10 never worked, and has nothing to lose.

Cells are those of benchmarks.run, in OUT/cells: what is there is not run again, and --suites may be added to later.
Writes OUT/capacity.md, OUT/capacity.json and OUT/capacity.png from all capacity suites in OUT.
"""

import itertools
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from agents.registry import make_agent
from benchmarks.results.charts import Chart, Panel, Series, choose_highlighted, save
from benchmarks.results.leaderboard import UPPER_REFERENCE, is_reference, is_upper_reference
from benchmarks.results.records import Record
from benchmarks.results.statistics import harmonic_mean, interquartile_mean
from benchmarks.results.tables import markdown
from benchmarks.run import parse_agents, parse_seeds, run_cells, run_here
from benchmarks.running import cells
from benchmarks.running.cells import Cell
from benchmarks.suites import Suite, find, id_of
from editenv.atomic_files import atomic_write_text
from editenv.models import EMBEDDED

BROKEN_SHARE = 0.9
"""Share of its start below which a method has broken."""

WORKING_QUALITY = 10.0
"""Quality at the start below which a method never worked."""

MOST_NAMED = 8
"""Modules of a row that are named, and not counted."""


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        out: Folder for cells, table and figure.
        suites: Suites that differ in their edited modules; NAME@BATCHES for shorter streams.
        agents: Methods besides joint fine-tuning; each suite's own by default. With joint-fine-tune@FOLDER among them
            joint fine-tuning has the settings there.
        ceiling: Numbers of edits at which joint fine-tuning is run, as far as the stream goes; 0 leaves it out.
        seeds: Like 0 or 0-2; each seeds training and the stream's order.
        model: Name, folder or hub id of the language model; each suite's by default.
        device: A torch device.
        observed_tokens: Which tokens of a batch agents see, answers or all; each suite's by default, or else those of
            the settings of METHOD@FOLDER, if they name them, or else answers.
    """

    out: Path
    suites: tuple[str, ...] = ("capacity-narrow", "capacity-1-layer", "capacity-2-layers", "capacity-4-layers")
    agents: tuple[str, ...] = ()
    ceiling: tuple[int, ...] = (20, 100, 500, 1000, 2000, 4000, 8000)
    seeds: str = "0"
    model: str | None = None
    device: str = "cpu"
    observed_tokens: Literal["answers", "all"] | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """Quality of one method on one set of modules.

    Attributes:
        suite: Its label in records, without batches.
        model: That is edited.
        modules: That are edited.
        inputs: d_in summed over them: the rows of the linear memories that edits are written to.
        agent: Name of the row.
        seeds: Runs of which the points are interquartile means.
        points: Number of edits, and quality over all of them, 0 to 100.
        breaks_at: Edits at which the curve falls below 90% of its start; None if it does not, or never worked.
        breaks_by_seed: The same for each run alone, in the order of seeds.
    """

    suite: str
    model: str
    modules: tuple[str, ...]
    inputs: int
    agent: str
    seeds: int
    points: tuple[tuple[int, float], ...]
    breaks_at: float | None
    breaks_by_seed: tuple[float | None, ...]


def cells_of(suite: Suite, args: Args, seeds: Sequence[int]) -> list[Cell]:
    """The runs that a suite's curves are made of.

    Raises:
        ValueError: If the suite's model or edits are not those it is about, if a method's run does not give its
            curve, or if a number of edits for joint fine-tuning is not one of whole batches.
        FileNotFoundError: If a row's settings are not there.
    """
    suite = suite.at(args.model, None, device=args.device, observed_tokens=args.observed_tokens)
    for edits in args.ceiling:
        if edits % suite.edits_per_step:
            raise ValueError(
                f"ceiling: {suite.id} has batches of {suite.edits_per_step} edits; {edits} edits are no whole number "
                "of them"
            )
    fingerprints, out = suite.check_fingerprints(), args.out.resolve()
    rows = parse_agents(args.agents) or suite.agents
    methods = [name for name in rows if not is_upper_reference(name)]
    upper_reference = next(filter(is_upper_reference, rows), UPPER_REFERENCE)
    for name in methods:
        if make_agent(name).looks_ahead:
            raise ValueError(f"agents: {name} acts by where its stream ends; one run does not give its curve")
    cells = [Cell(suite, fingerprints, agent, seed, out) for seed in seeds for agent in methods]
    uncut = find(f"{suite.name.partition('@')[0]}-v{suite.version}")
    uncut = uncut.at(args.model, None, device=args.device, observed_tokens=args.observed_tokens)
    for batches in sorted({edits // suite.edits_per_step for edits in args.ceiling}):
        if 1 <= batches <= suite.batches:
            cells += [Cell(uncut.first(batches), fingerprints, upper_reference, seed, out) for seed in seeds]
    return cells


def breaking_point(points: Sequence[tuple[int, float]]) -> float | None:
    """Where a curve first falls below :data:`BROKEN_SHARE` of its first point.

    Args:
        points: Number of edits, ascending, and quality over all of them.

    Returns:
        A number of edits; None if the curve does not fall so far, or starts below :data:`WORKING_QUALITY`.
    """
    start = points[0][1]
    if start < WORKING_QUALITY:
        return None
    broken = BROKEN_SHARE * start
    for (edits_before, quality_before), (edits_after, quality_after) in itertools.pairwise(points):
        if quality_after < broken:
            share = (quality_before - broken) / (quality_before - quality_after)
            return math.exp(math.log(edits_before) + share * (math.log(edits_after) - math.log(edits_before)))
    return None


def curves(records: Sequence[Record]) -> list[Curve]:
    """Of every suite and method among the records that has more than one point, the widest edited part last.

    Raises:
        ValueError: If neither a suite's records nor the suite itself say which modules were edited.
    """
    # For each suite, model and agent, and of it for each seed: number of edits -> quality over all of them.
    runs: dict[tuple[str, str, str], dict[int, dict[int, float]]] = {}
    for record in records:
        quality = runs.setdefault((_suite_of(record), record.model, record.agent), {}).setdefault(record.seed, {})
        if is_upper_reference(record.agent):
            quality[record.edits] = harmonic_mean(record.teacher_forced)
        else:  # a longer run's points are a shorter one's, and more
            quality |= {int(point["edits"] or 0): harmonic_mean(point) for point in record.retention}
    modules_and_inputs = _modules_and_inputs(records)
    curves_of_runs = []
    for (suite, model, agent), by_seed in runs.items():
        in_common = sorted(set.intersection(*map(set, by_seed.values())))
        if len(in_common) < 2:
            continue
        points = tuple((n, float(interquartile_mean([quality[n] for quality in by_seed.values()]))) for n in in_common)
        modules, inputs = modules_and_inputs[suite, model, agent]
        curves_of_runs.append(
            Curve(
                suite=suite,
                model=model,
                modules=modules,
                inputs=inputs,
                agent=agent,
                seeds=len(by_seed),
                points=points,
                breaks_at=breaking_point(points),
                breaks_by_seed=tuple(
                    breaking_point([(n, quality[n]) for n in in_common]) for _, quality in sorted(by_seed.items())
                ),
            )
        )
    return sorted(curves_of_runs, key=lambda curve: (curve.inputs, curve.suite))


def _suite_of(record: Record) -> str:
    """The suite's label, whatever number of its batches were run; another version is another suite."""
    return re.sub(r"@\d+|-v1$", "", record.suite)


def _modules_and_inputs(records: Sequence[Record]) -> dict[tuple[str, str, str], tuple[tuple[str, ...], int]]:
    """Edited modules of each suite, model and agent, and d_in summed over them.

    A suite may leave its modules to the agent; where an agent's records do not say them, another's of the suite do.

    Raises:
        ValueError: If no record of a suite says it, and the suite does not say which model it is about.
    """
    of_suite: dict[tuple[str, str], dict[str, list[int]]] = {}
    of_agent: dict[tuple[str, str, str], dict[str, list[int]]] = {}
    for record in records:
        if record.modules:
            of_suite[_suite_of(record), record.model] = record.modules
            of_agent[_suite_of(record), record.model, record.agent] = record.modules
    modules_and_inputs = {}
    for record in records:
        suite, model, agent = _suite_of(record), record.model, record.agent
        if (suite, model, agent) not in modules_and_inputs:
            shapes = of_agent.get((suite, model, agent)) or of_suite.get((suite, model))
            shapes = shapes or _shapes(find(id_of(record.suite)))
            modules_and_inputs[suite, model, agent] = tuple(shapes), sum(d_in for d_in, _ in shapes.values())
    return modules_and_inputs


def _shapes(suite: Suite) -> dict[str, list[int]]:
    """``[d_in, d_out]`` of the suite's modules, which are its model's own where it names none: for older records, which
    do not say it.
    """
    from editenv.language_model.editable_lm import EditableLM
    from editenv.models import load_model

    if suite.model is None:
        raise ValueError(
            f"suite {suite.id}: its records do not say which modules were edited, and it is about any model"
        )
    model, tokenizer = load_model(suite.model)
    lm = EditableLM(model, tokenizer, suite.modules or model.config.edited_modules)
    return {name: list(lm.shape(name)) for name in lm.modules}


def as_markdown(curves: Sequence[Curve]) -> str:
    """A row for each method and set of modules."""
    headings = (
        "edited",
        "inputs",
        "method",
        "seeds",
        "quality at the start",
        "at the end (edits)",
        "below 90% at (each seed alone)",
        "edits per input",
    )
    body = []
    for curve in curves:
        (first_edits, start), (last_edits, end) = curve.points[0], curve.points[-1]
        modules = ", ".join(name.removeprefix("model.").removeprefix("layers.") for name in curve.modules)
        if len(curve.modules) > MOST_NAMED:
            modules = f"{len(curve.modules)} modules"
        body.append(
            [
                modules + (f" of {curve.model}" if curve.model != EMBEDDED else ""),
                f"{curve.inputs:,}",
                curve.agent,
                str(curve.seeds),
                f"{start:.1f} ({first_edits:,})",
                f"{end:.1f} ({last_edits:,})",
                *_capacity_of(curve),
            ]
        )
    return markdown(headings, body)


def _capacity_of(curve: Curve) -> tuple[str, str]:
    """Where the curve breaks, and that number of edits by the number of inputs."""
    last_edits, _ = curve.points[-1]
    if curve.breaks_at:
        edits = f"{curve.breaks_at:,.0f} edits"
        if curve.seeds > 1:
            edits += f" ({', '.join(f'{alone:,.0f}' if alone else '-' for alone in curve.breaks_by_seed)})"
        return edits, f"{curve.breaks_at / curve.inputs:.2f}"
    if curve.points[0][1] < WORKING_QUALITY:
        return "never worked", "-"
    return f"not up to {last_edits:,}", f"over {last_edits / curve.inputs:.2f}"


def chart(curves: Sequence[Curve]) -> Chart:
    """A panel for each set of modules; a cross where a method falls below 90% of its start."""
    groups: dict[tuple[str, str, tuple[str, ...]], list[Curve]] = {}
    for curve in curves:
        # Joint fine-tuning has one look, whatever its settings.
        curve = replace(curve, agent=UPPER_REFERENCE) if is_upper_reference(curve.agent) else curve
        groups.setdefault((curve.suite, curve.model, curve.modules), []).append(curve)
    columns = min(3, len(groups))
    panels: list[Panel] = []
    for (suite, model, _), group in groups.items():
        title = f"{suite.removeprefix('capacity-')}: {group[0].inputs:,} inputs"
        title += f" (model {model})" if model != EMBEDDED else ""
        label = "harmonic mean (%)" if len(panels) % columns == 0 else None
        panels.append(Panel(title, "edits so far", tuple(_series(curve) for curve in group), label))
    agents = dict.fromkeys(series.agent for panel in panels for series in panel.series)
    highlighted = choose_highlighted(sorted(agents, key=lambda agent: not is_reference(agent)))
    note = f"over all edits so far, teacher-forced; a cross where a method falls below {BROKEN_SHARE:.0%} of its start"
    return Chart("How many edits a model holds", note, tuple(panels), columns, highlighted=highlighted)


def _series(curve: Curve) -> Series:
    edits, quality = zip(*((float(edits), quality) for edits, quality in curve.points), strict=True)
    cross = (curve.breaks_at, BROKEN_SHARE * quality[0]) if curve.breaks_at else None
    return Series(curve.agent, edits, quality, cross=cross)


def draw(curves: Sequence[Curve], path: Path) -> None:
    """The chart as a picture; written whole or not at all."""
    save(chart(curves), path)


def main(args: Args) -> int:
    """Runs what is missing and writes table, figures and curves; 1 if a cell failed.

    Raises:
        SystemExit: For wrong arguments, with a message.
    """
    try:
        seeds = parse_seeds(args.seeds)
        requested = [cell for name in args.suites for cell in cells_of(find(name), args, seeds)]
        failed = run_cells(requested, args.out, run_here)
        results = curves([record for record in cells.collect(args.out) if record.suite.startswith("capacity-")])
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    if results:
        atomic_write_text(args.out / "capacity.json", json.dumps([asdict(curve) for curve in results], indent=2) + "\n")
        atomic_write_text(args.out / "capacity.md", as_markdown(results))
        draw(results, args.out / "capacity.png")
        print(f"\n{as_markdown(results)}\nSaved {args.out}/capacity.md, capacity.json and capacity.png.")
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    import tyro

    sys.exit(main(tyro.cli(Args, description=__doc__)))
