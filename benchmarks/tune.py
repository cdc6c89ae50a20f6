r"""Chooses a method's hyperparameters, with the same budget for every method that is searched; never on a test split.

    python -m benchmarks.tune --methods memit alphaedit --trials 8 --out runs/tune
    python -m benchmarks.tune --methods memit --trials 8 --out runs/tune --write
    python -m benchmarks.tune --methods memit-seq --suite atlas-400x20-training --settings atlas-long \
        --out runs/long --write
    python -m benchmarks.tune --methods memit --suite base-50x20-validation --model ./base --settings ./mine \
        --out runs/mine --write

Trial 0 is the settings as they stand; the others are drawn from the method's ranges (benchmarks/search_spaces/atlas.json)
by a scrambled Sobol sequence, log-uniformly. A range may also be a list of choices, and where a method
edits is one (environment.modules, environment.observed_tokens): the place is part of a method's settings. A trial is
one pass over the suite and counts by the harmonic mean of its teacher-forced figures; one that ends in an error counts
0 and says which. Trials that OUT already holds are not run again. --write puts the best into a folder of settings, with
how it was found; what is there is a row of benchmarks.run: memit@./mine.

A class of your own is searched by the arguments of its constructor, on records of your own or on any suite; the ranges
are those that a file has under the class's name, {"MyPolicy": {"step": [0.01, 1.0]}}:

    python -m benchmarks.tune --methods my_file.py:MyPolicy --edits facts.jsonl --model ./my-model \
        --spaces spaces.json --settings ./mine --out runs/mine --write

For a real model (benchmarks/search_spaces/smollm2-135m.json has its places):

    python -m benchmarks.tune --methods memit-seq --suite real-counterfact-7x20-validation --data DATA \
        --spaces smollm2-135m --settings smollm2-135m --out runs/tune-real --write
"""

import copy
import json
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from tyro.conf import OmitArgPrefixes

from agents.base import Agent, ProgressCallback
from agents.registry import is_own, make_method, settings_name, settings_of, takes_settings
from agents.rows import ROWS
from agents.settings import read_environment, read_settings, settings_path
from benchmarks.results.records import MetricValues, append
from benchmarks.results.statistics import harmonic_mean
from benchmarks.results.tables import triple
from benchmarks.running.progress import console_progress
from benchmarks.running.rollout import edit_stream, editing_environment, prepare
from benchmarks.suites import Suite, name_of
from benchmarks.suites.own import OwnData
from editenv.atomic_files import atomic_write_text
from editenv.evaluation.metrics import METRICS
from editenv.language_model.activation_cache import ActivationCache
from editenv.models.modules import modules_of

SUITE = "atlas-50x20-validation@25"
"""What choices are made on where nothing else is said."""


@dataclass(frozen=True, slots=True)
class Choices:
    """Values of which one is taken, each as likely."""

    values: tuple[Any, ...]


Range = tuple[float, float] | Choices
"""A lower and an upper bound, or what is chosen among."""

