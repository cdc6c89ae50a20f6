"""What a person would check after a run of edits: a headline, what was lost, and a page with every answer."""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from agents.editing.valid_json import valid_json
from editenv.data.text import one_line

CHANGED = 0.1
"""Share of unrelated answers that may change before it is said loudly."""

PERPLEXITY = 1.1
"""Factor by which held-out text may become less likely before it is said loudly."""

BESIDE = {"side memory": "memory", "context": "context"}
"""What is beside the model, by what the method changes."""

EXAMPLES = 3
"""Corrections that the headline quotes."""


def of(
    outcomes: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]], drift: Mapping[str, float] | None
) -> dict[str, Any]:
    """The counts of a report.

    Args:
        outcomes: Of each correction, as :func:`agents.editing.corrections.outcomes` has them.
        answers: To unrelated questions, as :class:`agents.editing.unrelated.Answer` has them.
        drift: ``perplexity_before`` and ``perplexity`` of held-out text; None if nothing was edited.

    Returns:
        ``hold`` and ``goes_on``, how many corrections; ``not_said`` and ``lost``, which ones, by their ids; ``examples``
        of what is said in their place; ``forms``, if some were asked in a chat; ``unrelated`` with ``asked``,
        ``changed`` (and, in all, ``reworded``) in all and by kind.
    """
    not_said = [row for row in outcomes if not row["begins_right"]]
    kinds = dict.fromkeys(answer["kind"] for answer in answers)
    return {
        "hold": len(outcomes) - len(not_said),
        "goes_on": sum(row["applied"] and row["begins_right"] and not row["right"] for row in outcomes),
        "not_said": [row["id"] for row in not_said],
        "lost": [row["id"] for row in outcomes if row["lost"]],
        "examples": [
            {"prompt": asked_as(row), "target": row["target"].strip(), "said": row["said"]}
            for row in not_said[:EXAMPLES]
        ],
        **_forms(outcomes),
        "unrelated": {
            "asked": len(answers),
            "changed": sum(answer["changed"] for answer in answers),
            "reworded": sum(answer["reworded"] for answer in answers),
            "by_kind": {
                kind: {
                    "asked": sum(answer["kind"] == kind for answer in answers),
                    "changed": sum(answer["kind"] == kind and answer["changed"] for answer in answers),
                }
                for kind in kinds
            },
        },
        "perplexity_factor": drift["perplexity"] / drift["perplexity_before"] if drift else 1.0,
    }


def asked_as(row: Mapping[str, Any]) -> str:
    """What a line of results.jsonl or unrelated.jsonl asks, for people: in a chat, the question without the template."""
    in_chat = row.get("form") == "chat" or row.get("kind") == "in a chat"
    return f"(in a chat) {row.get('question', row['prompt'])}" if in_chat else str(row["prompt"])


