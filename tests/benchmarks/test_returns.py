import json

import numpy as np
import pytest
import torch

from benchmarks import returns
from benchmarks.results.records import append
from benchmarks.returns import POLICIES, Args, Play, as_markdown, main, play_policy, read
from editenv.deltas import LowRank

MODULES = ["model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"]


@pytest.fixture
def env(make_env):
    return make_env(reward="improvement")


def test_no_edit_earns_nothing_and_changes_nothing(env):
    item = play_policy("no-edit", env, 0)
    assert item.episode_return == pytest.approx(0, abs=1e-4)
    assert (item.steps, item.horizon, item.edits_per_step) == (3, 3, 3)
    assert item.scores["specificity"] == 100
    assert item.loss_return < -1


def test_a_gradient_step_is_that_of_autograd(env, monkeypatch):
    monkeypatch.setattr(returns, "GRADIENT_RATE", 0.25)
    env.reset(seed=0)
    _, act = POLICIES["gradient-step"][1](env, 0)
    for name, delta in act(None).items():
        gradient = env.gradients[name]
        assert isinstance(delta, LowRank)
        torch.testing.assert_close(delta.dense(), -0.25 * gradient.keys.T @ gradient.value_grads)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_acts_in_its_space_and_the_same_for_a_seed(env, name):
    actions = []
    for _ in range(2):
        env.reset(seed=0)
        wrapped, act = POLICIES[name][1](env, 5)
        actions.append(act(None))
        wrapped.step(actions[-1])
    first, second = ([*action.values()] if isinstance(action, dict) else [action] for action in actions)
    for one, other in zip(first, second, strict=True):
        dense = [part.dense() if isinstance(part, LowRank) else torch.as_tensor(part) for part in (one, other)]
        assert torch.equal(*dense)


def test_a_policy_that_breaks_the_model_has_no_scores(env, monkeypatch):
    monkeypatch.setattr(returns, "GRADIENT_RATE", 1e6)
    item = play_policy("gradient-step", env, 0)
    assert (item.episode_return, item.steps) == (-3.0, 1)
    assert set(item.scores.values()) == {None}


def test_the_command_plays_what_is_missing(make_env, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(returns.gym, "make", lambda name, **arguments: make_env(reward="improvement", **arguments))
    out = tmp_path / "returns.jsonl"
    arguments = {"out": out, "edits_per_step": 2, "horizon": 2}
    main(Args(policies=("no-edit",), seeds="0", **arguments))
    first = out.read_text()
    main(Args(policies=("no-edit", "constant"), seeds="0-1", **arguments))
    assert out.read_text().startswith(first)
    plays = read(out)
    assert [(item.policy, item.seed) for item in plays] == [
        ("no-edit", 0), ("constant", 0), ("no-edit", 1), ("constant", 1),
    ]  # fmt: skip
    shown = capsys.readouterr().out
    assert "| no-edit: zeros | 2 | 2 |" in shown
    mean = np.mean([item.episode_return for item in plays if item.policy == "constant"])
    assert f"| {mean:.2f} [" in shown
    with pytest.raises(SystemExit, match="there are no-edit, random"):
        main(Args(out=out, policies=("nothing",)))


def test_lines_that_are_no_plays_are_named(tmp_path):
    path = tmp_path / "returns.jsonl"
    item = Play("no-edit", 0, 5, 10, 10, 0.0, -300.0, {"efficacy": 1.0, "generalization": 1.0, "specificity": 1.0}, {})
    append(path, item)
    assert read(path) == [item]
    path.write_text(path.read_text() + json.dumps({"policy": "no-edit"}) + "\n")
    with pytest.raises(ValueError, match="line 2"):
        read(path)
    assert as_markdown([item]).splitlines()[-1].endswith("| 0.00 [0.00, 0.00] | 10.0 | -300 | 1 / 1 / 1 |")