Ranges = Mapping[str, Range]
"""What is searched within, by a setting's dotted name."""


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        methods: Methods with a settings file and a search space, or file.py:Class of your own with a search space.
        out: Folder; the trials of a method go to OUT/METHOD.jsonl.
        trials: Trials of each method, the present settings among them.
        suite: What is edited, by default atlas-50x20-validation@25: a name, or FILE.json, a suite of your own; never
            of a test split.
        own: Records of your own, of which the validation part is edited, and text.
        settings: Folder of agents/settings, or with a slash in it (./mine) one of your own, for what is chosen; a
            search starts from what is there, or else from those of atlas.
        spaces: Search spaces: a file of benchmarks/search_spaces by its name, or FILE.json of your own.
        data: Folder of the data sets, for a suite of real records.
        model: Name, folder or hub id of the language model; the suite's by default.
        modules: Edited modules, as endings of dotted names; by default the suite's, the settings', or the model's own.
        preset: Modules by the name that `editenv models` gives them.
        observed_tokens: Which tokens of a batch agents see the gradient of; by default the suite's, or the settings'.
        device: A torch device, or auto for a model larger than one of them.
        dtype: The weights' type: float32, bfloat16 or float16.
        write: Put the best settings there.
        seed: Seeds the search, the training and the stream's order.
    """

    methods: tuple[str, ...]
    out: Path
    trials: int = 8
    suite: str | None = None
    own: OmitArgPrefixes[OwnData] = field(default_factory=OwnData)
    settings: str = "atlas"
    spaces: str = "atlas"
    data: Path | None = None
    model: str | None = None
    modules: tuple[str, ...] = ()
    preset: str | None = None
    observed_tokens: Literal["answers", "all", "subject"] | None = None
    device: str = "cpu"
    dtype: str = "float32"
    write: bool = False
    seed: int = 0


@dataclass
class Trial:
    """One line of OUT/METHOD.jsonl.

    Attributes:
        number: Counted from 0.
        settings: Arguments of the method.
        environment: Where it edits and what it observes (:data:`agents.settings.ENVIRONMENT`), if that is searched.
        score: Harmonic mean of the teacher-forced figures; 0 if it ended in an error.
        teacher_forced: Percentages by metric.
        seconds: What the trial took.
        about: Suite, seed, type of the weights, and model if it is not the suite's: what trials of one search have in common.
        error: What the method could not do with these settings.
    """

    number: int
    settings: dict[str, Any]
    score: float = 0.0
    teacher_forced: MetricValues = field(default_factory=lambda: dict.fromkeys(METRICS))
    seconds: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def drawn(self) -> dict[str, Any]:
        """What :func:`draw` drew: the settings, and the environment if there is one."""
        return self.settings | ({"environment": self.environment} if self.environment else {})


def search_space(method: str, spaces: str = "atlas") -> Ranges:
    """The ranges of a method's settings.

    Args:
        method: A row, or ``file.py:Class``, whose ranges stand under the class's name.
        spaces: Name of a file of benchmarks/search_spaces, or a path with a slash in it or ``.json`` at its end.

    Raises:
        ValueError: If the method has none, or if one is no range; names the file.
        FileNotFoundError: If there is no such file.
    """
    home = Path(str(resources.files(__package__))) / "search_spaces"
    own_file = "/" in spaces or spaces.endswith(".json")
    path = Path(spaces).expanduser() if own_file else home / f"{spaces}.json"
    if not path.exists():
        raise FileNotFoundError(f"no search spaces {spaces!r}: there is no {path}")
    try:
        file = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    name = settings_name(method) if is_own(method) else method
    ranges = file.get(name) if isinstance(file, dict) else None
    if not isinstance(ranges, dict) or not ranges:
        right = f'{{"{name}": {{"SETTING": [LOWEST, HIGHEST]}}}}'
        there_are = ", ".join(file) if isinstance(file, dict) else "none"
        raise ValueError(
            f"{name!r} has no search space in {path}; there are {there_are}. In a file of your own (--spaces FILE.json) it "
            f"is {right}"
        )
    return {setting: _range_of(f"{path}: {name}.{setting}", values) for setting, values in ranges.items()}


def _range_of(where: str, values: Any) -> Range:
    """A range as a file has it.

    Raises:
        ValueError: If it is none; says where.
    """
    choices = values.get("choices") if isinstance(values, dict) else None
    if isinstance(choices, list) and choices:
        return Choices(tuple(choices))
    if isinstance(values, list) and len(values) == 2:
        low, high = values
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        if numbers and 0 < low < high < math.inf:
            return low, high
    raise ValueError(f'{where} must be [LOWEST, HIGHEST], numbers above 0, or {{"choices": [...]}}, not {values!r}')


def draw(
    start: Mapping[str, Any], ranges: Ranges, count: int, seed: int, first: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """``start``, and variations of it, log-uniform within the ranges; whole numbers where the bounds are.

    Points are those of a scrambled Sobol sequence. One whose settings are drawn already is left out: where an earlier
    search has chosen ``start``, its sequence meets it again.

    Args:
        start: Settings, of which the ones without a range stay.
        ranges: Of the numbers that are searched.
        count: How many settings, the first among them.
        seed: Of the sequence.
        first: Takes the place of ``start`` where a search began elsewhere.
    """
    from scipy.stats import qmc

    points = qmc.Sobol(len(ranges), seed=seed).random_base2(math.ceil(math.log2(max(2, count))) + 1)
    drawn = [copy.deepcopy(dict(first or start))]
    for point in points:
        settings = copy.deepcopy(dict(start))
        for (name, values), share in zip(ranges.items(), point, strict=True):
            _set(settings, name, _at(values, float(share)))
        if settings not in drawn and len(drawn) < count:
            drawn.append(settings)
    return drawn


def _at(values: Range, share: float) -> Any:
    """What stands at this share of the way through a range, by its logarithm, or through the choices."""
    if isinstance(values, Choices):
        return copy.deepcopy(values.values[int(share * len(values.values))])
    low, high = values
    value = low * (high / low) ** share
    whole = isinstance(low, int) and isinstance(high, int)
    return round(value) if whole else float(f"{value:.3g}")


def _set(settings: dict[str, Any], name: str, value: Any) -> None:
    """Sets what has this dotted name."""
    *objects, key = name.split(".")
    for part in objects:
        settings = settings.setdefault(part, {})
    settings[key] = value


def read_trials(path: Path, about: Mapping[str, Any]) -> dict[int, Trial]:
    """The trials there are, by number.

    Args:
        path: The file of a method's trials.
        about: What they must be about.

    Raises:
        ValueError: If they were made with another suite or another seed.
    """
    if not path.exists():
        return {}
    trials = [Trial(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    for trial in trials:
        if trial.about != about:
            raise ValueError(
                f"{path}: trial {trial.number} was made with {trial.about}, not {dict(about)}; choose another --out"
            )
    return {trial.number: trial for trial in trials}


def tune(method: str, args: Args) -> Trial:
    """Runs the trials that are missing.

    Args:
        method: A row of agents.registry that takes settings, or ``file.py:Class``.
        args: The command's.

    Returns:
        The best of as many trials as the command is about.

    Raises:
        ValueError: If the method is unknown, if the suite is about another model, or if there are trials of another
            search.
        FileNotFoundError: If there is no such model.
    """
    if not takes_settings(method) and not is_own(method):
        with_settings = ", ".join(filter(takes_settings, ROWS))
        raise ValueError(f"unknown method {method!r}; there are {with_settings}, and file.py:Class of your own")
    suite = suite_of(args)
    path = args.out / f"{settings_name(method) if is_own(method) else method}.jsonl"
    about = _about(method, suite, args)
    trials = read_trials(path, about)
    ranges = search_space(method, args.spaces)
    start = _start(method, args.settings, ranges)
    first = trials[0].drawn if 0 in trials else None  # --write may have changed what the search would begin with now
    drawn = draw(start, ranges, args.trials, args.seed, first)
    for settings in drawn:  # one that there is none of is named before hours of others
        make_method(method, _arguments(settings))
    caches: defaultdict[str, ActivationCache] = defaultdict(
        ActivationCache
    )  # trials at one place meet the same prompts
    for number, settings in enumerate(drawn):
        if number not in trials:
            place = settings.get("environment", {})
            trial = Trial(number, _arguments(settings), about=about, environment=place)
            trials[number] = try_settings(method, suite, trial, caches[json.dumps(place.get("modules"))])
            append(path, trials[number])
        elif trials[number].drawn != settings:
            raise ValueError(
                f"{path}: trial {number} was of {trials[number].drawn}, and would now be of {settings}: the search "
                "starts from other settings, or has other ranges; choose another --out"
            )
    return max((trials[number] for number in range(len(drawn))), key=lambda trial: trial.score)


def suite_of(args: Args) -> Suite:
    """What choices are made on.

    Raises:
        ValueError: If the arguments do not say it, if it needs a model or a folder, or if it is of the test split.
        FileNotFoundError: If a file of one's own is not there.
    """
    name = SUITE if args.suite is None and args.own.edits is None else args.suite
    suite = args.own.suite(name, "validation", args.data)
    if suite.split not in ("train", "validation"):
        raise ValueError(f"{suite.id} is of split {suite.split}: choices are never made on the test split")
    modules = modules_of(args.modules, args.preset)
    place = (modules, args.device, args.dtype, args.observed_tokens)
    return suite.at(args.model, args.data, *place, args.own.text, args.own.drift_text)


def _about(method: str, suite: Suite, args: Args) -> dict[str, Any]:
    """What trials must have in common: the suite, and what is not the package's own."""
    fingerprints = suite.check_fingerprints()
    about: dict[str, Any] = {"suite": suite.id if suite.is_own else args.suite or SUITE, "seed": args.seed}
    if args.dtype != "float32":
        about["dtype"] = args.dtype
    if args.model is not None:
        about["model"] = fingerprints["model"] or args.model
    if suite.is_own:
        about["setting"] = suite.setting()
    elif args.modules or args.preset:
        about["modules"] = list(suite.modules or ())
    if args.observed_tokens is not None:
        about["observed_tokens"] = args.observed_tokens
    if suite.is_own or args.own.text or args.own.drift_text:
        about["fingerprints"] = fingerprints
    if is_own(method):
        about["source"] = settings_of(method, make_method(method, {})).get("source")
    return about


