"""DAFNet (Zhang et al. 2024) against qizhou000/DAFNet."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from agents.baselines.dafnet.config import DAFNetConfig
from agents.baselines.dafnet.network import DAFNetwork, FusionLayer
from agents.baselines.dafnet.training import gradients_of
from benchmarks.agreement_cases.comparison import Comparison, compared
from benchmarks.agreement_cases.mend import EARLIER
from benchmarks.agreement_cases.networks import STEP_SIZE, shaken
from benchmarks.agreement_cases.public_code import Repository, imported, leave_out
from benchmarks.agreement_cases.tiny_model import FIRST, LAST, TinyModel, gradients_of_all_tokens

SOURCE = Repository("qizhou000/DAFNet", "4fb2bf56ee11cfe53a65e3465be5c64a602e191d")
EDITS, BATCHES = 6, 3
CONFIG = DAFNetConfig(layers=2, token_width=16, attention_width=8, score_width=8, heads=2, feed_forward=24)


def public_editor(clone: Path, tiny: TinyModel, modules: tuple[str, ...]) -> Any:
    """Their editor with a shaken network, and a step that goes down the gradient as this project's does."""
    leave_out("torch.utils.tensorboard")
    module = imported(clone, "editors.dafnet.dafnet")
    public = module.DAFNetConfig
    network = public.AuxModelConfig(2, 16, 24, 8, 2, 8, 2, "EBN")
    training = public.TrainingConfig(1e-6, -STEP_SIZE, 1e-4, 0.1, 0.1, 0.2, 1000, 3000, 0.25, 0.01, False, 1, 16, 48)
    config = public("tiny", list(modules), False, network, training, 64)
    torch.manual_seed(0)
    editor = module.DAFNet(tiny.model(), tiny.tokenizer, config, "cpu", "cpu", ["cpu"])
    shaken(editor.aux_models)
    return editor


@torch.no_grad()
def our_network(editor: Any, shapes: dict[str, tuple[int, int]]) -> DAFNetwork:
    """The network that theirs is."""
    ((_, public),) = editor.aux_models.items()
    network = DAFNetwork(shapes, CONFIG)
    network.log_step_size.fill_(math.log(STEP_SIZE))
    layers: Any = next(iter(network.layers.values()))
    normalizer: Any = next(iter(network.normalizers.values()))
    for layer, theirs in zip(layers, public.dafnet_model.layers, strict=True):
        copy_layer(layer, theirs)
    statistics = public.norm_layer
    normalizer.mean.copy_(statistics.mean)
    normalizer.square.copy_(statistics.var * (statistics.k - 1))
    normalizer.count.copy_(statistics.k)
    return network.eval()


def copy_layer(layer: FusionLayer, public: Any) -> None:
    pairs = [
        (layer.value, public.inner_att.trans1),
        (layer.weight, public.inner_att.trans2),
        (layer.query, public.outer_att.lq),
        (layer.key, public.outer_att.lk),
        (layer.fact_value, public.outer_att.lv),
        (layer.output, public.outer_att.lo),
        (layer.score_query, public.outer_att_score.lq),
        (layer.score_key, public.outer_att_score.lk),
        (layer.feed_forward[0], public.feedforward.fc1),
        (layer.feed_forward[2], public.feedforward.fc2),
        *zip(layer.norms, (public.layer_norm1, public.layer_norm2, public.layer_norm3), strict=True),
    ]
    for ours, theirs in pairs:
        ours.load_state_dict(theirs.state_dict())
    layer.scale.copy_(public.mode_scale.weight)
    layer.shift.copy_(public.mode_shift.weight)


def compare(clone: Path, tiny: TinyModel) -> Iterator[Comparison]:
    for module, what, observed, why in (
        (LAST, "the last layer", "", "rounding"),
        (FIRST, "the last layer but one", "", EARLIER),
        (FIRST, "the last layer but one", ", every token observed here, too", "rounding"),
    ):
        public, ours = sequence(clone, tiny, module, bool(observed))
        said = f"network and statistics equal{observed}"
        yield compared("dafnet", f"the delta of {BATCHES} batches, {what}", public, ours, said, why)


def sequence(
    clone: Path, tiny: TinyModel, module: str, every_token: bool
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Both sides' total delta of a sequence of batches."""
    edits = tiny.edits(EDITS * BATCHES)
    requests = [{"prompt": edit.prompt, "target_new": edit.target} for edit in edits]
    editor = public_editor(clone, tiny, (module,))
    env = tiny.environment(edits, (module,), edits_per_step=EDITS)
    lm = env.language_model
    # Their statistics move in training only; here on all edits at once.
    editor.aux_models.train()
    editor.edit_batch(requests)
    editor.restore_to_original_model()
    editor.aux_models.eval()
    network = our_network(editor, {module: lm.shape(module)})
    past = network.nothing_past()
    total = torch.zeros(lm.shape(module))
    for start in range(0, len(edits), EDITS):
        batch = edits[start : start + EDITS]
        editor.edit_batch(requests[start : start + EDITS])
        if every_token:
            gradient, lengths = gradients_of_all_tokens(env, batch)[module]
        else:
            prompts = lm.encode([edit.prompt for edit in batch], [edit.target for edit in batch])
            gradient, lengths = gradients_of(lm, prompts)[module], prompts.lengths
        with torch.no_grad():
            updates, keeps, facts = network({module: gradient}, lengths, past)
        total = keeps[module] * total + updates[module].dense()
        past[module] = [torch.cat(pair) for pair in zip(past[module], facts[module], strict=True)]
    return {module: editor.edit_modules[0].__delta_weight__}, {module: total}
