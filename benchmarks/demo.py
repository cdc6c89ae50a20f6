"""The main job, end to end: train RLEdit, edit a thousand held-out facts in sequence, show what came of it.

    make demo            # or: python -m benchmarks.demo

Writes OUT/results.jsonl and OUT/retention.png.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from agents.base import Agent
from agents.registry import make_agent
from benchmarks.results import figures, tables
from benchmarks.results.records import Record, append
from benchmarks.running.progress import console_progress
from benchmarks.running.rollout import run
from benchmarks.suites import SUITES
from editenv.data import atlas
from editenv.language_model.activation_cache import ActivationCache
from editenv.models import load_model

ROWS = ("no-edit", "fine-tune", "demo-untrained", "demo-rledit", "rledit-packaged")
"""Agents of agents.registry, in the order in which they run."""


@dataclass
class Args:
    out: Path = Path("runs/demo")
    """Folder for the results; an earlier demo's are replaced."""
    suite: str = "atlas-50x20"
    """What is edited; smoke is the short one."""
    seed: int = 0
    """Seeds training and the stream's order."""


def main(args: Args) -> None:
    """Trains, edits, prints the table and draws the figure.

    Raises:
        SystemExit: If there is no such suite.
    """
    if args.suite not in SUITES:
        raise SystemExit(f"unknown suite {args.suite!r}; there are {', '.join(SUITES)}")
    suite = SUITES[args.suite]
    started = time.monotonic()
    size = load_model("atlas")[0].num_parameters() / 1e6
    edits = suite.batches * suite.edits_per_step
    print(
        f"A language model of {size:.0f} M parameters knows {len(atlas.facts()):,} facts. {edits} of them now become\n"
        f"false, {suite.edits_per_step} at a time. Each row below edits them in sequence, then all are asked again: "
        "the edit\n(Eff), other phrasings of it (Gen), and what must not change (Spe).\n"
    )
    records: list[Record] = []
    activation_cache = ActivationCache()  # the rows meet the same prompts
    for name in ROWS:
        agent: Agent = make_agent(name)
        with console_progress(name) as progress:
            record = run(suite, name, agent, args.seed, progress, probes=False, activation_cache=activation_cache)
        records.append(record)
        print(f"{name:>16}: {tables.one_line(record)}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.jsonl").unlink(missing_ok=True)
    for record in records:
        append(args.out / "results.jsonl", record)
    figures.draw_retention(records, args.out / "retention.png")
    print()
    tables.show(records)
    print(
        f"\nDone in {time.monotonic() - started:.0f} s. 'mean' is the harmonic mean of the generation figures;\n"
        "'x floor' is the time of an edit by that of a plain forward and partial\n"
        "backward over the same prompts.\n"
        f"Saved {args.out / 'results.jsonl'} and {args.out / 'retention.png'}."
    )


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
