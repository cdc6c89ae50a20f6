"""MEMIT (Meng et al. 2023) against kmeng01/memit."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch

from agents.baselines import memit
from agents.baselines.lookup import Lookup
from agents.baselines.memit import MEMIT
from agents.baselines.values import LayerValueConfig
from benchmarks.agreement_cases.comparison import Comparison, compared
from benchmarks.agreement_cases.locate_then_edit import (
    EDITED,
    EDITS,
    PREFIXES,
    WEIGHT,
    batch_settings,
    changed,
    covariance_cache,
    covariances,
    divergence_at_subject,
    layer_search,
    module,
    public_model,
    ready,
    requests,
    weights_of,
)
from benchmarks.agreement_cases.public_code import Repository, imported
from benchmarks.agreement_cases.tiny_model import TinyModel, total_delta

SOURCE = Repository("kmeng01/memit", "80426fd9316cf9a50c5ba15e0912f2c2c5bfe84b")

KINDS = "it averages keys by kind of prefix, so that the plain prompt counts half; here they all count the same"
ESSENCE = "it takes the divergence at the subject's last token of '{} is a', here it is taken after the whole of it"

THERE = "(taken there here, too)"


def compare(clone: Path, tiny: TinyModel) -> Iterator[Comparison]:
    plain = layer_search()
    divergence = replace(plain, kl=0.0625)
    yield run(clone, tiny, plain, (), "no prefixes, kl=0", "rounding")
    yield run(clone, tiny, plain, PREFIXES[:1], "one prefix, kl=0", "rounding")
    yield run(clone, tiny, plain, PREFIXES, "three prefixes, kl=0", KINDS)
    with patch.object(memit, "mean_keys", mean_by_kind):
        yield run(clone, tiny, plain, PREFIXES, "three prefixes (averaged as there), kl=0", "rounding")
    yield run(clone, tiny, divergence, (), "no prefixes, kl=0.0625", ESSENCE)
    with divergence_at_subject():
        yield run(clone, tiny, divergence, (), f"no prefixes, kl=0.0625 {THERE}", "rounding")


def mean_by_kind(keys: torch.Tensor, lookup: Lookup) -> torch.Tensor:
    """Their mean: that of the plain prompt's key and of the mean of all with prefixes; not offered here."""
    of_edit = keys.view(int(lookup.owner[-1]) + 1, -1, keys.shape[1])
    return (of_edit[:, 0] + of_edit[:, 1:].mean(1)) / 2


def run(
    clone: Path, tiny: TinyModel, value: LayerValueConfig, prefixes: Sequence[str], options: str, why: str
) -> Comparison:
    """A batch's delta on both sides."""
    public = imported(clone, "memit.memit_main")
    edits = tiny.edits(EDITS)
    modules = list(map(module, EDITED))
    env = tiny.environment(edits, modules, edits_per_step=EDITS)
    model = public_model(tiny)
    public.COV_CACHE = covariance_cache(model, covariances(env, tiny))
    public.CONTEXT_TEMPLATES_CACHE = [["{}"], *([[f"{prefix} {{}}" for prefix in prefixes]] if prefixes else [])]
    before = weights_of(model, modules)
    hyperparameters = public.MEMITHyperParams(**batch_settings(value))
    public.apply_memit_to_model(model, tiny.tokenizer, requests(edits), hyperparameters)
    agent = ready(MEMIT(value, WEIGHT, epsilon=0.0), env, tiny, prefixes)
    what = f"the delta of {EDITS} edits, two layers"
    return compared("memit", what, changed(model, before), total_delta(env, agent), options, why)
