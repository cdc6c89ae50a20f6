"""Result records: one JSON object a line, one shape everywhere, checked on reading. See docs/reference/records.md."""

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from benchmarks.results import files, rules
from benchmarks.results.rules import Rule
from benchmarks.results.texts import is_name, message
from editenv.atomic_files import atomic_write_text
from editenv.evaluation.metrics import METRICS

PACKAGES = ("torch", "transformers", "gymnasium", "numpy")
DRIFT = ("perplexity_before", "perplexity", "kl")
PROBES = (
    "negation",
    "negation_before",
    "distractor",
    "one_hop",
    "one_hop_before",
    "one_hop_questions",
    "two_hop",
    "two_hop_before",
    "two_hop_questions",
)


MetricValues = dict[str, float | None]
"""By metric; None where there was nothing to measure."""

# -- rules of the fields ------------------------------------------------------------------------------------------

METRIC_RULES = dict.fromkeys(METRICS, rules.percentage | None)
LOCALITY_ACCURACY_RULE = {"locality_accuracy": rules.percentage | None}

scores = rules.object_of(METRIC_RULES, optional=LOCALITY_ACCURACY_RULE, one_known=METRICS)
retention_point = rules.object_of(
    {"edits": rules.number(least=1)} | METRIC_RULES, optional=LOCALITY_ACCURACY_RULE, one_known=METRICS
)
drift_values = rules.object_of(dict.fromkeys(DRIFT, rules.finite_number | None))
probe_values = rules.object_of(dict.fromkeys(PROBES, rules.finite_number | None))
portability_figures = rules.object_of(
    others=rules.object_of({"right": rules.percentage, "questions": rules.whole_number(least=1)})
)
versions_of = Rule(
    "an object of texts of 1 to 300 characters, all of which are visible",
    lambda value: isinstance(value, dict) and all(map(is_name, (*value.keys(), *value.values()))),
)
git_commit = Rule(
    "a commit of git, 40 hexadecimal digits and perhaps -dirty",
    lambda value: isinstance(value, str) and re.fullmatch(r"[0-9a-f]{40}(-dirty)?", value) is not None,
)
run_configuration = rules.object_of(
    optional=dict.fromkeys(("suite", "fingerprints", "settings"), rules.any_object | None), others=rules.anything
)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(rules.whole_number(least=1).holds, value))


module_shapes = Rule(
    "an object of [d_in, d_out]",
    lambda value: isinstance(value, dict) and bool(value) and all(map(_is_shape, value.values())),
)

# -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Record:
    """What one agent did on one suite with one seed. Percentages are 0 to 100.

    Attributes:
        suite: Name of the suite.
        agent: Name of the row.
        seed: Seeds training and the stream's order.
        model: Name of the language model.
        dataset: Name of the data set and split.
        edits: Edits made.
        teacher_forced: efficacy, generalization, specificity after the last edit over all edits.
        generation: The same by free generation.
        immediate: The same (teacher-forced) of each batch right after its last action, averaged.
        retention: Teacher-forced efficacy, generalization, specificity over all edits so far, at some edit counts.
        setup_seconds: What :meth:`Agent.prepare` took.
        edit_seconds: Seconds per edit: observation, action and update, without judging.
        floor_ratio: ``edit_seconds`` by the time of a plain forward and partial backward over the same prompts.
        peak_memory_bytes: Of the process, or of the accelerator where there is one.
        versions: Of Python and the packages that matter, and the hardware.
        failures: Edits whose action was refused or whose figures are not finite.
        generation_prefix: Free generation begins with the answer; for models that do not stop after one.
        wild: QAEdit's way of judging free generation; see editenv/evaluation/wild.py.
        probability: CounterFact's comparison of target and old answer, where old answers are known.
        drift: ``perplexity_before``, ``perplexity`` and ``kl`` on text that no edit is about; see
            editenv/evaluation/metrics.py.
        portability: By kind of question ``right``, a percentage, and ``questions``, how many were asked; see
            editenv/evaluation/portability.py.
        probes: Negation, distractors and consequences, of the embedded world; see editenv/evaluation/probes.py.
        mean_reward: Mean over actions of the environment's reward without its memory term; None if one is not finite.
        actions_per_batch: K, how often the agent saw each batch.
        configuration: ``suite`` (its file, with the model and modules used), ``fingerprints`` of model and edits,
            and the agent's ``settings``.
        commit: Of git, ending in ``-dirty`` if files differed from it; None outside a repository.
        hardware: Processor, cores, threads, memory, accelerator.
        deltas: SHA-256 of the kept deltas (:func:`benchmarks.running.recording.digest`), if they were kept.
        modules: Edited modules, and the shape ``[d_in, d_out]`` of each.

    A percentage is None where the data has no such prompt. What has a default may be None: not measured, or not known
    in older records.
    """

    suite: Annotated[str, rules.name]
    agent: Annotated[str, rules.name]
    seed: Annotated[int, rules.whole_number(least=0)]
    model: Annotated[str, rules.name]
    dataset: Annotated[str, rules.name]
    edits: Annotated[int, rules.whole_number(least=1)]
    teacher_forced: Annotated[MetricValues, scores]
    generation: Annotated[MetricValues, scores]
    immediate: Annotated[MetricValues, scores]
    retention: Annotated[list[MetricValues], rules.list_of(retention_point)]
    setup_seconds: Annotated[float, rules.number(least=0)]
    edit_seconds: Annotated[float, rules.positive_number]
    floor_ratio: Annotated[float, rules.positive_number]
    peak_memory_bytes: Annotated[int, rules.whole_number(least=0)]
    versions: Annotated[dict[str, str], versions_of]
    failures: Annotated[int, rules.whole_number(least=0)]
    probability: Annotated[MetricValues | None, scores | None] = None
    generation_prefix: Annotated[MetricValues | None, scores | None] = None
    wild: Annotated[MetricValues | None, scores | None] = None
    drift: Annotated[MetricValues | None, drift_values | None] = None
    portability: Annotated[dict[str, dict[str, Any]] | None, portability_figures | None] = None
    probes: Annotated[MetricValues | None, probe_values | None] = None
    mean_reward: Annotated[float | None, rules.finite_number | None] = None
    actions_per_batch: Annotated[int | None, rules.whole_number(least=1) | None] = None
    configuration: Annotated[dict[str, Any] | None, run_configuration | None] = None
    commit: Annotated[str | None, git_commit | None] = None
    hardware: Annotated[dict[str, Any] | None, rules.any_object | None] = None
    deltas: Annotated[str | None, rules.sha256 | None] = None
    modules: Annotated[dict[str, list[int]] | None, module_shapes | None] = None

    def __post_init__(self) -> None:
        rules.check_fields(self)


