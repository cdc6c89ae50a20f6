import copy
import itertools
from dataclasses import replace

import pytest
import torch
from plain import batch_loss, batch_losses, edited_weights, kl, nll, random_deltas

from editenv.data import Edit
from editenv.deltas import LowRank
from editenv.evaluation.batch import encode_evaluation
from editenv.language_model.editable_lm import EditableLM
from editenv.rewards import Reward, RewardConfig, prepare

MODULES = {
    "last": ["layers.2.mlp.down_proj"],
    "two": ["layers.1.mlp.down_proj", "layers.2.mlp.down_proj"],
    "attention": ["layers.0.self_attn.o_proj", "layers.2.mlp.up_proj"],
}
CONFIG = RewardConfig(locality=0.6, memory_decay=0.7, memory_batches=2, regularization=0.01)


@pytest.fixture(params=MODULES)
def lm(request, make_lm):
    return make_lm(*MODULES[request.param])


def batches_of(edits):
    return [edits[:3], edits[3:5], edits[5:6], edits[6:10]]


def with_memory(lm, batches, config=CONFIG):
    reward = Reward(lm, config)
    for batch in batches:
        reward.add_to_memory(prepare(lm, encode_evaluation(lm, batch)))
    return reward


def by_hand(base, tokenizer, batches, deltas, config):
    """Eq. 7 to 10 for the last of ``batches``, as tensors."""
    weights = edited_weights(base, deltas)
    edit, locality = batch_losses(base, tokenizer, batches[-1], weights)
    memory = torch.zeros(())
    for i in range(1, config.memory_batches + 1):
        if i < len(batches):
            past = batches[-1 - i]
            memory = memory + config.memory_decay**i * batch_loss(base, tokenizer, past, weights, config.locality)
    norm = sum(delta.square().sum() for delta in deltas.values())
    loss = edit + config.locality * locality + memory
    return {"edit": edit, "locality": locality, "memory": memory, "regularization": norm, "loss": loss}


@pytest.mark.parametrize("past", [0, 1, 3])
def test_terms_are_equations_7_to_10(lm, base, tokenizer, edits, past):
    batches = batches_of(edits)[: past + 1]
    reward = with_memory(lm, batches[:-1])
    current = prepare(lm, encode_evaluation(lm, batches[-1]))
    deltas = random_deltas(lm, scale=0.2)
    lm.apply(deltas)
    expected = {key: float(value) for key, value in by_hand(base, tokenizer, batches, deltas, CONFIG).items()}
    terms = reward.step(current, deltas)
    assert expected["locality"] > 0.01
    assert (expected["memory"] > 0.1) == (past > 0)
    for name in ("edit", "locality", "memory", "regularization"):
        assert getattr(terms, name) == pytest.approx(expected[name], rel=1e-4, abs=1e-5)
    assert terms.reward == pytest.approx(-expected["loss"] - 0.01 * expected["regularization"], rel=1e-4)
    assert terms.as_dict() == {name: getattr(terms, name) for name in terms.as_dict()}


def test_the_reference_may_be_the_weights_before_the_batch(make_env, base, tokenizer):
    """The public code's: every batch looked at, past ones too, is compared with theta_{t-1}."""
    module, edits_of, deltas = "model.layers.2.mlp.down_proj", [], []
    options = {"edits_per_step": 2, "horizon": 4, "memory_batches": 2, "memory_decay": 0.7}
    env = make_env(modules=[module], reference="previous", **options)
    env.reset(seed=0)
    for step in range(4):
        edits_of.append(list(env.batch))
        deltas.append(random_deltas(env.language_model, seed=step, scale=0.2)[module])
        terms = env.step({module: deltas[-1]})[-1]["reward_terms"]
        before, after = (
            edited_weights(base, {module: sum(part, torch.zeros(64, 32))}) for part in (deltas[:-1], deltas)
        )
        losses = [batch_losses(base, tokenizer, batch, after, before) for batch in reversed(edits_of[-3:])]
        assert terms["locality"] == pytest.approx(float(losses[0][1]), rel=1e-3)
        memory = sum(0.7**lag * float(edit + 0.6 * kl) for lag, (edit, kl) in enumerate(losses) if lag)
        assert terms["memory"] == pytest.approx(memory, rel=1e-3)


def test_a_reference_needs_no_locality_prompts(make_env):
    rows = [Edit(id=str(i), prompt=f"The colour of body {i} is", target="blue") for i in range(4)]
    env = make_env(modules=["model.layers.2.mlp.down_proj"], dataset=None, reference="previous")
    env.reset(seed=0)
    env.present(rows)
    assert env.step(random_deltas(env.language_model))[-1]["reward_terms"]["locality"] == 0


def test_theta_0_put_back_is_what_the_batch_at_hand_came_to(make_env):
    module = "model.layers.2.mlp.down_proj"
    env = make_env(modules=[module], reference="previous", edits_per_step=3)
    env.reset(seed=0)
    env.step(random_deltas(env.language_model, scale=0.5))
    assert env.judge({}).locality == pytest.approx(0, abs=1e-6)
    env.undo_all_edits()
    assert env.judge({}).locality == pytest.approx(0, abs=1e-6)


