"""Settings of every row: a value of a wrong type or out of range is refused by name, wherever it comes from."""

import json
import math
import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from inspect import signature
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import cli
from agents.baselines.dafnet.config import DAFNetConfig
from agents.baselines.fine_tune import FineTune
from agents.editing.guard import Guard
from agents.hypernetwork.config import PolicyConfig, TrainConfig
from agents.registry import make_method, takes_settings
from agents.rl.evolution import EvolutionConfig
from agents.rl.reinforce import ReinforceConfig
from agents.rows import ROWS

VALUES = (None, True, 0, -1, 3, 1.5, -0.5, math.nan, math.inf, "x", "0", [], [1], {}, {"x": 1}, 1j, object())


def types_of(hint):
    """The alternatives of an annotation, without ranges."""
    if get_origin(hint) is Annotated:
        return types_of(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return [one for part in get_args(hint) for one in types_of(part)]
    return [hint]


def is_right_type(hint, value):
    """Whether some value of this type could be right; ranges are left aside."""
    for kind in types_of(hint):
        if kind in (None, type(None)):
            right = value is None
        elif kind is float:
            right = type(value) in (int, float) and math.isfinite(value)
        elif get_origin(kind) is Literal:
            right = value in get_args(kind)
        elif is_dataclass(kind):
            right = value == {}
        elif get_origin(kind) is Mapping:
            right = isinstance(value, dict)
        else:
            right = type(value) is kind
        if right:
            return True
    return False


def fields_of(kind, path=()):
    """Every setting of a class with its annotation, those of its dataclasses included, by path."""
    annotated = kind if is_dataclass(kind) else kind.__init__
    hints = get_type_hints(annotated, include_extras=True)
    for name in [name for name in signature(kind).parameters if name in hints]:
        yield (*path, name), hints[name]
        for part in filter(is_dataclass, types_of(hints[name])):
            yield from fields_of(part, (*path, name))


CASES = [(name, *field) for name, row in ROWS.items() if takes_settings(name) for field in fields_of(row.load())]


@given(case=st.sampled_from(CASES), value=st.sampled_from(VALUES))
@settings(max_examples=600)
def test_any_setting_of_any_row_with_a_value_of_a_wrong_type_is_refused_by_name(case, value):
    row, path, hint = case
    if is_right_type(hint, value) or (value == math.inf and path[-1] == "gradient_clip"):  # no clipping
        return
    given_settings = value
    for name in reversed(path):
        given_settings = {name: given_settings}
    with pytest.raises(ValueError, match=r"\.".join(path)) as error:
        make_method(row, given_settings)
    assert "\n" not in str(error.value)


def test_every_row_with_settings_has_been_looked_at():
    assert {row for row, _, _ in CASES} == {name for name in ROWS if takes_settings(name)}
    assert ("rledit", ("config", "policy", "step_size"), TrainConfig) not in CASES
    assert ("config", "policy", "step_size") in [path for row, path, _ in CASES if row == "demo-untrained"]


@pytest.mark.parametrize(
    ("row", "values", "words"),
    [
        ("fine-tune", {"steps": -1}, "steps must be a whole number of at least 1, not -1"),
        ("fine-tune", {"learning_rate": 0}, "learning_rate must be a finite number above 0"),
        ("ultraedit", {"actions_per_batch": 1.5}, "actions_per_batch must be a whole number of at least 1, not 1.5"),
        ("rledit", {"config": {"locality": math.nan}}, "config.locality must be a finite number of at least 0, not nan"),
        ("rledit", {"config": {"policy": {"rank": 0}}}, "config.policy.rank must be a whole number of at least 1"),
        ("rledit", {"config": {"policy": {"rnk": 2}}}, "PolicyConfig has no setting 'config.policy.rnk'; known are"),
        ("demo-untrained", {"train": "no"}, "train must be True or False, not 'no'"),  # though the row sets it
        ("demo-untrained", {"config": 5}, "config must be"),
        ("rect", {"keep": 1.5}, "keep must be a finite number above 0 and at most 1, not 1.5"),
        ("rome", {"value": {"steps": 2.5}}, "value.steps must be a whole number of at least 1, not 2.5"),
    ],
)  # fmt: skip
def test_what_is_right_is_said(row, values, words):
    with pytest.raises(ValueError, match=r"setting|must be") as error:
        make_method(row, values)
    assert words in str(error.value)


def test_python_files_and_the_command_line_say_the_same(model_folder, tmp_path, monkeypatch, capsys):
    words = "steps must be a whole number of at least 1, not -1"
    with pytest.raises(ValueError, match=words):
        FineTune(steps=-1)
    (tmp_path / "fine-tune.json").write_text(json.dumps({"steps": -1}))
    (tmp_path / "edits.jsonl").write_text('{"prompt": "The home of Ada is", "target": "Rome"}\n')
    for settings_file in ("fine-tune.json",):
        command = (
            f"edit --model {model_folder} --edits {tmp_path}/edits.jsonl --method fine-tune --output {tmp_path}/out"
        )
        monkeypatch.setattr("sys.argv", ["editenv", *command.split(), "--settings", str(tmp_path / settings_file)])
        with pytest.raises(SystemExit):
            cli.main()
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("edit --edits x --output out --edits-per-step 0", "edits_per_step must be a whole number of at least 1"),
        ("edit --edits x --output out --guard.max-perplexity nan", "max_perplexity must be a finite number above 0"),
        ("train --output out --train.discount 2", "discount must be a finite number from 0 to 1, not 2"),
        ("train --output out --checkpoint-every 0", "checkpoint_every must be a whole number of at least 1, not 0"),
        ("inspect x --sample -1", "sample must be a whole number of at least 0, not -1"),
    ],
)  # fmt: skip
def test_an_option_out_of_range_is_a_usage_error(command, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.argv", ["editenv", *command.split()])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert words in " ".join(capsys.readouterr().err.replace("│", "").split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [PolicyConfig, TrainConfig, DAFNetConfig, Guard, ReinforceConfig, EvolutionConfig])
def test_every_field_of_a_config_refuses_nan_and_text(kind):
    usual = {"memory_samples": None} if kind in (ReinforceConfig, EvolutionConfig) else {}
    for name in get_type_hints(kind):
        for value in (math.nan, "x", [], 1j):
            with pytest.raises(ValueError, match=f"^{name} must be "):
                kind(**usual | {name: value})
