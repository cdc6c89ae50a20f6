import json
from dataclasses import replace

import pytest
import torch

from agents.hypernetwork.config import TrainConfig
from agents.hypernetwork.training import training_environment
from agents.rledit.agent import RLEdit
from agents.rledit.trainer import RLEditTrainer
from benchmarks import rl
from benchmarks.results.records import append
from benchmarks.rl import ALGORITHMS, FIGURES, Args, Judge, Meter, Run, main, read
from editenv.data import load_edits
from editenv.env import LifelongEditEnv
from editenv.evaluation import metrics
from editenv.evaluation.batch import encode_evaluation

RUN = Run(
    algorithm="rledit",
    seed=0,
    steps=150,
    seconds=40.0,
    stream=0,
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


def metered(updates, steps, seconds, judgements, judging_takes=50.0):
    """Points of a training whose updates come at ``(steps, seconds)``; and how many of them there were."""
    clock, agent = Clock(), object()

    def judge(judged):
        assert judged is agent
        clock.now += judging_takes
        return {"episode_return": clock.now}

    meter = Meter(steps, seconds, judgements, judge, clock=clock)
    before = 0.0
    for count, (at_step, at_second) in enumerate(updates, start=1):  # noqa: B007
        clock.now += at_second - before
        before = at_second
        if not meter(at_step, agent):
            break
    return [(point["steps"], point["seconds"]) for point in meter.points], count


def test_training_ends_when_both_budgets_are_spent():
    updates = [(0, 1), (10, 2), (20, 3), (30, 4), (40, 5), (50, 6)]
    assert metered(updates, 20, 4.0, 1)[1] == 4  # seconds come last
    assert metered(updates, 40, 2.0, 1)[1] == 5  # steps do


def test_judging_is_not_on_the_clock_and_comes_at_the_marks():
    updates = [(0, 1.0)] + [(10 * i, 1.0 + 0.125 * i) for i in range(1, 20)]
    points, _ = metered(updates, 80, 1.625, 2)
    # Half the seconds are spent before anything is learned; half the steps at 40; all seconds at 50; all steps at 80.
    assert [steps for steps, _ in points] == [0, 40, 50, 80]
    assert [seconds for _, seconds in points] == [1.0, 1.5, 1.625, 2.0]


def test_what_comes_after_a_budget_is_no_mark_of_it():
    points, _ = metered([(0, 0)] + [(10 * i, 1.0 * i) for i in range(1, 9)], 80, 1.0, 1)
    assert [steps for steps, _ in points] == [0, 10, 80]


def test_an_update_that_passes_several_marks_is_judged_once():
    assert [steps for steps, _ in metered([(0, 0), (80, 9), (160, 20)], 100, 10.0, 5)[0]] == [0, 80, 160]


def small(monkeypatch, model_folder):
    """The tiny model in place of the embedded one."""

    def make(**arguments):
        return LifelongEditEnv(**{"model": model_folder, "modules": ["layers.2.mlp.down_proj"]} | arguments)

    monkeypatch.setattr(rl, "LifelongEditEnv", make)
    return make


@pytest.mark.parametrize(("name", "steps"), [("rledit", 10), ("ppo", 60), ("sac", 40), ("cma-es", 20)])
def test_an_algorithm_trains_on_the_clock_from_the_policy_as_it_is_made(monkeypatch, model_folder, name, steps):
    if name == "cma-es":
        pytest.importorskip("cmaes", reason="the cma extra is not installed")
        monkeypatch.setattr(rl, "HORIZON", 2)  # of each of a dozen candidates
    small(monkeypatch, model_folder)
    monkeypatch.setattr(rl, "JUDGED_BATCHES", 2)
    monkeypatch.setattr(rl, "EDITS_PER_STEP", 2)
    some = load_edits("atlas", "train")[:200]  # drawing all of them anew takes longer than editing them
    monkeypatch.setattr("editenv.env.load_edits", lambda dataset, split, seed=None, options=None: some)
    points = {}
    for seed in (0, 0, 1):
        meter = Meter(steps, 0.01, 1, Judge(3))
        ALGORITHMS[name].train(seed, 1.0, meter)
        again = points.setdefault(seed, meter.points)
        # The same seed does the same; what the clock says is its own affair.
        assert [[p[f] for f in ("steps", *FIGURES)] for p in again] == [
            [p[f] for f in ("steps", *FIGURES)] for p in meter.points
        ]
    assert points[0][0]["steps"] == 0
    assert points[0][-1]["steps"] >= steps
    assert points[0][-1]["episode_return"] != points[0][0]["episode_return"]
    assert points[0][-1]["episode_return"] != points[1][-1]["episode_return"]


def test_the_judge_plays_the_validation_stream_and_looks_back_over_all_of_it(monkeypatch, model_folder):
    make = small(monkeypatch, model_folder)
    monkeypatch.setattr(rl, "JUDGED_BATCHES", 3)
    config = TrainConfig(horizon=2, edits_per_step=4, warm_up_batches=2)
    trainer = RLEditTrainer(training_environment(make(), config), config, 0, None)
    figures = [Judge(5)(RLEdit.of(trainer)) for _ in range(2)]
    assert figures[0] == figures[1]
    env = make(split="validation", edits_per_step=10, horizon=3)
    env.reset(seed=5)
    with torch.no_grad():
        total = sum(env.step(trainer.policy(env.gradients))[1] for _ in range(3))
    assert figures[0]["episode_return"] == pytest.approx(total, rel=1e-5)
    questions = encode_evaluation(env.language_model, list(env.edits_done))
    assert len(questions.edits) == 30
    expected = metrics.teacher_forced(env.language_model, questions).percentages()
    assert {name: figures[0][name] for name in metrics.METRICS} == {name: expected[name] for name in metrics.METRICS}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_rate_factor_multiplies_every_learning_rate_and_nothing_else(name):
    plain, other = (ALGORITHMS[name].settings(factor) for factor in (1.0, 0.5))
    rates = ("learning_rate", "scalar_learning_rate", "deviation")  # CMA-ES has no rate; its first steps are as long
    inner, changed = (settings.get("algorithm", settings) for settings in (plain, other))
    assert {key for key in inner if inner[key] != changed[key]} == set(rates) & set(inner)
    for rate in set(rates) & set(inner):
        assert changed[rate] == pytest.approx(inner[rate] / 2)
    assert json.loads(json.dumps(plain)) == plain


def test_runs_that_are_there_are_not_run_again(tmp_path, capsys):
    append(tmp_path / "rl.jsonl", RUN)
    before = (tmp_path / "rl.jsonl").read_bytes()
    assert main(Args(out=tmp_path, seeds="0", algorithms=("rledit",))) == 0
    assert "already there" in capsys.readouterr().out
    assert (tmp_path / "rl.jsonl").read_bytes() == before


def test_the_same_run_twice_is_refused(tmp_path):
    append(tmp_path / "rl.jsonl", RUN)
    append(tmp_path / "rl.jsonl", RUN)
    with pytest.raises(SystemExit, match=r"line 2: .* is there twice"):
        main(Args(out=tmp_path, seeds="0", algorithms=("rledit",)))


@pytest.mark.parametrize("change", [{"steps": 10}, {"seconds": 5.0}, {"stream": 1}, {"rate_factor": 0.3}])
def test_runs_of_another_budget_do_not_mix(tmp_path, change):
    append(tmp_path / "rl.jsonl", RUN)
    with pytest.raises(SystemExit, match="another --out"):
        main(replace(Args(out=tmp_path, seeds="0", algorithms=("rledit",)), **change))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"algorithms": ("rledit", "trpo")}, "trpo"),
        ({"seeds": "x"}, "'x'"),
        ({"steps": 0}, "steps"),
        ({"judgements": 0}, "judgements"),
    ],
)
def test_wrong_arguments_end_the_command(tmp_path, change, named):
    with pytest.raises(SystemExit, match=named):
        main(replace(Args(out=tmp_path), **change))
    assert not list(tmp_path.iterdir())


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