def disagreements(first: Any, second: Any, name: str = "") -> list[str]:
    """Dotted names of what two records of a setting both say, and say differently; what only one of them knows is
    not counted.

    Args:
        first: What one says: a value, or an object of what it says by name, of any depth.
        second: What the other says.
        name: What both are called.
    """
    if isinstance(first, dict) and isinstance(second, dict):
        return [
            differing
            for key in first.keys() & second.keys()
            for differing in disagreements(first[key], second[key], f"{name}.{key}" if name else key)
        ]
    return [] if first == second else [name]


def versions() -> dict[str, str]:
    """What the figures were made with."""
    import torch

    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads on {os.cpu_count()} cores",
    }


def hardware(device: str = "cpu") -> dict[str, Any]:
    """What the figures were made on.

    Args:
        device: A torch device, or ``"auto"``; for any but the CPU the accelerator is named, if there is one.
    """
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "accelerator": torch.cuda.get_device_name() if device != "cpu" and torch.cuda.is_available() else None,
    }


def _processor() -> str:
    """The processor's name, which Linux has in a file only."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of this package's repository, ``-dirty`` if tracked files differ from it; None if it is in none."""
    git = ["git", "-C", str(Path(__file__).parent)]
    if shutil.which("git") is None:
        return None
    # A package installed inside someone else's repository is not part of it.
    tracked = subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True)
    if tracked.returncode != 0:
        return None
    described = subprocess.run(
        [*git, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"], capture_output=True
    )
    return described.stdout.decode().strip() or None


def read(path: Path) -> list[Record]:
    """All records of a file.

    Raises:
        ValueError: If it cannot be read, or a line is not a record; names the file, the line and the field.
    """
    records = []
    for line in read_lines(path):
        if isinstance(line, ValueError):
            raise line
        records.append(line)
    return records


def read_lines(path: Path) -> Iterator[Record | ValueError]:
    """Each line of a file: a record, or why it is none, with the file, the line and the field."""
    try:
        text = files.read_text(path)
    except ValueError as error:
        yield error
        return
    for line_number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], start=1):
        try:
            yield _record_of(files.parse(line))
        except ValueError as error:
            yield ValueError(f"{path}, line {line_number}: {message(error)}")


def _record_of(row: Any) -> Record:
    if not isinstance(row, dict):
        raise ValueError(f"a record is an object, not a {type(row).__name__}")
    known = {field.name for field in fields(Record)}
    required = {field.name for field in fields(Record) if field.default is MISSING}
    names = row.keys()
    if not required <= names <= known:
        raise ValueError(f"missing fields {sorted(required - names)}, unknown fields {sorted(names - known)}")
    return Record(**row)


def append(path: Path, record: Any) -> None:
    """Adds a record (a dataclass); the file is replaced whole, so that a kill leaves the old one or the new one."""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if old and not old.endswith("\n"):
        old += "\n"
    atomic_write_text(path, old + json.dumps(asdict(record)) + "\n")
