import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from agents.baselines.fine_tune import FineTune
from agents.baselines.memit import MEMIT
from agents.registry import make_agent, make_method, takes_settings
from agents.rledit.agent import RLEdit
from agents.rows import ROWS
from agents.settings import build, read_settings, settings_path
from benchmarks import tune
from benchmarks.tune import Args, draw, read_trials, search_space


def test_draws_stay_within_their_ranges_and_fill_them_by_orders_of_magnitude():
    start = {"weight": 5.0, "value": {"token": "last", "clamp": 4.0}, "steps": 7}
    ranges = {"weight": (1.0, 10_000.0), "value.clamp": (0.5, 8.0), "steps": (5, 40)}
    drawn = draw(start, ranges, 65, seed=1)
    assert drawn[0] == start
    assert drawn == draw(start, ranges, 65, seed=1)
    assert drawn != draw(start, ranges, 65, seed=2)
    for settings in drawn[1:]:
        assert settings["value"]["token"] == "last"
        assert isinstance(settings["steps"], int)
        assert 5 <= settings["steps"] <= 40
        assert 0.5 <= settings["value"]["clamp"] <= 8
    decades = np.floor(np.log10([settings["weight"] for settings in drawn[1:]]))
    assert [int((decades == decade).sum()) for decade in range(4)] == [16, 16, 16, 16]
    assert start == {"weight": 5.0, "value": {"token": "last", "clamp": 4.0}, "steps": 7}


def test_no_settings_are_tried_twice_where_an_earlier_search_has_found_the_start():
    ranges = {"weight": (10.0, 10000.0), "clamp": (0.2, 2.0)}
    earlier = draw({"weight": 5.0, "clamp": 1.0}, ranges, 8, seed=0)
    again = draw(earlier[5], ranges, 8, seed=0)
    assert again[0] == earlier[5]
    assert len(again) == 8
    assert all(again[i] not in again[:i] for i in range(8))
    assert again[1:-1] == [settings for settings in earlier[1:] if settings != earlier[5]]


def test_every_search_space_is_of_settings_that_the_method_has():
    spaces = json.loads(tune.resources.files("benchmarks").joinpath("search_spaces/atlas.json").read_text())
    assert set(spaces) <= set(filter(takes_settings, ROWS))
    for method in spaces:
        for settings in draw(read_settings(method), search_space(method), 2, seed=0):
            make_method(method, settings)


def test_a_trial_that_its_method_cannot_work_with_counts_nothing_and_the_search_goes_on(world, monkeypatch, capsys):
    def run(suite, name, agent, *rest, play=tune.run, **options):
        if agent.weight > 100:
            raise FloatingPointError("the policy gradient is not finite")
        return play(suite, name, agent, *rest, **options)

    monkeypatch.setattr(tune, "run", run)
    best = tune.tune("memit", world.args)
    assert best.error is None
    trials = read_trials(world.args.out / "memit.jsonl", best.about)
    failed = [trial for trial in trials.values() if trial.error]
    assert 0 < len(failed) < len(trials) == 8
    assert {(trial.score, trial.error) for trial in failed} == {
        (0.0, "FloatingPointError: the policy gradient is not finite")
    }
    assert tune.tune("memit", world.args) == best


@pytest.fixture
def world(monkeypatch, tmp_path):
    """Runs that cost nothing: the nearer the weight is to 100, the better."""
    calls = []

    def run(suite, name, agent, seed, progress, probes, activation_cache):
        calls.append(agent.weight)
        score = 100 / (1 + abs(np.log(agent.weight / 100)))
        return SimpleNamespace(teacher_forced=dict.fromkeys(("efficacy", "generalization", "specificity"), score))

    monkeypatch.setattr(tune, "run", run)
    (tmp_path / "atlas").mkdir()
    monkeypatch.setattr(tune, "settings_path", lambda method, folder: tmp_path / folder / f"{method}.json")
    return SimpleNamespace(calls=calls, args=Args(methods=("memit",), out=tmp_path / "out", trials=8, write=True))


def test_the_best_trial_is_written_and_nothing_is_run_twice(world, tmp_path, capsys):
    tune.main(world.args)
    assert len(world.calls) == 8
    best = min(world.calls, key=lambda weight: abs(np.log(weight / 100)))
    written = json.loads((tmp_path / "atlas/memit.json").read_text())
    assert written["settings"]["weight"] == best
    assert "8 trials" in written["chosen"]
    lines = (tmp_path / "out/memit.jsonl").read_text().splitlines()
    (tmp_path / "out/memit.jsonl").write_text("\n".join(lines[:5]) + "\n")
    tune.main(world.args)
    assert len(world.calls) == 11
    assert sorted(world.calls[8:]) == sorted(world.calls[5:8])


def test_a_search_whose_result_was_written_goes_on(world, tmp_path, monkeypatch):
    world.args.trials = 4
    tune.main(world.args)
    best = json.loads((tmp_path / "atlas/memit.json").read_text())["settings"]
    monkeypatch.setattr(tune, "read_settings", lambda method, folder: best)
    world.args.trials = 8
    tune.main(world.args)
    assert len(world.calls) == 8


