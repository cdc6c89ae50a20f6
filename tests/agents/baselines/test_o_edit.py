"""O-Edit: what an update may not touch, it does not touch."""

import numpy as np
import torch

from agents.baselines.memit import MEMIT
from agents.baselines.o_edit import OEdit, how_many, leading_directions, leading_eigenvectors
from agents.baselines.values import LayerValueConfig
from agents.covariance import covariance_of
from editenv.deltas import LowRank

MIDDLE = "layers.1.mlp.down_proj"
VALUE = LayerValueConfig(token="last", learning_rate=0.3, steps=10, prefixes=0, kl=0.0, clamp=4.0)


def matrix(rows, columns, seed):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nothing(*_):
    pass


def test_how_many_parts_make_up_a_share():
    sizes = torch.tensor([5.0, 3.0, 1.0, 1.0])
    assert [how_many(sizes, share) for share in (0.0, 0.1, 0.5, 0.51, 0.8, 0.85, 0.9, 0.95, 1.0)] == [
        0, 1, 1, 2, 2, 3, 3, 4, 4
    ]  # fmt: skip


def test_leading_directions_against_numpy():
    left, right = matrix(9, 3, 0), matrix(3, 5, 1)
    u, s, _ = np.linalg.svd((left @ right).numpy())
    share = (s[:2] ** 2).sum() / (s**2).sum()
    found = leading_directions(LowRank(left, right), share - 1e-6)
    np.testing.assert_allclose((found @ found.T).numpy(), u[:, :2] @ u[:, :2].T, atol=1e-8)
    assert leading_directions(LowRank(torch.zeros(9, 3), right.float()), 0.9).shape == (9, 0)
    root = matrix(6, 20, 2)
    values, vectors = np.linalg.eigh((root @ root.T).numpy())
    found = leading_eigenvectors(root @ root.T, float(values[-3:].sum() / values.sum()) - 1e-6)
    np.testing.assert_allclose((found @ found.T).numpy(), vectors[:, -3:] @ vectors[:, -3:].T, atol=1e-8)


def updates_of(make_env, agent, batches=3):
    env = make_env(modules=[MIDDLE], horizon=batches)
    agent.prepare(env, 0, nothing)
    _, info = env.reset(seed=0)
    agent.begin(env)
    updates = []
    for _ in range(batches):
        updates.append(agent.act(env.gradients, info)[f"model.{MIDDLE}"].dense().double())
        *_, info = env.step({f"model.{MIDDLE}": updates[-1].float()})
    return updates


def test_each_update_is_orthogonal_to_text_and_to_the_earlier_ones(make_env, small_world):
    agent = OEdit(VALUE, weight=1.0, samples=30, text_share=0.6, update_share=1.0)
    updates = updates_of(make_env, agent)
    C = covariance_of(make_env(modules=[MIDDLE]), None, 30)[f"model.{MIDDLE}"].double()
    values, vectors = np.linalg.eigh(C.numpy())
    count = int((np.cumsum(values[::-1]) / values.sum() < 0.6).sum()) + 1
    assert 1 <= count < 32
    text = torch.from_numpy(vectors[:, ::-1][:, :count].copy())
    for i, update in enumerate(updates):
        assert update.norm() > 0.1
        assert (text.T @ update).norm() < 1e-4 * update.norm()
        for earlier in updates[:i]:
            assert (earlier.T @ update).norm() < 1e-3 * earlier.norm() * update.norm()


def test_without_anything_to_keep_away_from_it_is_memit(make_env, small_world):
    ours = updates_of(make_env, OEdit(VALUE, weight=1.0, samples=30, text_share=0.0, update_share=0.0))
    memits = updates_of(make_env, MEMIT(VALUE, weight=1.0, samples=30))
    for one, other in zip(ours, memits, strict=True):
        torch.testing.assert_close(one, other)
