"""memit-reworded: values searched for other wordings of a fact, which training edits show."""

from dataclasses import replace

import pytest
import torch
from plain import tokens

from agents.baselines import memit_reworded
from agents.baselines.lookup import look_up
from agents.baselines.memit_rehearsed import RehearsedMEMIT
from agents.baselines.memit_reworded import RewordedMEMIT
from agents.baselines.rewordings import Rewordings
from agents.baselines.values import LayerValueConfig
from editenv.data import Edit
from editenv.deltas import dense

MIDDLE = "layers.1.mlp.down_proj"
NAME = f"model.{MIDDLE}"
VALUE = LayerValueConfig(learning_rate=0.3, steps=40, clamp=8.0, weight_decay=0.0, kl=0.0, prefixes=1)
TRAINING = [
    Edit("t0", "The home of Nia is", "place", rephrases=("So, people find Nia at",), subject="Nia", relation="home"),
    Edit("t1", "The house of Sol is in", "work", rephrases=("Sol and Sol live at",), subject="Sol", relation="home"),
    Edit("t2", "Omar speaks", "language", rephrases=("The language of Omar is",), subject="Omar"),
    Edit("t3", "Nobody speaks", "language", rephrases=("No language is spoken by",)),
]
EDIT = Edit("a", "The home of Ada is", "place", subject="Ada", relation="home")


def prompts(edits):
    return [edit.prompt for edit in edits]


# -- which wordings belong together


def test_rephrases_of_the_own_wording_come_first_and_then_those_of_the_relation():
    rewordings = Rewordings(TRAINING)
    assert prompts(rewordings.of(EDIT, 1)) == ["So, people find Ada at"]
    assert prompts(rewordings.of(EDIT, 5)) == ["So, people find Ada at", "The house of Ada is in"]
    assert [edit.target for edit in rewordings.of(EDIT, 2)] == ["place", "place"]
    unrelated = replace(EDIT, relation=None)
    assert prompts(rewordings.of(unrelated, 5)) == ["So, people find Ada at"]
    spoken = Edit("b", "The house of Ada is in", "work", subject="Ada")
    assert rewordings.of(spoken, 5) == [], "the rephrase of t1 has its subject twice"


def test_of_a_correction_in_a_chat_the_question_is_worded_otherwise(make_lm):
    before, after = "<|system|>\nAda is away\n<|user|>\n", "\n<|assistant|>\n"
    span = (len(before), len(before) + len(EDIT.prompt))
    asked = replace(EDIT, prompt=before + EDIT.prompt + after, question_span=span)
    found = Rewordings(TRAINING).of(asked, 5)
    assert [edit.question for edit in found] == prompts(Rewordings(TRAINING).of(EDIT, 5))
    assert prompts(found) == [before + edit.question + after for edit in found]
    lm = make_lm(MIDDLE)
    lookup = look_up(lm, [asked], "subject_last", ["Once."] * 2, [found])
    for edit, column in zip([asked, *found], lookup.columns.tolist(), strict=True):
        assert lm.tokenizer.decode(lm.tokenizer(edit.prompt)["input_ids"][1 : column + 1]).count("Ada") == 2


def test_nothing_is_made_up_where_no_wording_is_known():
    rewordings = Rewordings(TRAINING)
    assert rewordings.of(Edit("b", "Ada was born in", "place", subject="Ada"), 3) == []
    assert rewordings.of(replace(EDIT, subject=None), 3) == []
    assert rewordings.of(replace(EDIT, prompt="Ada and Ada:", relation=None), 3) == []


def test_the_same_wordings_are_drawn_every_time_and_never_the_edits_own():
    many = [replace(TRAINING[0], rephrases=(f"So {i}, people find Nia at",)) for i in range(20)]
    many += [Edit("own", "Nia lives at", "place", rephrases=("The home of Nia is",), subject="Nia", relation="home")]
    drawn = Rewordings(many).of(EDIT, 21)
    assert prompts(drawn) == prompts(Rewordings(many).of(EDIT, 21))
    assert len(set(prompts(drawn))) == 21
    assert EDIT.prompt not in prompts(drawn)
    assert prompts(drawn[:3]) == prompts(Rewordings(many).of(EDIT, 3))
    assert prompts(drawn)[-1] == "Ada lives at"


