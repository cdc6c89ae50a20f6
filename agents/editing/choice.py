"""Which method a file of corrections is made with if nobody names one, and why."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.editing.arguments import EditArgs
from agents.editing.preparation import begun_with
from agents.settings import environment_in
from editenv.data import Edit
from editenv.data.text import end_of
from editenv.models import EMBEDDED, load_model
from editenv.models.modules import lookup_modules

LOOKS_UP = "memit-rehearsed"
LEARNS_WORDINGS = "memit-reworded"
WITHOUT_SUBJECTS = "fine-tune-replay"


@dataclass(frozen=True, slots=True)
class Choice:
    """A method for some corrections.

    Attributes:
        method: A row of agents.registry.
        modules: Edited modules, as endings of dotted names; empty for those of the command, or the model's default.
        reason: Why, in words.
        settled: Whether there is nothing to try.
    """

    method: str
    modules: tuple[str, ...]
    reason: str
    settled: bool = False


def choose_method(args: EditArgs, edits: Sequence[Edit], new: bool = False) -> Choice:
    """The method that a command means with ``--method auto``, by rule.

    * A policy, or the embedded model, which has one: ``rledit``.
    * A run that goes on: the one it was begun with, so that corrections may be added.
    * Every correction has a subject that stands in its prompt: ``memit-rehearsed``, at the subject's last token in every
      second of the layers where models look facts up (:func:`editenv.models.modules.lookup_modules`); with training edits
      ``memit-reworded``, which learns other wordings from them.
    * Otherwise ``fine-tune-replay``, which needs nothing but prompts and targets.

    The last two may be overruled by a trial (:func:`agents.editing.trial.choose_by_trial`), unless there are settings,
    which are of one method.

    Args:
        args: Of the command, with ``method`` ``"auto"``.
        edits: All corrections.
        new: Whether there is no run that might go on, whatever lies in the output folder.
    """
    if args.policy is not None or args.model == EMBEDDED:
        return Choice("rledit", (), "a trained policy is there", settled=True)
    without = sum(not edit.subject or end_of(edit.subject, edit.prompt) is None for edit in edits)
    begun = None if new else begun_with(args.output)
    if begun is not None:
        method, reason = begun["method"], "this run was begun with it"
    elif without:
        method = WITHOUT_SUBJECTS
        reason = f"{without} of {len(edits)} corrections have no subject in their prompt, which the better methods need"
    elif args.training is not None:
        method, reason = LEARNS_WORDINGS, "every correction has a subject, and training edits show other wordings"
    else:
        method, reason = LOOKS_UP, "every correction has a subject, at which facts are looked up"
    modules: tuple[str, ...] = ()
    if not args.modules and not args.preset:
        if begun is not None:
            modules = tuple(begun["modules"])
        elif method != WITHOUT_SUBJECTS:
            modules = lookup_modules(load_model(args.model, args.device, args.dtype)[0])
    return Choice(method, modules, reason, settled=begun is not None or args.settings is not None)


def settings_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constructor arguments of a JSON file, or those under ``settings`` in it, as ``benchmarks.tune`` writes them; and the
    arguments of the environment that they were chosen for (:data:`agents.settings.ENVIRONMENT`), if it says.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    settings = content.get("settings", content) if isinstance(content, dict) else content
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold an object of arguments, not {settings!r}")
    return settings, environment_in(content, path) if "settings" in content else {}
