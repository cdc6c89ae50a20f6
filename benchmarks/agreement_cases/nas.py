"""Norm-Anchor Scaling (Liu et al. 2026) against SasyaTitech/NAS."""

from collections.abc import Iterator
from pathlib import Path

import torch

from agents.baselines.nas import NAS, AlphaEditNAS
from agents.preconditioner import inverted, null_space
from benchmarks.agreement_cases.comparison import Comparison, compared
from benchmarks.agreement_cases.locate_then_edit import (
    EDITED,
    EDITS,
    WEIGHT,
    batch_settings,
    changed,
    covariances,
    layer_search,
    module,
    public_model,
    ready,
    requests,
    weights_of,
)
from benchmarks.agreement_cases.public_code import Repository, imported, leave_out
from benchmarks.agreement_cases.tiny_model import TinyModel, total_delta

SOURCE = Repository("SasyaTitech/NAS", "5acab48c88effb95cc9492559872093dc085c79e")
BATCHES = 2
NULL_SPACE, RIDGE = 0.5, 1.0


def compare(clone: Path, tiny: TinyModel) -> Iterator[Comparison]:
    leave_out("dsets", "baselines.memit")  # the anchor is given
    value = layer_search(learning_rate=0.3)
    memit = NAS(value, WEIGHT, epsilon=0.0, cache_keys=True)
    alphaedit = AlphaEditNAS(value, NULL_SPACE, RIDGE)
    what = "no prefixes, kl=0; anchor equal"
    yield run(clone, tiny, "memit-seq-nas", memit, f"{what}; MEMIT's covariance in the place of its null space")
    yield run(clone, tiny, "memit-seq-nas", alphaedit, f"{what}, on AlphaEdit; threshold and ridge equal")


def run(clone: Path, tiny: TinyModel, method: str, agent: NAS, options: str) -> Comparison:
    """The delta of all batches, on both sides."""
    public = imported(clone, "NAS.NAS_main")
    edits = tiny.edits(EDITS * BATCHES)
    modules = list(map(module, EDITED))
    env = tiny.environment(edits, modules, edits_per_step=EDITS)
    ready(agent, env, tiny, ())
    imported(clone, "NAS.compute_z").get_or_compute_mean_vstar_norm = lambda **_: agent.anchor
    public.CONTEXT_TEMPLATES_CACHE = [["{}"]]
    # They solve (P K K^T + L2 I) D = P K R: with P the inverse covariance and L2 = 1, MEMIT's equation.
    C = [covariances(env, tiny)[name] for name in modules]
    if isinstance(agent, AlphaEditNAS):
        P, ridge = torch.stack([null_space(matrix, NULL_SPACE) for matrix in C]), RIDGE
    else:
        P, ridge = torch.stack([inverted(WEIGHT * matrix) for matrix in C]), 1.0
    extra = {"model_name": "tiny", "nullspace_threshold": NULL_SPACE, "L2": ridge}
    hyperparameters = public.NASHyperParams(**batch_settings(agent.value), **extra)
    model = public_model(tiny)
    before = weights_of(model, modules)
    earlier = torch.zeros_like(P)
    for start in range(0, len(edits), EDITS):
        batch = requests(edits[start : start + EDITS])
        model, earlier = public.apply_NAS_to_model(model, tiny.tokenizer, batch, hyperparameters, cache_c=earlier, P=P)
    what = f"the delta of {BATCHES} batches of {EDITS} edits, two layers"
    if isinstance(agent, AlphaEditNAS):
        what += ", on AlphaEdit"
    return compared(method, what, changed(model, before), total_delta(env, agent), options)
