"""A scripted language model plays an episode of the verifiers environment; its reward is that of the wrappers."""

import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("verifiers.v1", reason="the extra verifiers is not installed")
import verifiers.v1 as vf
from verifiers.v1.agent import Segment

REPLY = "I choose {}, for the gradient is long."


class Player:
    """Gives replies in turn, and keeps what it was told.

    Args:
        replies: What it says; it says nothing more at their end.
    """

    def __init__(self, replies):
        self.replies, self.told = list(replies), []
        self.trace = SimpleNamespace(rewards={}, metrics={}, stopped=None)
        self.trace.record_reward = self.trace.rewards.__setitem__
        self.trace.record_metric = self.trace.metrics.__setitem__
        self.trace.stop = lambda condition: setattr(self.trace, "stopped", condition)

    @asynccontextmanager
    async def interaction(self, task):
        self.task = task
        yield self

    async def turn(self, message):
        self.told.append(message)
        if not self.replies:
            return Segment(messages=[], terminated=True)
        return Segment(messages=[], root_reply=self.replies.pop(0))


@pytest.fixture
def play(arguments, monkeypatch):
    """Plays an episode with these replies, as verifiers does; gives the player."""
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "examples")

    def of(replies):
        config = vf.resolve_env_config({"taskset": TASKSET | {"arguments": arguments}})
        env = vf.load_environment(config)
        (task,) = env.taskset
        player = Player(replies)
        asyncio.run(env.run(task, SimpleNamespace(player=player)))
        return player

    return of


TASKSET = {"id": "lifelongedit-text", "episodes": 1, "first_seed": 5}


def in_words(choice):
    return REPLY.format(json.dumps({"modules": choice}))


def test_the_reward_is_that_of_the_wrappers(play, choices, by_gymnasium):
    player = play(map(in_words, choices))
    assert player.trace.rewards == {"return": pytest.approx(sum(by_gymnasium[1]), abs=1e-12)}
    assert player.trace.metrics == {"batches": 3, "refused_replies": 0}
    assert [text.splitlines()[0] for text in player.told] == [f"{n} of 3 batches are done." for n in range(3)]
    assert "Answer with JSON alone" in player.task.data.system_prompt


def test_a_bad_reply_is_answered_and_changes_nothing(play, choices, by_gymnasium):
    bad = in_words({"layers.9": {"step": 1}})
    player = play([bad, "Hm.", *map(in_words, choices)])
    assert player.trace.rewards == {"return": pytest.approx(sum(by_gymnasium[1]), abs=1e-12)}
    assert player.trace.metrics["refused_replies"] == 2
    assert "unknown module 'layers.9'" in player.told[1]
    assert "no JSON object" in player.told[2]


def test_a_model_that_never_chooses_comes_to_an_end(play, choices, by_gymnasium):
    player = play([in_words(choices[0]), *["I would rather not."] * 9])
    assert player.trace.stopped == "no_choice"
    assert len(player.replies) == 9 - 4
    assert player.trace.rewards == {"return": by_gymnasium[1][0]}


def test_a_model_that_is_cut_off_keeps_what_it_has(play, choices, by_gymnasium):
    player = play([in_words(choices[0])])
    assert player.trace.rewards == {"return": by_gymnasium[1][0]}
    assert player.trace.metrics["batches"] == 1
