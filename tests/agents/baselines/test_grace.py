"""GRACE's codebook by hand, and that a batch is edited, kept apart and replayed bit for bit."""

import pytest
import torch

from agents.baselines.grace import GRACE, Codebook, assigned
from agents.editing.saving import save_model
from agents.registry import make_agent
from agents.view import Actor
from benchmarks.running.recording import Recording, Replay, digest
from editenv.identity import fingerprint
from editenv.memories import attached, no_memory
from editenv.models import load_model

LAST = "layers.2.mlp.down_proj"


def book_of(points, labels, radius=1.0):
    """Points on a line, one after another."""
    keys = torch.tensor(points)[:, None]
    empty = Codebook(no_memory((1, 1)), torch.zeros(0, dtype=torch.long))
    return assigned(empty, keys, keys.clone(), torch.tensor(labels), radius)


def test_balls_open_grow_split_and_take_a_new_answer_by_hand():
    # 0 opens; 1.5 has the same answer within 1 + 1: the ball grows; 5 is far: opens; 4 has another answer: split.
    book, entries = book_of([0.0, 1.5, 5.0, 4.0], [7, 7, 8, 9])
    assert entries.tolist() == [0, 0, 1, 2]
    assert book.memory.keys.squeeze(1).tolist() == [0.0, 5.0, 4.0]
    assert book.memory.thresholds.tolist() == [1.5, 0.5, 0.5]
    assert book.labels.tolist() == [7, 8, 9]
    book, entries = book_of([2.0, 2.0], [7, 8])
    assert (entries.tolist(), book.labels.tolist(), book.memory.thresholds.tolist()) == ([0, 0], [8], [1.0])


def test_a_ball_does_not_grow_by_a_split():
    book, _ = book_of([0.0, 0.2, -0.9], [1, 2, 3])
    torch.testing.assert_close(book.memory.thresholds, torch.tensor([0.1, 0.1, 0.45]))


def edited(make_env, agent, recording=None):
    env = make_env(modules=[LAST])
    env.reset(seed=0)
    agent.prepare(env, 0, lambda *_: None)
    actor = Actor(env, agent)
    actor.begin()
    if recording is not None:
        recording.start(env.language_model)
    efficacy = []
    for _ in range(3):
        action = actor.act(*actor.look())
        if recording is not None:
            recording.add(action)
        *_, info = env.step(action)
        efficacy.append(info["efficacy"])
    return env, efficacy


def test_a_batch_is_edited_and_no_weight_changed(make_env, small_world):
    env, efficacy = edited(make_env, GRACE(radius=0.5, steps=40, learning_rate=0.3))
    lm = env.language_model
    assert efficacy == [100.0, 100.0, 100.0]
    (name,) = lm.modules
    assert torch.equal(lm.weight(name), lm.initial_weight(name))
    assert len(lm.memories[name])


def test_a_recording_replays_to_the_same_bits(make_env, small_world, tmp_path):
    recording, path = Recording(), tmp_path / "actions.safetensors"
    env, _ = edited(make_env, GRACE(radius=0.5, steps=5), recording)
    recording.write(path)
    again, _ = edited(make_env, Replay(path, 1))
    assert fingerprint(again.language_model) == fingerprint(env.language_model)
    recording.write(tmp_path / "again.safetensors")
    assert digest(path) == digest(tmp_path / "again.safetensors")


def test_a_batch_that_is_undone_leaves_nothing_and_a_state_goes_on(make_env, small_world):
    agent = GRACE(radius=0.5, steps=3)
    env = make_env(modules=[LAST])
    env.reset(seed=0)
    actor = Actor(env, agent)
    actor.begin()
    env.step(actor.act(*actor.look()))
    first = agent.batch_state()
    actor.act(*actor.look())
    agent.revert_batch()
    assert all(torch.equal(part, first[name]) for name, part in agent.batch_state().items())
    twin = GRACE(radius=0.5, steps=3)
    other = Actor(env, twin)
    other.begin()
    twin.load_batch_state(first)
    action, same = actor.act(*actor.look()), other.act(*other.look())
    for name, memory in action.items():
        assert all(torch.equal(part, same[name].parts()[of]) for of, part in memory.parts().items())


def test_a_query_that_a_later_entry_captured_gets_its_own():
    # 0 opens, 1.9 grows the ball; 2.2, of another answer, splits it and is nearer to 1.9, which is entered again.
    book, entries = book_of([0.0, 1.9, 2.2], [1, 1, 2])
    assert book.memory.keys.squeeze(1).tolist() == pytest.approx([0.0, 2.2, 1.9])
    assert book.labels[entries].tolist() == [1, 1, 2]
    distances = (torch.tensor([0.0, 1.9, 2.2]) - book.memory.keys.squeeze(1)[entries]).abs()
    assert (distances <= book.memory.thresholds[entries]).all()


def test_units_are_the_model_s_own(make_env, small_world):
    """A module that takes inputs half as long and gives the same outputs has the same codebook, half as wide."""
    books = []
    for factor in (1.0, 2.0):
        env, agent = make_env(modules=[LAST]), GRACE(radius=0.2, steps=3)
        lm = env.language_model
        (name,) = lm.modules
        gate = lm.model.get_submodule(name.replace("down_proj", "up_proj"))
        gate.weight = torch.nn.Parameter(gate.weight / factor, requires_grad=False)
        lm.rebase({name: lm.snapshot()[name] * factor})
        env.reset(seed=0)
        actor = Actor(env, agent)
        actor.begin()
        books.append(actor.act(*actor.look())[name])
    one, half = books
    torch.testing.assert_close(half.keys * 2, one.keys, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(half.thresholds * 2, one.thresholds, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(half.values, one.values, rtol=1e-2, atol=1e-2)


def test_what_cannot_be_is_refused(make_env, small_world, tmp_path):
    with pytest.raises(ValueError, match=r"grace edits one module, not .*; name one, such as layers.2.mlp.down_proj"):
        GRACE().prepare(make_env(), 0, lambda *_: None)
    assert make_agent("grace").changes == ("side memory",)


def test_a_memory_beside_a_model_without_a_name_is_saved_with_its_weights(make_env, small_world, tmp_path):
    env, _ = edited(make_env, GRACE(steps=1))
    lm = env.language_model
    save_model(lm, tmp_path / "saved", {})
    assert (tmp_path / "saved/weights/model.safetensors").is_file()
    loaded, _ = load_model(str((tmp_path / "saved").rename(tmp_path / "moved")))
    (name,) = lm.modules
    (memory,) = attached(dict(loaded.named_modules())).values()
    for part in ("keys", "values", "thresholds"):
        assert torch.equal(getattr(memory, part), getattr(lm.memories[name], part))
