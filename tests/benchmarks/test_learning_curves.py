import ast
import re

import pytest
from documents import ROOT

from benchmarks import learning_curves
from benchmarks.learning_curves import ALGORITHMS, Args, Curve, as_markdown, chart, environment, main, read
from editenv.data import load_edits
from editenv.wrappers import GradientStatistics, LayerStatistics, StepSizeAction

pytest.importorskip("stable_baselines3", reason="the sb3 extra is not installed")

PAGE = ROOT / "docs/reference/wrappers.md"


def calls(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield ast.unparse(node.func), node


def test_the_documented_lines_are_those_that_are_measured():
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    found = {
        name: {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg}
        for name, node in calls(block)
    }
    for name, settings in ALGORITHMS.items():
        assert found[name.upper()] == settings | {"device": "cpu"}
    env = environment(redraw=True)
    assert found["gym.make"].items() <= env.spec.kwargs.items()
    assert env.spec.kwargs["reward"] == "improvement"
    assert "LayerStatistics(GradientStatistics(StepSizeAction(env)))" in block
    assert [wrapper.name for wrapper in env.spec.additional_wrappers] == [
        "StepSizeAction",
        "GradientStatistics",
        "LayerStatistics",
    ]


def test_a_training_is_judged_before_and_along_it_and_made_once(make_env, tmp_path, monkeypatch):
    some = load_edits("atlas", "train")[:100]
    monkeypatch.setattr("editenv.env.load_edits", lambda dataset, split, seed=None, options=None: some)
    monkeypatch.setattr(learning_curves, "JUDGED_STREAMS", (0,))
    monkeypatch.setattr(
        learning_curves,
        "environment",
        lambda **arguments: LayerStatistics(
            GradientStatistics(StepSizeAction(make_env(reward="improvement", horizon=2, edits_per_step=2)))
        ),
    )
    out = tmp_path / "curves.jsonl"
    for _ in range(2):
        main(Args(out=out, algorithms=("ppo",), seeds="3", steps=50, judge_every=20))
    (curve,) = read(out)
    assert (curve.algorithm, curve.seed, curve.settings) == ("ppo", 3, ALGORITHMS["ppo"])
    assert [point["steps"] for point in curve.points] == [0, 20, 40, 50]
    assert all(-2 <= point["episode_return"] <= 2 for point in curve.points)
    seconds = [point["seconds"] for point in curve.points]
    assert seconds[0] == 0
    assert seconds == sorted(seconds)


def curve(algorithm, seed, returns):
    points = [{"steps": 50.0 * i, "seconds": 9.0 * i, "episode_return": value} for i, value in enumerate(returns)]
    return Curve(algorithm, seed, 100, {}, points, {})


def test_the_table_and_the_figure_have_all_seeds():
    curves = [curve("ppo", 0, [6.0, 7.0, 8.0]), curve("ppo", 1, [5.0, 7.0, 7.0]), curve("sac", 0, [4.0, 5.0, 7.5])]
    assert "| ppo | 1 | 5.00 | 7.00 | 7.00 | 18 |" in as_markdown(curves)
    (panel,) = chart(curves).panels
    assert [series.agent for series in panel.series] == ["ppo", "sac"]
    assert panel.series[0].y == (5.5, 7.0, 7.5)
    assert panel.series[0].spread == ((5.0, 6.0), (7.0, 7.0), (7.0, 8.0))


def test_what_is_published_learns():
    """As docs/reference/wrappers.md says: every seed of PPO ends above its first action, and most of SAC's."""
    gains = {"ppo": [], "sac": []}
    for item in read(ROOT / "docs/results/learning_curves.jsonl"):
        returns = [point["episode_return"] for point in item.points]
        gains[item.algorithm].append(returns[-1] - returns[0])
        assert item.points[-1]["steps"] == 400
    assert len(gains["ppo"]) == len(gains["sac"]) == 5
    assert min(gains["ppo"]) > 0.3
    assert sum(gain > 0.3 for gain in gains["sac"]) > len(gains["sac"]) / 2


def test_an_algorithm_that_there_is_not_is_named(tmp_path):
    with pytest.raises(SystemExit, match="there are ppo, sac"):
        main(Args(out=tmp_path / "curves.jsonl", algorithms=("dqn",)))