def test_a_fact_is_looked_up_at_its_subject_in_every_wording(make_lm):
    lm = make_lm(MIDDLE)
    rewordings = [[replace(EDIT, prompt="So, people find Ada at")], []]
    edits = [EDIT, Edit("b", "Omar speaks", "work", subject="Omar")]
    lookup = look_up(lm, edits, "subject_last", ["Once."], rewordings)
    texts = ["The home of Ada is", "So, people find Ada at", "Omar speaks", "Once. Omar speaks"]
    for text, column, subject in zip(texts, lookup.columns.tolist(), ["Ada", "Ada", "Omar", "Omar"], strict=True):
        ids = lm.tokenizer(text)["input_ids"]
        assert lm.tokenizer.decode(ids[1 : column + 1]).rstrip().endswith(subject)
        assert not lm.tokenizer.decode(ids[1:column]).endswith(subject)
    assert lookup.owner.tolist() == [0, 0, 1, 1]
    assert lookup.plain.tolist() == [0, 2]


# -- the method


@pytest.fixture
def begun(make_env, tmp_path, monkeypatch):
    """An environment without a stream of its own, and the agent prepared and begun on it."""
    monkeypatch.setattr(memit_reworded, "training_edits", lambda env: TRAINING)
    (tmp_path / "text.txt").write_text("".join(f"The home of number {i} is in Rome\n" for i in range(30)))

    def begin(agent):
        agent.text = str(tmp_path / "text.txt")
        env = make_env(modules=[MIDDLE], dataset=None)
        env.reset(seed=0)
        agent.prepare(env, 0, lambda *_: None)
        agent.begin(env)
        return env

    return begin


def step(env, agent, edits):
    _, info = env.present(edits)
    deltas = agent.act(env.gradients, info)
    env.step(deltas)
    return deltas


@torch.no_grad()
def nll(lm, prompt, target):
    head, tail = tokens(lm.tokenizer, prompt, target)
    logits = lm.model(torch.tensor([head + tail])).logits[0, len(head) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(tail)).item()


def test_the_target_becomes_likely_after_a_wording_that_only_training_edits_showed(begun):
    losses = {}
    for method in (RehearsedMEMIT, RewordedMEMIT):
        agent = method(VALUE, 1e-2, 30, passes=1)
        env = begun(agent)
        step(env, agent, [EDIT])
        losses[method] = nll(env.language_model, "So, people find Ada at", "place")
    assert losses[RewordedMEMIT] < losses[RehearsedMEMIT] - 0.5, "nats; a value cannot make it say anything there"


def test_an_edit_of_unknown_wording_is_made_as_memit_rehearsed_makes_it(begun):
    unknown = Edit("b", "Ada was found in", "place", subject="Ada")
    updates = []
    for method in (RehearsedMEMIT, RewordedMEMIT):
        agent = method(VALUE, 1e-2, 30, passes=1)
        updates.append(dense(step(begun(agent), agent, [unknown])[NAME]))
    torch.testing.assert_close(updates[1], updates[0])


def test_a_run_that_goes_on_from_its_batches_states_rewords_earlier_edits_alike(begun):
    agent = RewordedMEMIT(VALUE, 1e-2, 30, passes=2)
    env = begun(agent)
    step(env, agent, [replace(EDIT, prompt="Ada lives at")])  # its wording is known by its relation only
    state, weights = agent.batch_state(), env.language_model.snapshot()
    other = RewordedMEMIT(VALUE, 1e-2, 30, passes=2)
    resumed = begun(other)
    resumed.language_model.restore(weights)
    other.load_batch_state(state)
    new = [Edit("d", "Ada was found in", "work", subject="Ada")]
    again, expected = dense(step(resumed, other, new)[NAME]), dense(step(env, agent, new)[NAME])
    torch.testing.assert_close(again, expected, rtol=1e-3, atol=1e-4)
