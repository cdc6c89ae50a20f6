"""What an editor needs before its first edit: the method, what it learns from, and what the journal is about."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from agents.base import Agent, ProgressCallback
from agents.baselines.kn import old_answer
from agents.baselines.lte import LTE
from agents.covariance import training_edits
from agents.editing.guard import HELD_OUT, Guard
from agents.editing.model_card import public_method
from agents.editing.unrelated import GENERAL
from agents.registry import make_agent, make_method, takes_settings
from agents.rledit.agent import RLEdit
from agents.rows import packaged_policy
from agents.self_written import MOST, SELF_WRITTEN, written_texts
from editenv.atomic_files import atomic_write_text
from editenv.data import Edit, edits_digest, load_edits
from editenv.data.checked_edits import to_edit
from editenv.data.edit_file import repeat_error, repeats
from editenv.data.fields import Fields
from editenv.data.formats import FORMATS
from editenv.data.records import BadRecordError
from editenv.data.tables import content_digest
from editenv.data.text import end_of
from editenv.env import LifelongEditEnv
from editenv.evaluation.greedy import continuations
from editenv.identity import fingerprint, frozen_fingerprint, identity
from editenv.language_model.editable_lm import EditableLM, ObservedTokens
from editenv.language_model.prompts import Prompts
from editenv.language_model.subjects import end_of_subject
from editenv.memories import attached
from editenv.models import EMBEDDED, load_model
from editenv.models.modules import default_modules, lookup_modules, upper_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LEARNING_BATCH = 20
"""Edits in a batch of those that a method learns or warms up from, as in the benchmarks."""

STOPS_ASKED, STOPS_WITHIN = 8, 24
"""General questions that are asked, and the tokens within which a model that stops by itself has answered them."""


def choose_agent(
    method: str, policy: str | Path | None, model: str, settings: Mapping[str, Any] | None = None
) -> Agent:
    """The agent of a method, with a trained policy, settings of one's own, or what ships with the package.

    Args:
        method: A row of agents.registry, or ``file.py:Class``.
        policy: Folder of a policy, for ``"rledit"`` only.
        model: Model that is to be edited: settings and the policy that ship are for the embedded one.
        settings: Constructor arguments; for a row that takes some.

    Raises:
        ValueError: If there is no such method, or it does not take what was given, or lacks a policy for the model.
    """
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
    if takes_settings(method) and model != EMBEDDED:  # those that ship were chosen for the embedded model
        return make_method(method, {})
    return make_agent(method)


def modules_to_edit(agent: Agent, model: str, device: str, dtype: str, output: Path | None) -> Sequence[str]:
    """The modules that are edited where none are named.

    Those of the run that goes on. Otherwise, unless the model's config lists its own: for a method that looks facts up at
    their subject the layers where models do (:func:`editenv.models.modules.lookup_modules`), and for one that teaches the
    model to read the upper half (:func:`editenv.models.modules.upper_modules`). Otherwise the model's default.
    """
    base, _ = load_model(model, device, dtype)
    begun = None if output is None else begun_with(output)
    if begun is not None and dict(base.named_modules()).keys() >= set(begun["modules"]):
        return tuple(begun["modules"])
    if not getattr(base.config, "edited_modules", None):
        if "subjects" in agent.needs:
            return lookup_modules(base)
        if isinstance(agent, LTE):
            return upper_modules(base)
    return default_modules(base, model)


def begun_with(output: Path) -> dict[str, Any] | None:
    """The header of a run's journal; None if there is no run, or if its journal cannot be read, which says so itself."""
    path = output / "journal.jsonl"
    if not path.exists():
        return None
    try:
        with path.open(encoding="utf-8") as lines:
            header = json.loads(next(lines))
        return header if {"method", "modules"} <= header.keys() else None
    except (OSError, ValueError, AttributeError, StopIteration):
        return None


