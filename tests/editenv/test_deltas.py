import pytest
import torch

from editenv.deltas import (
    LowRank,
    dense,
    inner,
    inner_gradient,
    low_rank_sum,
    ridge_regression,
    squared_norm,
)


@pytest.fixture
def delta():
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(7, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    right = torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    return LowRank(left, right)


def test_shape_and_dense(delta):
    assert delta.shape == (7, 5)
    by_hand = sum(torch.outer(delta.left[:, k], delta.right[k]) for k in range(3))
    torch.testing.assert_close(dense(delta), by_hand)
    matrix = torch.ones(2, 3)
    assert dense(matrix) is matrix


def test_squared_norm_is_that_of_the_matrix(delta):
    matrix = delta.left @ delta.right
    torch.testing.assert_close(squared_norm(delta), (matrix * matrix).sum())
    torch.testing.assert_close(squared_norm(matrix), (matrix * matrix).sum())


def test_inner_is_that_of_the_matrix(delta):
    other = torch.arange(35, dtype=torch.float64).reshape(7, 5).cos()
    by_hand = sum(other[i, j] * delta.dense()[i, j] for i in range(7) for j in range(5))
    torch.testing.assert_close(inner(other, delta), by_hand)
    torch.testing.assert_close(inner(other, delta.dense()), by_hand)


@pytest.mark.parametrize("function", [squared_norm, lambda d: inner(torch.ones(7, 5, dtype=torch.float64), d)])
def test_gradients_of_factored_and_dense_form_agree(delta, function):
    factored = torch.autograd.grad(function(delta), [delta.left, delta.right])
    whole = torch.autograd.grad(function(delta.dense()), [delta.left, delta.right])
    torch.testing.assert_close(factored, whole)


def test_gradient_of_the_inner_product(delta):
    other = torch.arange(35, dtype=torch.float64).reshape(7, 5).cos()
    expected = torch.autograd.grad((other * (delta.left @ delta.right)).sum(), [delta.left, delta.right])
    torch.testing.assert_close(inner_gradient(other, delta), expected)
    factors = LowRank(other[:, :2], torch.tensor([[1.0, 0, 2, 0, 3], [0, 1, 0, 4, 0]], dtype=torch.float64))
    expected = torch.autograd.grad((factors.dense() * (delta.left @ delta.right)).sum(), [delta.left, delta.right])
    torch.testing.assert_close(inner_gradient(factors, delta), expected)


def test_rank_zero_is_the_zero_matrix():
    nothing = LowRank(torch.zeros(4, 0), torch.zeros(0, 6))
    assert torch.equal(dense(nothing), torch.zeros(4, 6))
    assert squared_norm(nothing) == 0
    assert inner(torch.ones(4, 6), nothing) == 0


@pytest.mark.parametrize("module", ["layers.0.mlp.down_proj", "layers.2.self_attn.o_proj"])
def test_apply_adds_either_form(make_lm, module):
    lm = make_lm(module)
    (name,) = lm.modules
    d_in, d_out = lm.shape(name)
    low_rank = LowRank(torch.randn(d_in, 2), torch.randn(2, d_out))
    before = lm.weight(name).clone()
    lm.apply({name: low_rank})
    torch.testing.assert_close(lm.weight(name), before + low_rank.left @ low_rank.right)
    lm.restore()
    lm.apply({name: low_rank.dense()})
    torch.testing.assert_close(lm.weight(name), before + low_rank.left @ low_rank.right)


@pytest.mark.parametrize("preconditioned", [False, True])
def test_ridge_regression_is_the_minimiser(preconditioned):
    torch.manual_seed(0)
    U, V = torch.randn(4, 7, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    root = torch.randn(7, 7, dtype=torch.float64)
    P = root @ root.T + torch.eye(7) if preconditioned else torch.eye(7).double()
    delta = ridge_regression(U, V, 0.3, P @ U.T if preconditioned else None)
    assert delta.shape == (7, 5)
    D = delta.dense().requires_grad_()
    ((U @ D - V).square().sum() + 0.3 * (D * (torch.linalg.inv(P) @ D)).sum()).backward()
    torch.testing.assert_close(D.grad, torch.zeros_like(D), atol=1e-10, rtol=0)
    assert (U @ D - V).norm() < V.norm()


def test_ridge_regression_carries_gradient():
    torch.manual_seed(0)
    U, V = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    inputs = (U.requires_grad_(), V.requires_grad_(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(lambda *a: ridge_regression(*a).dense(), inputs)


def test_a_sum_of_factors_is_the_sum_of_the_matrices():
    parts = [LowRank(torch.randn(5, rank), torch.randn(rank, 3)) for rank in (2, 1, 4)]
    total = low_rank_sum(parts, (5, 3), torch.device("cpu"))
    assert total.left.shape == (5, 7)
    torch.testing.assert_close(total.dense(), sum(part.left @ part.right for part in parts))
    assert torch.equal(low_rank_sum([], (5, 3), torch.device("cpu")).dense(), torch.zeros(5, 3))
