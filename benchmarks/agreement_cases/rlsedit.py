"""RLSEdit (Wang et al. 2026) against Euphoria040201/RLSEdit."""

import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from agents.baselines.rlsedit import RLSEdit
from benchmarks.agreement_cases.comparison import Comparison, compared
from benchmarks.agreement_cases.locate_then_edit import (
    EDITED,
    EDITS,
    WEIGHT,
    batch_settings,
    changed,
    covariance_cache,
    covariances,
    layer_search,
    module,
    public_model,
    ready,
    requests,
    weights_of,
)
from benchmarks.agreement_cases.public_code import Repository, imported
from benchmarks.agreement_cases.tiny_model import TinyModel, total_delta

SOURCE = Repository("Euphoria040201/RLSEdit", "6688b89e1ea03a9e788ec8f940f4b658e36d1848")
BATCHES = 2


def compare(clone: Path, tiny: TinyModel) -> Iterator[Comparison]:
    value, options = layer_search(), "no prefixes, kl=0"
    replaced = "it takes what is missing for the whole output, and subtracts K W from it"
    yield run(clone, tiny, RLSEdit(value, WEIGHT, epsilon=0.0), options, replaced)
    agent = RLSEdit(value, WEIGHT, epsilon=0.0, outputs="replaced")
    yield run(clone, tiny, agent, f"{options}; outputs='replaced'")
    agent = RLSEdit(value, WEIGHT, epsilon=0.0, deviation=2.0, outputs="replaced")
    yield run(clone, tiny, agent, f"{options}; outputs='replaced', deviation=2")


def run(clone: Path, tiny: TinyModel, agent: RLSEdit, options: str, why: str = "rounding") -> Comparison:
    """The delta of all batches on both sides."""
    public = imported(clone, "RLSEdit.RLSEdit_main")
    edits = tiny.edits(EDITS * BATCHES)
    modules = list(map(module, EDITED))
    env = tiny.environment(edits, modules, edits_per_step=EDITS)
    model = public_model(tiny)
    public.COV_CACHE = covariance_cache(model, covariances(env, tiny))
    public.CONTEXT_TEMPLATES_CACHE = [["{}"]]
    public.GLOBAL_W0.clear()
    public.HIST_KV.clear()
    extra = {"model_name": "tiny", "nullspace_threshold": 0.0, "L2": 0.0, "lambda_reg": agent.deviation, "mu_reg": 1.0}
    hyperparameters = public.RLSEditHyperParams(**batch_settings(agent.value), **extra)
    before, state = weights_of(model, modules), None
    with patch.dict(os.environ, {"RLSEDIT_OBJ_CSV": str(tiny.folder / "terms.csv")}):
        for start in range(0, len(edits), EDITS):
            batch = requests(edits)[start : start + EDITS]
            _, state = public.apply_RLSEdit_to_model(model, tiny.tokenizer, batch, hyperparameters, cache_c=state)
    ours = total_delta(env, ready(agent, env, tiny, ()))
    what = f"the delta of {BATCHES} batches of {EDITS} edits, two layers"
    return compared("rlsedit", what, changed(model, before), ours, options, why)
