"""LoRA (Hu et al. 2022) against an adapter of the package peft that is trained by transformers' own loss."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from agents.baselines.lora import LoRA
from benchmarks.agreement_cases.comparison import Comparison, compared
from benchmarks.agreement_cases.public_code import Package
from benchmarks.agreement_cases.tiny_model import FIRST, LAST, TinyModel, labelled, prepared, total_delta

SOURCE = Package("peft")
EDITS, ANSWER_TOKENS = 6, 2


def compare(_: Path, tiny: TinyModel) -> Iterator[Comparison]:
    from peft import LoraConfig, get_peft_model

    edits, modules = tiny.edits(EDITS, ANSWER_TOKENS), (FIRST, LAST)
    agent = LoRA(rank=4, alpha=8, steps=10)
    model = tiny.model()
    before = {name: model.get_submodule(name).weight.detach().clone() for name in modules}
    # The start of A is drawn from the batch.
    torch.manual_seed(random.Random("0/0/" + "/".join(f"{e.prompt} {e.target}" for e in edits)).getrandbits(63))
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=list(modules), lora_dropout=0.0))
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=agent.learning_rate)
    batch = labelled(tiny.tokenizer, [(edit.prompt, edit.target) for edit in edits])
    for _step in range(agent.steps):
        optimizer.zero_grad()
        adapted(**batch).loss.backward()
        optimizer.step()
    merged: Any = adapted.merge_and_unload()
    public = {name: (merged.get_submodule(name).weight.detach() - start).T for name, start in before.items()}
    env = tiny.environment(edits, modules, edits_per_step=EDITS)
    ours = total_delta(env, prepared(agent, env, tiny.text))
    what = "a batch's delta, two modules"
    yield compared("lora", what, public, ours, "rank, alpha, steps, rate and seed equal; answers of equal length")
