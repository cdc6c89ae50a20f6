import numpy as np
import pytest
import torch

from agents.base import zero_action
from agents.baselines.stableedit import StableEdit, Whitener
from editenv.language_model.editable_lm import Gradient

LAST = "model.layers.2.mlp.down_proj"


def start(env, agent, training=None, seed=0):
    agent.prepare(training or env, seed, lambda what, done, total: None)
    observation, info = env.reset(seed=1)
    agent.begin(env)
    return observation, info


def test_whitened_gradients_have_the_identity_for_covariance():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    whitener = Whitener((3, 5), torch.device("cpu"))
    batches = [torch.randn(n, 5, generator=generator, dtype=torch.float64) @ mixing + n for n in (7, 1, 30, 12)]
    whitener.scatter = whitener.scatter.double()
    for normalizer in (whitener.keys, whitener.grads):
        normalizer.double()
    for batch in batches:
        whitener.observe(Gradient(batch[:, :3], batch), 1.0)
    seen = torch.cat(batches)
    covariance = np.cov(seen.numpy().T, ddof=0) * len(seen)
    np.testing.assert_allclose(whitener.scatter.numpy(), covariance, rtol=1e-9, atol=1e-9)
    white = whitener.whiten(seen, floor=1e-12)
    degrees = len(seen) - 5 - 1
    np.testing.assert_allclose((white.T @ white / degrees).numpy(), np.eye(5), atol=1e-6)
    # C^(-1/2) is the symmetric root: it turns the gradients as little as possible.
    root = np.linalg.lstsq((seen - seen.mean(0)).numpy(), white.numpy(), rcond=None)[0]
    np.testing.assert_allclose(root, root.T, atol=1e-8)
    assert np.linalg.eigvalsh(root).min() > 0


def test_too_few_tokens_for_a_covariance_are_normalised_one_by_one():
    whitener = Whitener((3, 5), torch.device("cpu"))
    grads = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    whitener.observe(Gradient(grads[:, :3], grads), 1.0)
    expected = (grads - grads.mean(0)) / grads.std(0)
    torch.testing.assert_close(whitener.whiten(grads, 1e-3), expected, rtol=1e-4, atol=1e-5)


def test_a_direction_without_gradients_does_not_blow_up():
    whitener = Whitener((2, 2), torch.device("cpu"))
    grads = 10 * torch.randn(50, 1, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0, 0.0]])
    whitener.observe(Gradient(grads, grads), 1.0)
    white = whitener.whiten(torch.tensor([[0.0, 1.0]]), floor=0.01)
    mean_eigenvalue = float(grads[:, 0].var()) * 49 / 47 / 2
    assert white[0, 1] == pytest.approx((0.01 * mean_eigenvalue) ** -0.5, rel=1e-4)


def by_hand(statistics, gradient, ridge, step, whole):
    """Normal equations in float64 from everything seen so far: lists of keys, gradients and outputs."""
    seen_keys, seen_grads, outputs = (torch.cat(part).double().numpy() for part in statistics)
    U, G = gradient.keys.double().numpy(), gradient.value_grads.double().numpy()
    normal_keys = (U - seen_keys.mean(0)) / seen_keys.std(0, ddof=1)
    if whole:
        n, d = seen_grads.shape
        values, vectors = np.linalg.eigh(np.cov(seen_grads.T, ddof=0) * n / (n - d - 1))
        values = np.maximum(values, 1e-3 * values.mean())
        normal_grads = (G - seen_grads.mean(0)) @ vectors @ np.diag(values**-0.5) @ vectors.T
    else:
        normal_grads = (G - seen_grads.mean(0)) / seen_grads.std(0, ddof=1)
    energy = (seen_keys**2).sum() / len(seen_keys)
    length = np.sqrt((outputs**2).mean())
    V = -step * length * (normal_keys**2).mean(1, keepdims=True) * normal_grads
    return np.linalg.solve(U.T @ U + ridge * energy * np.eye(U.shape[1]), U.T @ V)


@pytest.mark.parametrize("seed", [0, 3])
def test_warm_up_edits_the_training_stream_and_editing_goes_on_from_its_statistics(make_env, seed):
    training = make_env(modules=[LAST], split="train", edits_per_step=8, horizon=12)
    env = make_env(modules=[LAST], edits_per_step=8)
    agent = StableEdit(step_size=0.5, ridge=0.1, warm_up_batches=12)
    before = training.language_model.snapshot()
    _, info = start(env, agent, training, seed)
    assert torch.equal(training.language_model.snapshot()[LAST], before[LAST])

    lm = training.language_model
    training.reset(seed=seed)
    initial = lm.weight(LAST).clone()  # the step's unit is of the unedited model, in the warm-up, too
    statistics = ([], [], [])
    for _ in range(12):
        gradient = training.gradients[LAST]
        for part, value in zip(statistics, (gradient.keys, gradient.value_grads, gradient.keys @ initial), strict=True):
            part.append(value.clone())
        lm.apply({LAST: torch.tensor(by_hand(statistics, gradient, 0.1, 0.5, whole=False)).float()})
        training.transition(zero_action(lm))
    assert sum(map(len, statistics[0])) > 32 + 1
    for _ in range(2):
        gradient = env.gradients[LAST]
        for part, value in zip(statistics, (gradient.keys, gradient.value_grads, gradient.keys @ initial), strict=True):
            part.append(value.clone())
        expected = by_hand(statistics, gradient, 0.1, 0.5, whole=True)
        action = agent.act(env.gradients, info)
        difference = np.linalg.norm(action[LAST].dense().numpy() - expected)
        assert difference < 0.02 * np.linalg.norm(expected)
        *_, info = env.step(action)


@pytest.mark.parametrize("attempts", [1, 2])
def test_an_agent_that_is_told_what_had_been_goes_on_the_same(make_env, attempts):
    env = make_env(modules=[LAST], actions_per_batch=attempts)
    first, second = (StableEdit(warm_up_batches=2, actions_per_batch=attempts) for _ in range(2))
    start(env, second)
    _, info = start(env, first)
    for _ in range(2 * attempts):
        *_, info = env.step(first.act(env.gradients, info))
        if info["attempt"] == 0:
            second.load_batch_state(first.batch_state())
    one, two = first.act(env.gradients, info)[LAST], second.act(env.gradients, info)[LAST]
    # The second sees this batch's observation without having acted before.
    assert torch.equal(one.left, two.left)
    assert torch.equal(one.right, two.right)
    _, info = env.reset(seed=1)
    first.begin(env)
    again = StableEdit(warm_up_batches=2, actions_per_batch=attempts)
    start(env, again)
    assert torch.equal(first.act(env.gradients, info)[LAST].right, again.act(env.gradients, info)[LAST].right)
