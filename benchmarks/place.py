"""Shows that the place of an edit decides: quality against the layer that is edited, beside a causal trace.

    python -m benchmarks.place --data DATA --out runs/place
    python -m benchmarks.place --data DATA --out runs/place --rows ultraedit memit-seq@./mine --layers 2 6 10 14
    python -m benchmarks.place --suite atlas-50x20-validation@2 --layers 0 3 --facts 20 --out runs/place-atlas

At each layer the projection out of its MLP is edited alone, with each row and each of --steps, which multiply the row's
own step size: the learning rate of fine-tuning, the step size of a regression or a network, the clamp of a method that
searches values (how far one may go). The right step differs by layer, so that each row is shown with its best at each
layer, by the harmonic mean of teacher-forced figures; every row has as many tries, and all of them are kept. The suite
is never of a test split. memit-seq@subject-last looks facts up at the subject's last token, as the paper does.

The causal trace (benchmarks/causal_trace.py) says where the same model's facts pass through it: noise on the subject,
and one layer's state restored at the subject's last token or at the prompt's last. Facts are those of the training split
that the model answers right.

Covariances of text are taken once, for all layers and rows, and kept. What OUT holds is not done again: a kill costs the
trial, or the fact, that was running, and the same command goes on; --rows, --layers, --steps and --facts may be added to.
Writes OUT/place.jsonl (a line a trial), OUT/trace.json, OUT/place.md, and OUT/place.png and .svg, also as
OUT/place-prefix by free generation (the continuation begins with the answer).
"""

import copy
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from agents.base import Agent, ProgressCallback
from agents.covariance import RECORD, KeyStatistics, read_texts, sample_text, write_statistics
from agents.registry import environment_of, make_agent, make_method, settings_of, takes_settings
from agents.rows import ROWS
from benchmarks.causal_trace import trace_known_facts
from benchmarks.results.charts import save
from benchmarks.results.place import PROTOCOLS, TRACE, TRIALS, Trial, as_markdown, chart, read_effects, read_trials
from benchmarks.results.records import MetricValues, append
from benchmarks.results.tables import triple
from benchmarks.running.progress import console_progress
from benchmarks.running.rollout import check_budget, play, share_cache
from benchmarks.suites import Suite, find, name_of
from editenv.atomic_files import atomic_write_text
from editenv.data import load_edits
from editenv.env import LifelongEditEnv
from editenv.evaluation import metrics
from editenv.evaluation.batch import EvaluationBatch, encode_evaluation, greedy_tokens
from editenv.evaluation.prefix import beginnings_of_initial_model, generation_prefix
from editenv.language_model.activation_cache import ActivationCache
from editenv.language_model.editable_lm import EditableLM
from editenv.models import load_model
from editenv.models.modules import layer_number, layer_stack, mlp_outputs

STEP_SETTINGS = ("config.policy.step_size", "step_size", "value.clamp", "learning_rate")
"""What --steps multiply: the first of these that a row has."""