def _start(method: str, folder: str, ranges: Ranges) -> dict[str, Any]:
    """The settings that a search starts from, with the place under ``environment`` if they have one: those of the folder;
    or else the embedded model's, or of a class of one's own what its constructor makes of what is searched.
    """
    name = settings_name(method)
    if not settings_path(name, folder).exists():
        if is_own(method):
            known = settings_of(method, make_method(method, {}))
            return {setting: known[setting] for setting in ranges if setting in known}
        folder = "atlas"
    environment = read_environment(name, folder)
    return read_settings(name, folder) | ({"environment": environment} if environment else {})


def _arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of drawn settings is the method's own; the rest is where it edits."""
    return {name: value for name, value in settings.items() if name != "environment"}


def try_settings(method: str, suite: Suite, trial: Trial, activation_cache: ActivationCache) -> Trial:
    """The trial with what came of it: one pass over the suite.

    Args:
        method: A row of agents.registry that takes settings.
        suite: What is edited.
        trial: Which settings are tried.
        activation_cache: What the frozen layers made of the suite's prompts in earlier trials; is added to.
    """
    started = time.perf_counter()
    try:
        agent = make_method(method, trial.settings)
        agent.environment = trial.environment
        with console_progress(f"{method}, trial {trial.number}") as progress:
            scores = teacher_forced_after(suite, agent, trial.about["seed"], progress, activation_cache)
        trial = replace(trial, teacher_forced=scores, score=harmonic_mean(scores))
    except (ArithmeticError, RuntimeError) as error:  # a setting that its method cannot work with
        trial = replace(trial, error=f"{type(error).__name__}: {error}")
    trial = replace(trial, seconds=time.perf_counter() - started)
    print(f"{method} {trial.number}: {trial.score:.1f} {trial.error or trial.teacher_forced} {trial.drawn}", flush=True)
    return trial


