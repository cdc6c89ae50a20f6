"""``editenv undo``: takes corrections back out of a run, and makes again what was made on top of them."""

from collections.abc import Sequence
from dataclasses import replace

from agents.editing import edit_command
from agents.editing.arguments import EditArgs, UndoArgs, read_options
from agents.editing.display import Display, tell
from agents.editing.names import Names
from agents.editing.preparation import choose_agent
from agents.editing.run import Key, read_lines
from agents.editing.undoing import Plan, consent
from editenv.data.text import one_line


def undo(args: UndoArgs) -> None:
    """Runs it. Killed at any moment, the same command goes on with what is still to be made again.

    Raises:
        ValueError: If there is no such correction, or nobody agreed to the cost; nothing is changed then.
        editenv.journal.JournalError: If the journal was changed, or another process writes to it.
    """
    options, source = read_options(args.output)
    options = replace(options, model=args.model or options.model, yes=args.yes, json=args.json)
    names = Names.of(read_lines(args.output / "journal.jsonl"), args.output)
    run = names.run
    keys = [key for id in dict.fromkeys(args.ids) for key in names.forms_of(id)]
    for key in keys:
        edit = names.edits[key]
        already = " (undone already)" if key in run.undone else ""
        tell(one_line(f"{names.names[key]}: {edit.question} -> {edit.target}{already}"))
    keys = [key for key in keys if key not in run.undone]
    if not args.ids and not run.pending:
        raise ValueError("undo: no correction was named; editenv undo OUT ID")
    agent = choose_agent(options.method, options.policy, options.model, edit_command.settings_of_file(options.settings))
    plan = Plan.of(run, keys, agent.independent_batches)
    cost = plan.in_words(options.method)
    consent(plan, cost, args.yes)
    tell(cost)
    _carry_out(options, source, names, keys)


def _carry_out(options: EditArgs, source: str, names: Names, keys: Sequence[Key]) -> None:
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
