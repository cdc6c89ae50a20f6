"""RECT (Gu et al. 2024) against JasonForJoy/Model-Editing-Hurt, where it is a function that ROME's update may go through.

There it is left in a comment, gives nothing back, and changes a tensor in place if that lies in one piece in memory; it
is called in that way here.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from agents.baselines.rect import keep_largest_relative
from benchmarks.agreement_cases.comparison import Comparison, compared
from benchmarks.agreement_cases.public_code import Repository, imported, without_init
from benchmarks.agreement_cases.tiny_model import LAST, TinyModel

SOURCE = Repository("JasonForJoy/Model-Editing-Hurt", "8f8d4dc2e4c958c9dfd640065413a17d5a2ac4cb")
DROPPED = 0.8


def compare(clone: Path, tiny: TinyModel) -> Iterator[Comparison]:
    for package in ("easyeditor", "easyeditor.models", "easyeditor.util", "easyeditor.models.rome"):
        without_init(package, clone / package.replace(".", "/"))
    public = imported(clone, "easyeditor.models.rome.rome_main")
    weight = tiny.model().get_submodule(LAST).weight.detach()
    delta = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    theirs = delta.clone()
    public.set_min_to_zero(np.abs(np.divide(delta.numpy(), weight.numpy())), theirs, DROPPED)
    ours = keep_largest_relative(delta, weight, 1 - DROPPED)
    yield compared("rect", "what is kept of a random update", {LAST: theirs}, {LAST: ours}, "keep=0.2")
