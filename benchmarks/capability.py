"""General capability along an editing run, scored by lm-eval; see docs/guides/general_capability.md.

    pip install "lifelongedit[capability]"
    python -m benchmarks.capability --agent rledit-packaged --at 0 200 1000 --data my/glue --out runs/capability
    python -m benchmarks.capability --agent no-edit --at 0 200 1000 --tasks sst2 mrpc --limit 500 --out runs/hub
    python -m benchmarks.capability --suite real-zsre-50x20 --agent no-edit --at 0 --data DATA --tasks real --out runs/1

Writes OUT/capability.jsonl, one record for each agent, seed and number of edits, and OUT/capability.png. What is
already there is not scored again; agents and seeds that are compared go into one folder, one command after the
other. Prints the figures, and how far above chance the unedited model is on each task: where it is at chance, no loss
can be seen.
"""

import copy
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from agents.base import Agent, ProgressCallback
from agents.registry import make_agent, settings_of
from benchmarks.capability_report import Capability, Setting, as_markdown, draw, read, starts_as_markdown
from benchmarks.capability_tasks import FILES, GLUE_TASKS, GROUPS, MADE_TASKS, data_file
from benchmarks.results.records import append, disagreements
from benchmarks.running.cells import workspace_path
from benchmarks.running.progress import console_progress
from benchmarks.running.rollout import check_budget, play
from benchmarks.suites import Suite, find, model_fingerprint, name_of
from editenv.contexts import generating_with_context, put_before, reading
from editenv.data import edits_digest, load_edits
from editenv.data.files import FileOptions
from editenv.env import LifelongEditEnv
from editenv.language_model.editable_lm import EditableLM

TEMPLATES = Path(__file__).parent / "tasks"
"""Folder of the local tasks' descriptions for lm-eval."""

