"""ROME (Meng et al. 2022) against kmeng01/rome."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from agents.baselines.rome import ROME
from agents.baselines.values import ValueConfig
from benchmarks.agreement_cases.comparison import Comparison, compared
from benchmarks.agreement_cases.locate_then_edit import (
    EDITED,
    PREFIXES,
    RATE,
    STEPS,
    changed,
    covariance_cache,
    covariances,
    divergence_at_subject,
    module,
    public_model,
    ready,
    requests,
    settings,
    weights_of,
)
from benchmarks.agreement_cases.memit import ESSENCE, THERE
from benchmarks.agreement_cases.public_code import Repository, imported
from benchmarks.agreement_cases.tiny_model import TinyModel, total_delta

SOURCE = Repository("kmeng01/rome", "0874014cd9837e4365f3e6f3c71400ef11509e04")
EDITS = 3


def compare(clone: Path, tiny: TinyModel) -> Iterator[Comparison]:
    plain = ValueConfig(steps=STEPS, learning_rate=RATE, kl=0.0, prefixes=0)
    keys = "it divides by the product with the plain prompt's key"
    divergence = replace(plain, kl=0.0625)
    yield run(clone, tiny, plain, (), "consistent", "no prefixes, kl=0", "rounding")
    yield run(clone, tiny, plain, PREFIXES, "consistent", "three prefixes, kl=0", keys)
    yield run(clone, tiny, plain, PREFIXES, "public", "three prefixes, kl=0, keys='public'", "rounding")
    yield run(clone, tiny, divergence, PREFIXES, "public", "three prefixes, kl=0.0625, keys='public'", ESSENCE)
    with divergence_at_subject():
        said = f"three prefixes, kl=0.0625 {THERE}, keys='public'"
        yield run(clone, tiny, divergence, PREFIXES, "public", said, "rounding")


def run(
    clone: Path,
    tiny: TinyModel,
    value: ValueConfig,
    prefixes: Sequence[str],
    keys: Literal["consistent", "public"],
    options: str,
    why: str,
) -> Comparison:
    """The delta of edits one after the other, on both sides."""
    public = imported(clone, "rome.rome_main")
    cache = imported(clone, "rome.compute_u")
    edits, name = tiny.edits(EDITS), module(EDITED[0])
    env = tiny.environment(edits, [name], edits_per_step=EDITS)
    model = public_model(tiny)
    covariance = covariance_cache(model, covariances(env, tiny))
    cache.inv_mom2_cache = {key: torch.inverse(matrix) for key, matrix in covariance.items()}
    public.CONTEXT_TEMPLATES_CACHE = ["{}", *(f"{prefix} {{}}" for prefix in prefixes)]
    before = weights_of(model, [name])
    hyperparameters = public.ROMEHyperParams(**settings(value, EDITED[:1]), context_template_length_params=[])
    public.apply_rome_to_model(model, tiny.tokenizer, requests(edits), hyperparameters)
    agent = ready(ROME(value, keys, epsilon=0.0), env, tiny, prefixes)
    what = f"the delta of {EDITS} edits in a row"
    return compared("rome", what, changed(model, before), total_delta(env, agent), options, why)
