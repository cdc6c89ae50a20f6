"""Editing a model of your own, batch by batch, with nothing lost.

editor = LifelongEditor("my/model", "fine-tune", output="out")
editor.edit([{"prompt": "The chief engineer is", "target": "Mara Lindqvist"}])
editor.save("out/model")
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from agents.base import Agent
from agents.baselines.values import end_of_subject
from agents.covariance import training_edits
from agents.editing.guard import HELD_OUT, BadEditError, Guard
from agents.editing.saving import save_model
from agents.registry import make_agent, make_method, packaged_policy, settings_of, takes_settings
from agents.rledit.agent import RLEdit
from editenv.data import Edit, edits_digest, load_edits
from editenv.data.files import content_digest
from editenv.data.formats import FORMATS, Fields, to_edit
from editenv.data.records import BadRecordError
from editenv.delta_files import fingerprint, frozen_fingerprint, read_delta, tensors_of, write_delta_file
from editenv.deltas import Delta
from editenv.env import LifelongEditEnv, RefusedActionError
from editenv.evaluation import metrics
from editenv.evaluation.batch import encode_evaluation
from editenv.journal import Journal
from editenv.models import EMBEDDED
from editenv.renamed import renamed_keywords


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of one batch.

    Attributes:
        batch: Its number, from 1.
        edits: How many edits it had.
        applied: Whether it was kept.
        reason: Why not, if it was not.
        efficacy: Teacher-forced, of the batch right after it, 0 to 100.
        seconds: From the batch to its being on disk.
    """

    batch: int
    edits: int
    applied: bool
    reason: str | None
    efficacy: float | None
    seconds: float


LARGEST_DELTA_FILE = 8 * 10**9
"""Bytes of deltas that are gathered in memory and in one file."""


class TooManyDeltasError(ValueError):
    """The deltas of a run are too many for one file."""


