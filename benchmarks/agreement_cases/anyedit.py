"""AnyEdit (Jiang et al. 2025) against jianghoucheng/AnyEdit."""

from collections.abc import Iterator
from pathlib import Path

import torch

from agents.baselines.anyedit import AlphaEditAnyEdit, AnyEdit, ChunkValueConfig
from agents.preconditioner import null_space
from benchmarks.agreement_cases.comparison import Comparison, compared
from benchmarks.agreement_cases.locate_then_edit import (
    EDITED,
    RATE,
    STEPS,
    WEIGHT,
    batch_settings,
    changed,
    covariance_cache,
    covariances,
    module,
    public_model,
    ready,
    weights_of,
)
from benchmarks.agreement_cases.public_code import Repository, imported, leave_out
from benchmarks.agreement_cases.tiny_model import TinyModel, total_delta
from editenv.language_model.prompts import answer_ids

SOURCE = Repository("jianghoucheng/AnyEdit", "ac8e65240fec5ada76ce37360727b5dcbb1d5672")
NULL_SPACE, RIDGE = 0.5, 1.0
CHUNK = 2


def compare(clone: Path, tiny: TinyModel) -> Iterator[Comparison]:
    leave_out("nltk", "transformers.modeling_attn_mask_utils")  # imported, and not used
    value = ChunkValueConfig(steps=STEPS, learning_rate=RATE)
    yield run(clone, tiny, AnyEdit(value, WEIGHT, epsilon=0.0, chunk=CHUNK), "memit_ARE", "MEMIT_ARE", "")
    alphaedit = AlphaEditAnyEdit(value, NULL_SPACE, RIDGE, chunk=CHUNK)
    yield run(clone, tiny, alphaedit, "AlphaEdit_ARE", "AlphaEdit_ARE", ", on AlphaEdit")


def run(clone: Path, tiny: TinyModel, agent: AnyEdit, package: str, name: str, plugged_into: str) -> Comparison:
    """The delta of one edit on both sides; of several, the public code also holds the keys of padding."""
    main = imported(clone, f"{package}.{package}_main")
    edit = max(tiny.edits(100), key=lambda edit: len(answer_ids(tiny.tokenizer, [edit.target])[0]))
    modules = list(map(module, EDITED))
    env = tiny.environment([edit], modules, edits_per_step=1)
    model = public_model(tiny)
    covariance = covariances(env, tiny)
    main.COV_CACHE = covariance_cache(model, covariance)
    extra = {"model_name": "tiny", "window_size": agent.chunk, "overlap": 0}
    if isinstance(agent, AlphaEditAnyEdit):
        extra |= {"nullspace_threshold": NULL_SPACE, "L2": RIDGE}
    hyperparameters = getattr(main, f"{name.replace('_', '')}HyperParams")(**batch_settings(agent.value), **extra)
    options = {}
    if isinstance(agent, AlphaEditAnyEdit):
        options["P"] = torch.stack([null_space(covariance[name], NULL_SPACE) for name in modules])
    before = weights_of(model, modules)
    batch = [{"question": edit.prompt, "answer": f" {edit.target}"}]
    getattr(main, f"apply_{package}_to_model")(model, tiny.tokenizer, hyperparameters, batch, **options)
    ours = total_delta(env, ready(agent, env, tiny, ()))
    chunks = -(-len(answer_ids(tiny.tokenizer, [edit.target])[0]) // CHUNK)
    what = f"the delta of an edit of {chunks} chunks, two layers{plugged_into}"
    return compared("anyedit", what, changed(model, before), ours, "search equal, overlap=0")
