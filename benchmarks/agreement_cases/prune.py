"""PRUNE (Ma et al. 2025) against mjy1111/PRUNE."""

from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from agents.baselines.prune import condense
from benchmarks.agreement_cases.comparison import Comparison, compared
from benchmarks.agreement_cases.public_code import Repository, imported, leave_out, without_init
from benchmarks.agreement_cases.tiny_model import LAST, TinyModel

SOURCE = Repository("mjy1111/PRUNE", "046c2a6113a865b3d85d5fd4a07142948372c1be")
BASES = {"log": np.e, "log2": 2.0, "log1_5": 1.5, "log1_2": 1.2}
"""Their names."""


def compare(clone: Path, tiny: TinyModel) -> Iterator[Comparison]:
    """Their function reads edited weights from a file of the experiment and puts the condensed sum into the model."""
    for package in ("easyeditor", "easyeditor.editors", "easyeditor.util"):
        without_init(package, clone / package.replace(".", "/"))
    used = ("singleton_editor", "batch_editor")
    leave_out("easyeditor.evaluate", *(f"easyeditor.editors.{name}" for name in used))
    leave_out("easyeditor.util.globals", "easyeditor.util.alg_dict")
    public = imported(clone, "easyeditor.editors.bi_editor_loadw")
    layer = LAST.split(".")[2]
    start = tiny.model().get_submodule(LAST).weight.detach()
    # Large enough that several of its singular values lie above the weight's.
    delta = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    settings = SimpleNamespace(alg_name="MEMIT", model_name="tiny", layers=[int(layer)], device=0)
    settings.rewrite_module_tmp = LAST.replace(layer, "{}", 1)
    file = tiny.folder / "results/counter/MEMIT/tiny/save_0.npy"
    file.parent.mkdir(parents=True, exist_ok=True)
    edited: Any = {f"{LAST}.weight": [(start + delta).numpy()]}
    np.save(file, edited, allow_pickle=True)
    for name, base in BASES.items():
        model = tiny.model()
        with chdir(tiny.folder):
            public.read_weights(settings, model, 100, 1, name)
        theirs = model.get_submodule(LAST).weight.detach() - start
        ours = condense(delta, start, float(base))
        options = f"base={base:.3g}"
        yield compared("prune", "the condensed sum of all updates", {LAST: theirs}, {LAST: ours}, options)
