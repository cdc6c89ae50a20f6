"""Suites: what is edited, in which portions, how it is judged; a versioned file each.

    python -m benchmarks.suites

lists them. NAME-vN.json never changes its meaning once results were made with it; a changed one is NAME-v(N+1).json.
A file of one's own is a suite, too, wherever it lies (:func:`read_own_suite`), and so is a file of records
(:mod:`benchmarks.suites.own`).
"""

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from benchmarks.results import rules
from editenv.data.formats import WITH_PORTABILITY
from editenv.models.modules import PRESETS

PROTOCOLS = (
    "teacher_forced",
    "generation",
    "generation_prefix",
    "wild",
    "probability",
    "drift",
    "portability",
    "probes",
)
"""What a run can be judged by; the first two always are. See editenv/evaluation/metrics.py."""

OBSERVED_TOKENS = ("answers", "all", "subject")
"""Which tokens of a batch an agent sees the gradient of (docs/reference/environment.md)."""

ORDERS = ("shuffled", "as-is")
"""A stream's order: drawn from the seed, or as the data set has it."""

MAY_BE_LEFT_OUT = (
    *("training_fingerprint", "training_options"),
    *("text", "text_fingerprint", "drift_text", "drift_text_fingerprint"),
)
"""Fields that older files do not have; null is what they say then."""

OWN_PROTOCOLS = ("teacher_forced", "generation", "generation_prefix", "probability", "drift")
"""What a suite of one's own is judged by unless it says; each is left out where the data does not allow it."""

texts = rules.list_of(rules.text, tuple)
protocol_names = rules.Rule(
    f"{', '.join(PROTOCOLS[:2])} and any of {', '.join(PROTOCOLS[2:])}",
    lambda value: isinstance(value, tuple) and set(PROTOCOLS[:2]) <= set(value) <= set(PROTOCOLS),
)


@dataclass(frozen=True, slots=True)
class Paper:
    """What a suite repeats of RLEdit (Li et al. 2025, arXiv 2502.05759).

    Attributes:
        where: Table or figure.
        task: The paper's own sizes and data.
        presets: The paper's configuration of its models, in :data:`editenv.models.modules.PRESETS`.
        differs: Where the suite is not the paper's task, and why.
    """

    where: Annotated[str, rules.text]
    task: Annotated[str, rules.text]
    presets: Annotated[tuple[str, ...], texts]
    differs: Annotated[str, rules.text]

    def __post_init__(self) -> None:
        rules.check_fields(self, "paper.")
        unknown = [name for name in self.presets if name not in PRESETS]
        if unknown:
            raise ValueError(f"paper.presets: there is no {unknown[0]!r}; there are {', '.join(PRESETS)}")


