"""UltraEdit (Gu et al. 2025) against XiaojieGu/UltraEdit."""

import copy
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from agents.baselines.ultraedit import UltraEdit
from benchmarks.agreement_cases.comparison import Comparison, compared
from benchmarks.agreement_cases.public_code import Repository, imported, leave_out
from benchmarks.agreement_cases.rledit import Public
from benchmarks.agreement_cases.tiny_model import LAST, TinyModel, batch_deltas
from editenv.data import Edit
from editenv.language_model.editable_lm import Gradient

SOURCE = Repository("XiaojieGu/UltraEdit", "0beb222559b01c6dc025aede801c1fc496ec2920")
EDITS, BATCHES, ANSWER_TOKENS, STEP = 6, 10, 2, 0.003
TOKENS = EDITS * ANSWER_TOKENS


class PublicUltraEdit(Public):
    """Its code grew out of RLEdit's: it takes the same model, configuration and batches."""

    def editor(self, **options: Any) -> Any:
        leave_out("wandb", "omegaconf", "glue_eval", "glue_eval.glue_eval")
        module = imported(self.clone, "editor.ultraedit")
        config = self.config("ultraedit", lr=STEP, **options)
        model = self.tiny.model()
        for name in self.modules:
            model.get_submodule(name).weight.requires_grad_(True)
        return module.ULTRAEDIT(config, model)

    def change_after(self, edits: Sequence[Edit]) -> tuple[list[torch.Tensor], list[Any]]:
        """What has changed after each batch, and the normaliser as it was then."""
        editor = self.editor()
        total, changes, statistics = torch.zeros(()), [], []
        for batch in self.batches(edits):
            editor.cache(batch["edit_tuples"])
            (normalizer,) = editor.lifelong_normalizer.values()
            statistics.append(copy.deepcopy(normalizer))
            shifts = editor.predict_param_shifts()
            editor.edit_model(shifts, False)
            total = total + shifts[LAST]
            changes.append(total)
        return changes, statistics


class InPublicUnits(UltraEdit):
    """This project's method with the public step size and ridge, in the model's own units, and public statistics.

    Args:
        statistics: The public normaliser at each batch; None for this project's.
        d_in: Numbers in a key.
    """

    def __init__(self, statistics: Sequence[Any] | None, d_in: int) -> None:
        super().__init__()
        self.statistics, self.d_in = iter(statistics or ()), d_in

    def _observe(self, name: str, gradient: Gradient, output_energy: float) -> None:
        super()._observe(name, gradient, output_energy)
        normalizer = self._normalizers[name]
        self.step_size = STEP * self.d_in / self.output_length(name)
        self.ridge = float(normalizer.count) / self._key_energy[name]
        public = next(self.statistics, None)
        if public is not None:
            scale = torch.ones_like(public.mean)
            scale[self.d_in :] = TOKENS  # the gradient is a sum over tokens here, their mean there
            normalizer.mean.copy_(public.mean * scale)
            normalizer.square.copy_((public.std * scale).square() * (public.n - 1))


def compare(clone: Path, tiny: TinyModel) -> Iterator[Comparison]:
    """The public step size and ridge are in the model's units; here they are in typical outputs and keys."""
    edits = tiny.edits(EDITS * BATCHES, ANSWER_TOKENS)
    env = tiny.environment(edits, (LAST,), edits_per_step=EDITS)
    theirs, statistics = PublicUltraEdit(clone, tiny).change_after(edits)
    d_in = env.language_model.shape(LAST)[0]
    first = env.gradient_of(edits[:EDITS])[LAST].keys
    outputs = first @ env.language_model.initial_weight(LAST)
    ridge = 1 / float(first.square().sum(1).mean())
    units_of_first = UltraEdit(STEP * d_in / float(outputs.square().mean().sqrt()), ridge)
    variance = f"its normaliser adds up N times the unbiased variance, N - 1 is right (N = {TOKENS} tokens)"
    moving = f"{variance}; the units here are means over all tokens so far"
    for agent, options, batches, why in (
        (units_of_first, "step size and ridge in the units of the first batch", 1, variance),
        (units_of_first, "step size and ridge in the units of the first batch", BATCHES, moving),
        (InPublicUnits(None, d_in), "step size and ridge in the model's units", BATCHES, variance),
        (
            InPublicUnits(statistics, d_in),
            "step size and ridge in the model's units, statistics equal",
            BATCHES,
            "rounding",
        ),
    ):
        *_, ours = islice(batch_deltas(env, agent), batches)
        what = f"the change after {batches} batch{'es' * (batches > 1)}"
        yield compared("ultraedit", what, {LAST: theirs[batches - 1]}, ours, options, why)
