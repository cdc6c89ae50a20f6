"""IKE: which demonstrations an edit gets, and how they and the fact are written."""

from dataclasses import replace

import pytest

from agents.baselines.ike import IKE, KINDS, demonstrations_of
from agents.progress import silent
from agents.view import Actor
from editenv.data import Edit, Locality


@pytest.fixture
def training(monkeypatch):
    """Ten edits of two relations: homes, and what is played."""
    made = [
        Edit(
            id=str(i),
            prompt=f"The home of Nobody{i} is" if i < 5 else f"Nobody{i} plays the",
            target=f"place{i}" if i < 5 else f"tune{i}",
            rephrases=(f"Nobody{i} lives in",) if i != 1 else (),
            locality=(Locality(f"Where is Body{i}?", f"here{i}"),) if i != 2 else (),
        )
        for i in range(10)
    ]
    monkeypatch.setattr("agents.baselines.ike.training_edits", lambda env: made)
    return made


def test_kinds_are_in_the_papers_ratio():
    assert [KINDS.count(kind) for kind in ("copy", "update", "retain")] == [1, 3, 4]


def test_a_demonstration_is_of_an_edit_that_has_its_kind_each_edit_once(training):
    texts = demonstrations_of([training[i] for i in (1, 2, 0, 3)], 4)
    assert texts == [
        "New Fact: The home of Nobody1 is place1\nPrompt:\nThe home of Nobody1 is place1\n\n",
        "New Fact: The home of Nobody0 is place0\nPrompt:\nWhere is Body0? here0\n\n",  # 2 has nothing to retain
        "New Fact: The home of Nobody2 is place2\nPrompt:\nNobody2 lives in place2\n\n",
        "New Fact: The home of Nobody3 is place3\nPrompt:\nWhere is Body3? here3\n\n",
    ]
    assert len(demonstrations_of(training[1:2], 8)) == 1, "there are no more"
    assert demonstrations_of(training, 0) == []


def test_an_edit_gets_the_nearest_of_training_the_nearest_last_and_then_its_fact(make_env, small_world, training):
    env = make_env(edits_per_step=1)
    agent = IKE(demonstrations=3)
    agent.prepare(env, 0, silent)
    env.reset(seed=0)
    actor = Actor(env, agent)
    actor.begin()
    (edit,) = env.batch
    env.step(actor.act(*actor.look()))
    ((key, text),) = env.language_model.context.entries.items()
    assert key == edit.prompt
    blocks = text.split("\n\n")
    assert blocks[-1] == f"New Fact: {edit.prompt} {edit.target}\nPrompt:\n"
    facts = [block.splitlines()[0] for block in blocks[:-1]]
    assert len(facts) == len(set(facts)) == 3
    assert all(fact.startswith("New Fact: The home of") for fact in facts), "of the same relation"
    assert blocks[2] == "New Fact: The home of Nobody4 is place4\nPrompt:\nThe home of Nobody4 is place4"


def test_an_edit_is_not_shown_how_it_is_judged(make_env, small_world, training):
    """The edit's own rephrases and locality prompts are of no use to what is put before questions."""
    agent = IKE(demonstrations=8)
    agent.prepare(make_env(), 0, silent)
    edit = small_world[0]
    assert agent.text_of(edit) == agent.text_of(replace(edit, rephrases=(), locality=()))
    bare = IKE(demonstrations=0)
    bare.prepare(make_env(), 0, silent)
    assert bare.text_of(edit) == f"New Fact: {edit.prompt} {edit.target}\nPrompt:\n"
