from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from editenv.deltas import LowRank

BRIEF = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
LAST = "model.layers.2.mlp.down_proj"
SEEDS = st.integers(0, 2**31 - 1)


def zeros(env):
    return {n: np.zeros(env.language_model.shape(n), np.float32) for n in env.language_model.modules}


@given(SEEDS, st.integers(1, 10), st.none() | st.integers(1, 12), st.integers(1, 3))
@BRIEF
def test_a_stream_is_a_permutation_cut_into_batches(make_env, small_world, seed, edits_per_step, horizon, attempts):
    env = make_env(edits_per_step=edits_per_step, horizon=horizon, actions_per_batch=attempts, modules=[LAST])
    env.reset(seed=seed)
    batches, steps, done = [], 0, False
    while not done:
        assert len(env.batch) == edits_per_step
        before = env.batch
        _, _, terminated, truncated, info = env.step(zeros(env))
        steps += 1
        done = terminated or truncated
        if info["attempt"] == 0:
            batches.append(before)
            assert list(env.edits_done) == [edit for batch in batches for edit in batch]
        else:
            assert env.batch == before
    whole = len(small_world) // edits_per_step
    assert len(batches) == min(whole, horizon or whole)
    assert steps == attempts * len(batches)
    assert terminated == (len(batches) == whole)
    assert truncated != terminated
    counts = Counter(edit.id for batch in batches for edit in batch)
    assert max(counts.values()) == 1
    assert set(counts) <= {edit.id for edit in small_world}
    if whole == len(batches) and len(small_world) % edits_per_step == 0:
        assert set(counts) == {edit.id for edit in small_world}


def test_all_orders_of_the_stream_occur(make_env, small_world):
    """First places over many seeds: each edit about as often as any other."""
    env = make_env(edits_per_step=1, horizon=1, modules=[LAST])
    counts = Counter()
    for seed in range(200):
        env.reset(seed=seed)
        counts[env.stream[0].id] += 1
    assert set(counts) == {edit.id for edit in small_world}
    assert sum((n - 20) ** 2 / 20 for n in counts.values()) < 35  # chi-squared with 9 degrees of freedom


@given(seed=SEEDS, edits_per_step=st.integers(1, 5), attempts=st.integers(1, 2))
@BRIEF
def test_observations_lie_in_their_space_and_sampled_actions_are_taken(
    make_env, small_world, seed, edits_per_step, attempts
):
    env = make_env(edits_per_step=edits_per_step, horizon=2, actions_per_batch=attempts)
    observation, info = env.reset(seed=seed)
    assert observation in env.observation_space
    assert info == {"batch": 0, "attempt": 0, "edits": 0}
    env.action_space.seed(seed)
    done = False
    while not done:
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        done = terminated or truncated
        assert observation in env.observation_space
        assert type(reward) is float
        assert np.isfinite(reward)
        assert reward < 0
        assert all(np.isfinite(value) for value in info["reward_terms"].values())
        assert all(0 <= info[name] <= 100 for name in ("efficacy", "generalization", "specificity"))
        assert not any(isinstance(value, torch.Tensor) for value in info.values())


@given(seed=SEEDS, rank=st.integers(0, 4), scale=st.floats(0, 0.5))
@BRIEF
def test_factors_and_their_matrix_are_the_same_action(make_env, small_world, seed, rank, scale):
    env = make_env(horizon=1, modules=[LAST])
    generator = torch.Generator().manual_seed(seed)
    left = scale * torch.randn(64, rank, generator=generator)
    right = torch.randn(rank, 32, generator=generator)
    found = []
    for delta in (LowRank(left, right), (left @ right).numpy()):
        env.reset(seed=seed)
        _, reward, _, _, info = env.step({LAST: delta})
        found.append((reward, info["reward_terms"]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-3, abs=1e-5)


def test_a_vector_of_environments_steps_like_its_members(make_env, model_folder):
    arguments = {"model": model_folder, "modules": [LAST], "split": "validation", "edits_per_step": 2, "horizon": 2}
    vector = gym.make_vec("editenv:LifelongEdit-v0", num_envs=2, vectorization_mode="sync", **arguments)
    observations, _ = vector.reset(seed=[3, 4])
    singles = [make_env(edits_per_step=2, horizon=2, modules=[LAST]) for _ in range(2)]
    for i, env in enumerate(singles):
        single, _ = env.reset(seed=3 + i)
        for key, value in single[LAST].items():
            np.testing.assert_array_equal(observations[LAST][key][i], value)
    _, rewards, *_ = vector.step({LAST: np.full((2, 64, 32), 0.01, np.float32)})
    expected = [env.step({LAST: np.full((64, 32), 0.01, np.float32)})[1] for env in singles]
    np.testing.assert_allclose(rewards, expected)
    vector.close()
