"""What a language agent's choices may be, and what is said of those that may not."""

import json

import pytest

from editenv.language_agents.choices import EXAMPLE, BadChoiceError, StepSize, modules_in, step_sizes

MODULES = ("model.layers.1.mlp.down_proj", "model.layers.11.mlp.down_proj")


def test_modules_are_named_in_full_or_by_an_ending():
    chosen = {"layers.1.mlp.down_proj": {"step": 2}, MODULES[1]: StepSize(0.5, 0.2)}
    assert step_sizes(chosen, MODULES) == {MODULES[0]: StepSize(2, 0.1), MODULES[1]: StepSize(0.5, 0.2)}
    assert step_sizes({}, MODULES) == {}


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ("all", "modules must map names"),
        ({"layers.7": {"step": 1}}, "modules: unknown module 'layers.7'"),
        ({"mlp.down_proj": {"step": 1}}, "more than one module is called 'mlp.down_proj'"),
        ({"layers.1.mlp.down_proj": {"step": 1}, MODULES[0]: {"step": 1}}, "chosen twice"),
        ({MODULES[0]: 1.0}, r"modules\['model.layers.1.mlp.down_proj'\] must be"),
        ({MODULES[0]: {"ridge": 1.0}}, "step is missing"),
        ({MODULES[0]: {"step": 1.0, "rigde": 1.0}}, "unknown rigde"),
        ({MODULES[0]: {"step": "big"}}, "step must be a finite number of at least 0, not 'big'"),
        ({MODULES[0]: {"step": -1}}, "step must be a finite number of at least 0"),
        ({MODULES[0]: {"step": float("nan")}}, "step must be"),
        ({MODULES[0]: {"step": 1, "ridge": 0}}, "ridge must be a finite number above 0"),
    ],
)
def test_a_bad_choice_is_named(chosen, said):
    with pytest.raises(BadChoiceError, match=said):
        step_sizes(chosen, MODULES)


@pytest.mark.parametrize(
    "reply",
    [
        EXAMPLE,
        f"The gradient {{is}} long, so:\n```json\n{EXAMPLE}\n```\nThat should do.",
        f'{{"modules": {{}}}} was my first thought; now {EXAMPLE}',
    ],
)
def test_the_last_object_of_a_reply_counts(reply):
    assert modules_in(reply) == json.loads(EXAMPLE)["modules"]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("I would rather not.", "no JSON object with modules"),
        ('{"modules": {"a": {"step": 1}', "no JSON object with modules"),
        ('{"steps": {}}', "no JSON object with modules"),
        ('{"modules": {}, "why": "it is early"}', "unknown why"),
    ],
)
def test_a_reply_without_a_choice_is_refused(reply, said):
    with pytest.raises(BadChoiceError, match=said):
        modules_in(reply)