def batch_of(edits: "Edit | Mapping[str, Any] | Iterable[Edit | Mapping[str, Any]]") -> list[Edit]:
    """The edits of one batch, checked as those of a file are.

    Args:
        edits: Edits, or dictionaries as docs/reference/data_formats.md has them; or a single one.

    Raises:
        TypeError: If it is neither; says what would be right.
        BadRecordError: If a dictionary is not an edit, or if an edit repeats or contradicts an earlier one of the batch.
    """
    right = 'give a list of edits such as {"prompt": "Who owns Tumblr?", "target": "Automattic"}'
    if isinstance(edits, Edit | Mapping):
        edits = [edits]
    if isinstance(edits, str | bytes) or not isinstance(edits, Iterable):
        raise TypeError(f"edit: {right}, not {type(edits).__name__} {edits!r:.80}")
    _, parse = FORMATS["own"][0]
    batch = []
    for i, edit in enumerate(edits, start=1):
        if isinstance(edit, Mapping):
            edit = to_edit(Fields("edit", i, edit), parse, "keep")
        elif not isinstance(edit, Edit):
            raise TypeError(f"edit: record {i} is {type(edit).__name__} {edit!r:.80}; {right}")
        elif "{}" in edit.prompt and edit.subject and end_of(edit.subject, edit.prompt) is None:
            what = f"has {{}} where the subject {edit.subject!r} is to stand: write it there"
            raise BadRecordError("edit", i, what, "prompt")
        batch.append(edit)
    for i, earlier in repeats(edit.prompt for edit in batch):
        what, field, kind = repeat_error(batch[i].target, batch[earlier].target, f"record {earlier + 1}")
        raise BadRecordError("edit", i + 1, what, field, kind)
    return batch


def refuse_what_has_a_memory(model: str, lm: EditableLM) -> None:
    """What lies beside the weights of a model that is edited would be lost with a method that edits weights.

    Raises:
        ValueError: If the model has a memory or a context already.
    """
    memories = attached(dict(lm.model.named_modules()))
    if memories or lm.context is not None:
        beside = f"a memory beside {', '.join(memories)}" if memories else "a context"
        raise ValueError(
            f"{model} has {beside}, which editing it further would lose: edit its base model, or add corrections to the run that "
            "it came from"
        )


def require_subjects(agent: Agent, edits: Sequence[Edit], observed_tokens: ObservedTokens = "answers") -> None:
    """Whether every edit has what the method looks facts up by.

    Raises:
        ValueError: If the method, or what it observes, needs subjects and an edit has none, or none that stands in its
            prompt; if the method needs old answers and an edit has none.
    """
    if observed_tokens == "subject":
        for edit in edits:
            end_of_subject(edit, "observe other tokens (observed_tokens)")
    if "subjects" in agent.needs:
        for edit in edits:
            end_of_subject(edit)
    if "old_answers" in agent.needs:
        for edit in edits:
            old_answer(edit)


def learning_environment(
    agent: Agent,
    method: str,
    training: str | None,
    training_options: Mapping[str, Any] | None,
    model_arguments: Mapping[str, Any],
) -> LifelongEditEnv:
    """The environment that :meth:`agents.base.Agent.prepare` is given: the model, and edits to learn from.

    Args:
        agent: With its ``text`` set, if there is one; one that reads text is set to what the model writes by itself if
            there is neither text nor training.
        method: Its name, for messages.
        training: Data set; None is the embedded world for the embedded model, and no edits for any other.
        training_options: How its files are read.
        model_arguments: What the environment takes about the model: ``model``, ``modules``, ``device``, ...

    Raises:
        ValueError: If the method needs edits and there are none, or a record cannot be used.
    """
    if training is None and model_arguments["model"] == EMBEDDED:
        training = EMBEDDED
    if training is None and agent.learns:
        raise ValueError(
            f"method {method!r} needs edits to learn from: name a data set (docs/reference/data_formats.md) as training, "
            "or choose a method that needs none, such as fine-tune"
        )
    if training is None and agent.text is None and agent.reads_text:
        agent.text = SELF_WRITTEN
    options = dict(training_options) if training_options and training != EMBEDDED else None
    available = LEARNING_BATCH if training is None else len(load_edits(training, "train", options=options))
    return LifelongEditEnv(
        **model_arguments,
        dataset=training,
        split="train",
        dataset_options=options,
        edits_per_step=min(LEARNING_BATCH, max(1, available)),
    )


def keep_written_text(lm: EditableLM, folder: Path, progress: ProgressCallback) -> Path:
    """The file of the text that the model writes by itself, written once for a run that may be interrupted."""
    path = folder / "self-written.jsonl"
    if not path.exists():
        lines = []
        for number, text in enumerate(written_texts(lm, MOST)):
            progress("writing text to take statistics of", number, MOST)
            lines.append(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, "".join(lines))
    return path


