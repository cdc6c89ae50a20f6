import pytest

from agents.registry import make_agent, settings_of
from benchmarks import forms

CHANGED = {
    "rome_prefixes": ("rome", {"value.prefixes": 5}),
    "rome_public": ("rome", {"value.prefixes": 5, "keys": "public"}),
    "memit_prefixes": ("memit", {"value.prefixes": 5}),
    "rect_20": ("rect", {"keep": 0.2}),
    "rect_40": ("rect", {"keep": 0.4}),
    "prune_paper": ("prune", {"base": 1.2}),
    "prune_edited": ("prune", {"onto": "edited"}),
    "prune_every_batch": ("prune", {"every_batch": True}),
    "alphaedit_paper": ("alphaedit", {"threshold": 1e-2, "ridge": 1.0}),
    "alphaedit_public": ("alphaedit", {"threshold": 2e-2, "ridge": 10.0}),
    "memit_subject": ("memit", {"value.token": "subject_last"}),
    "alphaedit_subject": ("alphaedit", {"value.token": "subject_last"}),
}


def flat(settings, before=""):
    by_name = {}
    for name, value in settings.items():
        by_name |= flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return by_name


@pytest.mark.parametrize("name", CHANGED)
def test_a_form_differs_from_its_row_in_what_its_name_says(name):
    method, changes = CHANGED[name]
    form, row = make_agent(f"benchmarks.forms:{name}"), make_agent(method)
    assert type(form) is type(row)
    of_form = flat(settings_of("form", form))
    assert {
        key: of_form[key] for key, value in flat(settings_of("row", row)).items() if of_form[key] != value
    } == changes


def test_every_form_is_checked():
    assert {name for name, value in vars(forms).items() if getattr(value, "__name__", "") == "<lambda>"} == set(CHANGED)
