import pytest
import torch

from agents.preconditioner import Preconditioner, inverse_covariance, inverse_root, null_space
from editenv.language_model.editable_lm import Gradient


def covariance(size, seed=0):
    root = torch.randn(size, 2 * size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T / (2 * size)


def test_start_is_the_scaled_inverse_of_the_covariance():
    C = covariance(6)
    P = inverse_covariance(C, epsilon=0.1)
    inverse = torch.linalg.inv(C + 0.1 * torch.linalg.eigvalsh(C).mean() * torch.eye(6))
    torch.testing.assert_close(P / P[0, 0], inverse / inverse[0, 0])
    assert (P * C).sum() == pytest.approx(1)  # E[u^T P u] of the text


def test_the_inverse_root_whitens():
    C = covariance(6)
    root = inverse_root(C, epsilon=0.1)
    torch.testing.assert_close(root, root.T)
    torch.testing.assert_close(root @ (C + 0.1 * C.trace() / 6 * torch.eye(6)) @ root, torch.eye(6).double())


def test_absorbing_is_the_inverse_of_the_grown_covariance():
    shapes = {"a": 6, "b": 9}
    preconditioner = Preconditioner({n: inverse_covariance(covariance(size), 0.1) for n, size in shapes.items()}, True)
    identity = {name: torch.eye(size).double() for name, size in shapes.items()}
    grown = {name: torch.linalg.inv(preconditioner.project(name, identity[name])) for name in shapes}
    start = {name: preconditioner.project(name, identity[name]) for name in shapes}
    noise = {"a": 0.5, "b": 2.0}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        keys = {name: torch.randn(4, size, generator=generator, dtype=torch.float64) for name, size in shapes.items()}
        preconditioner.absorb({name: Gradient(value, value) for name, value in keys.items()}, noise)
        for name, value in keys.items():
            grown[name] = grown[name] + value.T @ value / noise[name]
            torch.testing.assert_close(preconditioner.project(name, identity[name]), torch.linalg.inv(grown[name]))
    preconditioner.reset()
    for name in shapes:
        assert torch.equal(preconditioner.project(name, identity[name]), start[name])


def test_without_recursion_nothing_is_absorbed():
    preconditioner = Preconditioner({"m": covariance(5)}, recursive=False)
    identity = torch.eye(5).double()
    before = preconditioner.project("m", identity)
    preconditioner.absorb({"m": Gradient(identity, identity)}, {"m": 1.0})
    assert torch.equal(preconditioner.project("m", identity), before)


def test_project_takes_keys_as_rows():
    preconditioner = Preconditioner({"m": covariance(5)}, recursive=True)
    P = preconditioner.project("m", torch.eye(5).double())
    keys = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(preconditioner.project("m", keys), P @ keys.T)


def test_null_space_keeps_what_the_text_does_not_use():
    C = covariance(8)
    values, vectors = torch.linalg.eigh(C)
    P = null_space(C, float(values[2:4].mean()))
    torch.testing.assert_close(P @ P, P)
    for i in range(8):
        expected = vectors[:, i] if i < 3 else torch.zeros(8).double()
        torch.testing.assert_close(P @ vectors[:, i], expected)
    with pytest.raises(ValueError, match="no null space"):
        null_space(C, float(values[0]) / 2)
