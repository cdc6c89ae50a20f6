"""Can a method edit at all? Prepares each, edits one batch of validation facts and looks at what the model then says.

    python -m benchmarks.one_batch mend malmen lora
    python -m benchmarks.one_batch rome --edits 1 --batches 20 --least-efficacy 95
    python -m benchmarks.one_batch ultraedit lora --settings atlas-one-batch

The rows of the tables are set for a thousand edits to come, and some buy that with half-done edits; --settings
takes those of another folder of agents/settings.

Each batch starts from theta_0. Efficacy is teacher-forced and averaged over the batches; if a method stays below
--least-efficacy, the command fails at the end. A method that fails here is broken or badly set; one that passes may
still forget along a stream.
"""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from agents.base import Agent, ProgressCallback
from agents.registry import make_agent, make_method, takes_settings
from agents.rows import ROWS
from benchmarks.results.records import MetricValues
from benchmarks.running.progress import console_progress
from benchmarks.running.rollout import mean, play
from editenv.env import LifelongEditEnv
from editenv.evaluation.metrics import METRICS


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        methods: Rows of agents.registry, or file.py:Class.
        settings: Folder of agents/settings with a file for each of the methods; without one they are as in the tables.
        edits: Edits in a batch.
        batches: Batches, each from theta_0.
        least_efficacy: Efficacy that each method must reach, in percent.
        model: Embedded model, Hugging Face folder or hub id.
        dataset: Data set as docs/reference/data_formats.md has it; its validation split is edited.
        seed: Seeds training and the choice of the batches.
    """

    methods: Annotated[tuple[str, ...], tyro.conf.Positional]
    settings: str | None = None
    edits: int = 20
    batches: int = 1
    least_efficacy: Annotated[float, tyro.conf.arg(aliases=["--floor"])] = 90.0
    model: str = "atlas"
    dataset: str = "atlas"
    seed: int = 0


def one_batch(agent: Agent, args: Args, progress: ProgressCallback) -> MetricValues:
    """Efficacy, generalization and specificity of batches right after their edit, averaged over batches.

    Args:
        agent: The agent, which is prepared first.
        args: The command's.
        progress: Called with what is going on, and how far it is.

    Returns:
        Percentages by metric; None where the data set has no such prompts.
    """
    training = LifelongEditEnv(args.model, args.dataset, "train", edits_per_step=args.edits, **agent.environment)
    agent.prepare(training, args.seed, progress)
    env = LifelongEditEnv(
        args.model,
        args.dataset,
        split="validation",
        edits_per_step=args.edits,
        actions_per_batch=agent.actions_per_batch,
        horizon=1,
        memory_batches=0,
        **agent.environment,
    )
    scores: list[MetricValues] = []
    for batch in range(args.batches):
        progress("editing", batch, args.batches)
        env.reset(seed=args.seed * args.batches + batch)
        *_, last_step = play(env, agent)
        scores.append({metric: last_step.info[metric] for metric in METRICS})
    return {metric: mean([batch_scores[metric] for batch_scores in scores]) for metric in METRICS}


def agent_of(name: str, folder: str | None) -> Agent:
    """The row, or the method with the settings of this folder.

    Raises:
        FileNotFoundError: If the folder has none for it.
        ValueError: If there is no such row or method.
    """
    if folder is None:
        return make_agent(name)
    if not takes_settings(name):
        raise ValueError(f"{name!r} takes no settings; these do: {', '.join(filter(takes_settings, ROWS))}")
    agent = make_method(name, ROWS[name].read_settings(folder))
    agent.environment = ROWS[name].read_environment(folder)
    return agent


def main(args: Args) -> int:
    """Prints a line for each method; 1 if one of them stays below the least efficacy.

    Raises:
        SystemExit: For wrong arguments, with a message.
    """
    try:
        agents = {name: agent_of(name, args.settings) for name in args.methods}
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from None
    below = []
    for name, agent in agents.items():
        with console_progress(name) as progress:
            scores = one_batch(agent, args, progress)
        if (scores["efficacy"] or 0.0) < args.least_efficacy:
            below.append(name)
        columns = (f"{metric} {'-' if score is None else format(score, '.1f'):>5}" for metric, score in scores.items())
        print(f"{name:20}", *columns, sep="  ", flush=True)
    for name in below:
        print(f"{name}: efficacy is below {args.least_efficacy:g}", file=sys.stderr)
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
