"""Editing a model of your own, batch by batch, with nothing lost.

editor = LifelongEditor("my/model", "fine-tune", output="out")
editor.edit([{"prompt": "The chief engineer is", "target": "Mara Lindqvist"}])
editor.save("out/model")
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.base import ProgressCallback
from agents.editing.guard import HELD_OUT, BadEditError, Guard
from agents.editing.model_card import public_method, public_name
from agents.editing.preparation import (
    batch_of,
    choose_agent,
    editing_environment,
    end_for,
    held_out_prompts,
    journal_header,
    keep_written_text,
    learning_environment,
    modules_to_edit,
    other_bounds,
    other_method,
    refuse_what_has_a_memory,
    require_subjects,
)
from agents.editing.run import BY_FILE, PromptKey, Run, key_of_edit, prompt_key, put_last
from agents.editing.saving import save_model
from agents.progress import silent
from agents.registry import settings_of
from agents.self_written import SELF_WRITTEN
from agents.view import Actor
from editenv.arguments import checked_arguments
from editenv.data import Edit
from editenv.data.answer_ends import AnswerEnds
from editenv.data.chat import IN_CHAT, ChatTemplate, in_both_forms
from editenv.data.edits import as_json, of_json
from editenv.data.records import BadRecordError
from editenv.data.text import joined
from editenv.delta_files import read_delta, tensors_of, write_delta_file
from editenv.env import RefusedActionError
from editenv.evaluation import metrics
from editenv.evaluation.batch import encode_evaluation, greedy_tokens
from editenv.evaluation.prefix import generation_prefix
from editenv.identity import cautions, differences, fingerprint
from editenv.journal import Journal
from editenv.language_model.editable_lm import ObservedTokens
from editenv.language_model.prompts import Prompts
from editenv.memories import Change
from editenv.models import EMBEDDED
from editenv.output_folders import check_output
from editenv.renamed import renamed_keywords
from editenv.rounding import sampled_weights

LARGEST_DELTA_FILE = 8 * 10**9
"""Bytes of deltas that are gathered in memory and in one file."""

LOOKED_BACK = 20
"""Earlier edits, spread evenly, that are asked whether they hold before and after a batch."""

STATE = "memory/"
"""Begins the names of a batch's tensors in the journal that are the agent's state and not its deltas."""


class TooManyDeltasError(ValueError):
    """The deltas of a run are too many for one file."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of one batch.

    Attributes:
        batch: Its number, from 1.
        edits: How many edits it had.
        applied: Whether it was kept.
        reason: Why not, if it was not.
        efficacy: Teacher-forced, of the batch right after it, 0 to 100; None if it was not kept.
        seconds: Wall-clock time of making and checking it; writing it to the journal comes after that.
        retried: Edits of a batch that was taken back to be tried again in smaller ones; ``edits`` is 0 then.
        rehearsal: Whether its edits had been made before.
    """

    batch: int
    edits: int
    applied: bool
    reason: str | None
    efficacy: float | None
    seconds: float
    retried: int = 0
    rehearsal: bool = False


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What applying a batch came to; if there is a reason against it, it is to be taken back."""

    actions: list[dict[str, Change]]
    efficacy: float | None
    perplexity: float
    reason: str | None


