import gymnasium as gym
import numpy as np
import pytest
import rich.console
import torch

from editenv.rendering import ROWS_SHOWN, History, as_text, heat_map, picture
from editenv.rewards import RewardTerms

LAST = "model.layers.2.mlp.down_proj"
DARK, MIDDLE, LIGHT, EMPTY = (0x44, 0x01, 0x54), (0x21, 0x91, 0x8C), (0xFD, 0xE7, 0x25), (236, 238, 241)
"""The first three are viridis at 0, a half and 1, as van der Walt and Smith published it."""
SCORES = {"efficacy": 12.34, "generalization": 50.0, "specificity": 99.9}


def step(env, scale=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return env.step({LAST: scale * torch.randn(64, 32, generator=generator)})


def test_text_shows_the_last_steps(make_env):
    env = make_env(render_mode="ansi", modules=[LAST])
    env.reset(seed=0)
    assert "0 steps" in env.render()
    rewards = [step(env, 0.1, i)[1] for i in range(3)]
    text = env.render()
    assert "3 steps" in text
    assert all(f"{reward:.3f}" in text for reward in rewards)
    env.reset(seed=0)
    assert "0 steps" in env.render()


def test_text_keeps_to_the_last_rows():
    history = History()
    for i in range(ROWS_SHOWN + 5):
        history.add(i, 0, None, RewardTerms(0.0, 0.0, 0.0, 0.0, 0.5), SCORES, reward=-1000.0 - i)
    text = as_text(history)
    assert f"{-1000 - 5:.3f}" in text
    assert f"{-1000 - 4:.3f}" not in text
    assert "12.3" in text


def test_heat_map_colours():
    history = History(retention=[(1, [0.0]), (2, [100.0, 0.0]), (3, [50.0, 100.0, 0.0])])
    image = heat_map(history)
    cell = image.shape[0] // 3
    assert image.dtype == np.uint8
    assert image.shape == (3 * cell, 3 * cell, 3)

    expected = {
        DARK: [(0, 0), (1, 1), (2, 2)],
        LIGHT: [(1, 0), (2, 1)],
        MIDDLE: [(2, 0)],
        EMPTY: [(0, 1), (0, 2), (1, 2)],
    }
    for colour, fields in expected.items():
        for row, column in fields:
            block = image[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
            np.testing.assert_allclose(block, np.broadcast_to(colour, block.shape), atol=1)


def test_a_long_episode_still_fits_a_screen():
    for batches in (500, 5000):
        image = heat_map(History(retention=[(i, [50.0] * i) for i in (1, 2, batches)], batches=batches))
        assert max(image.shape) <= 1024
        np.testing.assert_allclose(image[-1, -1], MIDDLE, atol=1)
        assert tuple(image[0, -1]) == EMPTY


def count(image, colour):
    return int((np.abs(image.astype(int) - colour) <= 1).all(-1).sum())


def test_a_picture_has_the_map_in_it_and_all_frames_one_size():
    """The share of the map's fields that are filled is that of its pixels; the rest of the picture is white or ink."""
    frames = []
    for done in range(5):
        history = History(batches=4, retention=[(i, [100.0] * i) for i in range(1, done + 1)])
        frames.append(picture(history))
        assert (frames[-1].shape, frames[-1].dtype) == ((540, 960, 3), np.uint8)
    empty, scale = count(frames[0], EMPTY), count(frames[0], LIGHT)
    assert empty > 0.2 * 540 * 960
    for done, frame in enumerate(frames):
        filled = done * (done + 1) / 2 / 16
        assert (count(frame, LIGHT) - scale) / empty == pytest.approx(filled, abs=0.01)
        assert count(frame, EMPTY) / empty == pytest.approx(1 - filled, abs=0.01)
        assert count(frame, (255, 255, 255)) > 0.2 * 540 * 960


def test_a_picture_of_an_episode_shows_its_rewards(make_env, monkeypatch):
    """The lines that are drawn are the rewards and scores of the steps, and a broken model's stays on the axes."""
    from matplotlib.axes import Axes

    drawn, plot = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda axes, *a, **k: drawn.append((axes, a[1])) or plot(axes, *a, **k))
    env = make_env(render_mode="rgb_array", modules=[LAST], reward="improvement")
    env.reset(seed=0)
    results = [step(env, scale, i) for i, scale in enumerate((0.0, 0.1, 1e4))]
    env.render()
    (axes, rewards), *scores = drawn
    assert list(rewards)[:2] == [result[1] for result in results[:2]]
    assert rewards[2] < -1
    assert axes.get_ylim() == pytest.approx((-1.1, 1.1))
    for (_, values), name in zip(scores, ("efficacy", "generalization", "specificity"), strict=True):
        assert list(values) == [result[4][name] for result in results]


def test_a_picture_of_what_has_no_end_or_no_number_is_drawn():
    history = History(batches=None, retention=[(1, [0.0])])
    assert picture(history).shape == (540, 960, 3)
    scores = {"efficacy": None, "generalization": None, "specificity": None}
    history.add(0, 0, None, RewardTerms(0.0, 0.0, 0.0, 0.0, 0.0), scores, reward=float("-inf"))
    history.add(0, 1, None, RewardTerms(0.0, 0.0, 0.0, 0.0, 0.0), scores, reward=float("nan"))
    assert picture(history).shape == (540, 960, 3)


def test_frames_of_a_stream_are_of_one_size(make_env):
    env = make_env(render_mode="rgb_array", modules=[LAST], horizon=3)
    env.reset(seed=0)
    frames = [env.render()]
    for i in range(3):
        step(env, 0.1, i)
        frames.append(env.render())
    assert len({frame.shape for frame in frames}) == 1
    empty = [count(frame, EMPTY) for frame in frames]
    assert empty[3] / empty[0] == pytest.approx(3 / 9, abs=0.01)


def test_retention_is_asked_at_the_weights_of_the_moment(make_env):
    env = make_env(render_mode="rgb_array", modules=[LAST], actions_per_batch=2)
    env.reset(seed=0)
    empty = env.render()
    assert empty.dtype == np.uint8
    assert count(empty, DARK) == count(picture(History(batches=3)), DARK)  # the scale's
    env.step({LAST: np.zeros((64, 32), np.float32)})
    info = step(env, 0.5)[4]
    assert env.history.retention == []
    env.render()
    assert env.history.retention == [(2, [pytest.approx(info["efficacy"], abs=1e-3)])]
    env.render()
    assert len(env.history.retention) == 1
    for i in range(2):
        info = step(env, 0.5, i)[4]
    env.render()
    (_, first), (_, second) = env.history.retention
    assert (len(first), len(second)) == (1, 2)
    assert second[1] == pytest.approx(info["efficacy"], abs=1e-3)


def test_rendering_changes_nothing(make_env):
    seen, unseen = make_env(render_mode="rgb_array", modules=[LAST]), make_env(modules=[LAST])
    for env in (seen, unseen):
        env.reset(seed=0)
    for i in range(3):
        seen.render()
        assert step(seen, 0.1, i)[1] == step(unseen, 0.1, i)[1]


def test_live_table(make_env, capsys, monkeypatch):
    monkeypatch.setattr(rich, "_console", rich.console.Console(width=120))
    env = make_env(render_mode="human", modules=[LAST])
    env.reset(seed=0)
    reward = step(env)[1]
    env.close()
    env.close()
    shown = capsys.readouterr().out
    assert "LifelongEdit, 1 steps" in shown
    assert f"{reward:.3f}" in shown


def test_rendering_without_a_mode_warns(make_env):
    env = make_env(modules=[LAST])
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


def test_render_modes_are_declared(model_folder):
    arguments = {"model": model_folder, "modules": [LAST], "split": "validation"}
    for mode in ("ansi", "rgb_array"):
        env = gym.make("editenv:LifelongEdit-v0", render_mode=mode, **arguments)
        env.reset(seed=0)
        assert env.render_mode == mode
        assert isinstance(env.render(), str if mode == "ansi" else np.ndarray)
