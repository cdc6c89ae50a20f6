"""ECE: attributions by loops, clusters that are there, and its least squares in dense matrices."""

import pytest
import torch

from agents.baselines.ece import ECE, attribute, clustered
from agents.baselines.lookup import look_up, read_token
from agents.baselines.memit import MEMIT
from agents.baselines.values import LayerValueConfig, optimise_values
from agents.covariance import key_covariance, sample_text
from editenv.data import load_edits
from editenv.deltas import dense
from editenv.language_model.editable_lm import EditableLM

FIRST, MIDDLE = "layers.0.mlp.down_proj", "layers.1.mlp.down_proj"
VALUE = LayerValueConfig(learning_rate=0.3, steps=2, weight_decay=0.01, prefixes=0)


def attribution_by_hand(key, weight, attribution):
    scores = []
    for j in range(len(key)):
        total = sum(abs(float(w)) for w in weight[j])
        scores.append({"activation": abs(float(key[j])), "weights": total}.get(attribution, abs(float(key[j])) * total))
    return scores


@pytest.mark.parametrize("attribution", ["activation", "weights", "relevance"])
def test_attributions_written_out(attribution):
    generator = torch.Generator().manual_seed(0)
    keys, weight = torch.randn(3, 6, generator=generator), torch.randn(6, 4, generator=generator)
    found = attribute(keys, weight, attribution)
    for row, key in zip(found, keys, strict=True):
        torch.testing.assert_close(row, torch.tensor(attribution_by_hand(key, weight, attribution)))


def test_facts_with_similar_attributions_make_a_cluster():
    """By direction: how strongly a fact's neurons are active does not set it apart."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.zeros(3, 30)
    kinds[0, :10], kinds[1, 10:20], kinds[2, 20:] = 1, 1, 1
    kind_of = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    strength = torch.tensor([1.0, 9.0, 1.0, 5.0, 1.0, 4.0, 0.2, 3.0])[:, None]
    attributions = strength * (kinds[kind_of] + 0.1 * torch.rand(8, 30, generator=generator))
    clusters = clustered(attributions, 3)
    assert sorted(map(torch.Tensor.tolist, clusters)) == [[0, 3, 6, 7], [1, 4], [2, 5]]
    assert list(map(torch.Tensor.tolist, clusters)) == list(map(torch.Tensor.tolist, clustered(attributions, 3)))
    assert sorted(i for cluster in clustered(attributions, 20) for i in cluster.tolist()) == list(range(8))
    assert [cluster.tolist() for cluster in clustered(attributions[:1], 4)] == [[0]]


def started(make_env, agent):
    env = make_env(modules=[FIRST, MIDDLE], edits_per_step=4, horizon=2)
    agent.prepare(env, 0, lambda *_: None)
    _, info = env.reset(seed=0)
    agent.begin(env)
    return env, info


def test_two_batches_of_clusters_written_out(base, tokenizer, make_env, small_world):
    attribution = "relevance"
    agent = ECE(VALUE, 2.0, samples=30, epsilon=0.01, attribution=attribution, neurons=0.6, clusters=2)
    env, info = started(make_env, agent)
    lm = EditableLM(base, tokenizer, [FIRST, MIDDLE])
    layer = lm.model.get_submodule("model.layers.1")
    C = key_covariance(lm, sample_text(load_edits("atlas", "train"), 30))
    earlier = {name: torch.zeros(64, 64).double() for name in lm.modules}
    for _ in range(2):
        lookup = look_up(lm, env.batch, "subject_last")
        values = read_token(lm, layer, lookup)[1] + optimise_values(lm, layer, env.batch, lookup, VALUE)
        total = {}
        for i, (name, module) in enumerate(lm.modules.items()):
            U = read_token(lm, module, lookup)[0].double()
            R = (values - read_token(lm, layer, lookup)[1]).double() / (2 - i)
            system = 2.0 * (C[name] + 0.01 * C[name].trace() / 64 * torch.eye(64)).double() + earlier[name] + U.T @ U
            scores = torch.tensor([attribution_by_hand(key, lm.weight(name), attribution) for key in U])
            clusters = clustered(scores, 2)
            assert len(clusters) == 2
            total[name] = torch.zeros(64, 32)
            for cluster in clusters:
                of_cluster = scores[cluster].sum(0)
                S, share = [], 0.0
                for j in of_cluster.argsort(descending=True).tolist():
                    share += float(of_cluster[j] / of_cluster.sum())
                    if share > 0.6:
                        break
                    S.append(j)
                U_c = U[cluster][:, S]
                total[name][S] += torch.linalg.solve(system[S][:, S], U_c.T @ R[cluster]).float()
            lm.apply({name: total[name]})
        action = agent.act(env.gradients, info)
        for name in total:
            assert total[name].norm() > 0.1
            assert (total[name].norm(dim=1) == 0).any()
            torch.testing.assert_close(dense(action[name]), total[name], rtol=5e-3, atol=5e-3)
        *_, info = env.step(action)
        for name, module in lm.modules.items():
            keys = read_token(lm, module, lookup)[0].double()
            earlier[name] += keys.T @ keys


def test_with_all_neurons_clusters_add_up_to_memit_seq(make_env, small_world):
    """A cluster leaves the facts of the others alone, so that nothing is lost by solving for each on its own."""
    ece = ECE(VALUE, 2.0, samples=30, neurons=1.0, clusters=3)
    env, info = started(make_env, ece)
    found = ece.act(env.gradients, info)
    memit = MEMIT(VALUE, 2.0, samples=30, cache_keys=True)
    env, info = started(make_env, memit)
    expected = memit.act(env.gradients, info)
    for name, delta in expected.items():
        assert delta.dense().norm() > 0.1
        torch.testing.assert_close(found[name].dense(), delta.dense(), rtol=2e-3, atol=2e-3)
