"""Names of version 0.1 go on working, and say what they are called now."""

import importlib
import runpy
import subprocess
import sys
import warnings

import pytest

from editenv.renamed import MODULES, renamed_keywords, renamed_options


@pytest.mark.parametrize("old", MODULES)
def test_an_old_module_is_the_new_one(old):
    if old in ("agents.sb3_streams",):
        pytest.importorskip("stable_baselines3")
    if old == "benchmarks.ray_runner":
        pytest.importorskip("ray")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        sys.modules.pop(old, None)
        module = importlib.import_module(old)
    assert module is importlib.import_module(MODULES[old])
    assert module.__name__ == module.__spec__.name == MODULES[old]
    assert any(f"module {old} is now {MODULES[old]}" in str(warning.message) for warning in told)


def test_names_are_imported_from_old_modules():
    """In a fresh interpreter, which shows the warning by itself; of a module that is quick to import."""
    code = "from editenv.whole_files import atomic_write; from editenv import whole_files"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "editenv.whole_files is now editenv.atomic_files" in ran.stderr


def test_an_old_command_runs_the_new_one(monkeypatch, capsys):
    """As ``python -m`` does, in this process, which has imported torch."""
    monkeypatch.setattr("sys.argv", ["agents.online", "--help"])
    for name in ("agents.online", "agents.rl.online"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(SystemExit) as end:
        runpy.run_module("agents.online", run_name="__main__", alter_sys=True)
    assert not end.value.code
    shown = capsys.readouterr()
    assert "note: python -m agents.online is now python -m agents.rl.online" in shown.err
    assert "FutureWarning" not in shown.err
    assert "Online RLEdit" in shown.out


def test_what_never_was_is_not_there():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("agents.no_such_module")


def test_old_options_become_new_ones(capsys):
    words = ["edit", "--end-of-answer", "--no-end-of-answer", "--end_of_answer=True", "--model", "end-of-answer"]
    assert renamed_options(words) == ["edit", "--train-eos", "--no-train-eos", "--train-eos=True", *words[4:]]
    assert "--end-of-answer is now called --train-eos" in capsys.readouterr().err


def test_old_keywords_become_new_ones_and_others_are_refused():
    with pytest.warns(FutureWarning, match="f: end_of_answer is now called train_eos"):
        assert renamed_keywords("f", {"end_of_answer": True}) == {"train_eos": True}
    with pytest.raises(TypeError, match="f got an unexpected keyword argument 'speed'"):
        renamed_keywords("f", {"speed": 1})


OLD_POLICY = """
import torch

from agents.base import Agent
from agents.policy_gradient import TrainConfig, training_environment
from editenv.deltas import ridge_regression


class Mine(Agent):
    learns = True

    def prepare(self, env, seed, progress):
        practice = training_environment(env, TrainConfig(horizon=1, edits_per_step=3))
        observation, info = practice.reset(seed=seed, options={"keep_encodings": True})
        self.begin(practice)
        practice.step(self.act(observation, info))

    def begin(self, env):
        self.env = env

    def act(self, observation, info):
        return {
            name: ridge_regression(g.keys, -torch.nn.functional.normalize(g.value_grads), 1.0)
            for name, g in self.env.gradients.items()
        }


class ReadsNumpy(Mine):
    def act(self, observation, info):
        return {name: part["keys"].T @ part["value_grads"] for name, part in observation.items()}
"""


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_policy_written_for_version_0_1_works_or_is_told_what_to_write(make_env, tmp_path):
    from agents.registry import make_agent

    (tmp_path / "mine.py").write_text(OLD_POLICY)
    agent = make_agent(f"{tmp_path}/mine.py:Mine")
    agent.prepare(make_env(split="train"), 0, lambda *_: None)
    env = make_env()
    _, info = env.reset(seed=0)
    agent.begin(env)
    _, reward, *_ = env.step(agent.act(env.gradients, info))
    assert reward < 0
    with pytest.raises(TypeError, match=r"observation\[module\].keys and .value_grads"):
        make_agent(f"{tmp_path}/mine.py:ReadsNumpy").act(env.gradients, info)
