"""Cells of a table: one agent, one suite, one seed, one file.

    OUT/cells/SUITE-vN/AGENT-seedS.json             the record, once the cell has finished
    OUT/cells/SUITE-vN/AGENT-seedS.failed.json      the error, until it does
    OUT/deltas/SUITE-vN/AGENT-seedS.safetensors     what was added to the weights, if it is kept
    OUT/policies/...                                what agents keep of their training
    OUT/frozen/SUITE-vN/seedS.safetensors           what the frozen layers made of a stream's prompts, until its
                                                    last cell has run
    OUT/results.jsonl                               all records, made from the cells

Files are written whole or not at all: whatever is killed, what has finished stays.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.base import ProgressCallback
from agents.registry import environment_of, make_agent, settings_of
from agents.rows import ROWS
from benchmarks.results.records import Record, commit, disagreements, hardware, read, versions
from benchmarks.suites import Suite, name_of
from editenv.atomic_files import atomic_write_text

if TYPE_CHECKING:
    from editenv.language_model.activation_cache import ActivationCache


@dataclass(frozen=True, slots=True)
class Cell:
    """One agent, one suite, one seed.

    Attributes:
        suite: With its model and data.
        fingerprints: Of that model and those edits.
        agent: Name of the row.
        seed: Seeds training and the stream's order.
        out: Folder of the table.
        keep_deltas: Whether the actions are kept.
    """

    suite: Suite
    fingerprints: dict[str, str | None]
    agent: str
    seed: int
    out: Path
    keep_deltas: bool = False

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.suite.label}, {self.agent}, seed {self.seed}"

    @property
    def path(self) -> Path:
        """Of its record."""
        return cell_path(self.out, self.suite.id, self.agent, self.seed)

    @property
    def failure_path(self) -> Path:
        """Of its error, while it has no record."""
        return self.path.with_suffix(".failed.json")

    @property
    def deltas_path(self) -> Path:
        """Of what was added to the weights."""
        return deltas_path(self.out, self.suite.id, self.agent, self.seed)

    def finished(self) -> bool:
        """Whether there is a record already.

        Raises:
            ValueError: If it was made with another model, other edits or other settings of the agent, or lacks the
                deltas that are to be kept.
        """
        if not self.path.exists():
            return False
        (record,) = read(self.path)
        recorded: dict[str, Any] = {"model": record.model, "dataset": record.dataset} | (record.configuration or {})
        if recorded.get("suite"):  # the usual tokens are not mentioned
            recorded["suite"] = {"observed_tokens": "answers"} | recorded["suite"]
        current = {
            "model": name_of(str(self.suite.model)),
            "dataset": f"{self.suite.dataset}/{self.suite.split}",
            "settings": settings_of(self.agent, make_agent(self.agent)),
            **self.configuration(),
        }
        current["suite"] = {"observed_tokens": "answers"} | current["suite"]
        differing = sorted(disagreements(recorded, current))  # an older record may not say all of it
        modules = self._default_modules()
        if modules is not None and record.modules is not None and modules != set(record.modules):
            differing.append(f"modules ({', '.join(record.modules)}, now {', '.join(sorted(modules))})")
        if differing:
            raise ValueError(
                f"{self.path} was made with another {', '.join(differing)} than {self.suite.id} and {self.agent} have "
                "now: remove it or choose another --out"
            )
        if self.keep_deltas and record.deltas is None:
            raise ValueError(f"{self.path} was made without keeping its deltas: remove it or choose another --out")
        return True

    def configuration(self) -> dict[str, Any]:
        """What makes this cell's figures comparable with another's."""
        return {"suite": self.suite.setting(), "fingerprints": self.fingerprints}

    @property
    def activation_cache_path(self) -> Path:
        """Of what the frozen layers make of this cell's prompts, for other cells of its suite, place and seed."""
        modules = self._modules_of(environment_of(self.agent))
        place = f"-{'-'.join(modules)}" if modules else ""
        return self.out / "frozen" / self.suite.id / f"{file_name(f'seed{self.seed}{place}')}.safetensors"

    def _modules_of(self, environment: Mapping[str, Any]) -> tuple[str, ...]:
        """Those that are the agent's own: the suite leaves them open."""
        return () if self.suite.modules else tuple(environment.get("modules", ()))

    def _default_modules(self) -> frozenset[str] | None:
        """Those that the model has where neither suite nor agent names any; None if one does, or if it is on the hub."""
        if self.suite.modules or make_agent(self.agent).environment.get("modules"):
            return None
        return default_module_names(str(self.suite.model))

    @property
    def activation_cache_identity(self) -> dict[str, Any]:
        """What cells must agree on to share that file."""
        modules = self._modules_of(make_agent(self.agent).environment)
        place = {"modules": list(modules)} if modules else {}
        return self.configuration() | place | {"seed": self.seed, "device": self.suite.device, "versions": versions()}

    def run(self, progress: ProgressCallback, activation_cache: "ActivationCache | None" = None) -> Record:
        """Prepares the agent, edits, judges; a file of deltas is all that is written, and what the agent keeps.

        Args:
            progress: Called with what is going on, and how far it is.
            activation_cache: As :func:`benchmarks.running.rollout.run` takes it.

        Raises:
            ValueError: If there is no such agent, or the suite does not allow it its actions.
        """
        from benchmarks.running.recording import Recording, digest
        from benchmarks.running.rollout import run

        agent = make_agent(self.agent)
        settings = settings_of(self.agent, agent)
        modules = self.suite.modules or self._modules_of(agent.environment)
        agent.workspace = workspace_path(self.out, self.agent, modules, self.fingerprints.get("training"), self.seed)
        recording = Recording() if self.keep_deltas else None
        record = run(
            self.suite, self.agent, agent, self.seed, progress, recording=recording, activation_cache=activation_cache
        )
        deltas = None
        if recording is not None:
            recording.write(self.deltas_path)
            deltas = digest(self.deltas_path)
        return replace(
            record,
            configuration=self.configuration() | {"settings": settings},
            commit=commit(),
            hardware=hardware(self.suite.device),
            deltas=deltas,
        )

    def write(self, outcome: "Record | Failure") -> None:
        """Makes what became of the cell durable; a record takes the place of an earlier failure."""
        if isinstance(outcome, Failure):
            row = {
                "suite": self.suite.id,
                "agent": self.agent,
                "seed": self.seed,
                **asdict(outcome),
                "commit": commit(),
            }
            atomic_write_text(self.failure_path, json.dumps(row | {"versions": versions()}, indent=2) + "\n")
            return
        atomic_write_text(self.path, json.dumps(asdict(outcome)) + "\n")
        self.failure_path.unlink(missing_ok=True)