@dataclass(frozen=True, slots=True)
class Suite:
    """One stream: ``batches`` batches of ``edits_per_step`` edits of a split.

    Attributes:
        name: Without the version.
        batches: Batches in the stream.
        edits_per_step: Edits in a batch.
        model: Name, folder or hub id; None if it must be given with ``--model``.
        dataset: As :func:`editenv.data.load_edits` takes it; ``{data}`` stands for the folder of the data sets.
        split: What is edited.
        training: Data set whose training split agents learn from; the same by default.
        options: How files are read.
        training_options: How those that agents learn from are read; None, or left out of a file: as the others.
        text: Ordinary text that agents take statistics of, as :func:`agents.covariance.read_texts` takes it; None, or
            left out of a file: sentences of the training split.
        drift_text: Ordinary text that drift is measured on, likewise.
        data: The folder that ``{data}`` stands for.
        version: Counted from 1.
        about: What it is for, in a sentence.
        modules: Edited modules, as endings of dotted names; None takes the model's own.
        order: ``"shuffled"`` draws the stream's order from the seed, ``"as-is"`` keeps the data set's.
        protocols: What is measured, of :data:`PROTOCOLS`.
        max_actions_per_batch: The budget: how often an agent may see a batch; None sets no bound.
        agents: Whom it is about: the default of ``--agents``.
        model_fingerprint: :func:`model_fingerprint` of the model; None leaves it open.
        edits_fingerprint: :func:`editenv.data.edits_digest` of the whole split, as it is read; None leaves it open.
        training_fingerprint: The same of the edits that agents learn from; a file may leave it out.
        text_fingerprint, drift_text_fingerprint: :func:`text_fingerprint` of the two texts, likewise.
        paper: What it repeats of the paper.
        observed_tokens: Which tokens of a batch agents see, of :data:`OBSERVED_TOKENS`; a file may leave it out, which
            is ``"answers"``.
        train_eos: Whether answers are taught and protected with the end-of-sequence token after them; a file
            may leave it out, which is false.
        command: The command that makes the rest of the paper's figure, if there is more than the records.
        device, dtype: Where and in which precision the model runs; not part of the file.
    """

    name: Annotated[str, rules.text]
    batches: Annotated[int, rules.whole_number(least=1)]
    edits_per_step: Annotated[int, rules.whole_number(least=1)]
    model: Annotated[str | None, rules.text | None] = "atlas"
    dataset: Annotated[str, rules.text] = "atlas"
    split: Annotated[str, rules.text] = "test"
    training: Annotated[str | None, rules.text | None] = None
    options: tuple[tuple[str, str | int], ...] = ()
    data: Path | None = None
    version: Annotated[int, rules.whole_number(least=1)] = 1
    about: Annotated[str, rules.text] = ""
    modules: Annotated[tuple[str, ...] | None, texts | None] = None
    order: Annotated[str, rules.one_of(ORDERS)] = "shuffled"
    protocols: Annotated[tuple[str, ...], protocol_names] = PROTOCOLS
    max_actions_per_batch: Annotated[int | None, rules.whole_number(least=1) | None] = None
    agents: Annotated[tuple[str, ...], texts] = ()
    model_fingerprint: Annotated[str | None, rules.sha256 | None] = None
    edits_fingerprint: Annotated[str | None, rules.sha256 | None] = None
    training_fingerprint: Annotated[str | None, rules.sha256 | None] = None
    paper: Paper | None = None
    command: Annotated[str | None, rules.text | None] = None
    observed_tokens: Annotated[str, rules.one_of(OBSERVED_TOKENS)] = "answers"
    train_eos: Annotated[bool, rules.boolean] = False
    training_options: tuple[tuple[str, str | int], ...] | None = None
    text: Annotated[str | None, rules.text | None] = None
    drift_text: Annotated[str | None, rules.text | None] = None
    text_fingerprint: Annotated[str | None, rules.sha256 | None] = None
    drift_text_fingerprint: Annotated[str | None, rules.sha256 | None] = None
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        rules.check_fields(self)

    @property
    def id(self) -> str:
        """Name and version."""
        return f"{self.name}-v{self.version}"

    @property
    def label(self) -> str:
        """What records call it: the bare name for version 1, as before there were versions; see :func:`id_of`."""
        return self.name if self.version == 1 else self.id

    def first(self, batches: int) -> "Suite":
        """The stream's first so many batches, as a suite NAME@BATCHES.

        Raises:
            ValueError: If the stream has fewer.
        """
        if not 1 <= batches <= self.batches:
            raise ValueError(f"suite {self.id} has 1 to {self.batches} batches, not {batches}")
        return replace(self, name=f"{self.name}@{batches}", batches=batches)

    def environment(self, open_arguments: Mapping[str, Any] | None = None, training: bool = False) -> dict[str, Any]:
        """Arguments of the environment that is edited, or of the one that agents are prepared on.

        Args:
            open_arguments: An agent's own modules and tokens (:attr:`agents.base.Agent.environment`), for a suite that
                leaves them open.
            training: Of the one that agents are prepared on.
        """
        own = dict(open_arguments or {})
        dataset = (self.training or self.dataset) if training else self.dataset
        arguments: dict[str, Any] = {
            "model": self.model,
            "dataset": dataset.format(data=self.data),
            "split": "train" if training else self.split,
            "modules": self.modules or own.get("modules"),
            "device": self.device,
            "dtype": self.dtype,
        }
        if self.train_eos:
            arguments["train_eos"] = True
        observed_tokens = self.observed_tokens if self.observed_tokens != "answers" else own.get("observed_tokens")
        if observed_tokens is not None:
            arguments["observed_tokens"] = observed_tokens
        if dataset == "atlas":
            return arguments
        options = self.training_options if training and self.training_options is not None else self.options
        in_data = {name: self.in_data(value) if isinstance(value, str) else value for name, value in options}
        return arguments | {"dataset_options": in_data}

    def in_data(self, source: str | None) -> str | None:
        """A text's source with this machine's folders of data sets and of suites in it; None for none."""
        return source and source.format(data=self.data, suites=Path(__file__).parent)

    def at(
        self,
        model: str | None,
        data: Path | None,
        modules: tuple[str, ...] | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        observed_tokens: str | None = None,
        text: str | None = None,
        drift_text: str | None = None,
    ) -> "Suite":
        """With the model and the data folder of this machine, and what else is given in place of the suite's own.

        Args:
            model: Name, folder or hub id.
            data: What ``{data}`` stands for; for a file of one's own it is the file's folder by default.
            modules: Edited modules.
            device: Where the model runs.
            dtype: In which precision.
            observed_tokens: Of :data:`OBSERVED_TOKENS`.
            text: Source of ordinary text, without ``{data}``.
            drift_text: Likewise.

        Raises:
            ValueError: If the suite needs a model or a folder that is not given.
        """
        data = data or self.data
        if data is None and any("{data}" in (source or "") for source in self._sources):
            raise ValueError(
                f"suite {self.name} reads real data: give its folder with --data (see docs/reference/suites.md)"
            )
        if self.model is None and model is None:
            if self.is_own:
                raise ValueError(f"suite {self.name} leaves the model open: give its folder or hub id with --model")
            remedy = (
                "`python -m benchmarks.pretrain --size base` makes one (docs/results/capacity.md)"
                if self.dataset == "atlas"
                else "'real', in the package, was taught CounterFact, ZsRE and FEVER (docs/results/real.md); the suites "
                "real-* edit a public model"
            )
            raise ValueError(f"suite {self.name} needs a model that knows its data: give one with --model; {remedy}")
        return replace(
            self,
            model=model or self.model,
            data=data,
            modules=modules or self.modules,
            observed_tokens=observed_tokens or self.observed_tokens,
            device=device,
            dtype=dtype,
            text=self.text if text is None else literal(text),
            text_fingerprint=self.text_fingerprint if text is None else None,
            drift_text=self.drift_text if drift_text is None else literal(drift_text),
            drift_text_fingerprint=self.drift_text_fingerprint if drift_text is None else None,
        )

    @property
    def is_own(self) -> bool:
        """Whether it is none of the package's."""
        return self.name.partition("@")[0] not in SUITES

    @property
    def _sources(self) -> tuple[str | None, ...]:
        return self.dataset, self.training, self.text, self.drift_text

    def check_fingerprints(self) -> dict[str, str | None]:
        """Of the model, of the edits that are made and of those that agents may learn from, as they are here.

        Returns:
            ``model``, ``edits`` and ``training``, and ``text`` and ``drift_text`` where the suite names them: SHA-256 of
            each; None for what is on the hub.

        Raises:
            ValueError: If they are not the suite's, or if there are fewer edits than it makes.
            FileNotFoundError: If a file is not there.
        """
        from editenv.data import edits_digest, load_edits

        edited, trained_on = self.environment(), self.environment(training=True)
        edits, training = (
            load_edits(arguments["dataset"], arguments["split"], None, arguments.get("dataset_options"))
            for arguments in (edited, trained_on)
        )
        fingerprints = {
            "model": model_fingerprint(edited["model"]),
            "edits": edits_digest(edits, portability="portability" in self.protocols),
            "training": edits_digest(training),
        }
        text, drift_text = self.in_data(self.text), self.in_data(self.drift_text)
        # What names no text has no fingerprint of it: records of such suites stay what they were.
        fingerprints |= {
            what: text_fingerprint(source) for what, source in (("text", text), ("drift_text", drift_text)) if source
        }
        for what, expected, source in (
            ("model", self.model_fingerprint, edited["model"]),
            ("edits", self.edits_fingerprint, f"{edited['dataset']}, split {edited['split']}"),
            ("training", self.training_fingerprint, f"{trained_on['dataset']}, split {trained_on['split']}"),
            ("text", self.text_fingerprint, text),
            ("drift_text", self.drift_text_fingerprint, drift_text),
        ):
            if what not in fingerprints:
                continue
            actual = fingerprints[what]
            if expected is not None and actual != expected:
                raise ValueError(
                    f"suite {self.id} is about {what} with fingerprint {expected[:12]}..., but that of {source} is "
                    f"{actual[:12] + '...' if actual else 'not known'}"
                )
        if self.batches * self.edits_per_step > len(edits):
            raise ValueError(
                f"suite {self.id} makes {self.batches * self.edits_per_step} edits, but {edited['dataset']}, split "
                f"{edited['split']}, has {len(edits)}"
            )
        return fingerprints

    def setting(self) -> dict[str, Any]:
        """What must be alike in records that are compared, as JSON has it."""
        # What agents learned from is left out: it is in a record's fingerprints, whether a suite pins it or not.
        descriptive = (
            *("about", "agents", "paper", "command", "data", "device"),
            *("training_fingerprint", "training_options", "text_fingerprint", "drift_text_fingerprint"),
        )
        row = {name: value for name, value in asdict(self).items() if name not in descriptive}
        row |= {"options": dict(self.options), "model": name_of(str(self.model))}
        row["end_of_answer"] = row.pop("train_eos")  # the name that records have had from the beginning
        if not self.train_eos:
            del row["end_of_answer"]  # as in records from before there was the choice
        if self.observed_tokens == "answers":
            del row["observed_tokens"]  # likewise
        for source in ("text", "drift_text"):
            if row[source] is None:
                del row[source]
            else:
                row[source] = _without_folder(row[source])
        as_json: dict[str, Any] = json.loads(json.dumps(row))
        return as_json


