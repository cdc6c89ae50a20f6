"""NSE: neurons by brute force, and batches, rounds and layers written out in dense matrices."""

import pytest
import torch

from agents.baselines.lookup import look_up, read_token
from agents.baselines.nse import NSE, active_neurons
from agents.baselines.values import LayerValueConfig, optimise_values
from agents.covariance import key_covariance, sample_text
from editenv.data import load_edits
from editenv.deltas import dense
from editenv.language_model.editable_lm import EditableLM

FIRST, MIDDLE = "layers.0.mlp.down_proj", "layers.1.mlp.down_proj"
VALUE = LayerValueConfig(learning_rate=0.3, steps=8, weight_decay=0.01, prefixes=0)


def nothing(*_):
    pass


def neurons_by_hand(keys, share):
    """Adds one neuron after the other, as long as their activation stays within the share."""
    scores = keys.abs().sum(0).tolist()
    chosen, total = [], 0.0
    for neuron in sorted(range(len(scores)), key=lambda j: -scores[j]):
        total += scores[neuron]
        if total > share * sum(scores) and chosen:
            break
        chosen.append(neuron)
    return sorted(chosen)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.8])
def test_the_most_active_neurons_are_chosen(share):
    keys = torch.randn(5, 40, generator=torch.Generator().manual_seed(1)).double()
    assert active_neurons(keys, share).sort().values.tolist() == neurons_by_hand(keys, share)
    assert len(active_neurons(keys, 0.001)) == 1
    assert len(active_neurons(keys.float(), 1.0)) == 40


@pytest.mark.parametrize("share", [1.0, 0.7])
def test_two_batches_and_two_rounds_written_out(base, tokenizer, make_env, small_world, share):
    """Values are of theta_0 in the second batch, too; only edits that are not there yet are written again."""
    env = make_env(modules=[FIRST, MIDDLE], edits_per_step=4, horizon=2)
    lm = EditableLM(base, tokenizer, [FIRST, MIDDLE])
    _, info = env.reset(seed=0)
    layer = lm.model.get_submodule("model.layers.1")
    asked = optimise_values(lm, layer, env.batch, look_up(lm, env.batch, "subject_last"), VALUE).norm(dim=1)
    enough = float(asked.sort().values[:2].mean())  # one edit of the first batch counts as made from the beginning
    agent = NSE(VALUE, 2.0, samples=30, epsilon=0.01, neurons=share, enough=enough, too_far=1e4, rounds=2)
    agent.prepare(env, 0, nothing)
    _, info = env.reset(seed=0)
    agent.begin(env)

    C = key_covariance(lm, sample_text(load_edits("atlas", "train"), 30))
    earlier = {name: torch.zeros(64, 64).double() for name in lm.modules}
    for batch in range(2):
        lookup = look_up(lm, env.batch, "subject_last")
        with lm.at_initial_weights():
            values = read_token(lm, layer, lookup)[1] + optimise_values(lm, layer, env.batch, lookup, VALUE)
        total = {name: torch.zeros(64, 32) for name in lm.modules}
        for _ in range(2):
            chosen = (values - read_token(lm, layer, lookup)[1]).norm(dim=1) > enough
            assert batch or chosen.sum() < 4
            for i, (name, module) in enumerate(lm.modules.items()):
                U = read_token(lm, module, lookup)[0][chosen].double()
                S = neurons_by_hand(U, share)
                R = (values - read_token(lm, layer, lookup)[1])[chosen].double() / (2 - i)
                system = 2.0 * (C[name] + 0.01 * C[name].trace() / 64 * torch.eye(64)).double() + earlier[name]
                D = torch.zeros(64, 32).double()
                D[S] = torch.linalg.solve(system[S][:, S] + U[:, S].T @ U[:, S], U[:, S].T @ R)
                lm.apply({name: D.float()})
                total[name] += D.float()
        action = agent.act(env.gradients, info)
        for name in total:
            assert total[name].norm() > 0.1
            assert (total[name].norm(dim=1) == 0).any() == (share < 1)
            torch.testing.assert_close(dense(action[name]), total[name], rtol=5e-3, atol=5e-3)
            keys = read_token(lm, lm.modules[name], lookup)[0].double()
            earlier[name] += keys.T @ keys
        *_, info = env.step(action)


def test_edits_that_are_there_or_too_far_are_left(make_env, small_world):
    for bounds in ({"enough": 1e3, "too_far": 1e4}, {"enough": 0.0, "too_far": 1e-3}):
        env = make_env(modules=[MIDDLE], edits_per_step=4, horizon=2)
        agent = NSE(VALUE, weight=1.0, samples=30, **bounds)
        agent.prepare(env, 0, nothing)
        _, info = env.reset(seed=0)
        agent.begin(env)
        before = env.language_model.snapshot()
        *_, info = env.step(agent.act(env.gradients, info))
        assert all(torch.equal(before[name], weight) for name, weight in env.language_model.snapshot().items())


def test_bounds_the_wrong_way_round_are_refused():
    with pytest.raises(ValueError, match="enough: 60 must be below too_far, 50"):
        NSE(enough=60.0)
