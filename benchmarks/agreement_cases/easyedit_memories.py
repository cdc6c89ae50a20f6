"""GRACE's codebook and the merge of WISE's shards against zjunlp/EasyEdit."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch

from agents.baselines.grace import GRACE
from agents.baselines.side_memory import queries, root_mean_square
from agents.baselines.target_loss import edit_prompts
from agents.baselines.wise import ties
from benchmarks.agreement_cases.comparison import Comparison, compared
from benchmarks.agreement_cases.easyedit import SOURCE as SOURCE
from benchmarks.agreement_cases.public_code import imported, leave_out, without_init
from benchmarks.agreement_cases.tiny_model import LAST, TinyModel, batch_deltas, labelled

EDITS = 6
STEPS, RATE = 20, 0.1
CLOSE = 0.7
"""The first radius, as a share of the distance between the first edit's key and the nearest later one: they meet."""
DENSITY = 0.53


def compare(clone: Path, tiny: TinyModel) -> Iterator[Comparison]:
    for package in ("easyeditor", "easyeditor.models", "easyeditor.models.grace", "easyeditor.models.wise.merge"):
        without_init(package, clone / package.replace(".", "/"))
    leave_out("easyeditor.util", "easyeditor.util.vl_utils")
    yield from grace(clone, tiny)
    yield merge(clone)


def grace(clone: Path, tiny: TinyModel) -> Iterator[Comparison]:
    """The codebook after edits of one token in a row, of which some keys are near to each other."""
    public = imported(clone, "easyeditor.models.grace.GRACE")
    edits = tiny.edits(EDITS, answer_tokens=1)
    env = tiny.environment(edits, [LAST], edits_per_step=EDITS)
    env.reset(seed=0, options={"shuffle": False})
    keys, outputs = queries(env.language_model, LAST, edit_prompts(env.training_targets))
    radius = CLOSE * float(torch.cdist(keys[:1], keys[1:]).min())
    config = SimpleNamespace(
        inner_params=[f"{LAST.replace('layers.3', 'layers[3]')}.weight"],
        eps=radius, edit_lr=RATE, n_iter=STEPS, dist_fn="euc", val_init="warm", val_train="sgd",
        eps_expand="coverage", replacement="replace_last", num_pert=8,
    )  # fmt: skip
    model = tiny.model()
    editor = public.GRACE(config, model, "cpu")
    for edit in edits:
        editor.edit(config, labelled(tiny.tokenizer, [(edit.prompt, edit.target)]), edit.id)
    adapter = model.get_submodule(LAST)
    first, size = float(keys[0].norm()), root_mean_square(outputs[:1])
    one_by_one = tiny.environment(edits, [LAST], edits_per_step=1)
    for _ in batch_deltas(one_by_one, GRACE(radius / first, STEPS, RATE / size)):
        pass
    memory = one_by_one.language_model.memories[LAST]
    what = f"the codebook after {EDITS} edits of one token in a row"
    theirs = {"keys": adapter.keys, "values": adapter.values}
    ours = {"keys": memory.keys, "values": memory.values}
    equal = "radius, steps and rate equal; its values begin warm"
    yield compared("grace", f"{what}: keys and values", theirs, ours, equal)
    less = "a ball that was split becomes wider again at a wider split"
    yield compared(
        "grace", f"{what}: radii", {"radii": adapter.epsilons.flatten()}, {"radii": memory.thresholds}, equal, less
    )


def merge(clone: Path) -> Comparison:
    """What two shards become."""
    public = imported(clone, "easyeditor.models.wise.merge.gta")
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(24, 32, generator=generator)
    deltas = torch.randn(2, 24, 32, generator=generator)
    merged = public.GTA("magnitude", "sum", normalize=True).execute(
        [0.5, 0.5], torch.zeros_like(base), [delta.clone() for delta in deltas], densities=DENSITY
    )
    what = "what two random shards are merged to"
    return compared("wise", what, {LAST: merged}, {LAST: ties(deltas, DENSITY)}, f"density={DENSITY}")