def test_preparing_at_edited_weights_refers_to_theta_0(lm, base, tokenizer, edits):
    deltas = random_deltas(lm, scale=0.2)
    lm.apply(deltas)
    terms = Reward(lm, CONFIG).step(prepare(lm, encode_evaluation(lm, edits[:3])), deltas)
    assert terms.locality == pytest.approx(
        float(batch_losses(base, tokenizer, edits[:3], edited_weights(base, deltas))[1]), rel=1e-4
    )
    lm.restore()
    assert Reward(lm, CONFIG).step(prepare(lm, encode_evaluation(lm, edits[:3])), {}).locality == pytest.approx(
        0, abs=1e-6
    )


def test_gradient_is_autograd_of_the_plain_model(lm, base, tokenizer, edits):
    batches = batches_of(edits)
    reward = with_memory(lm, batches[:-1])
    current = prepare(lm, encode_evaluation(lm, batches[-1]))
    deltas = random_deltas(lm, scale=0.2)
    lm.apply(deltas)
    leaves = {name: delta.clone().requires_grad_() for name, delta in deltas.items()}
    by_hand(base, tokenizer, batches, leaves, CONFIG)["loss"].backward()
    terms, gradients = reward.step_with_gradient(current, deltas)
    for name, leaf in leaves.items():
        assert leaf.grad.norm() > 0.01
        torch.testing.assert_close(gradients[name].dense(), leaf.grad, rtol=1e-3, atol=1e-4)
    assert terms.reward == pytest.approx(reward.step(current, deltas).reward, rel=1e-5)


def test_a_long_memory_is_looked_back_at_in_parts(lm, base, tokenizer, edits, monkeypatch):
    """What a forward with its backward holds in memory does not grow with k."""
    config = replace(CONFIG, memory_batches=9)
    batches = [[edit] for edit in edits]
    reward = with_memory(lm, batches[:-1], config)
    current = prepare(lm, encode_evaluation(lm, batches[-1]))
    deltas = random_deltas(lm, scale=0.2)
    lm.apply(deltas)
    leaves = {name: delta.clone().requires_grad_() for name, delta in deltas.items()}
    by_hand(base, tokenizer, batches, leaves, config)["loss"].backward()
    together, gradients_of = [], lm.gradients
    monkeypatch.setattr(
        lm, "gradients", lambda prompts, loss: together.append(len(prompts)) or gradients_of(prompts, loss)
    )
    terms, gradients = reward.step_with_gradient(current, deltas)
    assert len(together) == 3
    assert max(together) <= 4 * max(len(prepare(lm, encode_evaluation(lm, batch)).prompts) for batch in batches)
    for name, leaf in leaves.items():
        assert leaf.grad.norm() > 0.01
        torch.testing.assert_close(gradients[name].dense(), leaf.grad, rtol=1e-3, atol=1e-4)
    assert terms.as_dict() == pytest.approx(reward.step(current, deltas).as_dict(), rel=1e-5)


def test_gradient_is_the_slope_of_the_reward(base, tokenizer, edits):
    lm = EditableLM(copy.deepcopy(base).double(), tokenizer, MODULES["two"])
    batches = batches_of(edits)
    reward = with_memory(lm, batches[:-1])
    current = prepare(lm, encode_evaluation(lm, batches[-1]))
    lm.apply(random_deltas(lm, scale=0.2))
    _, gradients = reward.step_with_gradient(current, {})
    here, step = lm.snapshot(), 1e-2
    generator = torch.Generator().manual_seed(3)
    for name in lm.modules:
        gradient = gradients[name].dense()
        directions = [torch.randn(gradient.shape, generator=generator, dtype=torch.float64)]
        for index in gradient.abs().flatten().topk(3).indices:
            entry = torch.zeros_like(gradient)
            entry.view(-1)[index] = 1.0
            directions.append(entry)
        for direction in directions:
            direction = direction / direction.norm()
            rewards = []
            for sign in (1, -1):
                lm.apply({name: sign * step * direction})
                rewards.append(reward.step(current, {}).reward)
                lm.restore(here)
            slope = -(rewards[0] - rewards[1]) / (2 * step)
            assert slope == pytest.approx(float((gradient * direction).sum()), rel=0.01, abs=2e-3)


