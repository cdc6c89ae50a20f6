"""RLSEdit: the recursion against the whole objective, solved at once."""

import pytest
import torch

from agents.baselines.lookup import look_up, read_token
from agents.baselines.memit import MEMIT
from agents.baselines.rlsedit import RLSEdit
from agents.baselines.values import LayerValueConfig
from agents.covariance import covariance_of
from editenv.deltas import ridge_regression
from editenv.language_model.editable_lm import Gradient

MIDDLE = "layers.1.mlp.down_proj"
VALUE = LayerValueConfig(token="last", learning_rate=0.3, steps=10, prefixes=0, kl=0.0, clamp=4.0)


def matrix(rows, columns, seed):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nothing(*_):
    pass


def test_the_recursion_solves_the_objective_of_all_batches():
    """Brute force: lstsq of one tall system of all keys, the anchors' square root, and lambda I."""
    root, W_0 = matrix(9, 30, 0), matrix(9, 4, 1)
    C = root @ root.T / 30
    agent = RLSEdit(weight=5.0, deviation=0.7, epsilon=0.0)
    P = agent._precondition({"m": C})
    W, keys, values = W_0.clone(), [], []
    for batch in range(4):
        U, V = matrix(3, 9, 10 + batch), matrix(3, 4, 20 + batch)
        W = W + ridge_regression(U, V - U @ W, 1.0, P.project("m", U)).dense()
        P.absorb({"m": Gradient(U, U)}, {"m": 1.0})
        keys.append(U)
        values.append(V)
    anchors = torch.linalg.cholesky(5.0 * C).T
    tall = torch.cat([*keys, anchors, 0.7 * torch.eye(9).double()])
    right = torch.cat([*values, anchors @ W_0, 0.7 * W_0])
    torch.testing.assert_close(W, torch.linalg.lstsq(tall, right).solution)


def played(make_env, agent, batches=3):
    """The environment after some batches in one module, and each batch's keys and outputs as they were before it."""
    env = make_env(modules=[MIDDLE], horizon=batches)
    agent.prepare(env, 0, nothing)
    _, info = env.reset(seed=0)
    agent.begin(env)
    name, seen = f"model.{MIDDLE}", []
    for _ in range(batches):
        lm = env.language_model
        keys, outputs = read_token(lm, lm.modules[name], look_up(lm, env.batch, "last"))
        seen.append((keys.double(), outputs.double()))
        *_, info = env.step(agent.act(env.gradients, info))
    return env, seen


@pytest.mark.parametrize("deviation", [0.0, 2.0])
def test_the_agents_weights_solve_it_too(make_env, small_world, deviation):
    """The wanted outputs are read off the first update of each batch: what MEMIT alone asks for."""
    agent, asked = RLSEdit(VALUE, weight=1.0, samples=30, deviation=deviation), []
    solve = agent._solve
    agent._solve = lambda name, keys, missing, lookup: (
        asked.append(missing.double()) or solve(name, keys, missing, lookup)
    )
    env, seen = played(make_env, agent)
    name = f"model.{MIDDLE}"
    W_0 = env.language_model.initial_weight(name).double()
    C = covariance_of(make_env(modules=[MIDDLE]), None, 30)[name].double()
    system = C + 1e-4 * C.trace() / len(C) * torch.eye(64) + deviation**2 * torch.eye(64)
    right = system @ W_0
    for (keys, outputs), missing in zip(seen, asked, strict=True):
        system, right = system + keys.T @ keys, right + keys.T @ (outputs + missing)
    expected = torch.linalg.solve(system, right)
    assert (expected - W_0).norm() > 0.1
    torch.testing.assert_close(env.language_model.weight(name).double(), expected, rtol=1e-2, atol=1e-2)


def test_without_deviation_a_first_batch_is_memits(make_env, small_world):
    ends = []
    for agent in (MEMIT(VALUE, weight=1.0, samples=30), RLSEdit(VALUE, weight=1.0, samples=30)):
        env = make_env(edits_per_step=4)
        agent.prepare(env, 0, nothing)
        _, info = env.reset(seed=0)
        agent.begin(env)
        ends.append(agent.act(env.gradients, info))
    for name, delta in ends[0].items():
        torch.testing.assert_close(ends[1][name].dense(), delta.dense())


def test_replaced_outputs_are_what_was_missing(make_env, small_world):
    """Nearly without anchors a module's output is R itself, in the place of what it was, as in the public code."""
    agent, asked = RLSEdit(VALUE, weight=1e-6, samples=30, outputs="replaced"), []
    solve = MEMIT._solve
    env = make_env(modules=[MIDDLE])
    agent.prepare(env, 0, nothing)
    _, info = env.reset(seed=0)
    agent.begin(env)
    name = f"model.{MIDDLE}"
    lm = env.language_model
    keys, outputs = read_token(lm, lm.modules[name], look_up(lm, env.batch, "last"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MEMIT, "_solve", lambda self, n, k, m, at: asked.append(m) or solve(self, n, k, m, at))
        env.step(agent.act(env.gradients, info))
    missing = asked[0] + outputs
    torch.testing.assert_close(keys @ lm.weight(name), missing, rtol=1e-2, atol=1e-2)
