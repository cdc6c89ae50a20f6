import random

import peft
import pytest
import torch
from plain import mean, nll
from transformers import LlamaForCausalLM

from agents.baselines.lora import LoRA
from editenv.deltas import LowRank

LAST = "model.layers.2.mlp.down_proj"


def start(env, agent, seed=0):
    agent.prepare(env, seed, lambda what, done, total: None)
    observation, info = env.reset(seed=1)
    agent.begin(env)
    return observation, info


@pytest.mark.parametrize("modules", [[LAST], ["layers.1.mlp.up_proj", LAST]])
def test_the_delta_is_what_a_plain_peft_model_merges(make_env, model_folder, base, tokenizer, modules):
    env = make_env(modules=modules)
    agent = LoRA(rank=3, alpha=6, steps=4, learning_rate=0.01)
    _, info = start(env, agent, seed=5)
    deltas = agent.act(env.gradients, info)

    batch = list(env.batch)
    drawn_from = "5/0/" + "/".join(f"{edit.prompt} {edit.target}" for edit in batch)
    torch.manual_seed(random.Random(drawn_from).getrandbits(63))
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=list(env.language_model.modules))
    adapted = peft.get_peft_model(LlamaForCausalLM.from_pretrained(model_folder), config).eval()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * len(modules)
    optimizer = torch.optim.Adam(trained, lr=0.01)
    plain = adapted.get_base_model()
    for _ in range(4):
        optimizer.zero_grad()
        mean(nll(plain, tokenizer, edit.prompt, edit.target) for edit in batch).backward()
        optimizer.step()
    merged = adapted.merge_and_unload()
    for name in env.language_model.modules:
        assert isinstance(deltas[name], LowRank)
        assert deltas[name].left.shape[1] == 3
        expected = (merged.get_submodule(name).weight - base.get_submodule(name).weight).T
        assert expected.norm() > 0.01
        assert (deltas[name].dense() - expected).norm() < 0.02 * expected.norm()


def test_the_language_model_is_as_it_was(make_env, base):
    env = make_env()
    agent = LoRA(steps=2)
    _, info = start(env, agent)
    *_, info = env.step(agent.act(env.gradients, info))
    lm = env.language_model
    modules, structure = dict(lm.modules), [name for name, _ in lm.model.named_modules()]
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    generator = torch.get_rng_state()
    agent.act(env.gradients, info)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [name for name, _ in lm.model.named_modules()] == structure
    assert all(lm.model.get_submodule(name) is module for name, module in modules.items())
    after = lm.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert not any(parameter.requires_grad for parameter in base.parameters())


def test_the_batch_and_the_seed_decide_the_adapter(make_env):
    env = make_env(modules=[LAST])
    found = []
    for seed in (0, 0, 1):
        agent = LoRA(steps=2)
        _, info = start(env, agent, seed)
        found.append(agent.act(env.gradients, info)[LAST].dense())
        torch.randn(3)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_editing_lowers_the_batchs_loss(make_env):
    env = make_env(modules=[LAST])
    agent = LoRA(steps=20, learning_rate=0.02)
    _, info = start(env, agent)
    before = env.judge({}).edit
    *_, info = env.step(agent.act(env.gradients, info))
    assert info["reward_terms"]["edit"] < before


def test_an_adapter_that_fails_leaves_the_model_alone(make_env, monkeypatch):
    env = make_env(modules=[LAST])
    agent = LoRA(steps=2)
    _, info = start(env, agent)

    def broken(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("torch.optim.Adam.step", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        agent.act(env.gradients, info)
    lm = env.language_model
    assert lm.model.get_submodule(LAST) is lm.modules[LAST]
    assert not any("lora" in name for name, _ in lm.model.named_modules())
