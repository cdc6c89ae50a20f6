"""Records as Markdown tables, and as a table on the terminal."""

import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len

from agents.rows import ROWS, Row, row_of
from benchmarks.results.leaderboard import MEAN, Entry, entries
from benchmarks.results.records import MetricValues, Record
from benchmarks.results.statistics import Estimate, PairedDifference, interquartile_mean, paired_difference
from benchmarks.results.texts import printable
from benchmarks.suites import find, id_of
from editenv.evaluation.metrics import METRICS

# -- texts of a cell ----------------------------------------------------------------------------------------------


def with_interval(estimate: Estimate | None, digits: int = 1) -> str:
    """``78.1 [77.0, 79.3]``; without an interval where there is none, and a dash where there is nothing."""
    if estimate is None:
        return "-"
    value, *ends = (f"{number:z.{digits}f}" for number in (estimate.value, *(estimate.interval or ())))
    return f"{value} [{', '.join(ends)}]" if ends else value


def triple(scores: Sequence[MetricValues], between: str = " / ") -> str:
    """Efficacy, generalization and specificity, their interquartile means; a dash where the data does not ask for
    one.

    Args:
        scores: Of each seed.
        between: What stands between the three.
    """
    return between.join(_mean([seed[metric] for seed in scores]) for metric in METRICS)


def _mean(values: Sequence[float | None], digits: int = 1) -> str:
    """The interquartile mean of the seeds that have a value."""
    present = [value for value in values if value is not None]
    return f"{interquartile_mean(present):.{digits}f}" if present else "-"


def _if_finite(values: Sequence[float | None], digits: int) -> str:
    """The same, but a seed whose model was destroyed is not left out of a mean, and large numbers can be read."""
    finite = [value for value in values if value is not None]
    if len(finite) < len(values):
        return "not finite"
    return readable(interquartile_mean(finite), digits) if finite else "-"


def readable(number: float, digits: int) -> str:
    """``18.92``, ``2001``, ``3.4e24``: decimals below 1,000, none below 10,000, two significant digits from there on."""
    if abs(number) < 10_000:
        return f"{number:.{digits if abs(number) < 1_000 else 0}f}"
    return f"{number:.1e}".replace("e+0", "e").replace("e+", "e")


# -- Markdown -----------------------------------------------------------------------------------------------------


