import gymnasium as gym
import numpy as np
import pytest
import rich.console
import torch

from editenv.rendering import ROWS_SHOWN, History, as_text, heat_map
from editenv.rewards import RewardTerms

LAST = "model.layers.2.mlp.down_proj"
DARK, LIGHT, EMPTY = (68, 1, 84), (253, 231, 37), (40, 40, 40)
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
        history.add(i, 0, None, RewardTerms(0.0, 0.0, 0.0, 0.0, -1000.0 - i), SCORES)
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

    def colour(row, column):
        block = image[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell].reshape(-1, 3)
        assert (block == block[0]).all()
        return tuple(block[0].tolist())

    assert colour(0, 0) == colour(1, 1) == colour(2, 2) == DARK
    assert colour(1, 0) == colour(2, 1) == LIGHT
    assert colour(0, 1) == colour(0, 2) == colour(1, 2) == EMPTY
    assert colour(2, 0) == tuple((low + high) // 2 for low, high in zip(DARK, LIGHT, strict=True))


def test_a_long_episode_still_fits_a_screen():
    for batches in (500, 5000):
        image = heat_map(History(retention=[(i, [50.0] * i) for i in (1, 2, batches)], batches=batches))
        assert max(image.shape) <= 1024
        assert tuple(image[-1, -1]) == tuple((low + high) // 2 for low, high in zip(DARK, LIGHT, strict=True))
        assert tuple(image[0, -1]) == EMPTY


def test_frames_of_a_stream_are_of_one_size(make_env):
    env = make_env(render_mode="rgb_array", modules=[LAST], horizon=3)
    env.reset(seed=0)
    shapes = [env.render().shape]
    for i in range(3):
        step(env, 0.1, i)
        shapes.append(env.render().shape)
    assert len(set(shapes)) == 1
    assert (env.render() != EMPTY[0]).any(-1).sum() > (env.render() == EMPTY[0]).all(-1).sum()  # 6 of 9 fields


def test_retention_is_asked_at_the_weights_of_the_moment(make_env):
    env = make_env(render_mode="rgb_array", modules=[LAST], actions_per_batch=2)
    env.reset(seed=0)
    empty = env.render()
    assert empty.dtype == np.uint8
    assert (empty == EMPTY[0]).all()
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
    assert "LifelongEdit-v0" in shown
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
