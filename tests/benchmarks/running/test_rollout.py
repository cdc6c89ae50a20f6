import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from plain import answer_logits, edited_weights, mean

from agents.base import Agent
from agents.baselines.no_edit import NoEdit
from agents.baselines.ultraedit import UltraEdit
from benchmarks.running.recording import Recording, Replay
from benchmarks.running.rollout import mean_reward, run
from benchmarks.running.timing import time_floor, time_observation_and_update
from benchmarks.suites import Suite
from editenv.data import load_edits
from editenv.evaluation.metrics import METRICS
from editenv.language_model.activation_cache import ActivationCache
from editenv.language_model.cut import CutModel

LAST = "model.layers.2.mlp.down_proj"


@pytest.fixture
def whole_suite(model_folder, monkeypatch):
    """Three batches of two edits with the tiny model."""
    monkeypatch.setattr("editenv.env.default_modules", lambda model, name: ("layers.2.mlp.down_proj",))
    return Suite("micro", 3, 2, model=model_folder, split="validation")


@pytest.fixture
def suite(whole_suite):
    """The same with the figures that most tests look at: the others take two thirds of the time."""
    return replace(whole_suite, protocols=("teacher_forced", "generation"))


class Pusher(Agent):
    """Adds a known delta at each step, and notes whom it met."""

    def __init__(self, attempts=1, value=None):
        self.actions_per_batch, self.value = attempts, value
        self.met, self.steps = [], 0

    def begin(self, env):
        self.env = env

    def act(self, observation, info):
        self.met.append((info["batch"], info["attempt"], [whole_edit(edit) for edit in self.env.batch]))
        self.steps += 1
        if self.value is not None:
            return {LAST: torch.full((64, 32), self.value)}
        return {LAST: push(self.steps)}


def whole_edit(shown):
    """The edit with the prompts that it is judged by, which its agent is not shown."""
    assert not shown.rephrases
    return next(edit for edit in load_edits("atlas", "validation") if edit.id == shown.id)


def push(step):
    return 0.1 * torch.randn(64, 32, generator=torch.Generator().manual_seed(step))


def test_doing_nothing_keeps_everything(whole_suite):
    record = run(whole_suite, "nothing", NoEdit(), seed=0)
    assert (record.suite, record.agent, record.seed, record.dataset) == ("micro", "nothing", 0, "atlas/validation")
    assert record.edits == 6
    assert record.failures == 0
    for figures in (record.teacher_forced, record.immediate, *record.retention):
        assert figures["specificity"] == 100
    expected = {metric: record.teacher_forced[metric] for metric in METRICS}
    assert record.immediate == pytest.approx(expected, abs=0.01)
    assert record.drift["kl"] == pytest.approx(0, abs=1e-6)
    assert record.drift["perplexity"] == pytest.approx(record.drift["perplexity_before"])
    assert record.probes["distractor"] == 100
    assert record.wild["specificity"] == 100
    assert record.portability is None  # the embedded world has no such questions
    assert record.peak_memory_bytes > 10**7


def test_runs_of_one_search_run_the_frozen_layers_once(whole_suite, monkeypatch):
    prompts_run, cache = [], ActivationCache()

    def counted(model, ids, run=CutModel.frozen_output):
        prompts_run[-1] += len(ids)
        return run(model, ids)

    monkeypatch.setattr(CutModel, "frozen_output", counted)
    records = []
    for agent in (Pusher(), Pusher(), NoEdit()):
        prompts_run.append(0)
        records.append(run(whole_suite, "any", agent, 0, probes=False, activation_cache=cache))
    prompts_run.append(0)
    records.append(run(whole_suite, "any", Pusher(), 0, probes=False))
    first, second, _, alone = prompts_run
    assert second < 0.5 * first == 0.5 * alone, "the floor's timings and texts that nobody kept are run again"
    scores, again, nothing, uncached = (record.teacher_forced for record in records)
    assert again == pytest.approx(scores)
    assert uncached == pytest.approx(scores)
    assert nothing["specificity"] == 100 > scores["specificity"]


def test_what_an_agent_asks_on_its_own_is_not_shared_with_the_next(suite):
    """It is part of what the agent costs."""

    class Asker(Pusher):
        looks_at_model = True

        def act(self, observation, info):
            lm = self.env.language_model
            lm.encode(["A text of its own"], ["answer"])
            asked.update(lm.activation_cache._outputs)
            return super().act(observation, info)

    asked, cache = {}, ActivationCache()
    run(suite, "asker", Asker(), 0, probes=False, activation_cache=cache)
    own = [text for text in asked if text not in cache]
    assert len(own) == 1
    assert len(asked) == 1 + 6, "besides it knows the edits' own prompts"
    assert cache._outputs


def test_doing_nothing_keeps_everything_in_generation_too(suite):
    assert run(suite, "nothing", NoEdit(), seed=0).generation["specificity"] == 100


def forced_figures(model, tokenizer, edits, deltas):
    """Efficacy, generalization and specificity by the plain model, one question at a time."""
    weights = edited_weights(model, {LAST: deltas})

    def share(prompt, answer, old=False):
        logits, labels = answer_logits(model, tokenizer, prompt, answer, weights)
        if old:
            labels = answer_logits(model, tokenizer, prompt, answer)[0].argmax(-1)
        return float((logits.argmax(-1) == labels).float().mean())

    return {
        "efficacy": 100 * mean(share(e.prompt, e.target) for e in edits),
        "generalization": 100 * mean(mean(share(text, e.target) for text in e.rephrases) for e in edits),
        "specificity": 100 * mean(mean(share(x.prompt, x.answer, old=True) for x in e.locality) for e in edits),
        "locality_accuracy": 100 * mean(mean(share(x.prompt, x.answer) for x in e.locality) for e in edits),
    }


