import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from benchmarks import learning_curves, rl
from benchmarks.results.records import append
from benchmarks.returns import BEST_CONSTANT
from benchmarks.rl import (
    ALGORITHMS,
    CHOSEN,
    FIGURES,
    Args,
    CachedStreams,
    ConstantAgent,
    Judge,
    Meter,
    Run,
    empty_run,
    main,
    marks_up_to,
    read,
    run_one,
)
from editenv.data import load_edits
from editenv.env import LifelongEditEnv
from editenv.evaluation import metrics
from editenv.evaluation.batch import encode_evaluation
from editenv.wrappers import StepSizeAction

RUN = Run(
    algorithm="rledit",
    seed=0,
    steps=10_000,
    streams=[0, 1, 2],
    rate_factor=1.0,
    settings={"horizon": 10},
    points=[{"steps": 0.0, "seconds": 3.0} | dict.fromkeys(FIGURES, 1.0)],
    versions={},
)


class Clock:
    """Tells the time that it is told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def metered(updates, marks):
    """Points of a training whose updates come at ``(steps, seconds)``; how many there were, and what was kept."""
    clock, agent, kept = Clock(), object(), []

    def judge(judged):
        assert judged is agent
        clock.now += 50.0
        return {"episode_return": clock.now}

    meter = Meter(marks, judge, lambda points: kept.append(len(points)), clock=clock)
    before = 0.0
    for count, (at_step, at_second) in enumerate(updates, start=1):  # noqa: B007
        clock.now += at_second - before
        before = at_second
        if not meter(at_step, agent):
            break
    return [(point["steps"], point["seconds"]) for point in meter.points], count, kept


def test_a_policy_is_judged_at_the_first_update_after_each_mark_and_judging_is_not_on_the_clock():
    updates = [(160 * i, 1.0 + i) for i in range(20)]
    points, count, kept = metered(updates, (0, 100, 300, 1000))
    assert points == [(0, 1.0), (160, 2.0), (320, 3.0), (1120, 8.0)]
    assert count == 8, "the budget ends the training"
    assert kept == [1, 2, 3, 4], "each point is kept as it comes"


def test_an_update_that_passes_several_marks_is_judged_once():
    assert metered([(0, 0.0), (400, 2.0), (1000, 3.0)], (0, 100, 300, 1000))[0] == [(0, 0.0), (400, 2.0), (1000, 3.0)]


def test_marks_end_with_the_budget():
    assert marks_up_to(10_000) == (0, 100, 300, 1000, 3000, 10_000)
    assert marks_up_to(500) == (0, 100, 300, 500)


@pytest.fixture
def small(monkeypatch, model_folder):
    """The tiny model in place of the embedded one, and short episodes."""

    def shortened(horizon):
        setting = {"edits_per_step": 2, "horizon": horizon, "reward": "improvement"}
        monkeypatch.setattr(rl, "SETTING", setting | {"model": model_folder, "modules": ["layers.2.mlp.down_proj"]})

    some = load_edits("atlas", "train")[:60]
    monkeypatch.setattr("editenv.env.load_edits", lambda dataset, split, seed=None, options=None: some)
    shortened(2)
    return shortened


@pytest.mark.parametrize(("name", "steps"), [("rledit", 10), ("sac", 35), ("cma-es", 20)])
def test_an_algorithm_trains_from_the_policy_as_it_is_made(small, name, steps):
    small(10 if name == "rledit" else 2)  # whose config has the whole horizon
    pytest.importorskip("cmaes", reason="the cma extra is not installed")
    pytest.importorskip("stable_baselines3", reason="the sb3 extra is not installed")
    points = {}
    env, judge = rl.training_streams(), Judge([3])
    for seed in (0, 0, 1):
        meter = Meter((0, steps), judge)
        ALGORITHMS[name].train(env, seed, 1.0, meter)
        again = points.setdefault(seed, meter.points)
        # The same seed does the same on prompts met before, up to last bits; the clock is its own affair.
        for figure in ("steps", *FIGURES):
            assert [p[figure] for p in again] == pytest.approx([p[figure] for p in meter.points], rel=1e-3), figure
    assert points[0][0]["steps"] == 0
    assert points[0][-1]["steps"] >= steps
    assert points[0][-1]["episode_return"] != points[0][0]["episode_return"]
    assert points[0][-1]["episode_return"] != points[1][-1]["episode_return"]


def test_an_on_policy_algorithm_is_judged_after_it_has_learned_from_the_rollout(small):
    """PPO's rollouts are of 50 steps: at 50 and at 100 it is what the rollouts up to there have made of it."""
    pytest.importorskip("stable_baselines3", reason="the sb3 extra is not installed")
    meter = Meter(
        (0, 50, 100), lambda agent: {"sum": float(sum(p.detach().abs().sum() for p in agent.model.policy.parameters()))}
    )
    ALGORITHMS["ppo"].train(rl.training_streams(), 0, 1.0, meter)
    judged = [point["sum"] for point in meter.points]
    assert [point["steps"] for point in meter.points] == [0, 50, 100]
    assert len(set(judged)) == 3


