"""Result records: one JSON object a line, one shape everywhere, checked on reading. See docs/results/README.md."""

import json
import math
import os
import platform
import shutil
import subprocess
from dataclasses import MISSING, asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

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
        probability: CounterFact's comparison of target and old answer, where old answers are known.
        drift: ``perplexity_before``, ``perplexity`` and ``kl`` on text that no edit is about; see
            editenv/evaluation/metrics.py.
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

    suite: str
    agent: str
    seed: int
    model: str
    dataset: str
    edits: int
    teacher_forced: dict[str, float | None]
    generation: dict[str, float | None]
    immediate: dict[str, float | None]
    retention: list[dict[str, float | None]]
    setup_seconds: float
    edit_seconds: float
    floor_ratio: float
    peak_memory_bytes: int
    versions: dict[str, str]
    failures: int
    probability: dict[str, float | None] | None = None
    drift: dict[str, float | None] | None = None
    probes: dict[str, float | None] | None = None
    mean_reward: float | None = None
    actions_per_batch: int | None = None
    configuration: dict[str, Any] | None = None
    commit: str | None = None
    hardware: dict[str, Any] | None = None
    deltas: str | None = None
    modules: dict[str, list[int]] | None = None

    def __post_init__(self) -> None:
        for name in ("suite", "agent", "model", "dataset"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value or value != value.encode(errors="replace").decode():
                raise ValueError(f"{name} must be a text that UTF-8 can hold, not {value!r}")
        for name in ("teacher_forced", "generation", "immediate"):
            _check_percentages(name, getattr(self, name))
        if self.probability is not None:
            _check_percentages("probability", self.probability)
        for name, keys in (("drift", DRIFT), ("probes", PROBES)):
            values = getattr(self, name)
            if values is not None and (not isinstance(values, dict) or set(values) != set(keys)):
                raise ValueError(f"{name} must have exactly {', '.join(keys)}, not {values!r}")
        for key, value in (self.drift or {}).items():
            if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
                raise ValueError(f"drift.{key} must be a finite number, or null, not {value!r}")
        if not isinstance(self.retention, list):
            raise ValueError(f"retention must be a list, not {self.retention!r}")
        for i, point in enumerate(self.retention):
            at = point.get("edits") if isinstance(point, dict) else None
            if not isinstance(at, int | float) or not 1 <= at < math.inf:
                raise ValueError(f"retention[{i}] must have edits, from 1 on, and {', '.join(METRICS)}, not {point!r}")
            _check_percentages(f"retention[{i}]", {k: v for k, v in point.items() if k != "edits"})
        for name, least in (("seed", 0), ("edits", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number from {least} on, not {value!r}")
        for name in ("failures", "peak_memory_bytes", "setup_seconds", "edit_seconds", "floor_ratio"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be a number that is not negative, not {value!r}")
        if self.edit_seconds == 0:
            raise ValueError("edit_seconds must be above 0")
        if not isinstance(self.versions, dict) or not all(isinstance(value, str) for value in self.versions.values()):
            raise ValueError(f"versions must be an object of texts, not {self.versions!r}")
        if self.mean_reward is not None and not (
            isinstance(self.mean_reward, int | float) and math.isfinite(self.mean_reward)
        ):
            raise ValueError(f"mean_reward must be a finite number or null, not {self.mean_reward!r}")
        for name in ("configuration", "hardware"):
            if not isinstance(getattr(self, name), dict | None):
                raise ValueError(f"{name} must be an object or null, not {getattr(self, name)!r}")
        if self.modules is not None and not (
            isinstance(self.modules, dict) and self.modules and all(map(_is_shape, self.modules.values()))
        ):
            raise ValueError(f"modules must be an object of [d_in, d_out], or null, not {self.modules!r}")
        for name in ("suite", "fingerprints", "settings"):
            if not isinstance((self.configuration or {}).get(name), dict | None):
                raise ValueError(f"configuration.{name} must be an object or null, not {self.configuration!r}")


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(d, int) and d > 0 for d in value)


def _check_percentages(name: str, values: Any) -> None:
    if not isinstance(values, dict) or set(values) - {"locality_accuracy"} != set(METRICS):
        raise ValueError(f"{name} must have {', '.join(METRICS)} (and may have locality_accuracy), not {values!r}")
    for metric, value in values.items():
        if value is not None and (not isinstance(value, int | float) or not 0 <= value <= 100):
            raise ValueError(f"{name}.{metric} must be a percentage from 0 to 100 (or null), not {value!r}")
    if all(values[metric] is None for metric in METRICS):
        raise ValueError(f"{name} has none of {', '.join(METRICS)}")


def disagreements(first: Any, second: Any, place: str = "") -> list[str]:
    """Dotted names of what two records of a setting both tell, and tell differently; what only one of them knows is
    not counted.
    """
    if isinstance(first, dict) and isinstance(second, dict):
        return [
            name
            for key in first.keys() & second.keys()
            for name in disagreements(first[key], second[key], f"{place}.{key}" if place else key)
        ]
    return [] if first == second else [place]


def versions() -> dict[str, str]:
    """What the figures were made with."""
    import torch

    found = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    return found | {"machine": f"{platform.machine()}, {torch.get_num_threads()} threads on {os.cpu_count()} cores"}


def hardware(device: str = "cpu") -> dict[str, Any]:
    """What the figures were made on; the accelerator if the device is one (or ``"auto"``, and there is one)."""
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "accelerator": torch.cuda.get_device_name() if device != "cpu" and torch.cuda.is_available() else None,
    }


def _processor() -> str:
    """Linux tells its name in a file only."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of this package's repository, ``-dirty`` if tracked files differ from it; None if it is in none."""
    git = ["git", "-C", str(Path(__file__).parent)]
    if shutil.which("git") is None:
        return None
    # A package installed inside someone else's repository is not part of it.
    tracked = subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True)
    if tracked.returncode != 0:
        return None
    told = subprocess.run([*git, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"], capture_output=True)
    return told.stdout.decode().strip() or None


def read(path: Path) -> list[Record]:
    """All records of a file.

    Raises:
        ValueError: If a line is not a record; names the file, the line and the field.
    """
    names = {field.name for field in fields(Record)}
    needed = {field.name for field in fields(Record) if field.default is MISSING}
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not needed <= set(row) <= names:
                missing = sorted(needed - set(row)) if isinstance(row, dict) else sorted(needed)
                extra = sorted(set(row) - names) if isinstance(row, dict) else []
                raise ValueError(f"missing fields {missing}, unknown fields {extra}")
            records.append(Record(**row))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return records


def append(path: Path, record: Any) -> None:
    """Adds a record (a dataclass); the file is replaced whole, so that a kill leaves the old one or the new one."""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if old and not old.endswith("\n"):
        old += "\n"
    atomic_write_text(path, old + json.dumps(asdict(record)) + "\n")