@pytest.mark.parametrize("samples", [1, 2])
def test_the_sampled_estimate_of_the_memory_term_is_unbiased(make_lm, edits, samples):
    lm = make_lm()
    batches = batches_of(edits)
    reward = with_memory(lm, batches[:3], RewardConfig(memory_decay=0.7, memory_batches=3))
    current = prepare(lm, encode_evaluation(lm, batches[3]))
    deltas = random_deltas(lm, scale=0.2)
    lm.apply(deltas)
    whole, whole_gradient = reward.step_with_gradient(current, deltas)
    estimates = [
        reward.step_with_gradient(current, deltas, lags) for lags in itertools.combinations((1, 2, 3), samples)
    ]
    assert len({terms.memory for terms, _ in estimates}) == 3
    assert sum(terms.memory for terms, _ in estimates) / 3 == pytest.approx(whole.memory, rel=1e-5)
    assert sum(terms.reward for terms, _ in estimates) / 3 == pytest.approx(whole.reward, rel=1e-5)
    for name in lm.modules:
        estimate = sum(gradients[name].dense() for _, gradients in estimates) / 3
        torch.testing.assert_close(estimate, whole_gradient[name].dense(), rtol=1e-3, atol=1e-5)


def test_all_lags_given_by_name_are_the_whole_sum(make_lm, edits):
    lm = make_lm()
    batches = batches_of(edits)
    reward = with_memory(lm, batches[:3], RewardConfig(memory_batches=3))
    current = prepare(lm, encode_evaluation(lm, batches[3]))
    assert reward.step_with_gradient(current, {}, [3, 1, 2])[0].memory == pytest.approx(
        reward.step(current, {}).memory, rel=1e-6
    )


@pytest.mark.parametrize(("keep", "kept"), [(0, 0), (2, 2), (10, 4)])
def test_memory_keeps_the_last_k(make_lm, edits, keep, kept):
    lm = make_lm()
    reward = Reward(lm, RewardConfig(memory_batches=keep))
    batches = [prepare(lm, encode_evaluation(lm, batch)) for batch in batches_of(edits)]
    for batch in batches:
        reward.add_to_memory(batch)
    assert len(reward.memory) == kept
    assert all(a is b for a, b in zip(reward.memory, batches[4 - kept :], strict=True))


def test_edits_without_rephrases_or_locality(make_lm, base, tokenizer, edits):
    lm = make_lm()
    bare = Edit(id="bare", prompt="The colour of Ada is", target="deep blue")
    deltas = random_deltas(lm, scale=0.2)
    weights = edited_weights(base, deltas)
    lm.apply(deltas)
    alone = Reward(lm, CONFIG).step(prepare(lm, encode_evaluation(lm, [bare])), deltas)
    own = float(nll(base, tokenizer, bare.prompt, bare.target, weights))
    assert alone.edit == pytest.approx(own, rel=1e-4)
    assert alone.locality == 0
    other = edits[1]
    both = Reward(lm, CONFIG).step(prepare(lm, encode_evaluation(lm, [bare, other])), deltas)
    edit, locality = (float(x) for x in batch_losses(base, tokenizer, [other], weights))
    assert both.edit == pytest.approx((own + edit) / 2, rel=1e-4)
    assert both.locality == pytest.approx(locality / 2, rel=1e-4)


def test_locality_is_the_divergence_from_theta_0_in_this_direction(make_lm, base, tokenizer, edits):
    lm = make_lm()
    deltas = random_deltas(lm, scale=0.4)
    lm.apply(deltas)
    terms = Reward(lm, CONFIG).step(prepare(lm, encode_evaluation(lm, edits[:1])), deltas)
    (item,) = edits[0].locality
    weights = edited_weights(base, deltas)
    forward = float(kl(base, tokenizer, item.prompt, item.answer, weights))
    assert terms.locality == pytest.approx(forward, rel=1e-4)
    assert forward > 0.05


def test_a_low_rank_delta_is_charged_like_its_matrix(make_lm, edits):
    lm = make_lm()
    (name,) = lm.modules
    d_in, d_out = lm.shape(name)
    delta = LowRank(torch.randn(d_in, 3), torch.randn(3, d_out))
    current = prepare(lm, encode_evaluation(lm, edits[:2]))
    reward = Reward(lm, CONFIG)
    factored, whole = reward.step(current, {name: delta}), reward.step(current, {name: delta.dense()})
    assert factored.regularization == pytest.approx(whole.regularization, rel=1e-5)
    assert factored.reward == pytest.approx(whole.reward, rel=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"memory_batches": -1}, {"memory_decay": 1.5}, {"memory_decay": -0.1}, {"reference": "theta_0"}]
)
def test_coefficients_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RewardConfig(**wrong)


def test_more_past_batches_than_fit_in_one_forward(make_lm, base, tokenizer, edits):
    lm, batches = make_lm(), [[edit] for edit in edits]
    config = RewardConfig(memory_decay=0.9, memory_batches=9)
    reward = with_memory(lm, batches[:-1], config)
    current, deltas = prepare(lm, encode_evaluation(lm, batches[-1])), random_deltas(lm, scale=0.2)
    lm.apply(deltas)
    expected = float(by_hand(base, tokenizer, batches, deltas, config)["memory"])
    assert reward.step(current, deltas).memory == pytest.approx(expected, rel=1e-4)
    assert reward.step_with_gradient(current, deltas)[0].memory == pytest.approx(expected, rel=1e-4)