def name_of(model: str) -> str:
    """What records call a model: a folder's name, or the whole id of one of the hub."""
    from editenv.models import model_path

    return Path(model).name if Path(model_path(model)).is_dir() else model


def model_fingerprint(model: str) -> str | None:
    """SHA-256 over the names and bytes of a model folder's weight files; None for a hub id, whose files lie elsewhere.

    Raises:
        ValueError: If the folder holds no weights.
    """
    from editenv.models import PUBLIC, fetch, model_path

    if model in PUBLIC:
        fetch(model)
    folder = Path(model_path(model))
    if not folder.is_dir():
        return None
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise ValueError(f"{folder} holds no *.safetensors or *.bin: it is not a Hugging Face model folder")
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()


def text_fingerprint(source: str) -> str | None:
    """SHA-256 over the bytes of a text's file, or of the files of a folder of statistics; None for a hub id.

    Args:
        source: As :func:`agents.covariance.covariance_of` takes it.

    Raises:
        FileNotFoundError: If it looks like a file, and is not there.
    """
    path = Path(source.removeprefix("wise:"))
    if not path.exists():
        if path.suffix in (".txt", ".jsonl") or str(path) != source:
            raise FileNotFoundError(f"text: there is no file {path}")
        return None
    digest = hashlib.sha256()
    for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if part.is_file():
            if part != path:
                digest.update(f"{part.relative_to(path)} {part.stat().st_size}\n".encode())
            with part.open("rb") as file:
                while chunk := file.read(1 << 24):
                    digest.update(chunk)
    return digest.hexdigest()


