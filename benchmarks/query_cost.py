"""What a side memory or a context costs when the edited model is asked: milliseconds a question, and the bytes kept.

    python -m benchmarks.query_cost grace t-patcher wise --edits 100 1000
    python -m benchmarks.query_cost rag@smollm2-135m --suite real-counterfact-50x20-validation --data DATA --edits 100

Each row edits a stream of the validation split, or of the suite. After so many edits each question is answered with
what is beside the weights and without it, one after the other, one question at a time and token by token, so that the
machine's load is the same for both: the medians and the ratio of the two are shown. A row that changes weights alone
costs nothing at that point.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from agents.base import Agent
from agents.registry import make_agent
from agents.view import Actor
from benchmarks.running.progress import console_progress
from benchmarks.suites import find
from editenv.arguments import PositiveInt, check_fields
from editenv.atomic_files import atomic_write_text
from editenv.contexts import Context
from editenv.env import LifelongEditEnv
from editenv.evaluation.greedy import continuations
from editenv.language_model.editable_lm import EditableLM
from editenv.memories import Memory


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        methods: Rows of agents.registry, METHOD@FOLDER, or file.py:Class.
        edits: After how many edits questions are asked, in rising order.
        edits_per_step: Edits in a batch.
        questions: Prompts of the stream that are asked.
        tokens: Tokens that are written for each.
        model: Embedded model, Hugging Face folder or hub id.
        dataset: Data set as docs/reference/data_formats.md has it; its validation split is edited.
        suite: In place of model and data set: a suite's name (`python -m benchmarks.suites` lists them) or FILE.json,
            with its model, its options for records and its text.
        data: Folder of the data sets, for a suite of real records.
        seed: Seeds training and the stream's order.
        out: Write the figures to this JSON file, too.
    """

    methods: Annotated[tuple[str, ...], tyro.conf.Positional]
    edits: tuple[int, ...] = (100, 1000)
    edits_per_step: PositiveInt = 20
    questions: PositiveInt = 20
    tokens: PositiveInt = 8
    model: str = "atlas"
    dataset: str = "atlas"
    suite: str | None = None
    data: Path | None = None
    seed: int = 0
    out: Path | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.edits or list(self.edits) != sorted(set(self.edits)) or self.edits[0] < 1:
            raise ValueError(f"edits: must be different positive numbers in rising order, not {self.edits}")
        if self.suite is not None and (self.model, self.dataset) != ("atlas", "atlas"):
            raise ValueError("suite: has a model and a data set of its own; leave --model and --dataset out")
        if self.data is not None and self.suite is None:
            raise ValueError("data: is the folder of a suite's data sets; name one with --suite")


@dataclass(frozen=True)
class Cost:
    """What asking costs after so many edits.

    Attributes:
        method: The row.
        edits: How many.
        entries: Of the memories and the context.
        megabytes: Of the memories' tensors; of the context's texts and what its retriever keeps of their keys.
        milliseconds: The median of a question, with them.
        milliseconds_without: Of the same questions, of the unedited model.
        ratio: The median of the questions' ratios.
    """

    method: str
    edits: int
    entries: int
    megabytes: float
    milliseconds: float
    milliseconds_without: float
    ratio: float


def cost(method: str, edits: int, lm: EditableLM, prompts: list[str], tokens: int) -> Cost:
    """Asks each prompt with memories and context and without them, twice; the first time is not counted.

    What the context has found before a question is forgotten each time: it is found anew for every question.
    """
    seconds = np.zeros((2, len(prompts), 2))
    for turn in range(2):
        for i, prompt in enumerate(prompts):
            if lm.context is not None:
                lm.context.chosen.clear()
            seconds[turn, i, 0] = _seconds(lm, prompt, tokens)
            with lm.at_initial_weights():
                seconds[turn, i, 1] = _seconds(lm, prompt, tokens)
    edited, unedited = seconds[1].T
    kept: list[Memory | Context] = [*lm.memories.values()]
    if lm.context is not None:
        kept.append(lm.context)
    return Cost(
        method,
        edits,
        sum(map(len, kept)),
        sum(part.bytes for part in kept) / 1e6,
        float(np.median(edited)) * 1e3,
        float(np.median(unedited)) * 1e3,
        float(np.median(edited / unedited)),
    )


def _seconds(lm: EditableLM, prompt: str, tokens: int) -> float:
    started = time.perf_counter()
    continuations(lm.model, lm.tokenizer, [prompt], tokens)
    return time.perf_counter() - started


def costs(method: str, agent: Agent, args: Args, progress: Any) -> list[Cost]:
    """One row's, after each of the numbers of edits."""
    suite = None if args.suite is None else find(args.suite).at(None, args.data)
    if suite is None:
        edited: dict[str, Any] = {
            "model": args.model,
            "dataset": args.dataset,
            "split": "validation",
            **agent.environment,
        }
        learned_from = edited | {"split": "train"}
    else:
        edited = suite.environment(agent.environment)
        learned_from = suite.environment(agent.environment, training=True)
        if agent.reads_text and agent.text is None:
            agent.text = suite.in_data(suite.text)
    size = args.edits_per_step
    agent.prepare(LifelongEditEnv(**learned_from, edits_per_step=size), args.seed, progress)
    env = LifelongEditEnv(**edited, edits_per_step=size, actions_per_batch=agent.actions_per_batch, memory_batches=0)
    env.reset(seed=args.seed)
    if args.edits[-1] > len(env.stream):
        source = f"{edited['dataset']}/{edited['split']}"
        raise ValueError(f"edits: {args.edits[-1]} are asked for, and {source} has {len(env.stream)}")
    prompts = [edit.prompt for edit in env.stream[: args.questions]]
    actor = Actor(env, agent)
    actor.begin()
    measured = []
    for edits in args.edits:
        while env.batches_done * args.edits_per_step < edits:
            progress("editing", env.batches_done * args.edits_per_step, args.edits[-1])
            env.step(actor.act(*actor.look()))
        measured.append(cost(method, len(env.edits_done), env.language_model, prompts, args.tokens))
    return measured


def main(args: Args) -> None:
    """Prints a line for each row and number of edits.

    Raises:
        SystemExit: For wrong arguments, with a message.
    """
    measured = []
    try:
        for method in args.methods:
            agent = make_agent(method)
            with console_progress(method) as progress:
                measured += costs(method, agent, args, progress)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from None
    for one in measured:
        print(
            f"{one.method:20}  {one.edits:6,} edits  {one.entries:6,} entries  {one.megabytes:8.2f} MB  "
            f"{one.milliseconds:7.2f} ms a question, {one.milliseconds_without:.2f} without: x {one.ratio:.2f}"
        )
    if args.out is not None:
        atomic_write_text(args.out, json.dumps([asdict(one) for one in measured], indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
