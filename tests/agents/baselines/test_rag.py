"""RAG: what is put into the context, and that a stream of it can be played again."""

import re
from dataclasses import replace

import pytest
import torch

from agents.baselines.rag import FORM, RAG, package_background
from agents.progress import silent
from agents.registry import make_agent
from agents.view import Actor
from benchmarks.running.recording import Recording, Replay, digest
from editenv.data import load_edits
from editenv.deltas import LowRank
from editenv.identity import fingerprint


def edited(make_env, agent, recording=None, batches=2):
    """An environment after some batches, and the last step's info."""
    env = make_env()
    env.reset(seed=0)
    if recording is not None:
        recording.start(env.language_model)
    actor = Actor(env, agent)
    actor.begin()
    for _ in range(batches):
        action = actor.act(*actor.look())
        if recording is not None:
            recording.add(action)
        *_, info = env.step(action)
    return env, info


def test_each_edit_is_a_sentence_by_its_prompt_and_no_weight_is_changed(make_env, small_world):
    env, info = edited(make_env, RAG(nearest=2, threshold=0.3), batches=3)
    context, done = env.language_model.context, env.stream[:9]
    assert list(context.entries.items()) == [
        (edit.prompt, FORM.replace("{}", f"{edit.prompt} {edit.target}.")) for edit in done
    ]
    assert (context.retriever, context.nearest, context.threshold) == ("words", 2, 0.3)
    assert info["reward_terms"]["regularization"] == 0
    for name in env.language_model.modules:
        assert torch.equal(env.language_model.weight(name), env.language_model.initial_weight(name))


def test_a_prompt_that_is_edited_again_has_its_last_target(make_env, small_world, monkeypatch):
    env = make_env(dataset=None, horizon=None)
    env.reset(seed=0)
    actor = Actor(env, RAG())
    actor.begin()
    for target in ("Rome", "Oslo"):
        env.present([type(small_world[0])(id="x", prompt="The home of Ada is", target=target)])
        action = actor.act(*actor.look())
        assert all(isinstance(action[name], LowRank) for name in env.language_model.modules)
        env.step(action)
    assert env.language_model.context.entries == {
        "The home of Ada is": "It is a fact that:\nThe home of Ada is Oslo.\nTherefore:\n"
    }
    assert RAG(form="So: {}\n").text_of(small_world[0]) == "So: The home of Ada is Rome.\n"
    assert RAG(form="So: {}\n").text_of(replace(small_world[0], target="Rome!")) == "So: The home of Ada is Rome!\n"
    for form in ("{}", "{}{}\n", "fact\n"):
        with pytest.raises(ValueError, match=r"form must have \{\} once"):
            RAG(form=form)


def test_what_the_retriever_needs_is_named_before_anything_is_edited(make_env, small_world, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for agent, words in ((RAG(), "scikit-learn"), (RAG("some/encoder"), "sentence-transformers")):
        with pytest.raises(ValueError, match=f"retriever '{agent.retriever}' .*{words}.*not installed"):
            agent.prepare(make_env(), 0, silent)


@pytest.mark.parametrize("row", ["rag", "ike", "oneedit"])
def test_a_recorded_context_replays_to_the_same_bits(make_env, small_world, tmp_path, row):
    recording, path = Recording(), tmp_path / "actions.safetensors"
    env, info = edited(make_env, make_agent(row), recording, batches=3)
    recording.write(path)
    again, same = edited(make_env, Replay(path, 1), batches=3)
    assert fingerprint(again.language_model) == fingerprint(env.language_model)
    assert same["reward_terms"] == info["reward_terms"]
    recording.write(tmp_path / "again.safetensors")
    assert digest(path) == digest(tmp_path / "again.safetensors")


def test_with_a_background_the_training_edits_count_in_how_rare_a_word_is(make_env, small_world, monkeypatch):
    """And they are then needed; batch by batch the context is what one made at once would be."""
    training = [replace(small_world[0], id=str(i), prompt=f"The home of {i} is") for i in range(50)]
    monkeypatch.setattr("agents.baselines.rag.training_edits", lambda env: training)
    env, agent = make_env(), RAG(background=True)
    assert agent.learns
    agent.prepare(env, 0, silent)
    env.reset(seed=0)
    actor = Actor(env, agent)
    actor.begin()
    for _ in range(3):
        env.step(actor.act(*actor.look()))
    context = env.language_model.context
    at_once = agent.context(dict(context.entries))
    assert context.as_json() == at_once.as_json()
    assert context.background_texts == 50
    assert context.background["home"] == 50
    for retriever in ("scope", "all-MiniLM-L6-v2"):
        assert RAG(retriever=retriever).background is False
        for background in (True, "package"):
            with pytest.raises(ValueError, match=f"background: the retriever '{retriever}' has none"):
                RAG(retriever=retriever, background=background)


def test_without_training_edits_the_packages_texts_tell_which_words_are_rare(make_env, small_world):
    """Of two corrections alone "The capital of Bonland is" has more of one than a rephrase that has its subject."""
    asked = ["The capital of Bonland is", "Who rules Velmora?"]

    def before(agent):
        assert not agent.learns
        agent.prepare(make_env(), 0, silent)
        context = agent.context({"The capital of Velmora is": "a\n", "The mayor of Quarn is": "b\n"})
        return context.before(asked)

    assert before(RAG(background=False)) == [("a\n",), ()]
    assert before(RAG()) == [(), ("a\n",)]


def test_the_package_counts_prompts_rephrases_and_locality_prompts():
    edits = load_edits("atlas", "train")
    texts = [
        text for edit in edits for text in (edit.prompt, *edit.rephrases, *(item.prompt for item in edit.locality))
    ]
    background = package_background("words")
    assert background.texts == len(texts)
    with_capital = sum("capital" in re.findall(r"\w+", text.lower()) for text in texts)
    assert background.of(["Capital of Zzyzx"])["capital"] == with_capital > 0