def literal(source: str) -> str:
    """A source as a suite writes one that means just that: its braces stand for themselves."""
    return source.replace("{", "{{").replace("}", "}}")


def _without_folder(source: str) -> str:
    """What records call a text: a file by its name, as its folder is this machine's affair."""
    kind, colon, path = source.rpartition(":")
    return f"{kind}{colon}{Path(path).name}" if Path(path).exists() else source


def read_suite(path: Path) -> Suite:
    """A suite file of the package, checked.

    Raises:
        ValueError: If it is not one; names the file and the field.
    """
    suite = _read(path, {})
    if path.name != f"{suite.id}.json":
        raise ValueError(f"{path}: name and version are those of {suite.id}.json")
    return suite


def read_own_suite(path: Path) -> Suite:
    """A suite file of one's own, wherever it lies.

    It has ``dataset``, ``batches`` and ``edits_per_step``; what else a suite says, it may leave out.
    Its name and version are by default its file's, ``NAME.json`` or ``NAME-vN.json``, and ``{data}`` is its folder.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a suite, or has the name of one of the package; names the file and the field.
    """
    if not path.is_file():
        raise FileNotFoundError(f"suite: there is no file {path}")
    named = re.fullmatch(r"(?P<name>.+?)(?:-v(?P<version>\d+))?", path.name.removesuffix(".json"))
    assert named is not None
    defaults = {field.name: field.default for field in fields(Suite) if field.default is not MISSING}
    defaults |= {"name": named["name"], "version": int(named["version"] or 1), "model": None, "options": {}}
    defaults |= {"protocols": OWN_PROTOCOLS}
    del defaults["dataset"]
    suite = _read(path, defaults)
    if not re.fullmatch(r"[\w.-]*\w", suite.name) or re.search(r"-v\d+$", suite.name):
        raise ValueError(
            f"{path}: name: {suite.name!r} must be letters, digits, '.', '-' and '_', without a version at its end"
        )
    if not suite.is_own:
        raise ValueError(f"{path}: name: {suite.name} is a suite of the package; call your own something else")
    return replace(suite, data=path.absolute().parent)


