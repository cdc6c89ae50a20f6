"""The main job, end to end: train RLEdit, edit held-out facts in sequence, show what came of it.

    make demo            # or: python -m benchmarks.demo
    make demo-real       # or: python -m benchmarks.demo --suite demo-real-10x20 --out runs/demo-real

The second one edits a public language model that nobody here trained; the first time it is downloaded.
Writes OUT/results.jsonl and OUT/retention.png.
"""

import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.registry import make_agent
from benchmarks.results import figures, tables
from benchmarks.results.records import Record, append
from benchmarks.running.progress import console_progress
from benchmarks.running.rollout import run
from benchmarks.suites import Suite, find
from editenv.data import atlas
from editenv.language_model.activation_cache import ActivationCache
from editenv.models import PUBLIC, load_model

ROWS = ("no-edit", "fine-tune", "demo-untrained", "demo-rledit", "rledit-packaged")
"""Agents of agents.registry on the embedded model, in the order in which they run; elsewhere they are the suite's."""

PREFIX = "generation_prefix"


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        out: Folder for the results; an earlier demo's are replaced.
        suite: What is edited; smoke is the short one, demo-real-10x20 is about a public model.
        model: Another model in place of the suite's.
        seed: Seeds training and the stream's order.
    """

    out: Path = Path("runs/demo")
    suite: str = "atlas-50x20"
    model: str | None = None
    seed: int = 0


def main(args: Args) -> None:
    """Trains, edits, prints the table and draws the figure.

    Raises:
        SystemExit: If there is no such suite, or its model cannot be had.
    """
    try:
        suite = find(args.suite).at(args.model, None)
        parameters = load_model(str(suite.model))[0].num_parameters()
    except (ValueError, OSError) as error:
        raise SystemExit(f"demo: {error}") from None
    started = time.monotonic()
    print(introduction(suite, parameters))
    records = run_rows(suite, rows_of(suite), args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.jsonl").unlink(missing_ok=True)
    for record in records:
        append(args.out / "results.jsonl", record)
    figures.draw_retention(records, args.out / "retention.png")
    print()
    tables.show(records, shown(suite))
    print("\n" + _wrapped(f"Done in {time.monotonic() - started:.0f} s. {legend(suite)}"))
    print(f"Saved {args.out / 'results.jsonl'} and {args.out / 'retention.png'}.")


def rows_of(suite: Suite) -> Sequence[str]:
    """The agents, in the order in which they run."""
    return suite.agents if PREFIX in suite.protocols else ROWS


def run_rows(suite: Suite, names: Sequence[str], seed: int) -> list[Record]:
    """A record of each row; those that edit in one place meet the same prompts, and share what is frozen there."""
    agents = {name: make_agent(name) for name in names}
    own_places = [agent.environment for agent in agents.values() if agent.environment]
    records: list[Record] = []
    caches: dict[str, ActivationCache] = {}
    for name, agent in agents.items():
        if name == "no-edit" and own_places:
            agent.environment = own_places[0]  # it edits nowhere
        cache = caches.setdefault(_place(suite, agent.environment), ActivationCache())
        with console_progress(name) as progress:
            records.append(run(suite, name, agent, seed, progress, probes=False, activation_cache=cache))
        print(f"{name.partition('@')[0]:>16}: {one_line(suite, records[-1])}", flush=True)
    return records


def _place(suite: Suite, environment: Mapping[str, Any]) -> str:
    return str(suite.environment(environment)["modules"])


# -- words ----------------------------------------------------------------------------------------------------------


def introduction(suite: Suite, parameters: int) -> str:
    """What is going to happen, for somebody who sees it for the first time."""
    edits, size = suite.batches * suite.edits_per_step, f"{parameters / 1e6:.0f} M parameters"
    how = (
        f"Each row below edits them in sequence, {suite.edits_per_step} at a time, then all are asked again: the edit "
        "(Eff), other phrasings of it (Gen), and what must not change (Spe)."
    )
    if PREFIX not in suite.protocols:
        what = f"A language model of {size} knows {len(atlas.facts()):,} facts. {edits:,} of them now become false."
        return _wrapped(f"{what} {how}") + "\n"
    about = PUBLIC[str(suite.model)].about.partition(" (")[0] if suite.model in PUBLIC else str(suite.model)
    what = f"{about} is a language model of {size} that was not made for this. {edits} facts now become false."
    says = (
        "It goes on talking after an answer. So an answer is right if the text that the model writes by itself begins "
        "with it; what must not change has to begin as it did before any edit."
    )
    return _wrapped(f"{what} {how}") + "\n" + _wrapped(says) + "\n"


def legend(suite: Suite) -> str:
    """What the table's words mean."""
    if PREFIX not in suite.protocols:
        return (
            "'mean' is the harmonic mean of the generation figures; 'x floor' is the time of an edit by that of a plain "
            "forward and partial backward over the same prompts."
        )
    return (
        "'begins right' counts texts that the model writes by itself, 'teacher-forced' single tokens with the right ones "
        "before them; 'mean' is the harmonic mean of the former. 'setup' is training, or statistics of text, once for all "
        "edits. What stands behind @ is where the settings are: a folder of agents/settings."
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 80)


def one_line(suite: Suite, record: Record) -> str:
    """A row's figures and costs, as soon as they are there."""
    if PREFIX not in suite.protocols or record.generation_prefix is None:
        return tables.one_line(record)
    return (
        f"begins right {tables.triple([record.generation_prefix], '/')}, teacher-forced "
        f"{tables.triple([record.teacher_forced], '/')}, setup {record.setup_seconds:.0f} s, "
        f"{1000 * record.edit_seconds:.0f} ms/edit"
    )


def shown(suite: Suite) -> Mapping[str, str]:
    """The table's columns, by their keys."""
    if PREFIX not in suite.protocols:
        return tables.SHOWN
    return {
        "agent": "",
        "generation_prefix": "begins right\nEff/Gen/Spe",
        "generation_prefix_mean": "mean",
        "teacher_forced": "teacher-forced\nEff/Gen/Spe",
        "setup": "setup\ns",
        "milliseconds": "ms per\nedit",
    }


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
