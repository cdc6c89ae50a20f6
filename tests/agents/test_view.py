"""What an agent can get at, tried by an agent that takes all it can reach."""

import types

import pytest
import torch

from agents.base import Agent
from agents.baselines.target_loss import edit_prompts
from agents.registry import make_agent
from agents.view import Actor, AgentView
from benchmarks.running.rollout import run, share_cache
from benchmarks.suites import Suite
from editenv.data import Edit
from editenv.env import LifelongEditEnv
from editenv.evaluation.batch import PROMPT, EvaluationBatch
from editenv.language_model.activation_cache import ActivationCache
from editenv.rewards import Reward


class Blind(Agent):
    """Sees the observation and what every agent sees."""

    takes_all = False

    def begin(self, env):
        self.env = env

    def act(self, observation, info):
        self.got = reachable([self, observation, info]) if self.takes_all else []
        return {name: torch.zeros(g.keys.shape[1], g.value_grads.shape[1]) for name, g in observation.items()}


class Looking(Blind):
    looks_at_model = True


class Ahead(Looking):
    looks_ahead = True


def reachable(start, limit=400_000):
    """All objects that attributes, containers, closures and bound methods lead to from here.

    Classes, modules and a function's globals are left out, as are frames and the garbage collector: through those
    any Python program reaches all of its process.
    """
    known, stack = {}, [start]
    while stack:
        one = stack.pop()
        if id(one) in known or isinstance(one, type | types.ModuleType | int | float | bytes | None):
            continue
        known[id(one)] = one
        assert len(known) < limit
        if isinstance(one, str):
            continue
        if isinstance(one, dict):
            stack += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            stack += one
        elif isinstance(one, types.FunctionType):
            stack += [cell.cell_contents for cell in one.__closure__ or ()] + list(one.__defaults__ or ())
        elif isinstance(one, types.MethodType):
            stack += [one.__self__, one.__func__]
        elif isinstance(one, torch.Tensor):
            stack += [one._base] if one._base is not None else []
        else:
            stack += vars(one).values() if hasattr(one, "__dict__") else []
            for kind in type(one).__mro__:
                slots = kind.__dict__.get("__slots__", ())
                for slot in [slots] if isinstance(slots, str) else slots:
                    stack.append(getattr(one, slot, None))
            stack += [getattr(one, name, None) for name in ("__wrapped__", "unwrapped", "func")]
    return list(known.values())


def judged_texts(env):
    """The questions about the whole stream that are judged, and the prompts that are still to come."""
    shown = {edit.prompt for edit in env.batch}
    questions = {text for edit in env._edits for text in (*edit.rephrases, *(item.prompt for item in edit.locality))}
    return questions, {edit.prompt for edit in env._edits} - shown


@pytest.fixture
def env(make_env, small_world):
    env = make_env(dataset="small", train_eos=True)
    env.reset(seed=0)
    return env


@pytest.mark.parametrize("kind", [Blind, Looking, Ahead])
def test_nothing_that_is_judged_can_be_reached(env, kind):
    """From the view, the observation, the info, and the model where it is shown."""
    questions, coming = judged_texts(env)
    lm, cache = env.language_model, ActivationCache()
    whole_stream = [text for edit in env._edits for text in (edit.prompt, *edit.rephrases)]
    share_cache(lm, cache)
    lm.encode(whole_stream, ["Oslo"] * len(whole_stream))  # as an earlier run may have left it
    actor = Actor(env, kind())
    actor.agent.takes_all = True
    actor.begin()
    actor.act(*actor.look())
    got = actor.agent.got
    texts = {one for one in got if isinstance(one, str)}
    assert {edit.prompt for edit in env.batch} <= texts, "the walk sees what there is"
    assert not texts & questions
    assert kind is Ahead or not texts & coming
    assert not [one for one in got if isinstance(one, LifelongEditEnv) and not isinstance(one, AgentView)]
    assert not [one for one in got if isinstance(one, Reward | Actor)]
    assert not [one for one in got if isinstance(one, EvaluationBatch) and (one.kind != PROMPT).any()]
    assert not any(one is cache for one in got)
    edits = [one for one in got if isinstance(one, Edit)]
    assert edits
    assert not [edit for edit in edits if edit.rephrases or edit.locality]


