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
from editenv.evaluation.metrics import generate_from_guesses, matches_greedy
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
    found: dict[str, float | None] = {"negation": _share(_says(lm, negated), wanted=False)}
    with lm.at_initial_weights():
        olds = [Probe(p.edit, p.prompt, edits[p.edit].old_answer or "") for p in negated]
        found["negation_before"] = _share(_says(lm, olds), wanted=False)
        prompts, answers = [p.prompt for p in distracted], [p.answer for p in distracted]
        reference = generate_from_guesses(lm, prompts, answers, TOKENS)
    found["distractor"] = _share(matches_greedy(lm, prompts, reference, TOKENS, unfinished=True))
    for i, (name, probes) in enumerate(hops.items(), start=1):
        found[name] = _share(_says(lm, probes))
        with lm.at_initial_weights():
            found[f"{name}_before"] = _share(_says(lm, consequences(edits, i, old=True)))
        found[f"{name}_questions"] = len(probes)
    return found


def _says(lm: EditableLM, probes: Sequence[Probe]) -> np.ndarray:
    return matches_greedy(lm, [p.prompt for p in probes], [p.answer for p in probes], TOKENS)


def _share(answers: np.ndarray, wanted: bool = True) -> float | None:
    if not len(answers):
        return None
    return round(float(100 * (answers == wanted).mean()), 4)