RESAMPLES = 1000
"""For standard errors that lm-eval bootstraps; its default takes minutes."""


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        at: Numbers of edits at which the model is scored, like 0 200 1000; multiples of edits_per_step.
        out: Folder; records go to OUT/capability.jsonl, the figure to OUT/capability.png.
        agent: A name of agents.registry, or file.py:Class.
        seed: Seeds the agent's training and the stream's order.
        model: The embedded model, a Hugging Face folder, or a hub id.
        modules: Edited modules, as endings of dotted names; by default those of the settings of METHOD@FOLDER, if they
            name some, or else the model's own.
        observed_tokens: Which tokens of a batch agents see, answers or all; by default those of the settings of
            METHOD@FOLDER, if they name them, or else answers.
        dataset: Where the edits come from, as editenv.data.load_edits takes it.
        split: Its split.
        dataset_options: How a file of edits is read.
        training: Data set whose training split the agent learns from; by default the same.
        edits_per_step: Edits in one batch.
        suite: In place of all of the above from --model to --edits-per-step: the stream of a suite, a name (`python -m
            benchmarks.suites` lists them) or FILE.json, with its model, its options for records, its text and what
            agents learn from.
        data: Folder with what the tasks read (sst2.jsonl, mrpc.jsonl, ...), and a suite's data sets; without it the
            tasks are lm-eval's own, from the hub.
        tasks: What is scored: with --data local tasks or groups of them (glue, unless named, or real for a language
            model like smollm2-135m), without it tasks or groups of lm-eval.
        limit: Only the first so many records of each task.
        batch_size: Prompts that lm-eval runs together.
        device: A torch device.
        dtype: float32, bfloat16 or float16.
    """

    at: tuple[int, ...]
    out: Path
    agent: str = "rledit-packaged"
    seed: int = 0
    model: str = "atlas"
    modules: tuple[str, ...] | None = None
    observed_tokens: Literal["answers", "all"] | None = None
    dataset: str = "atlas"
    split: str = "test"
    dataset_options: FileOptions = field(default_factory=FileOptions)
    training: str | None = None
    edits_per_step: int = 20
    suite: str | None = None
    data: Path | None = None
    tasks: tuple[str, ...] | None = None
    limit: int | None = None
    batch_size: int = 16
    device: str = "cpu"
    dtype: str = "float32"


# -- scoring ------------------------------------------------------------------------------------------------------


def macro_f1(items: Sequence[tuple[int, int]]) -> float:
    """scikit-learn's F1, averaged over the classes; the tasks' YAML files name it.

    Args:
        items: The true and the chosen answer of each record.

    Returns:
        From 0 to 1.
    """
    from sklearn.metrics import f1_score

    golds, predictions = zip(*items, strict=True)
    return float(f1_score(golds, predictions, average="macro"))


def installed_version() -> str:
    """lm-eval's version.

    Raises:
        SystemExit: If it cannot be imported, saying how to install it.
    """
    try:
        import lm_eval
        import lm_eval.models.huggingface
    except ImportError as error:
        raise SystemExit(f'lm-eval is not installed ({error}): pip install "lifelongedit[capability]"') from None
    return lm_eval.__version__


def task_manager(tasks: Sequence[str], data: Path | None) -> Any:
    """lm-eval's ``TaskManager`` for the tasks; without data it indexes all of lm-eval's, which takes seconds.

    Raises:
        SystemExit: If a task or its file is missing, naming it.
    """
    from lm_eval.tasks import TaskManager

    if data is None:
        manager = TaskManager()
        for name in tasks:
            if name not in manager.all_subtasks and name not in manager.all_groups:
                raise SystemExit(f"unknown task {name!r}: lm-eval has no task or group of this name (lm-eval ls tasks)")
        return manager
    for name in tasks:
        if name not in FILES:
            groups = ", ".join(GROUPS)
            raise SystemExit(
                f"unknown task {name!r}: with --data there are {', '.join(FILES)}, and the groups {groups}"
            )
        for file in FILES[name]:
            try:
                data_file(data, file)
            except FileNotFoundError as error:
                raise SystemExit(f"--data: {error}, which the task {name} reads") from None
    return TaskManager(include_path=str(TEMPLATES), include_defaults=False)


def score(
    lm: EditableLM, tasks: Sequence[str], manager: Any, data: Path | None, limit: int | None, batch_size: int
) -> dict[str, dict[str, float | None]]:
    """lm-eval's figures for the model as it is now.

    Args:
        lm: The model; neither it nor its tokenizer is changed, nor the state of any random generator.
        tasks: Names of local tasks, or of lm-eval's if there is no data.
        manager: Of :func:`task_manager`.
        data: Folder of the local tasks' records.
        limit: Records of each task.
        batch_size: Prompts run together.

    Returns:
        :attr:`Capability.tasks`.
    """
    from lm_eval import simple_evaluate

    # One warning for each prompt that is cut; docs/guides/general_capability.md says that they are. And one for each
    # task with documents of its own, about options that this command does not have.
    for name in ("lm_eval.models", "lm_eval.api.task"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with random_state_kept():
        results = simple_evaluate(
            model=asked_by_lm_eval(lm, batch_size),
            tasks=list(tasks) if data is None else [_local_group(tasks, data)],
            task_manager=manager,
            limit=limit,
            bootstrap_iters=RESAMPLES,
            log_samples=True,  # for chance
        )
    scores: dict[str, dict[str, float | None]] = {}
    for name in tasks:
        # Keys are "metric,filter"; the filter "none" goes without saying.
        figures = {key.removesuffix(",none"): value for key, value in results["results"][name].items() if "," in key}
        scores[name] = {key: float(v) if isinstance(v, int | float) else None for key, v in figures.items()}
        if name in results["n-samples"]:
            scores[name]["records"] = results["n-samples"][name]["effective"]
        # With mutual information lm-eval asks for every choice a second time, without the question.
        multiple_choice = results["configs"].get(name, {}).get("output_type") == "multiple_choice"
        if multiple_choice and "acc_mutual_info" not in figures:
            scores[name]["chance"] = chance(results["samples"][name])
    return scores


def asked_by_lm_eval(lm: EditableLM, batch_size: int) -> Any:
    """The model as lm-eval asks one; of a model with a context, each prompt with what is put before it.

    Args:
        lm: The model.
        batch_size: Prompts run together.
    """
    from lm_eval.models.huggingface import HFLM

    with_text: dict[int, set[tuple[int, ...]]] = {}  # the prompts that have a text before them, by their length

    class ContextHFLM(HFLM):
        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            prompt, answer = super()._encode_pair(context, continuation)
            return self._with_context(prompt, len(answer) - 1), answer

        def _with_context(self, prompt: list[int], more: int) -> list[int]:
            if lm.context is None:
                return prompt
            asked = put_before(lm.context, lm.tokenizer, [prompt], [self.max_length - len(prompt) - more])[0]
            if len(asked) > len(prompt):
                with_text.setdefault(len(asked), set()).add(tuple(asked))
            return asked

        def _model_call(self, inps: torch.Tensor, **options: Any) -> torch.Tensor:
            rows = inps.tolist()
            begins = [any(tuple(row[:length]) in asked for length, asked in with_text.items()) for row in rows]
            with reading(torch.tensor(begins)):
                return super()._model_call(inps, **options)

        def _model_generate(self, context: Any, max_length: int, stop: list[str], **options: Any) -> Any:
            with generating_with_context(lm.model, lm.tokenizer):
                return super()._model_generate(context, max_length, stop, **options)

    # A copy, because a tokenizer without a padding token is given one.
    return ContextHFLM(
        pretrained=lm.model, tokenizer=copy.deepcopy(lm.tokenizer), batch_size=batch_size, trust_remote_code=False
    )


def chance(samples: Sequence[Mapping[str, Any]]) -> float:
    """The accuracy of the best guess by one who has not read the question.

    Args:
        samples: lm-eval's, of one multiple choice: ``arguments`` are a prompt and a choice each, ``target`` the index
            of the right one, its text, or a list of such indices.

    Returns:
        Where every question has the same choices, the share of the commonest right one. Elsewhere the mean share of
        choices that are right.
    """
    choices = [tuple(choice.strip() for _, choice, *_ in sample["arguments"]) for sample in samples]
    # Two prompts with one ending each are no choices that are the same everywhere.
    same = len(set(choices)) == 1 and len(set(choices[0])) == len(choices[0])
    if same and not any(isinstance(sample["target"], list) for sample in samples):
        commonest = Counter(sample["target"] for sample in samples).most_common(1)
        return commonest[0][1] / len(samples)
    right = (len(sample["target"]) if isinstance(sample["target"], list) else 1 for sample in samples)
    return float(np.mean([number / len(own) for number, own in zip(right, choices, strict=True)]))


def _local_group(tasks: Sequence[str], data: Path) -> dict[str, Any]:
    """The local tasks on this folder's files, as lm-eval takes them.

    A task that is named inside a group may override what its YAML file says; one that is named alone may not.
    """
    return {"group": "local", "task": [{"task": name, "dataset_kwargs": _source(name, data)} for name in tasks]}


def _source(task: str, data: Path) -> dict[str, Any]:
    """The folder, for a task whose documents are made by a function; the file, for one whose records are documents."""
    if task in MADE_TASKS:
        return {"data": str(data.resolve())}
    (file,) = FILES[task]
    return {"data_files": {"test": str(data_file(data, file).resolve())}}


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Python's, NumPy's and torch's global generators are afterwards as they were before.

    lm-eval seeds every one of them; an agent that draws from one must not notice that it was scored.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


# -- the run ------------------------------------------------------------------------------------------------------


def roll(
    env: LifelongEditEnv,
    agent: Agent,
    at: Sequence[int],
    visit: Callable[[int, int], None],
    progress: ProgressCallback,
) -> None:
    """Edits the stream with a prepared agent.

    Args:
        env: After its reset, with a horizon that reaches the last of ``at``.
        agent: After its preparation.
        at: Numbers of edits, ascending.
        visit: Called at each of them with the number of edits and how many of those were refused.
        progress: Called with what is going on, and how far it is.
    """
    if at[0] == 0:
        visit(0, 0)
    last_batch = at[-1] // env.edits_per_step
    if last_batch == 0:
        return
    failures, batch_failed = 0, False
    for step in play(env, agent):
        batch_failed = batch_failed or step.refused
        if step.info["attempt"] == 0:  # that was the batch's last action
            failures += env.edits_per_step * batch_failed
            batch_failed = False
            progress("editing", step.info["batch"], last_batch)
            if step.info["edits"] in at:
                visit(step.info["edits"], failures)
        if step.info["batch"] == last_batch:
            return


def provenance(args: Args, suite: Suite) -> dict[str, Any]:
    """What :class:`Setting` has the names of: the agent's settings, the model's weights, the edits; of a suite that the
    command names also what agents learn from, and its texts.

    Raises:
        ValueError: If they are not the suite's.
    """
    settings = settings_of(args.agent, make_agent(args.agent))
    if args.suite is not None:
        return {"settings": settings, **suite.check_fingerprints()}
    edited = suite.environment()
    edits = load_edits(edited["dataset"], edited["split"], None, edited.get("dataset_options"))
    return {"settings": settings, "model": model_fingerprint(edited["model"]), "edits": edits_digest(edits)}


STREAM = (
    *("model", "modules", "observed_tokens"),
    *("dataset", "split", "dataset_options", "training", "edits_per_step"),
)
"""Arguments that say what is edited, which a suite says as well."""


def stream(args: Args) -> Suite:
    """What is edited, as benchmarks.run has it: an agent's own modules and tokens count if the command names none.

    Raises:
        ValueError: If there is no such suite, if it needs a folder of data that is not given, or if the command says
            what the suite says.
    """
    if args.suite is not None:
        defaults = {each.name: each.default for each in fields(Args)} | {"dataset_options": FileOptions()}
        if twice := [name for name in STREAM if getattr(args, name) != defaults[name]]:
            raise ValueError(f"--suite {args.suite} says it already: leave out --{twice[0].replace('_', '-')}")
        return find(args.suite).at(None, args.data, device=args.device, dtype=args.dtype)
    return Suite(
        name="capability",
        batches=max(1, max(args.at) // args.edits_per_step),
        edits_per_step=args.edits_per_step,
        model=args.model,
        dataset=_literally(args.dataset),
        split=args.split,
        training=_literally(args.training or args.dataset),
        options=tuple(asdict(args.dataset_options).items()),
        modules=args.modules,
        observed_tokens=args.observed_tokens or "answers",
        device=args.device,
        dtype=args.dtype,
    )


def _literally(dataset: str) -> str:
    """With braces that a suite does not take for the folder of data sets."""
    return dataset.replace("{", "{{").replace("}", "}}")


def editing_environment(suite: Suite, agent: Agent, edits: int) -> LifelongEditEnv:
    """The environment with the stream, as long as so many edits, one batch at least."""
    return LifelongEditEnv(
        **suite.environment(agent.environment),
        edits_per_step=suite.edits_per_step,
        actions_per_batch=agent.actions_per_batch,
        horizon=max(1, edits // suite.edits_per_step),
        memory_batches=0,  # nothing here reads the reward's memory term
    )


def training_environment(suite: Suite, agent: Agent) -> LifelongEditEnv:
    """The environment that the agent is prepared on."""
    return LifelongEditEnv(**suite.environment(agent.environment, training=True), edits_per_step=suite.edits_per_step)


def run(
    args: Args,
    suite: Suite,
    setting: Setting,
    made_with: dict[str, Any],
    missing: Sequence[int],
    results: Path,
) -> None:
    """Prepares the agent, lets it edit, and adds a record for each missing number of edits.

    Args:
        args: The command's.
        suite: Of :func:`stream`.
        setting: For the records.
        made_with: For the records: :func:`provenance`.
        missing: Numbers of edits, ascending.
        results: The file of records.

    Raises:
        SystemExit: If the stream is too short.
        ValueError: For anything that the environment or the registry refuses.
    """
    manager = task_manager(setting.tasks, args.data)
    agent = make_agent(args.agent)
    if agent.looks_ahead and any(edits not in (0, max(args.at)) for edits in args.at):
        raise ValueError(
            f"{args.agent} acts by where its stream ends, so that one run has no figures along the way: name one "
            "number of edits besides 0 with --at, and give the command again for each other one"
        )
    modules = suite.modules or agent.environment.get("modules", ())
    agent.workspace = workspace_path(args.out, args.agent, modules, made_with.get("training"), args.seed)
    check_budget(suite, args.agent, agent)
    if agent.reads_text and agent.text is None:
        agent.text = suite.in_data(suite.text)
    env = editing_environment(suite, agent, edits=missing[-1])
    env.reset(seed=args.seed, options={"shuffle": suite.order == "shuffled"})
    if len(env.stream) < missing[-1]:
        raise SystemExit(f"--at {missing[-1]}: {setting.dataset}/{setting.split} ends after {len(env.stream)} edits")

    def visit(edits: int, failures: int) -> None:
        tasks = score(env.language_model, setting.tasks, manager, args.data, args.limit, args.batch_size)
        append(results, Capability(args.agent, args.seed, edits, failures, setting, tasks, made_with))

    with console_progress(f"{args.agent}, seed {args.seed}") as progress:
        agent.prepare(training_environment(suite, agent), args.seed, progress)
        roll(env, agent, missing, visit, progress)


# -- command ------------------------------------------------------------------------------------------------------


def main(args: Args) -> None:
    """Scores what is missing, and prints and draws everything in the folder.

    Raises:
        SystemExit: For wrong arguments, with a message.
    """
    results = args.out / "capability.jsonl"
    try:
        suite = stream(args)
        setting = setting_of(args, suite)
        records = read(results) if results.exists() else []
        made_with = provenance(args, suite)
        check_comparable(records, setting, args.agent, made_with, results)
        done = {r.edits for r in records if (r.agent, r.seed) == (args.agent, args.seed)}
        missing = sorted(set(args.at) - done)
        if missing:
            run(args, suite, setting, made_with, missing, results)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    records = read(results)
    print(f"{as_markdown(records)}\n{starts_as_markdown(records)}")
    draw(records, args.out / "capability.png")


def setting_of(args: Args, suite: Suite) -> Setting:
    """What a command's records have in common.

    Args:
        args: The command's.
        suite: Of :func:`stream`.

    Raises:
        SystemExit: For wrong arguments, with a message; if lm-eval is not installed.
    """
    for edits in args.at:
        if edits < 0 or edits % suite.edits_per_step:
            raise SystemExit(f"--at {edits}: not a multiple of edits_per_step, {suite.edits_per_step}")
    if args.suite is not None and max(args.at, default=0) > suite.batches * suite.edits_per_step:
        raise SystemExit(f"--at {max(args.at)}: {suite.id} makes {suite.batches * suite.edits_per_step} edits")
    if args.limit is not None and args.limit < 1:
        raise SystemExit(f"--limit must be at least 1 record, not {args.limit}")
    if not args.at:
        raise SystemExit("--at: name numbers of edits")
    tasks = args.tasks or (GLUE_TASKS if args.data is not None else ())
    if args.data is not None:
        tasks = tuple(dict.fromkeys(task for name in tasks for task in GROUPS.get(name, (name,))))
    elif "real" in tasks:
        raise SystemExit("--tasks real: a group of local tasks; give the folder of their data with --data")
    if not tasks:
        raise SystemExit("--tasks: name some of lm-eval's, or give --data")
    return Setting(
        **(_of_command(args) if args.suite is None else _of_suite(suite)),
        dtype=args.dtype,
        edits_per_step=suite.edits_per_step,
        tasks=list(tasks),
        data=None if args.data is None else args.data.resolve().name,
        limit=args.limit,
        lm_eval=installed_version(),
        observed_tokens=suite.observed_tokens,
    )


def _of_command(args: Args) -> dict[str, Any]:
    """What :class:`Setting` has of the stream."""
    return {
        "model": args.model,
        "modules": None if args.modules is None else list(args.modules),
        "dataset": args.dataset,
        "split": args.split,
        "dataset_options": None if args.dataset == "atlas" else asdict(args.dataset_options),
        "training": args.training or args.dataset,
    }


def _of_suite(suite: Suite) -> dict[str, Any]:
    """The same of a suite, with ``{data}`` for the folder of this machine."""
    return {
        "model": name_of(str(suite.model)),
        "modules": None if suite.modules is None else list(suite.modules),
        "dataset": suite.dataset,
        "split": suite.split,
        "dataset_options": dict(suite.options) or None,
        "training": suite.training or suite.dataset,
        "suite": suite.id,
    }


def check_comparable(
    records: Sequence[Capability], setting: Setting, agent: str, made_with: dict[str, Any], results: Path
) -> None:
    """Whether the records that are there can stand beside new ones.

    Args:
        records: That are there.
        setting: Of the new ones.
        agent: Of the new ones.
        made_with: Of the new ones: :func:`provenance`.
        results: The file, for the message.

    Raises:
        ValueError: If they cannot; names the file and what differs.
    """
    for record in records:
        for name in (each.name for each in fields(Setting)):
            recorded, current = getattr(record.setting, name), getattr(setting, name)
            if recorded != current:
                raise ValueError(f"{results} was made with {name} {recorded!r}, not {current!r}; use another --out")
        # Another agent has other settings.
        shared = {key: value for key, value in made_with.items() if key != "settings" or record.agent == agent}
        if differing := disagreements(record.made_with or {}, shared):
            raise ValueError(
                f"{results}: {record.agent} was run with another {', '.join(sorted(differing))} than now; use another "
                "--out"
            )


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
