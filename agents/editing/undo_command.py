"""``editenv undo``: takes corrections back out of a run, and makes again what was made on top of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agents.editing import corrections, edit_command
from agents.editing.arguments import EditArgs, UndoArgs, read_options
from agents.editing.display import Display, tell
from agents.editing.preparation import choose_agent
from agents.editing.run import Key, Run, read_lines
from agents.editing.undoing import Plan, consent
from editenv.data import Edit
from editenv.data.chat import IN_CHAT
from editenv.data.text import one_line, printable


def undo(args: UndoArgs) -> None:
    """Runs it. Killed at any moment, the same command goes on with what is still to be made again.

    Raises:
        ValueError: If there is no such correction, or nobody agreed to the cost; nothing is changed then.
        editenv.journal.JournalError: If the journal was changed, or another process writes to it.
    """
    options, source = read_options(args.output)
    options = replace(options, model=args.model or options.model, yes=args.yes, json=args.json)
    run = Run.of(read_lines(args.output / "journal.jsonl"))
    names = Names.of(run, args.output)
    keys = [key for id in dict.fromkeys(args.ids) for key in names.forms_of(id)]
    for key in keys:
        edit = names.edits[key]
        already = " (undone already)" if key in run.undone else ""
        tell(one_line(f"{edit.id}: {edit.question} -> {edit.target}{already}"))
    keys = [key for key in keys if key not in run.undone]
    if not args.ids and not run.pending:
        raise ValueError("undo: no correction was named; editenv undo OUT ID")
    agent = choose_agent(options.method, options.policy, options.model, edit_command.settings_of_file(options.settings))
    plan = Plan.of(run, keys, agent.independent_batches)
    cost = plan.in_words(options.method)
    consent(plan, cost, args.yes)
    tell(cost)
    _carry_out(options, source, names, keys)


def _carry_out(options: EditArgs, source: str, names: "Names", keys: Sequence[Key]) -> None:
    undone = [names.edits[key] for key in keys]
    pending = [edit for key, edit in names.run.pending.items() if key not in keys]
    with (
        Display(len(names.edits)) as display,
        edit_command.open_editor(options, pending, display) as editor,
    ):
        held = edit_command.held_before(options, editor, display) - set(keys)
        rest = editor.undo(undone) if undone else list(editor.run.pending.values())
        asked = [names.edits[key] for key in (*editor.run.to_hold, *editor.run.refused, *editor.run.pending)]
        edit_command.make_edits(options, editor, rest, len(asked), display)
        edit_command.finish(options, editor, edit_command.Asked(asked, source), held, display)


@dataclass(frozen=True)
class Names:
    """By which ids the corrections of a run are known.

    Attributes:
        run: Of the journal.
        edits: All corrections, each with the id that the last report gave it, or else the journal's.
        keys: Which correction an id stands for.
    """

    run: Run
    edits: dict[Key, Edit]
    keys: dict[str, Key]

    @classmethod
    def of(cls, run: Run, output: Path) -> "Names":
        """Those of a run and of the reports in its folder: a file may have been renamed or its rows moved since."""
        edits = run.made | run.pending
        edits |= {key: edit for key, (edit, _) in (*run.refused.items(), *run.undone.items())}
        by_texts = {corrections.asked_by(edit): key for key, edit in edits.items()}
        reported = {}
        for row in corrections.reported(output) or ():
            if key := by_texts.get(corrections.asked_in(row)):
                reported[row["id"]] = key
                edits[key] = replace(edits[key], id=row["id"])
        return cls(run, edits, {edit.id: key for key, edit in edits.items()} | reported)

    def forms_of(self, id: str) -> list[Key]:
        """The correction of this id as plain text and, if it was made in a chat, in that form, too.

        Raises:
            ValueError: As :meth:`key_of` does.
        """
        key = self.key_of(id)
        name = self.edits[key].id
        twins = (name.removesuffix(IN_CHAT), name.removesuffix(IN_CHAT) + IN_CHAT)
        both = [self.keys[twin] for twin in twins if twin in self.keys]
        return [key for key in both if key not in self.run.refused] or [key]

    def key_of(self, id: str) -> Key:
        """The correction of this id, or of this number in its file.

        Raises:
            ValueError: If there is none or several, or if it is not in the model.
        """
        matches = [id] if id in self.keys else [name for name in self.keys if name.rpartition("/")[1:] == ("/", id)]
        if not matches:
            raise ValueError(
                f"undo: the run has no correction {id!r}; editenv log OUT lists them, with --json by their ids"
            )
        if len(matches) > 1:
            raise ValueError(f"undo: {id!r} may be any of {', '.join(matches)}: write one of these")
        key = self.keys[matches[0]]
        if key in self.run.refused:
            _, reason = self.run.refused[key]
            raise ValueError(printable(f"undo: {matches[0]} is not in the model: its batch was taken back ({reason})"))
        return key