class LifelongEditor:
    """Edits a model with an agent, and keeps every batch in a journal if there is an output folder.

    Args:
        model: ``"atlas"``, a Hugging Face model folder, or a hub id.
        method: A row of agents.registry, or ``file.py:Class``. ``"rledit"`` needs a policy; the embedded model has one.
        policy: Folder of a trained policy.
        output: Folder of the journal; an interrupted run is gone on with from there. None keeps nothing.
        modules: Edited modules, as endings of dotted names; the model's default if None.
        training: A data set that the method may learn from or take statistics of, as docs/data.md names one; the
            embedded world for the embedded model.
        training_options: How its files are read.
        text: Text to take statistics of, for methods that do: a .txt or .jsonl file, a hub data set, or a folder
            made by ``python -m agents.covariance``; sentences of the training data by default.
        settings: Constructor arguments of the method (``editenv methods`` says which take some); by default those
            chosen for the embedded model, and the method's own for any other.
        edits: What a run is about, for the journal's header: the same folder refuses to go on with anything else.
        to_come: The edits that are to be made, if they are known: what the method cannot make is refused before it
            is prepared.
        guard: Bounds.
        device, dtype: Where and in which precision the model runs.
        seed: For methods that draw anything.
        train_eos: Teach the model to stop after each target, as :class:`editenv.env.LifelongEditEnv` has it.
        progress: Told what is being prepared.

    Raises:
        ValueError: If a name, a policy or an option does not fit.
        editenv.journal.JournalError: If the output folder holds something else.
    """

    def __init__(
        self,
        model: str = EMBEDDED,
        method: str = "rledit",
        policy: str | Path | None = None,
        output: str | Path | None = None,
        modules: Sequence[str] | None = None,
        training: str | None = None,
        training_options: Mapping[str, Any] | None = None,
        text: str | None = None,
        settings: Mapping[str, Any] | None = None,
        edits: str = "",
        to_come: Sequence[Edit] = (),
        guard: Guard | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        seed: int = 0,
        train_eos: bool = False,
        progress: Any = lambda what, done, total: None,
        **renamed: Any,
    ) -> None:
        if renamed:
            train_eos = renamed_keywords("LifelongEditor", renamed).get("train_eos", train_eos)
        self.model, self.method = model, method
        self.guard = guard or Guard()
        self.agent = _agent(method, policy, model, settings)
        made_with = settings_of(method, self.agent)
        if "subjects" in self.agent.needs:
            for edit in to_come:
                end_of_subject(edit)
        common: dict[str, Any] = {"model": model, "modules": modules, "device": device, "dtype": dtype}
        if train_eos:
            common["train_eos"] = True
        if training is None and model == EMBEDDED:
            training = "atlas"
        options = dict(training_options) if training_options and training != "atlas" else None
        self.agent.text = text
        if training is None and self.agent.learns:
            raise ValueError(
                f"method {method!r} needs edits to learn from: name a data set (docs/data.md) as training, or choose a method "
                "that needs none, such as fine-tune"
            )
        if training is None and text is None and self.agent.reads_text:
            raise ValueError(
                f"method {method!r} takes statistics of ordinary text: name a file, a hub data set or a folder made by python "
                "-m agents.covariance as text (or a data set of edits as training), or choose another method, such as fine-tune"
            )
        # Methods that learn or warm up do so in batches of 20, as in the benchmarks; of fewer where there are fewer
        # edits.
        there = 20 if training is None else len(load_edits(training, "train", options=options))
        learning = LifelongEditEnv(
            **common, dataset=training, split="train", dataset_options=options, edits_per_step=min(20, max(1, there))
        )
        self.base_fingerprint = fingerprint(learning.language_model)
        self._frozen = frozen_fingerprint(learning.language_model) if output is not None else ""
        self.journal: Journal | None = None
        if output is not None:
            prepared_from = self.agent.learns or (self.agent.reads_text and text is None)
            header = {
                "model": self.base_fingerprint,
                "frozen": self._frozen,
                "modules": list(learning.language_model.modules),
                "method": method,
                "settings": dict(settings) if settings is not None else None,
                "agent": made_with,
                "edits": edits,
                "text": _text_digest(text),
                "training": edits_digest(training_edits(learning)) if prepared_from else None,
                "guard": asdict(self.guard),
                "dtype": dtype,
                "seed": seed,
                "threads": torch.get_num_threads(),
            }
            if train_eos:
                header["end_of_answer"] = True  # what journals have called it from the beginning
            self.journal = Journal(Path(output), header)
            self.agent.workspace = Path(output) / "prepared"
        try:
            self.agent.prepare(learning, seed, progress)
            del learning
            self.env = LifelongEditEnv(
                **common, dataset=None, actions_per_batch=self.agent.actions_per_batch, memory_batches=0
            )
            self.lm = self.env.language_model
            self.env.reset(seed=seed)
            self.agent.begin(self.env)
            self.edits: list[Edit] = []
            self.results: list[BatchResult] = []
            self._ended: str | None = None
            self._reverted = False
            pairs = [text.split(" ", 1) for text in HELD_OUT]
            self._texts = self.lm.encode([head for head, _ in pairs], [tail for _, tail in pairs], reuse=False)
            self._perplexity = self._unedited = self._held_out()
            if self.journal is not None:
                self._go_on()
        except BaseException:
            self.close()
            raise

    @property
    def batches(self) -> int:
        """Batches done, those rolled back included."""
        return len(self.results)

    def edit(self, edits: Sequence[Edit | Mapping[str, Any]]) -> BatchResult:
        """Makes one batch of edits; with a journal it is on disk when this returns.

        Args:
            edits: Edits, or dictionaries as docs/data.md has them (``prompt``, ``target``, ...).

        Raises:
            BadRecordError: If a dictionary is not an edit, or an edit is longer than the model's context.
            BadEditError: If the guard is to stop at a bad batch.
            OSError: If the batch could not be written to the journal; the editor takes no more then.
            ValueError: If the method refuses the batch, or if the editor takes no more.

            Whatever is raised, the model is as it was before the batch.
        """
        if self._ended is not None:
            raise ValueError(f"edit: {self._ended}")
        started = time.perf_counter()
        batch = [edit if isinstance(edit, Edit) else _as_edit(edit, i) for i, edit in enumerate(edits, start=1)]
        self._check_lengths(batch)
        before = self.lm.snapshot()
        _, info = self.env.present(batch)
        try:
            result, perplexity = self._make(batch, info, before, started)
        except BaseException:
            self.lm.restore(before)
            self.agent.revert_batch()
            raise
        self._perplexity = perplexity
        self.results.append(result)
        self.edits += batch if result.applied else []
        if not result.applied and self.guard.on_bad == "stop":
            raise BadEditError(f"batch {result.batch} was taken back: {result.reason}")
        return result

    def _check_lengths(self, batch: Sequence[Edit]) -> None:
        context = getattr(self.lm.model.config.get_text_config(), "max_position_embeddings", None)
        for i, edit in enumerate(batch, start=1):
            texts = [f"{text} {edit.target}" for text in (edit.prompt, *edit.rephrases)]
            texts += [f"{item.prompt} {item.answer}" for item in edit.locality]
            longest = max(map(len, self.lm.tokenizer(texts)["input_ids"]))
            if context is not None and longest > context:
                what = f"has {longest} tokens with its answer; the model's context holds {context}"
                raise BadRecordError("edit", i, what, "prompt", "length")

    def _make(
        self,
        batch: Sequence[Edit],
        info: dict[str, Any],
        before: Mapping[str, torch.Tensor],
        started: float,
    ) -> tuple[BatchResult, float]:
        """A batch made and written down, or taken back and that written down; and the perplexity of held-out text
        then.
        """
        actions: list[dict[str, Delta]] = []
        reason, efficacy = None, None
        while len(actions) < self.agent.actions_per_batch:
            try:
                deltas = self.env.checked(self.agent.act(self.env.gradients, info))
            except torch.linalg.LinAlgError as error:  # what NaN and infinity end in
                reason = f"the method could not solve for an update: {error}"
                break
            except RefusedActionError as error:
                reason = str(error)
                break
            actions.append(deltas)
            *_, info = self.env.step(deltas)
            efficacy = info["efficacy"]
        perplexity = self._held_out()
        reason = reason or self._out_of_bounds(before, perplexity)
        if reason is not None:
            self.lm.restore(before)
            self.agent.revert_batch()
            actions, efficacy, perplexity = [], None, self._perplexity
        memory = self.agent.batch_state()
        result = BatchResult(
            self.batches + 1, len(batch), reason is None, reason, efficacy, time.perf_counter() - started
        )
        if self.journal is not None:
            tensors = tensors_of(actions) | {f"memory/{name}": tensor for name, tensor in memory.items()}
            entry = asdict(result) | {"ids": [edit.id for edit in batch], "content": [asdict(edit) for edit in batch]}
            try:
                self.journal.append(entry, tensors)
            except BaseException:
                # The method may remember the batch; the journal does not, and its word counts.
                self._end("its journal could not be written; open the folder again to go on where it ends")
                raise
        return result, perplexity

    def evaluate(self) -> dict[str, Any]:
        """Efficacy, generalization, specificity of all edits made, by every protocol, and drift on held-out text."""
        rolled_back = [asdict(result) for result in self.results if not result.applied]
        if not self.edits:
            return {"edits": 0, "rolled_back": rolled_back}
        questions = encode_evaluation(self.lm, self.edits)
        return {
            "edits": len(self.edits),
            "teacher_forced": metrics.teacher_forced(self.lm, questions).percentages(),
            "generation": metrics.generation(self.lm, questions).percentages(),
            "drift": metrics.drift(self.lm, HELD_OUT),
            "rolled_back": rolled_back,
        }

    def save(self, folder: str | Path) -> None:
        """The edited model as a Hugging Face folder, which plain transformers loads; whole or not at all.

        Args:
            folder: Made; one that was saved there before is replaced once the new one is whole.

        Raises:
            ValueError: If it is there and holds anything else, or is in the place of the base model.
            OSError: If it cannot be written.
        """
        about = {"base": self.model, "method": self.method, "edits": len(self.edits), "batches": self.batches}
        save_model(self.lm, Path(folder), about, self.model)

    def save_deltas(self, path: str | Path) -> None:
        """All deltas in order as one safetensors file, for ``editenv apply`` and ``editenv revert``.

        Raises:
            ValueError: If there is no journal to take them from, or if its edits have been reverted.
            TooManyDeltasError: If they are more than :data:`LARGEST_DELTA_FILE`: a method whose updates are dense
                fills a whole weight with each batch.
        """
        if self.journal is None:
            raise ValueError("save_deltas: the editor keeps no journal; give it an output folder")
        if self._reverted:
            raise ValueError("save_deltas: the edits have been reverted")
        if (size := self.journal.size) > LARGEST_DELTA_FILE:
            raise TooManyDeltasError(
                f"save_deltas: the deltas of {self.batches} batches are {size / 1e9:.0f} GB, too many for one file; they are in "
                f"{self.journal.folder / 'batches'}, and the edited model holds their sum"
            )
        batches = [read_delta(self.journal.tensors(i + 1)) for i in range(self.batches)]
        actions = [deltas for batch in batches for deltas in batch]
        write_delta_file(Path(path), actions, self.base_fingerprint, fingerprint(self.lm), self._frozen)

    def revert(self) -> None:
        """The model as it was before the first edit, bit for bit. With a journal, which keeps what was done, this
        is the end.
        """
        self.lm.restore()
        self.agent.begin(self.env)
        self.edits, self.results, self._reverted = [], [], True
        self._perplexity = self._held_out()
        if self.journal is not None:
            self._end("the edits of its journal were reverted; choose another output folder to begin anew")

    def _end(self, why: str) -> None:
        self._ended = why
        self.close()

    def close(self) -> None:
        """Lets another process write to the output folder."""
        if self.journal is not None:
            self.journal.close()

    def __enter__(self) -> "LifelongEditor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _go_on(self) -> None:
        """Replays the journal: the same deltas in the same order give the same bits."""
        assert self.journal is not None
        for entry in self.journal.entries:
            tensors = {n: t.to(self.lm.device) for n, t in self.journal.tensors(entry["batch"]).items()}
            for deltas in read_delta(tensors):
                self.lm.apply(deltas)
            prefix = "memory/"
            self.agent.load_batch_state({n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)})
            names = BatchResult.__dataclass_fields__
            self.results.append(BatchResult(**{name: entry[name] for name in names}))
            if entry["applied"]:
                self.edits += [_from_json(row) for row in entry["content"]]
        self.env.continue_after(len(self.journal.entries))
        if self.journal.entries:
            self._perplexity = self._held_out()

    @torch.no_grad()
    def _held_out(self) -> float:
        """Perplexity of held-out text at the weights as they are."""
        lengths = self._texts.lengths
        return float((-(metrics.mean_log_probs(self.lm, self._texts) * lengths).sum() / lengths.sum()).exp())

    def _out_of_bounds(self, before: Mapping[str, torch.Tensor], perplexity: float) -> str | None:
        """What a batch broke, if anything."""
        weight_bound = self.guard.broken_weight_bound(before, self.lm.snapshot())
        return weight_bound or self.guard.broken_perplexity_bound(self._perplexity, perplexity, self._unedited)


