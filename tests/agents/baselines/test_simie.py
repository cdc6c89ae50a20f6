"""SimIE: the recursion against the least-squares problem that it solves."""

import pytest
import torch

from agents.base import Agent
from agents.baselines.simie import SimIE, keys_of_edits
from editenv.deltas import LowRank

BOTH = ("model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj")


def nothing(*_):
    pass


class Drawn(Agent):
    """An editor whose deltas are drawn from the batch: one in factors, one dense. Keeps what it saw."""

    looks_at_model = True

    def __init__(self):
        self.weights, self.begun = [], 0

    def begin(self, env):
        self.env, self.begun = env, self.begun + 1

    def act(self, observation, info):
        lm = self.env.language_model
        self.weights.append({name: lm.weight(name).clone() for name in BOTH})
        generator = torch.Generator().manual_seed(info["batch"])
        left, right = torch.randn(64, 2, generator=generator), torch.randn(2, 32, generator=generator)
        return {BOTH[0]: LowRank(left, right), BOTH[1]: 0.1 * left @ right}


def played(make_env, agent, batches=3):
    """The environment after some batches, and what the model's edited modules were given in each by a plain pass."""
    env = make_env(horizon=batches)
    agent.prepare(env, 0, nothing)
    _, info = env.reset(seed=0)
    agent.begin(env)
    keys = []
    for _ in range(batches):
        before = env.language_model.snapshot()
        keys.append(plain_keys(env, at_theta_0=agent.start == "initial"))
        action = agent.act(env.gradients, info)
        assert all(torch.equal(before[name], weight) for name, weight in env.language_model.snapshot().items())
        *_, info = env.step(action)
    return env, keys


def plain_keys(env, at_theta_0):
    """Every token of prompt and answer, one text at a time, with hooks on the model itself."""
    lm, keys = env.language_model, {name: [] for name in BOTH}
    weights = lm.snapshot()
    if at_theta_0:
        lm.restore()
    handles = [
        module.register_forward_pre_hook(lambda _, args, into=keys[name]: into.append(args[0][0]))
        for name, module in lm.modules.items()
    ]
    for edit in env.batch:
        lm.model(torch.tensor([lm.tokenizer(f"{edit.prompt} {edit.target}")["input_ids"]]))
    for handle in handles:
        handle.remove()
    lm.restore(weights)
    return {name: torch.cat(parts).double() for name, parts in keys.items()}


def test_the_weights_are_the_least_squares_solution_for_all_batches(make_env, small_world):
    """Brute force: the normal equations of ``sum |K_i (W - W_i)|^2 + ridge |W - W_0|^2``, all batches at once."""
    agent = SimIE(base="fine-tune", ridge=3.0)
    agent.editor = editor = Drawn()
    env, keys = played(make_env, agent)
    lm = env.language_model
    assert all(torch.equal(seen[name], lm.initial_weight(name)) for seen in editor.weights for name in BOTH)
    assert editor.begun == 4  # once in begin, and for each batch anew
    for name in BOTH:
        W_0 = lm.initial_weight(name).double()
        system, right = 3.0 * torch.eye(64).double(), 3.0 * W_0
        for batch, K in enumerate(key[name] for key in keys):
            delta = editor.act({}, {"batch": batch})[name]
            W_i = W_0 + (delta.dense() if isinstance(delta, LowRank) else delta).double()
            system, right = system + K.T @ K, right + K.T @ K @ W_i
        expected = torch.linalg.solve(system, right)
        torch.testing.assert_close(lm.weight(name).double(), expected, rtol=1e-3, atol=1e-3)
        assert (expected - W_0).norm() > 0.1 * W_0.norm()


def test_from_the_current_weights_each_batch_adds_what_the_editor_did_there(make_env, small_world):
    """``D = P_t^{-1} K^T K D_editor``, P_t the ridge and all keys so far, by the public code's own solve."""
    agent = SimIE(base="fine-tune", ridge=3.0, start="current")
    agent.editor = editor = Drawn()
    env, keys = played(make_env, agent)
    for name in BOTH:
        W, P = env.language_model.initial_weight(name).double(), 3.0 * torch.eye(64).double()
        for batch, K in enumerate(key[name] for key in keys):
            torch.testing.assert_close(editor.weights[batch][name].double(), W, rtol=1e-3, atol=1e-3)
            delta = editor.act({}, {"batch": batch})[name]
            P += K.T @ K
            W = W + torch.linalg.solve(P, K.T @ K @ (delta.dense() if isinstance(delta, LowRank) else delta).double())
        torch.testing.assert_close(env.language_model.weight(name).double(), W, rtol=1e-3, atol=1e-3)


def test_keys_are_those_of_every_token(make_env, small_world):
    env = make_env()
    env.reset(seed=0)
    keys, expected = keys_of_edits(env.language_model, env.batch), plain_keys(env, at_theta_0=False)
    for name in BOTH:
        assert len(keys[name]) == sum(
            len(env.language_model.tokenizer(f"{e.prompt} {e.target}")["input_ids"]) for e in env.batch
        )
        torch.testing.assert_close(
            keys[name].T.double() @ keys[name].double(), expected[name].T @ expected[name], rtol=1e-4, atol=1e-4
        )


def test_alone_and_with_a_small_ridge_a_batch_is_what_its_editor_makes_of_it(make_env, small_world):
    for base, settings in (("fine-tune", {"steps": 5}), ("lora", {"steps": 5})):
        agent = SimIE(base=base, editor=settings, ridge=1e-3)
        env = make_env(edits_per_step=1, modules=["layers.2.mlp.down_proj"])
        agent.prepare(env, 0, nothing)
        _, info = env.reset(seed=0)
        agent.begin(env)
        keys = keys_of_edits(env.language_model, env.batch)[BOTH[1]]
        (delta,), (alone,) = agent.act(env.gradients, info).values(), agent.editor.act(env.gradients, info).values()
        alone = alone.dense() if isinstance(alone, LowRank) else alone
        torch.testing.assert_close(keys @ delta.dense(), keys @ alone, rtol=1e-2, atol=1e-2 * float(alone.abs().max()))
        assert alone.any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"base": "mend"}, "base must be one of 'fine-tune', 'lora', 'memit', 'rome', not 'mend'"),
        ({"base": "rome", "editor": {"keep": 0.2}}, "editor: ROME has no setting 'keep'"),
        ({"editor": {"value": {"steps": 0}}}, "editor: value.steps must be a whole number of at least 1, not 0"),
        ({"editor": {"cache_keys": True}}, "editor: cache_keys keeps earlier batches' keys"),
    ],
)
def test_what_cannot_be_wrapped_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        SimIE(**arguments)


def test_it_needs_what_its_editor_needs():
    assert SimIE(base="fine-tune").needs == ("model",)
    assert SimIE(base="memit").needs == ("model", "text", "subjects")
    assert SimIE(base="memit", editor={"value": {"token": "last"}}).needs == ("model", "text")