def default_module_names(model: str) -> frozenset[str] | None:
    """Full names of the modules that are edited in a model where nobody names any; None for one of the hub.

    Made from its config, without its weights.
    """
    from editenv.models import model_path

    config = Path(model_path(model)) / "config.json"
    return _default_module_names(model, config, config.read_bytes()) if config.is_file() else None


@lru_cache
def _default_module_names(model: str, config: Path, _: bytes) -> frozenset[str]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from editenv.models.modules import default_modules, find_modules

    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config.parent, trust_remote_code=False))
    return frozenset(find_modules(skeleton, default_modules(skeleton, model)))


@dataclass(frozen=True, slots=True)
class Failure:
    """A cell that has come to nothing.

    Attributes:
        error: In a line.
        traceback: Where it happened, if the cell could still say so.
    """

    error: str
    traceback: str = ""


LONGEST_NAME = 150
"""Bytes of a file's name that an agent's name may take; file systems allow 255 for the whole."""

TAIL_BYTES = 60
"""Bytes at the end of a name that is no file's name which stay readable: with ``some/file.py:Class``, the class."""


def cell_path(out: Path, suite: str, agent: str, seed: int) -> Path:
    """Where the record of a suite's NAME-vN lies."""
    return out / "cells" / suite / f"{file_name(agent)}-seed{seed}.json"


def deltas_path(out: Path, suite: str, agent: str, seed: int) -> Path:
    """Where its deltas lie."""
    return out / "deltas" / suite / f"{file_name(agent)}-seed{seed}.safetensors"


def workspace_path(out: Path, agent: str, modules: Sequence[str], training: str | None, seed: int) -> Path:
    """Where an agent keeps what its training has made.

    Args:
        out: Folder of a table.
        agent: Name of the row.
        modules: Edited modules, if somebody names them.
        training: Fingerprint of the edits that it learns from, so that two suites of one folder do not take turns in
            training anew; None if it is not known.
        seed: Of the training.
    """
    name = "-".join([agent, *modules, *([training[:8]] if training else [])])
    return out / "policies" / f"{file_name(name)}-seed{seed}"


def file_name(name: str) -> str:
    """Any name as a file's; one that had to be changed ends in a digest, so that two names never share a file."""
    allowed = re.sub(r"[^\w.@-]", "_", name)
    if allowed == name and len(name.encode()) <= LONGEST_NAME:
        return name
    tail = allowed.encode()[-TAIL_BYTES:].decode(errors="ignore").lstrip(".")  # no hidden file
    return f"{tail}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def collect(out: Path) -> list[Record]:
    """All finished cells; writes OUT/results.jsonl.

    Several commands may fill one folder: whichever writes last has looked again after the other's cells were there.

    Raises:
        ValueError: If a cell's file is not a record; names it.
    """
    path = out / "results.jsonl"
    while True:
        records = records_of(out)
        if (path.read_text(encoding="utf-8") if path.exists() else "") == as_lines(records):
            return records
        atomic_write_text(path, as_lines(records))


def records_of(out: Path) -> list[Record]:
    """All finished cells, in the order of agents.registry, whatever order they finished in.

    Raises:
        ValueError: If a cell's file is not a record; names it.
    """
    order = {agent: position for position, agent in enumerate(ROWS)}
    records = [record for path in cell_files(out) for record in read(path)]
    return sorted(records, key=lambda r: (r.suite, order.get(r.agent, len(order)), r.agent, r.seed))


def as_lines(records: list[Record]) -> str:
    """The content of results.jsonl."""
    return "".join(json.dumps(asdict(record)) + "\n" for record in records)


def cell_files(out: Path) -> list[Path]:
    """The records' files."""
    return sorted(path for path in (out / "cells").glob("*/*.json") if not path.name.endswith(".failed.json"))
