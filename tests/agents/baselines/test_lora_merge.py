import math
import random

import peft
import pytest
import torch
from plain import mean, nll
from transformers import LlamaForCausalLM

from agents.baselines.lora_merge import LoRAMerge, learning_rate_factors

LAST = "model.layers.2.mlp.down_proj"


def start(env, agent, seed=0):
    agent.prepare(env, seed, lambda *_: None)
    _, info = env.reset(seed=1)
    agent.begin(env)
    return info


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_the_weights_are_those_before_and_the_adapted_ones_interpolated(make_env, model_folder, base, tokenizer, share):
    """The adapter is trained by PEFT on the plain model, and merged by PEFT."""
    env = make_env(modules=[LAST], edits_per_step=5)
    agent = LoRAMerge(rank=3, alpha=6, epochs=4, mini_batch=3, learning_rate=0.01, share=share)
    info = start(env, agent, seed=5)
    delta = agent.act(env.gradients, info)[LAST]
    assert delta.left.shape[1] == 3

    todo = list(env.batch)
    seed = "5/0/" + "/".join(f"{edit.prompt} {edit.target}" for edit in todo)
    draws = random.Random(seed)
    torch.manual_seed(random.Random(seed).getrandbits(63))
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=[LAST])
    adapted = peft.get_peft_model(LlamaForCausalLM.from_pretrained(model_folder), config).eval()
    optimizer = torch.optim.Adam([parameter for parameter in adapted.parameters() if parameter.requires_grad])
    for factor in learning_rate_factors(4):
        optimizer.param_groups[0]["lr"] = factor * 0.01
        draws.shuffle(todo)
        for first in (0, 3):
            optimizer.zero_grad()
            edits = todo[first : first + 3]
            mean(nll(adapted.get_base_model(), tokenizer, edit.prompt, edit.target) for edit in edits).backward()
            optimizer.step()
    before, after = base.get_submodule(LAST).weight, adapted.merge_and_unload().get_submodule(LAST).weight
    assert (after - before).norm() > 0.01
    expected = ((1 - share) * before + share * after - before).T
    assert (delta.dense() - expected).norm() < 0.02 * expected.norm()


def test_after_many_batches_the_weights_are_a_moving_average(make_env):
    """theta_t is a share of each adapted model, the last ones most: summed by hand."""
    env = make_env(modules=[LAST])
    agent = LoRAMerge(epochs=2, learning_rate=0.01, share=0.3)
    info = start(env, agent)
    start_weight, adapted = env.language_model.weight(LAST).clone(), []
    for _ in range(3):
        delta = agent.act(env.gradients, info)
        adapted.append(env.language_model.weight(LAST) + delta[LAST].dense() / 0.3)
        *_, info = env.step(delta)
    expected = 0.7**3 * start_weight + sum(0.3 * 0.7 ** (2 - i) * one for i, one in enumerate(adapted))
    torch.testing.assert_close(env.language_model.weight(LAST), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("epochs", "num_steps"), [(1, 1), (8, 8), (9, 10), (10, 11), (29, 30), (60, 61)])
def test_the_learning_rate_rises_and_falls_as_in_the_public_code(epochs, num_steps):
    """WikiBigEdit's schedule without the first epoch of ten or more, which has a rate of zero."""
    warmup = int(0.1 * num_steps)
    public = [
        step / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))
        for step in range(num_steps)
    ]
    factors = learning_rate_factors(epochs)
    assert factors == pytest.approx([factor for factor in public if factor > 0])
    assert len(factors) == epochs
    assert max(factors) <= 1
    assert min(factors) > 0


def test_the_language_model_is_as_it_was(make_env):
    env = make_env()
    agent = LoRAMerge(epochs=1)
    info = start(env, agent)
    lm = env.language_model
    before, structure = lm.snapshot(), [name for name, _ in lm.model.named_modules()]
    agent.act(env.gradients, info)
    assert all(torch.equal(weight, before[name]) for name, weight in lm.snapshot().items())
    assert [name for name, _ in lm.model.named_modules()] == structure