def test_the_walk_finds_what_an_environment_would_give(env):
    """What the test above is worth: from the environment itself all of it is reached."""
    questions, coming = judged_texts(env)
    assert questions | coming <= {one for one in reachable(env) if isinstance(one, str)}


HIDDEN = (
    "evaluation_batch",
    "reward",
    "_batch",
    "_edits",
    "dataset",
    "edits_done",
    "history",
    "judge",
    "longest_stream",
)


def reach(view, name):
    """What is there under this name; a method is called."""
    value = getattr(view, name)
    return value({}) if callable(value) else value


@pytest.mark.parametrize("name", HIDDEN)
def test_what_is_not_shown_is_said_to_be_hidden(env, name):
    view = AgentView(env, Ahead())
    if name == "edits_done":
        assert all(not edit.rephrases for edit in view.edits_done), "of what is shown"
        return
    with pytest.raises(AttributeError, match="not shown"):
        reach(view, name)


@pytest.mark.parametrize(
    "call", [lambda v: v.reset(), lambda v: v.step({}), lambda v: v.present(v.batch), lambda v: v.judge({})]
)
def test_a_view_cannot_be_stepped(env, call):
    with pytest.raises((AttributeError, RuntimeError)):
        call(AgentView(env, Ahead()))
    assert env.batches_done == 0


def test_what_is_declared_is_shown(env):
    blind, looking, ahead = (AgentView(env, kind()) for kind in (Blind, Looking, Ahead))
    for name in ("language_model", "training_targets"):
        with pytest.raises(AttributeError, match="looks_at_model = True"):
            getattr(blind, name)
    assert looking.language_model is env.language_model
    assert len(blind.stream) == len(env.stream)
    for read in (lambda: looking.stream[0], lambda: looking.stream[:2], lambda: list(looking.stream)):
        with pytest.raises(PermissionError, match="looks_ahead"):
            read()
    assert [edit.prompt for edit in ahead.stream] == [edit.prompt for edit in env.stream]
    assert edit_prompts(looking.training_targets).labels.equal(edit_prompts(env.training_targets).labels)
    assert edit_prompts(looking.training_targets).hidden.equal(edit_prompts(env.training_targets).hidden)


def test_the_info_says_where_the_stream_stands_and_no_figures(env):
    actor = Actor(env, Blind())
    actor.begin()
    observation, info = actor.look()
    assert info == {"batch": 0, "attempt": 0, "edits": 0}
    env.step(actor.agent.act(observation, info))
    assert actor.look()[1] == {"batch": 1, "attempt": 0, "edits": 3}
    assert actor.agent.env.batch[0].prompt == env.batch[0].prompt


class Cheat(Looking):
    """Learns in its first action all that is coming, with its rephrases."""

    def act(self, observation, info):
        for edit in self.env.stream:
            self.env.language_model.encode(list(edit.rephrases), [edit.target] * len(edit.rephrases))
        return super().act(observation, info)


def test_an_agent_that_reads_the_stream_comes_to_nothing(model_folder):
    suite = Suite("micro", 3, 2, model=model_folder, split="validation", modules=("layers.2.mlp.down_proj",))
    with pytest.raises(PermissionError, match="looks_ahead"):
        run(suite, "cheat", Cheat(), 0, probes=False)


@pytest.mark.parametrize("name", ["no-edit", "fine-tune", "ft-l", "ultraedit", "stableedit", "lora"])
def test_a_row_does_through_its_view_what_it_did_with_the_environment(make_env, small_world, name):
    if name == "lora":
        pytest.importorskip("peft")
    changes = []
    for through_view in (True, False):
        agent = make_agent(name)
        if hasattr(agent, "warm_up_batches"):
            agent.warm_up_batches = 2
        agent.prepare(make_env(dataset="small"), 0, lambda *_: None)
        env = make_env(dataset="small", actions_per_batch=agent.actions_per_batch)
        _, info = env.reset(seed=1)
        actor = Actor(env, agent)
        actor.begin() if through_view else agent.begin(env)
        done = False
        while not done:
            action = agent.act(*actor.look()) if through_view else agent.act(env.gradients, info)
            _, _, terminated, truncated, info = env.step(action)
            done = terminated or truncated
        changes.append({module: env.language_model.weight(module).clone() for module in env.language_model.modules})
    assert all(changes[0][module].equal(changes[1][module]) for module in changes[0])
