"""Can a method edit at all? Prepares each, edits one batch of validation facts and looks at what the model then says.

    python -m benchmarks.one_batch mend malmen lora
    python -m benchmarks.one_batch rome --edits 1 --batches 20 --floor 95

Each batch starts from theta_0. Efficacy is teacher-forced and averaged over the batches; if a method stays below the floor, the
command fails at the end. A method that fails here is broken or badly set; one that passes may still forget along a stream.
"""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from agents.base import Agent, Progress
from agents.registry import make_agent
from editenv.env import LifelongEditEnv


@dataclass
class Args:
    methods: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Rows of agents.registry, or file.py:Class."""
    edits: int = 20
    """Edits in a batch."""
    batches: int = 1
    """Batches, each from theta_0."""
    floor: float = 90.0
    """Efficacy that each method must reach, in percent."""
    model: str = "atlas"
    """Embedded model, Hugging Face folder or hub id."""
    dataset: str = "atlas"
    """Data set as docs/data.md has it; its validation split is edited."""
    seed: int = 0
    """Seeds training and the choice of the batches."""


def one_batch(agent: Agent, args: Args, progress: Progress) -> dict[str, float]:
    """Efficacy, generalization and specificity of batches right after their edit, averaged over batches."""
    common = {"model": args.model, "dataset": args.dataset, "modules": agent.modules}
    agent.prepare(LifelongEditEnv(**common, split="train", edits_per_step=args.edits), args.seed, progress)
    env = LifelongEditEnv(
        **common,
        split="validation",
        edits_per_step=args.edits,
        actions_per_batch=agent.actions_per_batch,
        horizon=1,
        memory_batches=0,
    )
    found: list[dict[str, float]] = []
    for batch in range(args.batches):
        progress("editing", batch, args.batches)
        observation, info = env.reset(seed=args.seed * args.batches + batch)
        agent.begin(env)
        done = False
        while not done:
            observation, _, terminated, truncated, info = env.step(agent.act(observation, info))
            done = terminated or truncated
        found.append({name: info[name] for name in ("efficacy", "generalization", "specificity")})
    return {name: sum(row[name] for row in found) / len(found) for name in found[0]}


def main(args: Args) -> int:
    from benchmarks.progress import console_progress

    below = []
    for name in args.methods:
        with console_progress(name) as progress:
            scores = one_batch(make_agent(name), args, progress)
        below += [name] * (scores["efficacy"] < args.floor)
        print(f"{name:20}", *(f"{metric} {score:5.1f}  " for metric, score in scores.items()), flush=True)
    for name in below:
        print(f"{name}: efficacy is below {args.floor:g}", file=sys.stderr)
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