def editing_environment(agent: Agent, model_arguments: Mapping[str, Any], seed: int) -> LifelongEditEnv:
    """The environment that batches are presented to; it has no stream of its own, and its rewards look back at none."""
    env = LifelongEditEnv(**model_arguments, dataset=None, actions_per_batch=agent.actions_per_batch, memory_batches=0)
    env.reset(seed=seed)
    return env


def held_out_prompts(lm: EditableLM) -> Prompts:
    """The held-out sentences, each with its first word as the prompt and the rest as the answer."""
    pairs = [text.split(" ", 1) for text in HELD_OUT]
    return lm.encode([first for first, _ in pairs], [rest for _, rest in pairs], reuse=False)


def end_for(lm: EditableLM) -> str:
    """What is to be taught after a target: as :func:`end_of_answers` of the model at theta_0."""
    with lm.at_initial_weights():
        return end_of_answers(lm.model, lm.tokenizer)


@torch.no_grad()
def end_of_answers(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> str:
    """Nothing if a model stops by itself after most of its answers to general questions, else a full stop."""
    answers = continuations(model, tokenizer, GENERAL[:STOPS_ASKED], STOPS_WITHIN)
    stopped = sum(tokenizer.eos_token_id in tokens for tokens in answers)
    return "" if 2 * stopped > len(answers) else "."


def journal_header(
    agent: Agent,
    learning: LifelongEditEnv,
    method: str,
    constructed_with: Mapping[str, Any],
    settings: Mapping[str, Any] | None,
    edits: str,
    guard: Guard,
    seed: int,
) -> dict[str, Any]:
    """What the final weights depend on besides the edits; a journal is gone on with only if all of it is the same.

    Args:
        agent: Not prepared yet, with its ``text``.
        learning: The environment in which it will be prepared.
        method: Name of the agent.
        constructed_with: What :func:`agents.registry.settings_of` said of it before anything was set on it.
        settings: Those the caller gave, if any.
        edits: What the run is about, in the caller's words.
        guard: Bounds.
        seed: Of the run.
    """
    lm = learning.language_model
    learns_from_edits = agent.learns or (agent.reads_text and agent.text is None)
    header = {
        "model": fingerprint(lm),
        "frozen": frozen_fingerprint(lm),
        "identity": identity(lm),
        "modules": list(lm.modules),
        "method": method,
        "settings": None if settings is None else dict(settings),
        "agent": dict(constructed_with),
        "edits": edits,
        "text": _text_digest(agent.text),
        "training": edits_digest(training_edits(learning)) if learns_from_edits else None,
        "guard": asdict(guard),
        "dtype": learning.model_arguments["dtype"],
        "seed": seed,
        "threads": torch.get_num_threads(),  # how sums are split decides about their last bits
    }
    if learning.observed_tokens != "answers":
        header["observed_tokens"] = learning.observed_tokens
    if learning.train_eos:
        header["end_of_answer"] = True  # what journals have called it from the beginning
    return header


def other_bounds(there: Mapping[str, Any] | None, here: Mapping[str, Any]) -> list[str]:
    """In what a guard differs from that of a run on disk; an earlier version's goes on with the bounds it did not have.

    Args:
        there: Of the journal's header; None if it says nothing of a guard.
        here: Of the editor.
    """
    there = there or {}
    new = {"max_lost", "retry"} - there.keys()
    if new and there.get("max_drift") is None:  # what earlier versions had by default
        new.add("max_drift")
    return [
        f"guard.{name} was {there.get(name)!r}, is {here[name]!r}"
        for name in here
        if name not in new and there.get(name) != here[name]
    ]


def other_method(there: str | None, here: str) -> list[str]:
    """Whether the method of a run on disk is another one. Its folders may have other names, which depend on where the
    command was run: what lies in them is compared by its content (:func:`agents.registry.settings_of`).

    Args:
        there: Of the journal's header.
        here: Of the editor.
    """
    same = there is not None and public_method(there) == public_method(here)
    return [] if same else [f"method was {there!r}, is {here!r}"]


def _text_digest(text: str | None) -> str | None:
    """A text is what it says, whatever it is called; a data set of the hub is its name."""
    if text is None:
        return None
    path = Path(text)
    if path.is_dir():
        path = path / "covariance.json"
    return content_digest(path) if path.is_file() else text