def _forms(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``forms``: how many corrections were asked, and hold, as plain text and in a chat; nothing if none was in a chat."""
    chat = [row for row in outcomes if row.get("form") == "chat"]
    plain = [row for row in outcomes if row.get("form") != "chat"]
    if not chat:
        return {}
    return {
        "forms": {
            name: {"asked": len(rows), "hold": sum(row["begins_right"] for row in rows)}
            for name, rows in (("plain", plain), ("chat", chat))
        }
    }


def headline(report: Mapping[str, Any]) -> list[str]:
    """The first lines for people: how many corrections hold, which do not, and what else changed."""
    count = f"{report['hold']} of {report['asked']} corrections hold"
    if forms := report.get("forms"):
        plain, chat = (f"{forms[name]['hold']} of {forms[name]['asked']}" for name in ("plain", "chat"))
        count = f"{plain} corrections hold as plain text, {chat} in a chat"
    missing = report["asked"] - report["hold"]
    if missing == 0:
        lines = [f"{count}: the model's answers begin with their targets"]
    else:
        lines = [f"{count}; to the other {missing} the model says something else (results.jsonl has all):"]
        lines += [
            one_line(f"  {row['prompt']} {_quoted(row['said'])}, not {_quoted(row['target'])}")
            for row in report["examples"]
        ]
        if missing > len(report["examples"]):
            lines.append(f"  and {missing - len(report['examples'])} more")
    if report["lost"]:
        lines.append(f"{len(report['lost'])} that held before this run are lost: {', '.join(report['lost'][:5])}")
    if undone := report.get("undone", ()):
        lines.append(f"{len(undone)} corrections are undone (report.json has what the model says to them):")
        lines += [
            one_line(
                f"  {row['prompt']} {_quoted(row['said'])}, and {_quoted(row['said_before'])} before all corrections"
            )
            for row in undone[:EXAMPLES]
        ]
    unrelated = report["unrelated"]
    lines.append(
        f"{unrelated['changed']} of {unrelated['asked']} unrelated answers changed, {unrelated['reworded']} are "
        f"worded differently, with the old words still likely (unrelated.jsonl has them); "
        f"perplexity of other text {_percent(report['perplexity_factor'])}"
    )
    return lines


def alarms(report: Mapping[str, Any]) -> list[str]:
    """What nobody should miss, with what to do: empty if nothing is wrong."""
    lines = losses(report)
    if lines:
        lines.append("Look at report.html before this model is used; smaller steps or another method change less.")
    return lines


def losses(report: Mapping[str, Any]) -> list[str]:
    """What the model has lost, a sentence each."""
    lines = []
    unrelated = report["unrelated"]
    if unrelated["changed"] > CHANGED * unrelated["asked"]:
        kinds = ", ".join(
            f"{count['changed']} of {count['asked']} about {_about(kind)}"
            for kind, count in unrelated["by_kind"].items()
            if count["changed"]
        )
        lines.append(f"{unrelated['changed']} of {unrelated['asked']} unrelated answers changed: {kinds}.")
    if not report["perplexity_factor"] <= PERPLEXITY:
        lines.append(f"Ordinary text has become less likely: perplexity {_percent(report['perplexity_factor'])}.")
    if report["lost"]:
        lines.append(f"{len(report['lost'])} earlier corrections do not hold any more.")
    return lines


def page(report: Mapping[str, Any], outcomes: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]) -> str:
    """Everything as one page without anything from outside: all answers before and after, to be filtered."""
    template = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    content = {
        "title": f"{report['model']}, {report['method']}",
        "headline": headline(report) + _about_the_method(report),
        "alarms": alarms(report),
        "corrections": [*outcomes, *report.get("undone", ())],
        "unrelated": list(answers),
    }
    # A text may say </script>.
    data = valid_json(content, ensure_ascii=False).replace("<", "\\u003c")
    return template.replace("{{data}}", data)


def _about_the_method(report: Mapping[str, Any]) -> list[str]:
    """What the page says of it: where the corrections are, if not in the weights, and why it was chosen if others were
    tried.
    """
    changes = report.get("changes", ["weights"])
    also = "Weights were changed, and" if "weights" in changes else "No weight was changed:"
    lines = []
    if kinds := " and a ".join(BESIDE[kind] for kind in changes if kind in BESIDE):
        lines.append(
            f"{also} the corrections are in a {kinds} beside the model, which editenv.load_model loads with it and plain "
            "transformers does not."
        )
    if trial := report.get("trial"):
        lines.append(f"Method: {report['method']}; {trial['reason']}.")
    return lines


def _about(kind: str) -> str:
    return {
        "general": "general knowledge",
        "another subject": "other subjects in a correction's words",
        "the same subject": "other facts of a corrected subject",
        "locality": "the file's own locality prompts",
        "in a chat": "general knowledge, asked in a chat",
    }.get(kind, kind)


def _quoted(text: object) -> str:
    return "nothing" if text is None else f'"{text}"'


def _percent(factor: float) -> str:
    return f"{100 * (factor - 1):+.0f}%" if factor < 10 else f"x {factor:.3g}"