@pytest.mark.parametrize("attempts", [1, 2])
def test_figures_are_those_of_the_plain_model_at_the_right_moment(suite, base, tokenizer, attempts):
    agent = Pusher(attempts)
    record = run(suite, "pusher", agent, seed=3)
    assert [(batch, attempt) for batch, attempt, _ in agent.met] == [(b, a) for b in range(3) for a in range(attempts)]
    batches = [edits for _, attempt, edits in agent.met if attempt == 0]
    after = [sum(push(i + 1) for i in range(attempts * (b + 1))) for b in range(3)]
    everything = [edit for batch in batches for edit in batch]
    assert record.edits == len({edit.id for edit in everything}) == 6
    assert record.teacher_forced == pytest.approx(forced_figures(base, tokenizer, everything, after[2]), abs=0.01)
    assert record.teacher_forced["specificity"] < 100
    immediate = [forced_figures(base, tokenizer, batch, total) for batch, total in zip(batches, after, strict=True)]
    assert record.immediate == pytest.approx({k: mean(row[k] for row in immediate) for k in METRICS}, abs=0.01)
    assert [point["edits"] for point in record.retention] == [2, 4, 6]
    for i, point in enumerate(record.retention):
        so_far = [edit for batch in batches[: i + 1] for edit in batch]
        expected = forced_figures(base, tokenizer, so_far, after[i])
        assert {k: point[k] for k in expected} == pytest.approx(expected, abs=0.01)


def test_the_seed_orders_the_stream(suite):
    agents = [Pusher(), Pusher(), Pusher()]
    first, second, _ = (run(suite, "pusher", agent, seed) for agent, seed in zip(agents, (1, 1, 2), strict=True))
    assert agents[0].met == agents[1].met != agents[2].met
    assert first.teacher_forced == second.teacher_forced
    assert first.generation == second.generation


@pytest.mark.parametrize("attempts", [1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refused_actions_are_counted_as_failed_edits(suite, attempts, value):
    record = run(suite, "broken", Pusher(attempts, value), seed=0)
    assert record.failures == record.edits == 6
    assert record.teacher_forced["specificity"] == 100


def test_a_method_that_cannot_solve_has_failed_and_the_batch_has_left_nothing(suite, tmp_path):
    class Unsolvable(Pusher):
        taken = 0

        def act(self, observation, info):
            if info["batch"] == 1:
                torch.linalg.eigh(torch.full((3, 3), float("nan")))
            return super().act(observation, info)

        def revert_batch(self):
            self.taken += 1

    agent = Unsolvable()
    record = run(suite, "unsolvable", agent, seed=0, recording=(recording := Recording()))
    assert (record.failures, agent.taken) == (2, 1)
    assert [step for step, _, _ in agent.met] == [0, 2]
    recording.write(tmp_path / "deltas.safetensors")
    replayed = run(suite, "unsolvable", Replay(tmp_path / "deltas.safetensors", 1), seed=0)
    assert replayed.failures == 2
    assert replayed.teacher_forced == record.teacher_forced


@pytest.mark.parametrize("broken", [(0, 0), (1, 0), (1, 1)])
def test_an_agent_goes_on_after_one_of_several_actions_was_refused(suite, broken):
    """A part of the batch stays in the model, and in what the agent keeps of it."""

    class Breaks(UltraEdit):
        seen = 0

        def act(self, observation, info):
            deltas = super().act(observation, info)
            self.seen = int(self._normalizers[LAST].count)
            if (info["batch"], info["attempt"]) == broken:
                return {name: torch.full((64, 32), float("nan")) for name in deltas}
            return deltas

    agents = Breaks(actions_per_batch=2), UltraEdit(actions_per_batch=2)
    records = [run(suite, "breaks", agent, seed=0) for agent in agents]
    assert [record.failures for record in records] == [2, 0]
    assert agents[0].seen == int(agents[1]._normalizers[LAST].count)


def test_edits_that_break_the_model_are_counted_as_failed(suite):
    """Every entry is finite, and what the model says afterwards is not."""
    record = run(suite, "breaker", Pusher(value=3e38), seed=0)
    assert record.failures > 0


def test_an_agents_own_mistakes_are_not_hidden(suite):
    class Mistaken(Pusher):
        def act(self, observation, info):
            return {"elsewhere": np.zeros((64, 32))}

    with pytest.raises(ValueError, match="elsewhere"):
        run(suite, "mistaken", Mistaken(), seed=0)


def test_progress_is_told(suite):
    reports = []
    run(suite, "nothing", NoEdit(), 0, lambda *step: reports.append(step))
    assert [step for step in reports if step[0] == "editing"] == [("editing", i, 3) for i in (1, 2, 3)]
    assert reports[0] == ("preparing", 0, 3)
    assert reports[-1] == ("judging", 3, 3)


def test_timing_leaves_the_model_as_it_was(make_env):
    env = make_env()
    env.reset(seed=0)
    action = {name: torch.ones(64, 32) for name in env.language_model.modules}
    env.step({name: 0.01 * delta for name, delta in action.items()})
    before, gradients = env.language_model.snapshot(), env.gradients
    assert time_observation_and_update(env, action) > 0
    assert time_observation_and_update(env, {name: delta * torch.nan for name, delta in action.items()}) > 0
    assert time_floor(env) > 0
    for name, weight in env.language_model.snapshot().items():
        assert torch.equal(weight, before[name])
    env.refresh()
    for name, gradient in env.gradients.items():
        assert torch.equal(gradient.value_grads, gradients[name].value_grads)


def test_the_mean_reward_is_a_mean_and_none_if_one_is_not_finite():
    assert mean_reward([-1.0, -2.0]) == -1.5
    assert mean_reward([-1.0, math.nan]) is None
