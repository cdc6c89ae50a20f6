"""What an edit should and should not carry with it, each as a metric of its own; for the embedded world.

``negation``
    Asked with "not", the model does not say the new answer.
``distractor``
    A locality prompt right behind a statement of the edit gets the text that theta_0 gives it there.
``one_hop``, ``two_hop``
    The model draws the consequence of the new fact ("the capital of the country of X").

All by free generation, 0 to 100, higher is better. ``negation_before``, ``one_hop_before`` and ``two_hop_before`` are
theta_0's figures for the old facts: what the model could do before any edit is the ceiling for what it can do after.
"""

from collections.abc import Sequence

import numpy as np

from editenv.data.atlas.probes import Probe, consequences, distractors, negations
from editenv.data.edits import Edit
from editenv.evaluation.matching import GreedyMatcher, generate_from_guesses
from editenv.language_model.editable_lm import EditableLM

TOKENS = 8
"""Longest continuation; every answer of the embedded world is shorter."""


def probe(lm: EditableLM, edits: Sequence[Edit]) -> dict[str, float | None]:
    """Every metric above at the current weights, and how many ``one_hop_questions`` and ``two_hop_questions`` there
    were.

    A figure is None where nothing could be asked.
    """
    negated, distracted = negations(edits), distractors(edits)
    hops = {"one_hop": consequences(edits, 1), "two_hop": consequences(edits, 2)}
    figures: dict[str, float | None] = {"negation": _percentage(~_matches(lm, negated))}
    with lm.at_initial_weights():
        old_answers = [Probe(p.edit, p.prompt, edits[p.edit].old_answer or "") for p in negated]
        figures["negation_before"] = _percentage(~_matches(lm, old_answers))
        prompts, answers = [p.prompt for p in distracted], [p.answer for p in distracted]
        initial_texts = generate_from_guesses(lm, prompts, answers, TOKENS)
    figures["distractor"] = _percentage(GreedyMatcher(lm, TOKENS, unfinished=True).matches(prompts, initial_texts))
    for i, (name, probes) in enumerate(hops.items(), start=1):
        figures[name] = _percentage(_matches(lm, probes))
        with lm.at_initial_weights():
            figures[f"{name}_before"] = _percentage(_matches(lm, consequences(edits, i, old=True)))
        figures[f"{name}_questions"] = len(probes)
    return figures


def _matches(lm: EditableLM, probes: Sequence[Probe]) -> np.ndarray:
    """``(n,)`` bool: whether the model writes a probe's answer."""
    return GreedyMatcher(lm, TOKENS).matches([p.prompt for p in probes], [p.answer for p in probes])


def _percentage(matches: np.ndarray) -> float | None:
    """How many of some bools are true, 0 to 100; None if there are none."""
    return round(float(100 * matches.mean()), 4) if len(matches) else None