def markdown(headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table for a document; what a cell holds cannot end it, and is shown as it is."""
    lines = ["| " + " | ".join(map(escaped, row)) + " |" for row in (headings, *body)]
    return "\n".join([lines[0], "|" + " --- |" * len(headings), *lines[1:]]) + "\n"


def escaped(text: str) -> str:
    """The text so that a Markdown reader shows it as it is."""
    text = printable(text)
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
    }
    for mark, entity in entities.items():
        text = text.replace(mark, entity)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", "&#95;", text)  # within a word it styles nothing


# -- columns ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table whose rows are agents.

    Attributes:
        key: Its name in code.
        heading: What stands above it.
        text: What it says of a row.
    """

    key: str
    heading: str
    text: Callable[[Entry], str]


def _scores_of(protocol: str) -> Callable[[Entry], str]:
    """Efficacy, generalization and specificity under a protocol, over the seeds that have it."""

    def text(entry: Entry) -> str:
        scores = [values for record in entry.records if (values := getattr(record, protocol)) is not None]
        return triple(scores) if scores else "-"

    return text


def _estimate_of(protocol: str, metric: str) -> Callable[[Entry], str]:
    """A figure with its interval over seeds."""
    return lambda entry: with_interval(entry.estimate(protocol, metric))


def changed(row: Row) -> str:
    """What an edit of the row changes, in words."""
    return " and ".join(row.changes) or "nothing"


def _changes(entry: Entry) -> str:
    """What an edit of the row changes; a dash for agents that no row declares."""
    row = row_of(entry.agent)
    return changed(row) if row else "-"


AGENT = Column("agent", "agent", lambda entry: entry.agent)
CHANGES = Column("changes", "changes", _changes)
"""Stands in tables with a row that changes anything but weights."""


def change_more_than_weights(rows: Sequence[Entry]) -> bool:
    """Whether a table has such a row."""
    return any(CHANGES.text(row) not in ("weights", "nothing", "-") for row in rows)


SEEDS = Column("seeds", "seeds", lambda entry: str(len(entry.records)))
SETUP = Column("setup", "setup s", lambda entry: f"{entry.median('setup_seconds'):.0f}")
FLOOR_RATIO = Column("floor_ratio", "x floor", lambda entry: f"{entry.median('floor_ratio'):.2f}")

COLUMNS = (
    AGENT,
    SEEDS,
    Column("teacher_forced", "teacher-forced Eff / Gen / Spe", _scores_of("teacher_forced")),
    Column("teacher_forced_mean", "mean", _estimate_of("teacher_forced", MEAN)),
    Column("generation", "generation Eff / Gen / Spe", _scores_of("generation")),
    Column("generation_mean", "mean ", _estimate_of("generation", MEAN)),  # published tables have the blank
    Column("immediate", "immediate", _scores_of("immediate")),
    SETUP,
    Column("milliseconds", "ms/edit", lambda entry: f"{1000 * entry.seconds(setup=False):.2f}"),
    FLOOR_RATIO,
    Column("memory", "GB", lambda entry: f"{entry.median('peak_memory_bytes') / 1e9:.2f}"),
    Column("failures", "failed", lambda entry: str(entry.failures)),
)
"""Interquartile means over seeds, the harmonic means with their intervals; costs are medians."""

SUMMARY = ("agent", "seeds", "teacher_forced", "generation", "generation_mean", "floor_ratio")
"""Keys of the columns that matter most."""

TIMES = (
    AGENT,
    Column("milliseconds", "ms/edit", lambda entry: f"{1000 * entry.seconds(setup=False):.1f}"),
    FLOOR_RATIO,
    SETUP,
    Column("with_setup", "ms/edit with the setup", lambda entry: f"{1000 * entry.seconds(setup=True):.1f}"),
)

PROTOCOLS_WITH_INTERVALS = ("teacher_forced", "generation")

INTERVALS = (
    AGENT,
    SEEDS,
    *(
        Column(f"{protocol}_{metric}", f"{protocol.replace('_', '-')} {short}", _estimate_of(protocol, metric))
        for protocol in PROTOCOLS_WITH_INTERVALS
        for metric, short in zip(METRICS, ("Eff", "Gen", "Spe"), strict=True)
    ),
)


def _locality_accuracy(entry: Entry) -> str:
    protocols = ("teacher_forced", "generation")
    return ", ".join(_mean([getattr(r, name).get("locality_accuracy") for r in entry.records]) for name in protocols)


def _drift(key: str, digits: int) -> Callable[[Entry], str]:
    return lambda entry: _if_finite([r.drift[key] for r in entry.records if r.drift is not None], digits)


def _perplexities(entry: Entry) -> str:
    return f"{_drift('perplexity_before', 2)(entry)}, {_drift('perplexity', 2)(entry)}"


def _probe(key: str, digits: int = 1) -> Callable[[Entry], str]:
    return lambda entry: _mean([r.probes[key] for r in entry.records if r.probes is not None], digits)


def _consequences(hops: str) -> Callable[[Entry], str]:
    """What is right of the consequences of the edits; before any edit, of those of the old facts; and their number."""
    parts = _probe(hops), _probe(f"{hops}_before"), _probe(f"{hops}_questions", digits=0)
    return lambda entry: "{} ({}; {})".format(*(part(entry) for part in parts))


DETAILS = (
    AGENT,
    SEEDS,
    Column("probability", "probability Eff / Gen / Spe", _scores_of("probability")),
    Column("locality_accuracy", "locality accuracy: forced, free", _locality_accuracy),
    Column("perplexity", "perplexity before, after", _perplexities),
    Column("kl", "KL", _drift("kl", 3)),
)
PREFIX_DETAILS = (
    Column("generation_prefix", "generation-prefix Eff / Gen / Spe", _scores_of("generation_prefix")),
    Column("generation_prefix_mean", "mean", _estimate_of("generation_prefix", MEAN)),
)
WILD_DETAILS = (Column("wild", "WILD Eff / Gen / Spe", _scores_of("wild")),)
PROBE_DETAILS = (
    Column("negation", "not", _probe("negation")),
    Column("distractor", "distractor", _probe("distractor")),
    Column("one_hop", "one hop (before; n)", _consequences("one_hop")),
    Column("two_hop", "two hops (before; n)", _consequences("two_hop")),
)


def _markdown(columns: Sequence[Column], rows: Sequence[Entry]) -> str:
    if columns[0] is AGENT and change_more_than_weights(rows):
        columns = [AGENT, CHANGES, *columns[1:]]
    return markdown([c.heading for c in columns], [[c.text(row) for c in columns] for row in rows])


# -- tables -------------------------------------------------------------------------------------------------------


def as_markdown(records: Sequence[Record]) -> str:
    """The table for a document: one row an agent."""
    return _markdown(COLUMNS, entries(records))


def as_summary(records: Sequence[Record]) -> str:
    """The same with the columns that matter most."""
    return _markdown([column for column in COLUMNS if column.key in SUMMARY], entries(records))


def as_means(records: Sequence[Record]) -> str:
    """A column for each suite, by the number of edits and of batches: teacher-forced harmonic means with their
    intervals.

    Of several suites an agent that was run on one alone is left out.
    """
    rows = entries(records)
    suites = {row.task.suite: _size_of(row) for row in rows}
    suites = dict(sorted(suites.items(), key=lambda item: (item[1][0] * item[1][1], item[1][0])))
    means: dict[str, dict[str, str]] = {}
    for row in rows:
        means.setdefault(row.agent, {})[row.task.suite] = with_interval(row.estimate("teacher_forced", MEAN))
    headings = ["agent", *(f"{batches:,} x {size:,}" for batches, size in suites.values())]
    compared = {agent: by_suite for agent, by_suite in means.items() if len(by_suite) >= min(2, len(suites))}
    return markdown(
        headings, [[agent, *(by_suite.get(s, "-") for s in suites)] for agent, by_suite in compared.items()]
    )


def _size_of(row: Entry) -> tuple[int, int]:
    """Batches of a row's suite, and edits in one; older records do not say them, and name a suite of the package."""
    recorded = (row.records[0].configuration or {}).get("suite") or {}
    if {"batches", "edits_per_step"} <= recorded.keys():
        return recorded["batches"], recorded["edits_per_step"]
    suite = find(id_of(row.task.suite))
    return suite.batches, suite.edits_per_step


def as_times(records: Sequence[Record]) -> str:
    """What an edit takes, the fastest first; without the setup, and with the setup spread over all edits (the
    paper's Figure 4).
    """
    return _markdown(TIMES, sorted(entries(records), key=lambda entry: entry.seconds(setup=False)))


def as_intervals(records: Sequence[Record]) -> str:
    """Each of the three figures under both protocols with its interval over seeds; rows of two seeds or more."""
    return _markdown(INTERVALS, [entry for entry in entries(records) if len(entry.records) > 1])


def as_differences(records: Sequence[Record], pairs: Sequence[tuple[str, str]]) -> str:
    """For each pair of rows how much better the first is than the second on the same streams.

    Harmonic means, teacher-forced and freely generated, with the intervals of
    :func:`benchmarks.results.statistics.paired_difference`; where all records say it, the freely generated text need only
    begin with the answer.

    Args:
        records: Of one suite.
        pairs: Names of rows.

    Raises:
        ValueError: If a row of a pair is not there, or if a pair has no stream in common.
    """
    rows = {row.agent: row for row in entries(records)}
    begun = all(record.generation_prefix for record in records)
    free = ("generation_prefix", "freely begun") if begun else ("generation", "freely generated")
    body = []
    for first, second in pairs:
        if missing := [name for name in (first, second) if name not in rows]:
            raise ValueError(f"there is no row {missing[0]!r}; there are {', '.join(rows)}")
        differences = [
            paired_difference(*(rows[name].values(protocol, MEAN) for name in (first, second)))
            for protocol in ("teacher_forced", free[0])
        ]
        if differences[0] is None:
            raise ValueError(f"{first} and {second} have no stream in common")
        body.append([f"{first} - {second}", str(differences[0].streams), *map(difference, differences)])
    return markdown(["difference by stream", "streams", "mean, teacher-forced", f"mean, {free[1]}"], body)


def difference(paired: PairedDifference | None) -> str:
    """``+1.1 [-0.3, 2.4]``; without an interval of a single stream, and a dash where there is nothing."""
    if paired is None:
        return "-"
    ends = f" [{paired.interval[0]:+z.1f}, {paired.interval[1]:+z.1f}]" if paired.interval else ""
    return f"{paired.value:+z.1f}{ends}"


def as_details(records: Sequence[Record]) -> str:
    """A second table: the other protocol, drift, and the probes, over the seeds whose records have them."""
    measured = (
        replace(entry, records=tuple(record for record in entry.records if record.drift is not None))
        for entry in entries(records)
    )
    probed = any(record.probes for record in records)
    prefix = any(record.generation_prefix for record in records)
    wild = any(record.wild for record in records)
    columns = DETAILS + (PREFIX_DETAILS if prefix else ()) + (WILD_DETAILS if wild else ())
    columns += PROBE_DETAILS if probed else ()
    return _markdown(columns, [entry for entry in measured if entry.records])


def as_portability(records: Sequence[Record]) -> str:
    """A column for each kind of portability question, over the seeds whose records have it: percentages that are right.
    The row ``no-edit`` is what the model could do before.
    """
    kinds = dict.fromkeys(kind for record in records for kind in record.portability or ())
    columns = [AGENT, SEEDS, *(Column(kind, kind.replace("_", " "), _portability(kind)) for kind in kinds)]
    return _markdown(columns, [entry for entry in entries(records) if any(r.portability for r in entry.records)])


def _portability(kind: str) -> Callable[[Entry], str]:
    def text(entry: Entry) -> str:
        figures = [record.portability for record in entry.records if record.portability is not None]
        return _mean([by_kind[kind]["right"] for by_kind in figures if kind in by_kind])

    return text


# -- the terminal -------------------------------------------------------------------------------------------------


def one_line(record: Record) -> str:
    """Both protocols and the costs in a line."""
    return (
        f"teacher-forced {triple([record.teacher_forced], '/')}, generation {triple([record.generation], '/')}, "
        f"setup {record.setup_seconds:.0f} s, {1000 * record.edit_seconds:.2f} ms/edit"
    )


SHOWN = {
    "agent": "",
    "teacher_forced": "teacher-forced\nEff/Gen/Spe",
    "generation": "generation\nEff/Gen/Spe",
    "generation_mean": "mean",
    "setup": "setup\ns",
    "milliseconds": "ms per\nedit",
    "floor_ratio": "x\nfloor",
}
"""Columns that a terminal of 80 characters has room for, with headings of two lines."""


def show(records: Sequence[Record], shown: Mapping[str, str] = SHOWN) -> None:
    """Prints the table, and below it what its rows are.

    Nothing is cut at 80 characters, and no name is broken: one that the figures leave no room for has a line of its own
    above them.

    Args:
        records: Of one suite.
        shown: Keys of columns, that of the agent first, and what stands above each.
    """
    if not records:
        return
    first = records[0]
    width = shutil.get_terminal_size().columns
    title = printable(f"{first.suite}: {first.edits} edits of {first.dataset} in {first.model}")
    print("\n".join(["", *textwrap.wrap(title, width), "", *_aligned(entries(records), shown, width)]))
    if legend := _legend(dict.fromkeys(record.agent for record in records), width):
        print("\n".join(["", *legend]))


def _aligned(rows: Sequence[Entry], shown: Mapping[str, str], width: int) -> list[str]:
    """The table's lines, names to the left and figures to the right."""
    columns = {column.key: column for column in (*COLUMNS, *PREFIX_DETAILS)}
    keys = [key for key in shown if key != "agent"]
    headings = [[shown[key].partition("\n")[2 * line] for key in keys] for line in (0, 1)]
    figures = [[_without_interval(columns[key].text(row)) for key in keys] for row in rows]
    widths = [max(map(len, column)) for column in zip(*headings, *figures, strict=True)]
    names = [printable(row.agent) for row in rows]
    room = width - sum(widths) - len(widths)
    between = " " * (2 if room > len(widths) + max(map(cell_len, names)) else 1)
    room = width - sum(widths) - len(widths) * len(between)
    room = max((length for name in names if (length := cell_len(name)) <= room), default=0)

    def line(name: str, cells: Sequence[str]) -> str:
        name += " " * (room - cell_len(name))
        return between.join([name, *(cell.rjust(size) for cell, size in zip(cells, widths, strict=True))]).rstrip()

    lines = [*(line("", heading) for heading in headings)]
    lines.append("-" * max(map(len, (line("", figures[0]), *lines))))
    for name, cells in zip(names, figures, strict=True):
        if cell_len(name) > room:
            lines.append(name)
            name = ""
        lines.append(line(name, cells))
    return lines


def _legend(agents: Iterable[str], width: int) -> list[str]:
    """What the names of rows mean, those that are the project's own."""
    lines, abouts = [], []
    for agent in agents:
        folder = agent.partition("@")[2]
        if (row := row_of(agent)) is None:
            continue
        abouts.append(row.about)
        settings = f"; settings of {folder}" if folder and agent not in ROWS else ""
        text = printable(f"{agent}: {row.about}{settings}")
        lines += textwrap.wrap(text, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    if any(re.search(r"\bP\b", about) for about in abouts):
        lines += textwrap.wrap("P: a preconditioner made from statistics of text (docs/reference/methods.md)", width)
    return lines


def _without_interval(text: str) -> str:
    """A cell's figures alone, close together."""
    return text.partition(" [")[0].replace(" / ", "/")
