"""Where a method edits may be part of its settings."""

import json

import pytest

from agents.registry import make_agent, settings_of
from benchmarks.running.cells import Cell
from benchmarks.running.rollout import editing_environment, prepare
from benchmarks.suites import SUITES

PLACE = {"modules": ["layers.1.mlp.down_proj", "layers.2.mlp.down_proj"], "observed_tokens": "all"}


@pytest.fixture
def folder(tmp_path):
    def write(**content):
        (tmp_path / "ultraedit.json").write_text(json.dumps({"settings": {"step_size": 0.5}, "chosen": "", **content}))
        return f"ultraedit@{tmp_path}"

    return write


def test_the_environment_is_the_settings_own_where_the_suite_leaves_it_open(folder):
    agent = make_agent(folder(environment=PLACE))
    suite = SUITES["smoke"]
    assert suite.modules is None
    env = editing_environment(suite, agent)
    assert list(env.language_model.modules) == [f"model.{name}" for name in PLACE["modules"]]
    assert env.observed_tokens == "all"
    named = editing_environment(suite.at(None, None, ("layers.3.mlp.down_proj",)), agent)
    assert list(named.language_model.modules) == ["model.layers.3.mlp.down_proj"]


def test_it_is_prepared_there_too(folder, monkeypatch):
    agent = make_agent(folder(environment=PLACE))
    seen = []
    monkeypatch.setattr(type(agent), "prepare", lambda self, env, seed, progress: seen.append(env))
    prepare(SUITES["smoke"], agent, 0, lambda *_: None)
    assert len(seen[0].language_model.modules) == 2


def test_the_subjects_token_may_be_part_of_settings_and_of_a_suite(folder):
    place = {"modules": ["layers.1.mlp.down_proj"], "observed_tokens": "subject"}
    env = editing_environment(SUITES["smoke"], make_agent(folder(environment=place)))
    assert env.observed_tokens == "subject"
    assert env.max_tokens == SUITES["smoke"].edits_per_step
    assert SUITES["smoke"].at(None, None, observed_tokens="subject").setting()["observed_tokens"] == "subject"


def test_records_say_it_and_cells_of_another_place_share_nothing(folder, tmp_path):
    name = folder(environment=PLACE)
    assert settings_of(name, make_agent(name))["environment"] == PLACE
    cell = Cell(SUITES["smoke"], {}, name, 0, tmp_path)
    other = Cell(SUITES["smoke"], {}, "ultraedit", 0, tmp_path)
    assert cell.activation_cache_path != other.activation_cache_path
    assert cell.activation_cache_identity != other.activation_cache_identity
    assert "environment" not in settings_of("ultraedit", make_agent("ultraedit"))


@pytest.mark.parametrize(
    ("environment", "words"),
    [({"module": []}, "environment has no 'module'; known are modules, observed_tokens"), ([], "must be an object")],
)
def test_what_is_no_environment_is_refused(folder, environment, words):
    with pytest.raises(ValueError, match=rf"ultraedit\.json: .*{words}"):
        make_agent(folder(environment=environment))