TEXTS_TOGETHER = 512
"""Texts of a covariance between two reports of progress."""


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        out: Folder for trials, trace, table and figures.
        suite: What is edited; never of a test split. NAME@BATCHES for its first batches.
        data: Folder of the data sets, for a suite of real records.
        model: Name, folder or hub id of the language model; the suite's by default.
        rows: Methods with a step size or a clamp, as METHOD or METHOD@FOLDER; their modules are left aside.
        layers: Layers whose MLP output is edited, from 0; by default every third, the last among them.
        steps: Multiples of a row's own step size; the best is shown.
        texts: Texts that key covariances are taken of, for rows that need them.
        text: Where they come from, as agents.covariance reads it; by default the suite's text, or else sentences of
            the training split.
        facts: Facts that are traced; 0 leaves the trace out.
        draws: Noises for each fact.
        seed: Seeds the stream's order, what rows prepare, and the noise.
        device: A torch device.
    """

    out: Path
    suite: str = "real-counterfact-7x20-validation"
    data: Path | None = None
    model: str | None = None
    rows: tuple[str, ...] = ("fine-tune", "ultraedit", "untrained-p", "memit-seq@subject-last")
    layers: tuple[int, ...] = ()
    steps: tuple[float, ...] = (0.3, 1.0, 3.0)
    texts: int = 3000
    text: str | None = None
    facts: int = 100
    draws: int = 3
    seed: int = 0
    device: str = "cpu"


# -- rows -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """A row whose step can be changed.

    Attributes:
        name: ``METHOD`` or ``METHOD@FOLDER``.
        settings: Constructor arguments.
        setting: Dotted name of what a step multiplies.
        value: Of it, at step 1.
        environment: The tokens it observes, if its settings say.
    """

    name: str
    settings: dict[str, Any]
    setting: str
    value: float
    environment: Mapping[str, Any]

    @classmethod
    def of(cls, name: str) -> "Row":
        """The row of this name.

        Raises:
            ValueError: If there is no such row, or it has none of :data:`STEP_SETTINGS`.
            FileNotFoundError: If its folder has no settings of it.
        """
        method, _, folder = name.partition("@")
        if not takes_settings(method):
            raise ValueError(f"rows: {name!r} takes no settings; these do: {', '.join(filter(takes_settings, ROWS))}")
        known = settings_of(name, make_agent(name))
        for setting in STEP_SETTINGS:
            value: Any = known
            for key in setting.split("."):
                value = value.get(key) if isinstance(value, Mapping) else None
            if isinstance(value, float):
                environment = {k: v for k, v in environment_of(name).items() if k != "modules"}
                return cls(name, ROWS[method].read_settings(folder or None), setting, value, environment)
        raise ValueError(f"rows: {name} has no step size: none of {', '.join(STEP_SETTINGS)}")

    def at_step(self, step: float) -> dict[str, Any]:
        """Its settings with the step multiplied."""
        settings = copy.deepcopy(self.settings)
        *objects, key = self.setting.split(".")
        part = settings
        for name in objects:
            part = part.setdefault(name, {})
        part[key] = float(f"{self.value * step:.6g}")
        return settings

    def make(self, settings: Mapping[str, Any]) -> Agent:
        """The agent with these settings."""
        agent = make_method(self.name.partition("@")[0], settings)
        agent.environment = self.environment
        return agent


# -- one layer ------------------------------------------------------------------------------------------------------------


@dataclass
class EditedLayer:
    """All trials at one layer: they share environments, and what the layers below make of prompts.

    Attributes:
        number: Of the layer, from 0.
        suite: Which edits its one module.
        statistics: Folder with the covariance of its keys, for rows that take one.
        beginnings: What theta_0 writes on the locality prompts; the same for all layers.
    """

    number: int
    suite: Suite
    statistics: Path
    beginnings: list[list[int]] | None = None
    _environments: dict[str, LifelongEditEnv] = field(default_factory=dict)
    _evaluations: dict[str, EvaluationBatch] = field(default_factory=dict)
    _cache: ActivationCache = field(default_factory=ActivationCache)

    def run(self, row: Row, trial: Trial, progress: ProgressCallback) -> Trial:
        """The trial with its figures, or with the error in which it ended."""
        started = time.perf_counter()
        try:
            agent = row.make(trial.settings)
            check_budget(self.suite, row.name, agent)
            agent = self._prepared(agent, trial.about["seed"], progress)
            env = self._environment(agent, training=False)
            refused = self._edit(env, agent, trial.about["seed"], progress)
            teacher_forced, prefix = self._judge(env, progress)
            trial = replace(trial, teacher_forced=teacher_forced, generation_prefix=prefix, refused=refused)
        except (
            ArithmeticError,
            RuntimeError,
            ValueError,
        ) as error:  # a step, or a place, that a method cannot work with
            trial = replace(trial, error=f"{type(error).__name__}: {error}")
        return replace(trial, seconds=round(time.perf_counter() - started, 1))

    def _prepared(self, agent: Agent, seed: int, progress: ProgressCallback) -> Agent:
        progress("preparing", 0, self.suite.batches)
        if agent.reads_text:
            agent.text = str(self.statistics)
        agent.prepare(self._environment(agent, training=True), seed, progress)
        return agent

    def _environment(self, agent: Agent, training: bool) -> LifelongEditEnv:
        """The one that agents are prepared on, or that is edited; made once for agents that see the same."""
        key = json.dumps([dict(agent.environment), None if training else agent.actions_per_batch])
        if key not in self._environments:
            arguments: dict[str, Any] = {"edits_per_step": self.suite.edits_per_step}
            if not training:
                arguments |= {"actions_per_batch": agent.actions_per_batch, "horizon": self.suite.batches}
                arguments["memory_batches"] = 0
            env = LifelongEditEnv(**self.suite.environment(agent.environment, training=training), **arguments)
            share_cache(env.language_model, self._cache)
            self._environments[key] = env
        return self._environments[key]

    def _edit(self, env: LifelongEditEnv, agent: Agent, seed: int, progress: ProgressCallback) -> int:
        """Edits the whole stream; how many batches had an action that was refused."""
        env.reset(seed=seed, options={"shuffle": self.suite.order == "shuffled", "keep_cache": True})
        refused = set()
        for number, step in enumerate(play(env, agent)):
            if step.refused:
                refused.add(number // agent.actions_per_batch)
            progress("editing", step.info["batch"], self.suite.batches)
        return len(refused)

    def _judge(self, env: LifelongEditEnv, progress: ProgressCallback) -> tuple[MetricValues, MetricValues]:
        """Percentages of both protocols, over all edits."""
        progress("judging", self.suite.batches, self.suite.batches)
        lm = env.language_model
        key = next(key for key, other in self._environments.items() if other is env)
        if key not in self._evaluations:
            self._evaluations[key] = encode_evaluation(lm, list(env.edits_done))
        evaluation = self._evaluations[key]
        if self.beginnings is None:
            self.beginnings = beginnings_of_initial_model(lm, evaluation)
        choices = greedy_tokens(lm, evaluation.prompts)
        prefix = generation_prefix(lm, evaluation, self.beginnings, choices=choices)
        return metrics.teacher_forced(lm, evaluation, choices=choices).percentages(), prefix.percentages()


def modules_by_layer(suite: Suite) -> dict[int, str]:
    """The projection out of each layer's MLP, by the number of the layer.

    Raises:
        ValueError: If the model has none.
    """
    model, _ = load_model(str(suite.model), suite.device, suite.dtype)
    names = mlp_outputs(model)
    if not names:
        raise ValueError(f"{suite.model}: no MLP has a linear module at its end")
    stack = layer_stack(model, names)
    return {layer_number(stack, name): name for name in names}


def choose_layers(chosen: Sequence[int], modules: Mapping[int, str]) -> list[int]:
    """The layers in order; every third if none is chosen, the last among them.

    Raises:
        ValueError: If one is not there.
    """
    last = max(modules)
    layers = sorted(set(chosen)) or [layer for layer in range(last % 3, last + 1, 3) if layer in modules]
    if missing := [layer for layer in layers if layer not in modules]:
        raise ValueError(f"layers: there is no MLP output in layer {missing[0]}; layers are 0 to {last}")
    return layers


def take_statistics(suite: Suite, modules: Mapping[int, str], folders: Mapping[int, Path], args: Args) -> None:
    """The key covariance of each layer, for all of them in one pass over the text; those that are there stay.

    Args:
        suite: With model and data.
        modules: By layer.
        folders: Where each layer's go.
        args: The command's.
    """
    missing = [layer for layer, folder in folders.items() if not (folder / RECORD).exists()]
    if not missing:
        return
    base, tokenizer = load_model(str(suite.model), suite.device, suite.dtype)
    lm = EditableLM(base, tokenizer, [modules[layer] for layer in missing])
    arguments = suite.environment(training=True)
    text = args.text or suite.in_data(suite.text)
    if text is None:
        edits = load_edits(arguments["dataset"], "train", options=arguments.get("dataset_options"))
        texts = sample_text(edits, args.texts)
    else:
        texts = list(islice(read_texts(text), args.texts))
    statistics = KeyStatistics(lm, bos=text is not None)
    with console_progress("covariances") as progress:
        for start in range(0, len(texts), TEXTS_TOGETHER):
            progress(f"of {len(missing)} layers", start, len(texts))
            statistics.add(lm, texts[start : start + TEXTS_TOGETHER])
    for layer in missing:
        one = EditableLM(base, tokenizer, [modules[layer]])
        source = text or f"{arguments['dataset']}, split train"
        write_statistics(one, statistics, folders[layer], f"{source}: {len(texts)} texts")


# -- the command ----------------------------------------------------------------------------------------------------------


def run_trials(suite: Suite, args: Args, about: Mapping[str, Any], modules: Mapping[int, str]) -> list[Trial]:
    """Runs the trials that are missing, layer after layer.

    Returns:
        All trials of the file.

    Raises:
        ValueError: If there is no such row or layer, or if the file holds trials of another measurement.
        FileNotFoundError: If a row's settings are not there.
    """
    path = args.out / TRIALS
    rows = [Row.of(name) for name in args.rows]
    layers = choose_layers(args.layers, modules)
    trials = {trial.key: trial for trial in read_trials(path)}
    requested = {
        layer: [
            (row, Trial(row.name, layer, step, (modules[layer],), row.at_step(step), about=dict(about)))
            for row in rows
            for step in args.steps
        ]
        for layer in layers
    }
    for trial in (trial for at_layer in requested.values() for _, trial in at_layer):
        check_is_same(path, trials.get(trial.key), trial)
    folders = {layer: args.out / "covariances" / f"{args.texts}-texts" / f"layer-{layer}" for layer in layers}
    if any(row.make(row.settings).reads_text for row in rows):
        take_statistics(suite, modules, folders, args)
    beginnings = None
    for layer, at_layer in requested.items():
        edited_layer = EditedLayer(
            layer, suite.at(None, suite.data, (modules[layer],), suite.device), folders[layer], beginnings
        )
        for row, trial in at_layer:
            if trial.key in trials:
                continue
            with console_progress(f"layer {layer}, {row.name}, step {trial.step:g}") as progress:
                trials[trial.key] = done = edited_layer.run(row, trial, progress)
            append(path, done)
            print(f"layer {layer:2}  {row.name:24} step {done.step:<5g} {_outcome(done)}", flush=True)
        beginnings = edited_layer.beginnings
    return list(trials.values())


def check_is_same(path: Path, done: Trial | None, trial: Trial) -> None:
    """Whether a trial that is there is the one that would be run now.

    Raises:
        ValueError: If it is another.
    """
    for name in ("about", "settings", "modules"):
        now = json.loads(json.dumps(getattr(trial, name)))
        if done is not None and json.loads(json.dumps(getattr(done, name))) != now:
            raise ValueError(
                f"{path}: the trial of {done.row} at layer {done.layer}, step {done.step:g}, was made with {name} "
                f"{getattr(done, name)}, and would now be with {now}; choose another --out"
            )


def _outcome(trial: Trial) -> str:
    if trial.error:
        return trial.error
    return f"{triple([trial.teacher_forced])}  mean {trial.score:.1f}  ({trial.seconds:.0f} s)"


def trace(suite: Suite, args: Args, about: Mapping[str, Any], modules: Mapping[int, str]) -> None:
    """The causal trace of facts of the training split."""
    arguments = suite.environment(training=True)
    edits = load_edits(arguments["dataset"], "train", options=arguments.get("dataset_options"))
    base, tokenizer = load_model(str(suite.model), suite.device, suite.dtype)
    lm = EditableLM(base, tokenizer, [modules[max(modules)]])
    about = {name: about[name] for name in ("model", "fingerprints")} | {
        "dataset": f"{suite.training or suite.dataset}"
    }
    with console_progress("causal trace") as progress:
        trace_known_facts(lm, edits, args.facts, args.out / TRACE, about, args.draws, seed=args.seed, progress=progress)


def write_results(trials: Sequence[Trial], out: Path) -> None:
    """Table and figures."""
    atomic_write_text(out / "place.md", as_markdown(trials))
    if not all(trial.error for trial in trials):
        effects = read_effects(out / TRACE)
        for protocol, name in zip(PROTOCOLS, ("place", "place-prefix"), strict=True):
            for ending in ("png", "svg"):
                save(chart(trials, effects, protocol), out / f"{name}.{ending}")
    print(f"\n{as_markdown(trials)}\nSaved {out}/place.md, place.png, place-prefix.png (and .svg).")


def check_numbers(args: Args) -> None:
    """Whether the numbers can be used.

    Raises:
        ValueError: If one cannot; names it.
    """
    for name, numbers in (("steps", args.steps), ("rows", args.rows)):
        if not numbers:
            raise ValueError(f"{name}: give at least one")
    if not all(math.isfinite(step) and step > 0 for step in args.steps):
        raise ValueError(f"steps: must be positive, not {', '.join(f'{step:g}' for step in args.steps)}")
    for name, number, least in (("facts", args.facts, 0), ("draws", args.draws, 1), ("texts", args.texts, 1)):
        if number < least:
            raise ValueError(f"{name}: must be at least {least}, not {number}")


def main(args: Args) -> int:
    """Runs what is missing and writes table and figures; 1 if a row came to nothing at every layer.

    Raises:
        SystemExit: For wrong arguments, with a message.
    """
    try:
        check_numbers(args)
        suite = find(args.suite)
        if suite.split not in ("train", "validation"):
            raise ValueError(f"{args.suite} is of split {suite.split}: choices are never made on the test split")
        suite = suite.at(args.model, args.data, device=args.device)
        fingerprints = suite.check_fingerprints()
        modules = modules_by_layer(suite)
        about: dict[str, Any] = {"suite": args.suite, "model": name_of(str(suite.model)), "fingerprints": fingerprints}
        about |= {"seed": args.seed, "layers": max(modules) + 1, "texts": args.texts, "text": args.text}
        trials = run_trials(suite, args, about, modules)
        if args.facts:
            trace(suite, args, about, modules)
        write_results(trials, args.out)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    failed = [row for row in args.rows if all(trial.error for trial in trials if trial.row == row)]
    for row in failed:
        print(f"{row}: {next(trial.error for trial in trials if trial.row == row)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    import tyro

    sys.exit(main(tyro.cli(Args, description=__doc__)))