def test_settings_for_longer_streams_have_a_folder_of_their_own(world, tmp_path):
    """Chosen on the training split; the search starts from those of the embedded model, and then from its own."""
    world.args.trials, world.args.settings, world.args.suite = 4, "atlas-long", "atlas-400x20-training"
    tune.main(world.args)
    assert world.calls[0] == read_settings("memit")["weight"]
    best = json.loads((tmp_path / "atlas-long/memit.json").read_text())
    assert best["settings"]["weight"] == min(world.calls, key=lambda weight: abs(np.log(weight / 100)))
    assert "atlas-400x20-training" in best["chosen"]
    assert not (tmp_path / "atlas/memit.json").exists()


def test_settings_for_a_model_of_ones_own_go_to_a_folder_of_ones_own(
    monkeypatch, world, model_folder, tmp_path, capsys
):
    monkeypatch.setattr(tune, "settings_path", settings_path)
    world.args.trials, world.args.suite, world.args.model = 4, "base-50x20-validation@2", model_folder
    world.args.settings = f"{tmp_path}/mine"
    tune.main(world.args)
    best = min(world.calls, key=lambda weight: abs(np.log(weight / 100)))
    assert make_agent(f"memit@{tmp_path}/mine").weight == best
    written = json.loads((tmp_path / "mine/memit.json").read_text())
    assert f"Saved {tmp_path}/mine/memit.json: the row memit@{tmp_path}/mine" in capsys.readouterr().out
    assert f"base-50x20-validation@2 with model {Path(model_folder).name}, seed 0" in written["chosen"]
    shutil.copytree(model_folder, tmp_path / "other")
    (tmp_path / "other/model.safetensors").write_bytes(b"another")
    world.args.model = str(tmp_path / "other")
    with pytest.raises(SystemExit, match="choose another --out"):
        tune.main(world.args)
    world.args.model = None
    with pytest.raises(SystemExit, match="needs a model"):
        tune.main(world.args)


def test_a_model_that_is_not_there_is_named(tmp_path):
    arguments = Args(
        methods=("memit",), out=tmp_path / "out", suite="base-50x20-validation@2", model=f"{tmp_path}/nothing"
    )
    with pytest.raises(SystemExit, match=f"there is no model folder {tmp_path}/nothing"):
        tune.main(arguments)
    assert not (tmp_path / "out").exists()


def test_as_many_trials_count_as_were_asked_for(world, tmp_path):
    world.args.trials = 16
    tune.main(world.args)
    world.args.trials = 2
    tune.main(world.args)
    assert len(world.calls) == 16
    best = min(world.calls[:2], key=lambda weight: abs(np.log(weight / 100)))
    written = json.loads((tmp_path / "atlas/memit.json").read_text())
    assert written["settings"]["weight"] == best
    assert "2 trials" in written["chosen"]


def test_trials_of_other_ranges_are_not_mixed_in(world, monkeypatch):
    world.args.trials = 2
    tune.main(world.args)
    monkeypatch.setattr(tune, "search_space", lambda method, spaces: {"weight": (1.0, 2.0)})
    with pytest.raises(SystemExit, match=r"trial 1 was of .* choose another --out"):
        tune.main(world.args)


def test_the_place_is_searched_like_any_other_setting(world, tmp_path):
    """Where a method edits goes to its settings' file, from which a row of the benchmarks takes it."""
    spaces = tmp_path / "spaces.json"
    places = [["layers.1.mlp.down_proj"], ["layers.3.mlp.down_proj"]]
    spaces.write_text(json.dumps({"fine-tune": {"environment.modules": {"choices": places}, "steps": [1, 3]}}))
    settings = tmp_path / "settings"
    world.args.methods, world.args.spaces, world.args.settings = ("fine-tune",), str(spaces), str(settings)
    world.args.trials, world.args.write = 4, True
    tune.main(world.args)
    trials = [json.loads(line) for line in (world.args.out / "fine-tune.jsonl").read_text().splitlines()]
    assert {json.dumps(trial["environment"].get("modules")) for trial in trials[1:]} == set(map(json.dumps, places))
    best = max(trials, key=lambda trial: trial["score"])
    written = json.loads((settings / "fine-tune.json").read_text())
    assert written.get("environment", {}) == best["environment"]
    assert environment_of(f"fine-tune@{settings}") == best["environment"]
    assert all(1 <= trial["settings"]["steps"] <= 3 for trial in trials[1:])


def test_other_trials_and_the_test_split_are_refused(world):
    tune.main(world.args)
    world.args.seed = 1
    with pytest.raises(SystemExit, match="choose another --out"):
        tune.main(world.args)
    world.args.suite = "atlas-50x20"
    with pytest.raises(SystemExit, match="never made on the test split"):
        tune.main(world.args)
    world.args.suite, world.args.methods = "atlas-50x20-validation@25", ("nothing",)
    with pytest.raises(SystemExit, match="unknown method 'nothing'"):
        tune.main(world.args)


def test_settings_become_objects_and_unknown_ones_are_named():
    agent = build(MEMIT, {"weight": 3.0, "value": {"token": "last"}})
    assert agent.weight == 3.0
    assert agent.value.token == "last"
    nested = build(RLEdit, {"config": {"horizon": 7, "policy": {"rank": 5}}, "train": False})
    assert (nested.config.horizon, nested.config.policy.rank, nested.train) == (7, 5, False)
    assert build(FineTune, {"steps": 3}).steps == 3
    with pytest.raises(ValueError, match=r"LayerValueConfig has no setting 'value\.tokens'; known are token, steps"):
        build(MEMIT, {"value": {"tokens": "last"}})


def test_every_method_has_its_settings():
    for method in filter(takes_settings, ROWS):
        make_method(method, ROWS[method].read_settings())