def _read(path: Path, defaults: Mapping[str, Any]) -> Suite:
    """A suite from its file.

    Args:
        path: The file.
        defaults: What fields are that it leaves out, besides those that any file may.

    Raises:
        ValueError: If it is not one; names the file and the field.
    """
    allowed = {field.name for field in fields(Suite)} - {"data", "device", "dtype"}
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(row, dict):
            raise ValueError("must be an object")
        if "end_of_answer" in row:  # as suites made before the option was renamed have it
            row["train_eos"] = row.pop("end_of_answer")
        row = dict.fromkeys(MAY_BE_LEFT_OUT) | {"train_eos": False, "observed_tokens": "answers"} | row
        row = {name: value for name, value in defaults.items() if name in allowed} | row
        if row.keys() != allowed:
            missing, unknown = sorted(allowed - row.keys()), sorted(row.keys() - allowed)
            raise ValueError(f"missing fields {missing}, unknown fields {unknown}")
        suite = from_json(row)
        if "probes" in suite.protocols and suite.dataset != "atlas":
            raise ValueError("protocols: probes are only known for the data set atlas")
        if "portability" in suite.protocols and suite.dataset.partition(":")[0] not in WITH_PORTABILITY:
            formats = ", ".join(WITH_PORTABILITY)
            raise ValueError(f"protocols: portability needs a data set FORMAT:PATH with such questions: {formats}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return suite


def from_json(row: Mapping[str, Any]) -> Suite:
    """A suite from its file's fields.

    Raises:
        ValueError: If a field is wrong; names it.
    """
    values: dict[str, Any] = _with_tuples(row)
    for name in ("options", "training_options"):
        if name == "options" or values.get(name) is not None:
            rules.any_object.check(name, values[name])
            values[name] = tuple(values[name].items())
    if (paper := values["paper"]) is not None:
        names = {field.name for field in fields(Paper)}
        if not isinstance(paper, dict) or paper.keys() != names:
            raise ValueError(f"paper must be null or have exactly {', '.join(sorted(names))}")
        values["paper"] = Paper(**_with_tuples(paper))
    return Suite(**values)


def _with_tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's lists as tuples, which a frozen object holds."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}


def all_suites() -> list[Suite]:
    """Every version of every suite, by name and version."""
    folder = Path(str(resources.files(__package__)))
    return sorted((read_suite(path) for path in folder.glob("*.json")), key=lambda suite: (suite.name, suite.version))


SUITES = {suite.name: suite for suite in all_suites()}
"""The newest version of each."""


def id_of(label: str) -> str:
    """The ``NAME-vN`` that records call by this label."""
    return label if re.search(r"-v\d+$", label) else f"{label}-v1"


def find(text: str) -> Suite:
    """A suite by ``NAME``, ``NAME-vN`` for an old version, ``NAME@BATCHES`` for the first batches of it, or both; or by
    the path of a file of one's own, ``mine.json`` or ``mine.json@BATCHES``.

    Raises:
        ValueError: If there is none.
        FileNotFoundError: If there is no such file.
    """
    if own := re.fullmatch(r"(?P<path>.+\.json)(?:@(?P<batches>\d+))?", text):
        suite = read_own_suite(Path(own["path"]).expanduser())
        return suite.first(int(own["batches"])) if own["batches"] else suite
    # A record's id has the version last, as the file of a shortened suite would.
    parts = re.fullmatch(r"(?P<name>[^@]+?)(?:-v(?P<first>\d+))?(?:@(?P<batches>\d+))?(?:-v(?P<last>\d+))?", text)
    if parts and parts["first"] and parts["last"]:
        parts = None
    version = parts and (parts["first"] or parts["last"])
    suites = [suite for suite in all_suites() if parts and suite.name == parts["name"]]
    if version:
        suites = [suite for suite in suites if suite.version == int(version)]
    if not parts or not suites:
        raise ValueError(_unknown(text))
    newest = suites[-1]
    return newest.first(int(parts["batches"])) if parts["batches"] else newest


def _unknown(text: str) -> str:
    """That there is no such suite, and what may have been meant."""
    if Path(text).expanduser().exists():
        return f"{text!r} is no suite: a file of records is given with --edits, a suite's own file ends in .json"
    ids = [suite.id for suite in all_suites()]
    near = difflib.get_close_matches(text, [*ids, *SUITES], n=3, cutoff=0.5)
    hint = f"; do you mean {' or '.join(near)}?" if near else ""
    return f"unknown suite {text!r}{hint} `python -m benchmarks.suites` lists them; a file of your own ends in .json"