def test_the_judge_plays_the_validation_streams_and_looks_back_over_all_of_them(small):
    small(3)
    figures = [Judge([5, 6])(ConstantAgent(0.2, -0.5)) for _ in range(2)]
    assert figures[0] == figures[1]
    env = StepSizeAction(LifelongEditEnv(split="validation", **rl.SETTING))
    returns, scores = [], []
    for stream in (5, 6):
        env.reset(seed=stream)
        returns.append(sum(env.step(np.array([0.2, -0.5]))[1] for _ in range(3)))
        editing = env.unwrapped
        questions = encode_evaluation(editing.language_model, list(editing.edits_done))
        assert len(questions.edits) == 6
        scores.append(metrics.teacher_forced(editing.language_model, questions).percentages())
    assert figures[0]["episode_return"] == pytest.approx(np.mean(returns), rel=1e-5)
    for name in metrics.METRICS:
        assert figures[0][name] == pytest.approx(np.mean([one[name] for one in scores])), name


def test_a_policy_that_breaks_the_model_earns_minus_the_steps(small):
    small(3)
    assert Judge([5])(ConstantAgent(6.0, -6.0))["episode_return"] == -3


def test_streams_keep_what_the_frozen_layers_made(small):
    env = CachedStreams(split="train", **rl.SETTING)
    env.reset(seed=0)
    prompt = next(iter(env.language_model.activation_cache._outputs))
    env.reset(seed=1)
    assert prompt in env.language_model.activation_cache


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_rate_factor_multiplies_every_learning_rate_and_nothing_else(name):
    plain, other = (ALGORITHMS[name].settings(factor) for factor in (1.0, 0.5))
    rates = {"learning_rate", "scalar_learning_rate", "deviation"}  # CMA-ES has no rate; its first steps are as long
    changed = {key for key in plain if plain[key] != other[key]}
    assert changed == rates & set(plain)
    for rate in changed:
        assert other[rate] == pytest.approx(plain[rate] / 2)
    assert json.loads(json.dumps(plain)) == plain


def test_ppo_and_sac_have_the_documented_settings_but_for_the_rate():
    for name in ("ppo", "sac"):
        documented = learning_curves.ALGORITHMS[name]
        assert ALGORITHMS[name].keywords | {"learning_rate": 0} == documented | {"learning_rate": 0}
    assert (ALGORITHMS["best-constant"].step, ALGORITHMS["best-constant"].ridge) == BEST_CONSTANT


def test_a_run_s_points_are_on_disk_before_it_is_done_and_a_line_afterwards(small, tmp_path):
    seen = []

    class Watched:
        def settings(self, rate_factor):
            return {"rate": rate_factor}

        def train(self, env, seed, rate_factor, meter):
            for steps in (0, 100, 200):
                meter(steps, ConstantAgent(0.0, 0.0))
                (file,) = (tmp_path / "unfinished").iterdir()
                seen.append(json.loads(file.read_text()))

    judge = Judge([0])
    run = run_one(Watched(), empty_run("ppo", 4, 200, 3.0, judge), tmp_path, None, judge)
    assert [len(one["points"]) for one in seen] == [1, 2, 3]
    assert seen[-1] == asdict(run)
    assert read(tmp_path / "rl.jsonl") == [run]
    assert not list((tmp_path / "unfinished").iterdir())


def test_runs_that_are_there_are_not_run_again(tmp_path, capsys):
    append(tmp_path / "rl.jsonl", replace(RUN, rate_factor=CHOSEN["rledit"]))
    before = (tmp_path / "rl.jsonl").read_bytes()
    assert main(Args(out=tmp_path, seeds="0", algorithms=("rledit",))) == 0
    assert "1 of 1 runs are there" in capsys.readouterr().out
    assert (tmp_path / "rl.jsonl").read_bytes() == before


def test_the_same_run_twice_is_refused(tmp_path):
    append(tmp_path / "rl.jsonl", RUN)
    append(tmp_path / "rl.jsonl", replace(RUN, rate_factor=0.3))
    append(tmp_path / "rl.jsonl", replace(RUN, steps=500))
    assert len(read(tmp_path / "rl.jsonl")) == 3
    append(tmp_path / "rl.jsonl", RUN)
    with pytest.raises(SystemExit, match=r"line 4: .* is there twice"):
        main(Args(out=tmp_path, seeds="0", algorithms=("rledit",)))


def test_runs_judged_on_other_streams_do_not_mix(tmp_path):
    append(tmp_path / "rl.jsonl", RUN)
    with pytest.raises(SystemExit, match="another --out"):
        main(Args(out=tmp_path, seeds="0", algorithms=("rledit",), streams="1"))


@pytest.mark.parametrize(
    ("change", "named"),
    [({"algorithms": ("rledit", "trpo")}, "trpo"), ({"seeds": "x"}, "'x'"), ({"streams": "y"}, "'y'")],
)
def test_wrong_arguments_end_the_command(tmp_path, change, named):
    with pytest.raises(SystemExit, match=named):
        main(replace(Args(out=tmp_path), **change))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"rate_factors": (0.0,)}])
def test_budgets_and_rates_are_positive(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Args(out=tmp_path, **wrong)


@pytest.mark.parametrize("line", ["{", "[]", '{"algorithm": "rledit"}', None])
def test_what_is_no_run_is_refused(tmp_path, line):
    path = tmp_path / "rl.jsonl"
    append(path, RUN)
    assert read(path) == [RUN]
    if line is None:
        append(path, replace(RUN, points=[{"steps": 1.0}]))
    else:
        path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"rl\.jsonl, line 2"):
        read(path)