def _agent(method: str, policy: str | Path | None, model: str, settings: Mapping[str, Any] | None) -> Agent:
    if policy is not None:
        if settings is not None:
            raise ValueError("settings: a trained policy brings its own; give one or the other")
        if method != "rledit":
            raise ValueError(
                f"policy: method {method!r} takes none; a trained policy is edited with by method 'rledit'"
            )
        return RLEdit(policy=policy)
    if method == "rledit" and settings is None:
        if model != EMBEDDED:
            raise ValueError(
                f"method 'rledit' needs a policy trained for {model}: train one with `editenv train --model {model} ...` and "
                "give its folder, or choose a method that needs none, such as fine-tune"
            )
        return RLEdit(policy=packaged_policy(EMBEDDED))
    if settings is not None:
        return make_method(method, settings)
    if takes_settings(method) and model != EMBEDDED:  # those in the package were chosen for the embedded model
        return make_method(method, {})
    return make_agent(method)


def _text_digest(text: str | None) -> str | None:
    """A text is what it says, whatever it is called; a data set of the hub is its name."""
    if text is None:
        return None
    path = Path(text)
    if path.is_dir():
        path = path / "covariance.json"
    return content_digest(path) if path.is_file() else text


def _as_edit(values: Mapping[str, Any], number: int) -> Edit:
    ((_, parse),) = FORMATS["own"]
    return to_edit(Fields("edit", number, values), parse, "keep")


def _from_json(row: Mapping[str, Any]) -> Edit:
    from editenv.data import Locality

    locality = tuple(Locality(**item) for item in row["locality"])
    return Edit(**{**row, "rephrases": tuple(row["rephrases"]), "locality": locality})
