"""The example of docs/guides/write_a_policy.md, as a benchmark runs it, on a tiny model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.registry import make_agent
from benchmarks.running.rollout import run
from benchmarks.suites import Suite

EXAMPLE = Path(__file__).parent.parent / "examples" / "my_policy.py"


@pytest.fixture
def agent():
    agent = make_agent(f"{EXAMPLE}:MyPolicy")
    agent.training = replace(agent.training, horizon=2, edits_per_step=3)
    return agent


def test_it_is_trained_and_judged_as_a_row(agent, model_folder, monkeypatch):
    # The tiny model has no edited modules of its own to name.
    monkeypatch.setattr("editenv.env.default_modules", lambda model, name: ["layers.2.mlp.down_proj"])
    suite = Suite("tiny", batches=2, edits_per_step=3, model=model_folder, split="validation")
    reports = []
    record = run(suite, "my_policy.py:MyPolicy", agent, 0, lambda *report: reports.append(report), probes=False)
    assert (record.edits, record.failures) == (6, 0)
    assert ("random search", 6, 6) in reports
    assert all(0 <= value <= 100 for value in record.teacher_forced.values() if value is not None)


def test_it_keeps_the_best_of_what_it_tried(agent, make_env):
    agent.prepare(make_env(split="train"), 3, lambda *_: None)
    chosen = agent.step, agent.ridge
    practice = make_env(split="train", redraw=True, horizon=2)
    returns = {}
    for step, ridge in 10.0 ** np.random.default_rng(3).uniform([-0.5, -2.0], [1.0, 0.0], (6, 2)):
        agent.step, agent.ridge = step, ridge
        _, info = practice.reset(seed=3)
        agent.begin(practice)
        rewards, done = [], False
        while not done:
            _, reward, terminated, truncated, info = practice.step(agent.act(practice.gradients, info))
            rewards.append(reward)
            done = terminated or truncated
        returns[step, ridge] = sum(rewards)
    assert len(returns) == 6
    assert returns[chosen] == pytest.approx(max(returns.values()), rel=1e-4)


def test_it_edits(agent, make_env):
    """The batch's loss is lower after the action than without one."""
    env, plain = make_env(), make_env()
    agent.step, agent.ridge = 0.5, 0.01
    _, info = env.reset(seed=0)
    plain.reset(seed=0)
    agent.begin(env)
    nothing = {name: np.zeros(space.shape, np.float32) for name, space in env.action_space.items()}
    edited = env.step(agent.act(env.gradients, info))[4]["reward_terms"]["edit"]
    assert edited < plain.step(nothing)[4]["reward_terms"]["edit"]


def test_the_papers_configuration_is_that_of_its_table_3():
    for name, rank, locality in (("LlamaZsRE", 1024, 0.6), ("MistralCounterFact", 1024, 0.8)):
        agent = make_agent(f"{EXAMPLE.parent / 'paper_8b.py'}:{name}")
        assert (agent.config.policy.rank, agent.config.locality) == (rank, locality)
        assert (agent.config.learning_rate, agent.config.memory_batches, agent.config.memory_decay) == (1e-5, 10, 0.95)
