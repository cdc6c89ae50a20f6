"""Records as Markdown tables, and as a table on the terminal."""

import re
from collections.abc import Mapping, Sequence

from benchmarks.results.leaderboard import MEAN, entries
from benchmarks.results.records import Record
from benchmarks.results.statistics import Estimate, interquartile_mean
from benchmarks.suites import find, id_of
from editenv.evaluation.metrics import METRICS


def with_interval(found: Estimate | None, digits: int = 1) -> str:
    """``78.1 [77.0, 79.3]``; without an interval where there is none, and a dash where there is nothing."""
    if found is None:
        return "-"
    value, *ends = (f"{number:z.{digits}f}" for number in (found.value, *(found.interval or ())))
    return f"{value} [{', '.join(ends)}]" if ends else value


def readable(number: float, digits: int) -> str:
    """``18.92``, ``2001``, ``3.4e24``: decimals below 1,000, none below 10,000, two significant digits from there on."""
    if abs(number) < 10_000:
        return f"{number:.{digits if abs(number) < 1_000 else 0}f}"
    return f"{number:.1e}".replace("e+0", "e").replace("e+", "e")


def markdown(headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table for a document; what a cell holds cannot end it, and is shown as it is."""
    lines = ["| " + " | ".join(map(escaped, row)) + " |" for row in (headings, *body)]
    return "\n".join([lines[0], "|" + " --- |" * len(headings), *lines[1:]]) + "\n"


def escaped(text: str) -> str:
    """Text that is no Markdown."""
    entities = {
        "&": "&amp;",
        "<": "&lt;",
        ">": "&gt;",
        "|": "&#124;",
        "`": "&#96;",
        "](": "]&#40;",
        "*": "&#42;",
        "~": "&#126;",
        "://": ":&#47;/",
        "\n": " ",
        "\r": " ",
    }
    for mark, entity in entities.items():
        text = text.replace(mark, entity)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", "&#95;", text)  # within a word it styles nothing


def triple(scores: Sequence[Mapping[str, float | None]], between: str = " / ") -> str:
    """Efficacy, generalization and specificity, their interquartile means; a dash where the data does not ask for
    one.
    """
    columns = [[value for s in scores if (value := s[metric]) is not None] for metric in METRICS]
    return between.join(f"{interquartile_mean(column):.1f}" if column else "-" for column in columns)


def one_line(record: Record) -> str:
    """Both protocols and the costs in a line."""
    return (
        f"teacher-forced {triple([record.teacher_forced], '/')}, generation {triple([record.generation], '/')}, "
        f"setup {record.setup_seconds:.0f} s, {1000 * record.edit_seconds:.2f} ms/edit"
    )


def rows(records: Sequence[Record]) -> list[list[str]]:
    """One row an agent: interquartile means over seeds, the harmonic mean's with its interval; costs are means."""
    lines = []
    for entry in entries(records):
        line = [entry.agent, str(len(entry.records))]
        for protocol in ("teacher_forced", "generation"):
            line.append(triple([getattr(record, protocol) for record in entry.records]))
            line.append(with_interval(entry.estimate(protocol, MEAN)))
        line.append(triple([record.immediate for record in entry.records]))
        line.append(f"{entry.mean('setup_seconds'):.0f}")
        line.append(f"{1000 * entry.seconds(setup=False):.2f}")
        line.append(f"{entry.mean('floor_ratio'):.2f}")
        line.append(f"{entry.mean('peak_memory_bytes') / 1e9:.2f}")
        line.append(str(entry.failures))
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


SUMMARY = ("agent", "seeds", "teacher-forced Eff / Gen / Spe", "generation Eff / Gen / Spe", "mean ", "x floor")


def as_markdown(records: Sequence[Record]) -> str:
    """The table for a document."""
    return markdown(HEADINGS, rows(records))


def as_summary(records: Sequence[Record]) -> str:
    """The same with the columns that matter most."""
    chosen = [HEADINGS.index(name) for name in SUMMARY]
    return markdown(SUMMARY, [[row[i] for i in chosen] for row in rows(records)])


def as_means(records: Sequence[Record]) -> str:
    """A column for each suite, by the number of edits and of batches: teacher-forced harmonic means with their
    intervals.

    Of several suites an agent that was run on one alone is left out.
    """
    found = entries(records)
    suites = {suite: find(id_of(suite)) for suite in dict.fromkeys(entry.task.suite for entry in found)}
    suites = dict(sorted(suites.items(), key=lambda item: (item[1].batches * item[1].edits_per_step, item[1].batches)))
    by_row: dict[str, dict[str, str]] = {}
    for entry in found:
        by_row.setdefault(entry.agent, {})[entry.task.suite] = with_interval(entry.estimate("teacher_forced", MEAN))
    headings = ["agent", *(f"{suite.batches:,} x {suite.edits_per_step:,}" for suite in suites.values())]
    shown = {agent: row for agent, row in by_row.items() if len(row) >= min(2, len(suites))}
    return markdown(headings, [[agent, *(row.get(name, "-") for name in suites)] for agent, row in shown.items()])


def as_times(records: Sequence[Record]) -> str:
    """What an edit takes, the fastest first; without the setup, and with the setup spread over all edits (the
    paper's Figure 4).
    """
    headings = ("agent", "ms/edit", "x floor", "setup s", "ms/edit with the setup")
    body = [
        [
            entry.agent,
            f"{1000 * entry.seconds(setup=False):.1f}",
            f"{entry.mean('floor_ratio'):.2f}",
            f"{entry.mean('setup_seconds'):.0f}",
            f"{1000 * entry.seconds(setup=True):.1f}",
        ]
        for entry in sorted(entries(records), key=lambda entry: entry.seconds(setup=False))
    ]
    return markdown(headings, body)


def as_intervals(records: Sequence[Record]) -> str:
    """Each of the three figures under both protocols with its interval over seeds; rows of two seeds or more."""
    protocols = ("teacher_forced", "generation")
    headings = [
        "agent",
        "seeds",
        *(f"{name.replace('_', '-')} {m}" for name in protocols for m in ("Eff", "Gen", "Spe")),
    ]
    body = [
        [entry.agent, str(len(entry.records))]
        + [with_interval(entry.estimate(protocol, metric)) for protocol in protocols for metric in METRICS]
        for entry in entries(records)
        if len(entry.records) > 1
    ]
    return markdown(headings, body)


def as_details(records: Sequence[Record]) -> str:
    """A second table: the other protocol, drift, and the probes, over the seeds whose records have them."""
    headings = [
        "agent",
        "seeds",
        "probability Eff / Gen / Spe",
        "locality accuracy: forced, free",
        "perplexity before, after",
        "KL",
    ]
    probed = any(record.probes for record in records)
    headings += ["not", "distractor", "one hop (before; n)", "two hops (before; n)"] if probed else []
    lines = []
    for entry in entries(records):
        group = [record for record in entry.records if record.drift is not None]
        if not group:
            continue
        drifts = [record.drift for record in group if record.drift]
        line = [entry.agent, str(len(group))]
        line.append(triple(asked) if (asked := [r.probability for r in group if r.probability]) else "-")
        accuracies = [[s.get("locality_accuracy") for s in (r.teacher_forced, r.generation)] for r in group]
        line.append(", ".join(_mean([pair[i] for pair in accuracies]) for i in range(2)))
        line.append(", ".join(_if_finite([d[key] for d in drifts], 2) for key in ("perplexity_before", "perplexity")))
        line.append(_if_finite([d["kl"] for d in drifts], 3))
        probes = [record.probes for record in group if record.probes]
        line += [_mean([p[key] for p in probes]) for key in ("negation", "distractor")]
        for key in ("one_hop", "two_hop"):
            shown = [
                _mean([p[f"{key}{part}"] for p in probes], d)
                for part, d in (("", 1), ("_before", 1), ("_questions", 0))
            ]
            line.append(f"{shown[0]} ({shown[1]}; {shown[2]})")
        lines.append(line[: len(headings)])
    return markdown(headings, lines)


def _if_finite(values: Sequence[float | None], digits: int) -> str:
    """A seed whose model was destroyed is not left out of a mean."""
    finite = [value for value in values if value is not None]
    if len(finite) < len(values):
        return "not finite"
    return readable(interquartile_mean(finite), digits) if finite else "-"


def _mean(values: Sequence[float | None], digits: int = 1) -> str:
    found = [value for value in values if value is not None]
    return f"{interquartile_mean(found):.{digits}f}" if found else "-"


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