class LifelongEditor:
    """Edits a model with an agent, and keeps every batch in a journal if there is an output folder.

    Args:
        model: ``"atlas"`` or another name of ``editenv models``, a Hugging Face folder, a GGUF file, or a hub id.
        method: A row of agents.registry, or ``file.py:Class``. ``"rledit"`` needs a policy; the embedded model has one.
        policy: Folder of a trained policy.
        output: Folder of the journal; an interrupted run is gone on with from there. None keeps nothing.
        modules: Edited modules, as endings of dotted names; if None, those of the run that goes on, early layers for methods
            that look facts up at their subject, or the model's default.
        training: A data set that the method may learn from or take statistics of, as docs/reference/data_formats.md
            names one; the embedded world for the embedded model.
        training_options: How its files are read.
        text: Text to take statistics of, for methods that do: a .txt or .jsonl file, a hub data set, or a folder
            made by ``python -m agents.covariance``; by default sentences of the training data, or, without any, text
            that the model writes by itself (``"self-written"``).
        settings: Constructor arguments of the method (``editenv methods`` says which take some); by default those
            chosen for the embedded model, and the method's own for any other.
        edits: What a run is about, for the journal's header: the same folder refuses to go on with anything else.
        to_come: The edits that are to be made, if they are known: what the method cannot make is refused before it
            is prepared.
        guard: Bounds.
        device: Where the model runs.
        dtype: In which precision.
        seed: For methods that draw anything.
        train_eos: Teach the model to stop after each target, as :class:`editenv.env.LifelongEditEnv` has it.
        observed_tokens: Which tokens of a batch the method sees, ``"answers"``, ``"all"`` or ``"subject"``, likewise.
        target_end: Text that is taught after a target of one line that ends with a letter or a digit, such as ``"."``,
            so that the model does not go on with the word: "Amber" and not "Amberley". After several lines it is a
            blank one, and in a chat the end of the turn, as the template has it. None looks whether the unedited model
            stops by itself after its answers, and takes ``"."`` if it does not. Where it is ``""``, nothing is taught.
        progress: Called while the method is prepared.
        renamed: ``end_of_answer``, which is what ``train_eos`` was called; it works for one more version.

    Attributes:
        agent: The method, prepared.
        env: The environment that batches are presented to.
        lm: The edited model.
        target_end: What is taught after a target.
        edits: The edits that were kept, in order.
        results: What became of each batch, those taken back included.
        journal: None without an output folder.

    Raises:
        ValueError: If a name, a policy or an option does not fit.
        editenv.journal.JournalError: If the output folder holds something else.
    """

    @checked_arguments
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
        observed_tokens: ObservedTokens = "answers",
        target_end: str | None = "",
        progress: ProgressCallback = silent,
        **renamed: Any,
    ) -> None:
        if renamed:
            train_eos = renamed_keywords("LifelongEditor", renamed).get("train_eos", train_eos)
        if output is not None:
            check_output(Path(output), model, policy=policy, training=training, text=text)
        self.model, self.method, self.guard = model, method, guard or Guard()
        self._ended: str | None = None
        self._reverted = False
        self.agent = choose_agent(method, policy, model, settings)
        constructed_with = settings_of(method, self.agent)
        require_subjects(self.agent, to_come, observed_tokens)
        self.agent.text = text
        if modules is None:
            modules = modules_to_edit(self.agent, model, device, dtype, None if output is None else Path(output))
        model_arguments: dict[str, Any] = {
            "model": model,
            "modules": modules,
            "device": device,
            "dtype": dtype,
            "train_eos": train_eos,
            "observed_tokens": observed_tokens,
        }
        learning = learning_environment(self.agent, method, training, training_options, model_arguments)
        refuse_what_has_a_memory(model, learning.language_model)
        self.journal: Journal | None = None
        if output is not None:
            header = journal_header(self.agent, learning, method, constructed_with, settings, edits, self.guard, seed)
            if target_end != "":
                header["target_end"] = target_end or "as the model needs it"
            self.journal = Journal(
                Path(output),
                header,
                in_common=("agent",),
                compare={"identity": differences, "guard": other_bounds, "method": other_method},
            )
            for caution in cautions(self.journal.begun_with.get("identity"), self.journal.header["identity"]):
                warnings.warn(f"{self.journal.path}: {caution}", stacklevel=2)
            self.agent.workspace = Path(output) / "prepared"
        try:
            if self.agent.text == SELF_WRITTEN and self.agent.workspace is not None:
                text_file = keep_written_text(learning.language_model, self.agent.workspace, progress)
                self.agent.text = str(text_file)
            self.agent.prepare(learning, seed, progress)
            del learning  # its copies of the edited weights are not needed while edits are made
            self.env = editing_environment(self.agent, model_arguments, seed)
            self.lm = self.env.language_model
            self._held_out = held_out_prompts(self.lm)
            self.target_end = end_for(self.lm) if target_end is None else target_end
            self._ends = AnswerEnds(self.target_end, lambda: self._template)
            self._begin()
            self._unedited_perplexity = self._perplexity
            self._replay_journal()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        """What the editor and the agent know before the first edit of the model as it is."""
        self._actor = Actor(self.env, self.agent)
        self._agent_acted = False  # for the batch that is presented
        self._actor.begin()
        self.edits: list[Edit] = []
        self._to_hold: dict[PromptKey, Edit] = {}  # of several edits of one prompt the last
        self.results: list[BatchResult] = []
        self._perplexity = self._held_out_perplexity()  # of the last batch that was kept

    def _replay_journal(self) -> None:
        """Applies the journal's batches: the same deltas in the same order give the same bits."""
        if self.journal is None:
            return
        for entry in self.run.entries:
            tensors = {name: t.to(self.lm.device) for name, t in self.journal.tensors(entry["batch"]).items()}
            for deltas in read_delta(tensors):
                self.lm.apply(deltas)
            state = {name.removeprefix(STATE): t for name, t in tensors.items() if name.startswith(STATE)}
            self.agent.load_batch_state(state)
            fields = {name: entry[name] for name in BatchResult.__dataclass_fields__ if name in entry}
            self.results.append(BatchResult(**fields))
            if entry["applied"] and not entry.get("rehearsal"):
                self._keep([of_json(content) for content in entry["content"]])
        self.env.continue_after(len(self.journal.entries))
        if self.journal.entries:
            self._perplexity = self._held_out_perplexity()

    def _keep(self, edits: Sequence[Edit]) -> None:
        """Puts edits that were made among the others."""
        self.edits += edits
        put_last(self._to_hold, edits)

    @property
    def batches(self) -> int:
        """Batches done, those rolled back included; without those that were undone since."""
        return len(self.results)

    @property
    def run(self) -> Run:
        """What the journal says of each correction; empty without one."""
        return Run.of(self.journal.lines) if self.journal is not None else Run()

    def edit(
        self,
        edits: Edit | Mapping[str, Any] | Sequence[Edit | Mapping[str, Any]],
        retried: bool = False,
        rehearsal: bool = False,
        objection: Callable[[], str | None] | None = None,
    ) -> BatchResult:
        """Makes one batch of edits; with a journal it is on disk when this returns.

        Whatever is raised, the model is as it was before the batch.

        Args:
            edits: Edits, or dictionaries as docs/reference/data_formats.md has them (``prompt``, ``target``, ...); or
                a single one. One that is given as ``messages`` becomes two edits, as plain text and in chat form.
                A later batch may edit a prompt again, to another target; within a batch that is refused.
            retried: Whether the caller will try the edits again in smaller batches if this one is bad: the journal then
                does not count them as given up.
            rehearsal: Whether the edits were made before, and are made again because the model has lost them.
            objection: Asked with the edits in the model, if the guard has none: what speaks against them, or None.

        Raises:
            BadRecordError: If a dictionary is not an edit, an edit is longer than the model's context, or it repeats or
                contradicts an earlier one of the batch.
            TypeError: If it is neither.
            BadEditError: If the guard is to stop at a bad batch.
            OSError: If the batch could not be written to the journal; the editor takes no more then.
            ValueError: If the method refuses the batch, or if the editor takes no more.
        """
        if self._ended is not None:
            raise ValueError(f"edit: {self._ended}")
        started = time.perf_counter()
        batch = self._in_both_forms(batch_of(edits))
        self._check_lengths(batch)
        before = self.lm.snapshot()
        self.env.present([self._as_taught(edit) for edit in batch])
        self._actor.forget_prompts()
        self._agent_acted = False
        try:
            attempt = self._attempt(batch, before, objection)
            if attempt.reason is not None:
                self._take_back(before)
            seconds = time.perf_counter() - started
            applied = attempt.reason is None
            again = retried and not applied and self.guard.on_bad != "stop"
            result = BatchResult(
                self.journal.next_batch if self.journal is not None else self.batches + 1,
                0 if again else len(batch),
                applied,
                attempt.reason,
                attempt.efficacy if applied else None,
                seconds,
                len(batch) if again else 0,
                rehearsal,
            )
            self._write_to_journal(result, [] if again else batch, attempt.actions if applied else [])
        except BaseException:
            self._take_back(before)
            raise
        self.results.append(result)
        if applied:
            self._keep([] if rehearsal else batch)
            self._perplexity = attempt.perplexity
        elif self.guard.on_bad == "stop" and not rehearsal:
            raise BadEditError(f"batch {result.batch} was taken back: {result.reason}")
        return result

    def undo(self, edits: Sequence[Edit], by_file: bool = False) -> list[Edit]:
        """Takes corrections back out of the model: it is as if they had never been in a batch.

        Their batches go, and all batches after the first of them, unless the method's are independent of each other
        (:attr:`agents.base.Agent.independent_batches`). It is durable when this returns.

        Args:
            edits: Corrections that were made, or that an earlier call left to be made again.
            by_file: Whether they are undone because their file does not have them any more: then they are made again if
                it has them again.

        Returns:
            What is to be made again, in order: what else was in these batches.

        Raises:
            ValueError: If there is no journal, if the editor takes no more, or if a correction is none of those.
            OSError: If the journal could not be written; nothing is undone then.
        """
        if self.journal is None:
            raise ValueError("undo: the editor keeps no journal; give it an output folder")
        if self._ended is not None:
            raise ValueError(f"undo: {self._ended}")
        run = self.run
        keys = {key_of_edit(edit): edit for edit in edits}
        if unknown := [edit.id for key, edit in keys.items() if key not in run.made and key not in run.pending]:
            raise ValueError(f"undo: {', '.join(unknown)} is not among the corrections that were made")
        batches = [entry["batch"] for entry in run.batches_with(keys, self.agent.independent_batches)]
        try:
            self.journal.undo(batches, _dated(list(keys.values())) | ({BY_FILE: True} if by_file else {}))
            self.lm.restore()
            self._begin()
            self._replay_journal()
        except BaseException:
            self._end("corrections were being undone; open the folder again to go on where its journal ends")
            raise
        return list(self.run.pending.values())

    def _in_both_forms(self, batch: list[Edit]) -> list[Edit]:
        """The batch, with edits that were given as messages as plain text and in chat form."""
        if not any(edit.messages for edit in batch):
            return batch
        forms = [in_both_forms(edit, self._template) if edit.messages else (edit,) for edit in batch]
        return [edit for form in forms for edit in form]

    def _as_taught(self, edit: Edit) -> Edit:
        """The edit with what is taught after its target."""
        return replace(edit, target=edit.target + self._ends.after(edit))

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self.lm.tokenizer, self.model)

    def _check_lengths(self, batch: Sequence[Edit]) -> None:
        context = getattr(self.lm.model.config.get_text_config(), "max_position_embeddings", None)
        for i, edit in enumerate(batch, start=1):
            texts = [joined(text, self._as_taught(edit).target) for text in (edit.prompt, *edit.rephrases)]
            texts += [joined(item.prompt, item.answer) for item in edit.locality]
            longest = max(map(len, self.lm.tokenizer(texts)["input_ids"]))
            if context is not None and longest > context:
                problem = f"has {longest} tokens with its answer; the model's context holds {context}"
                raise BadRecordError("edit", i, problem, "prompt", "length")

    def _attempt(
        self,
        batch: Sequence[Edit],
        before: Mapping[str, torch.Tensor],
        objection: Callable[[], str | None] | None = None,
    ) -> _Attempt:
        """Applies the agent's actions for the batch, which is presented, until one is refused, and checks the bounds."""
        actions: list[dict[str, Change]] = []
        reason, efficacy = None, None
        earlier = self._earlier_prompts(batch)
        held = self._hold(earlier)
        while reason is None and len(actions) < self.agent.actions_per_batch:
            seen = self._actor.look()
            self._agent_acted = True
            try:
                deltas = self.env.checked(self._actor.act(*seen))
            except torch.linalg.LinAlgError as error:  # what NaN and infinity end in
                reason = f"the method could not solve for an update: {error}"
            except RefusedActionError as error:
                reason = str(error)
            else:
                actions.append(deltas)
                *_, info = self.env.step(deltas)
                efficacy = info["efficacy"]
        perplexity = self._held_out_perplexity()
        reason = reason or self._broken_bound(before, perplexity)
        if reason is None:
            lost = held & ~self._hold(earlier)
            reason = self.guard.broken_memory_bound(int(held.sum()), int(lost.sum()))
        if reason is None and objection is not None:
            reason = objection()
        return _Attempt(actions, efficacy, perplexity, reason)

    def _earlier_prompts(self, batch: Sequence[Edit]) -> Prompts:
        """Some of the edits that were made, as they were made; none of a prompt that the batch edits again."""
        again = set(map(prompt_key, batch))
        made = [] if self.guard.max_lost is None else [e for key, e in self._to_hold.items() if key not in again]
        count = min(LOOKED_BACK, len(made))
        chosen = [made[i * len(made) // count] for i in range(count)]
        return self.lm.encode([edit.prompt for edit in chosen], [edit.target for edit in chosen])

    @torch.no_grad()
    def _hold(self, prompts: Prompts) -> np.ndarray:
        """``(n,)`` bool: whether every token of each answer is the model's first choice."""
        right = (greedy_tokens(self.lm, prompts) == prompts.labels).cpu().split(prompts.lengths.tolist())
        return np.array([bool(answer.all()) for answer in right], dtype=bool)

    def _broken_bound(self, before: Mapping[str, torch.Tensor], perplexity: float) -> str | None:
        """Which of the guard's bounds the batch broke, if any."""
        return self.guard.broken_weight_bound(before, self.lm.snapshot()) or self.guard.broken_perplexity_bound(
            self._perplexity, perplexity, self._unedited_perplexity
        )

    @torch.no_grad()
    def _held_out_perplexity(self) -> float:
        """Perplexity, per token, of the held-out sentences at the weights as they are; their first word is given."""
        tokens = self._held_out.lengths
        log_probs = metrics.mean_log_probs(self.lm, self._held_out) * tokens
        return float((-log_probs.sum() / tokens.sum()).exp())

    def _take_back(self, before: Mapping[str, torch.Tensor]) -> None:
        self.lm.restore(before)
        if self._agent_acted:  # else what it would revert is the batch before, which has stayed
            self.agent.revert_batch()

    def _write_to_journal(
        self, result: BatchResult, batch: Sequence[Edit], actions: Sequence[Mapping[str, Change]]
    ) -> None:
        """Makes the batch durable; if that fails, the editor takes no more."""
        if self.journal is None:
            return
        state = {f"{STATE}{name}": tensor for name, tensor in self.agent.batch_state().items()}
        entry = asdict(result) | _dated(batch)
        try:
            self.journal.append(entry, tensors_of(actions) | state)
        except BaseException:
            # The line may have reached the disk all the same: only reading the journal again tells what is in it.
            self._end("its journal could not be written; open the folder again to go on where it ends")
            raise

    def evaluate(self) -> dict[str, Any]:
        """Efficacy, generalization, specificity of all edits made, by every protocol, and drift on held-out text; of several
        edits of one prompt the last counts.
        """
        rolled_back = [asdict(result) for result in self.results if not result.applied]
        if not self.edits:
            return {"edits": 0, "rolled_back": rolled_back}
        to_hold = list(self._to_hold.values())
        batch = encode_evaluation(self.lm, to_hold)
        choices = greedy_tokens(self.lm, batch.prompts)
        return {
            "edits": len(to_hold),
            "teacher_forced": metrics.teacher_forced(self.lm, batch, choices=choices).percentages(),
            "generation": metrics.generation(self.lm, batch, choices=choices).percentages(),
            "generation_prefix": generation_prefix(self.lm, batch, choices=choices).percentages(),
            "drift": metrics.drift(self.lm, HELD_OUT),
            "rolled_back": rolled_back,
        }

    def save(self, folder: str | Path) -> None:
        """The edited model as a folder that :func:`editenv.load_model` loads; whole or not at all.

        Of a method that changes weights it is a Hugging Face folder, for plain transformers, too. Of one that puts a memory
        beside them it is the memory and the base model's name, which plain transformers cannot load.

        Args:
            folder: Made; one that was saved there before is replaced once the new one is whole.

        Raises:
            ValueError: If it is there and holds anything else, or is in the place of the base model.
            OSError: If it cannot be written.
        """
        about = {
            "base": public_name(self.model),
            "method": public_method(self.method),
            "edits": len({edit.id.removesuffix(IN_CHAT) for edit in self._to_hold.values()}),
            "batches": self.batches,
            "modules": list(self.lm.modules),
        }
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
        numbers = [entry["batch"] for entry in self.journal.entries]
        actions = [deltas for number in numbers for deltas in read_delta(self.journal.tensors(number))]
        header = self.journal.header
        write_delta_file(
            Path(path),
            actions,
            header["model"],
            fingerprint(self.lm),
            header["frozen"],
            header["identity"],
            sampled_weights(self.lm),
        )

    def revert(self) -> None:
        """The model as it was before the first edit, bit for bit. With a journal, which keeps what was done, this
        is the end.
        """
        self.lm.restore()
        self._begin()
        self._reverted = True
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


def _dated(edits: Sequence[Edit]) -> dict[str, Any]:
    """What a line of a journal says of corrections: when, and which."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"time": now, "ids": [edit.id for edit in edits], "content": [as_json(edit) for edit in edits]}