def teacher_forced_after(
    suite: Suite, agent: Agent, seed: int, progress: ProgressCallback, activation_cache: ActivationCache
) -> MetricValues:
    """Teacher-forced percentages over all edits after the last batch; nothing else is asked, for a search asks often."""
    prepare(suite, agent, seed, progress)
    env = editing_environment(suite, agent)
    trace = edit_stream(env, agent, suite, seed, progress, None, activation_cache, {suite.batches})
    return {metric: trace.retention[-1][metric] for metric in METRICS}


def main(args: Args) -> None:
    """Searches method after method, and prints the best settings of each.

    Raises:
        SystemExit: For wrong arguments, with a message.
    """
    own = (
        args.own.edits is not None
        or any(map(is_own, args.methods))
        or (args.suite or "").partition("@")[0].endswith(".json")
    )
    if args.write and own and "/" not in args.settings:
        raise SystemExit(f"--settings {args.settings} is a folder of the package: give one of your own, such as ./mine")
    for method in args.methods:
        try:
            best = tune(method, args)
        except (ValueError, FileNotFoundError) as error:
            raise SystemExit(str(error)) from None
        print(f"{method}: best is trial {best.number} with {best.score:.1f}: {best.drawn}")
        if args.write:
            write_settings(method, best, args)


def write_settings(method: str, best: Trial, args: Args) -> None:
    """Writes a trial's settings, and how they were chosen, to the folder of settings."""
    searched = best.about["suite"] + (f" with model {name_of(args.model)}" if args.model else "")
    searched_row = "" if is_own(method) or settings_name(method) == method else f" with the row {method}"
    chosen = (
        f"best of {args.trials} trials of {searched}{searched_row}, seed {args.seed}, by the harmonic mean of teacher-forced "
        f"Eff/Gen/Spe: {triple([best.teacher_forced], '/')} (python -m benchmarks.tune)"
    )
    path = settings_path(settings_name(method), args.settings)
    environment = {"environment": best.environment} if best.environment else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json.dumps({"settings": best.settings, **environment, "chosen": chosen}, indent=2) + "\n")
    print(f"Saved {path}: the row {method}@{args.settings} of benchmarks.run")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
