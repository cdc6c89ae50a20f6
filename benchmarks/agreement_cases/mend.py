"""MEND (Mitchell et al. 2022) against eric-mitchell/mend."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn

from agents.hypernetwork.config import PolicyConfig
from agents.hypernetwork.networks import HyperNetwork, MendPolicy
from benchmarks.agreement_cases.comparison import Comparison, compared
from benchmarks.agreement_cases.networks import STEP_SIZE, in_public_units, load_statistics, shaken
from benchmarks.agreement_cases.public_code import Repository, imported, leave_out
from benchmarks.agreement_cases.tiny_model import FIRST, LAST, TinyModel, gradients_of_all_tokens, labelled
from editenv.deltas import dense

SOURCE = Repository("eric-mitchell/mend", "e04fdb9cc784188906feffeb171025872933a5a8")
EDITS, ANSWER_TOKENS = 6, 2
TOKENS = EDITS * ANSWER_TOKENS


class Functional(nn.Module):
    """In the place of the package ``higher``'s model: keeps the parameters that an edit gives it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.handles = model, ()
        self.edited: dict[str, torch.Tensor] = {}

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.named_parameters(*args, **kwargs)

    def update_params(self, parameters: Sequence[torch.Tensor]) -> None:
        self.edited = {name: new for (name, _), new in zip(self.named_parameters(), parameters, strict=True)}


def put_higher_aside() -> None:
    """Of ``higher``, the code asks for a model whose parameters can be replaced."""
    package, patch = ModuleType("higher"), ModuleType("higher.patch")
    patch.monkeypatch = lambda model, in_place: Functional(model)  # type: ignore[attr-defined]
    patch._MonkeyPatchBase = Functional  # type: ignore[attr-defined]
    package.patch = patch  # type: ignore[attr-defined]
    sys.modules |= {"higher": package, "higher.patch": patch}


def public_editor(clone: Path, tiny: TinyModel, modules: Sequence[str]) -> Any:
    """Their editor with a shaken network, and a step that goes down the gradient as this project's does."""
    put_higher_aside()
    leave_out("hydra", "omegaconf")
    module = imported(clone, "algs.mend")
    model = tiny.model()
    for name in modules:
        model.get_submodule(name).weight.requires_grad_(True)
    switches = {"one_sided": False, "x_only": False, "delta_only": False, "combine": True, "shared": True, "norm": True}
    network = SimpleNamespace(**switches, n_hidden=1, init="id", act="relu", rank=8, mlp_class="IDMLP")
    inner = SimpleNamespace(name="tiny", inner_params=[f"{name}.weight" for name in modules])
    torch.manual_seed(0)
    editor = module.MEND(model, SimpleNamespace(model=inner, edit_lr=-STEP_SIZE, mend=network), None)
    shaken(editor.mend)
    return editor


@torch.no_grad()
def our_policy(editor: Any, modules: Sequence[str]) -> MendPolicy:
    """The policy that their network is."""
    ((_, transform),) = editor.mend.items()
    layers = transform.mlp.layers
    config = PolicyConfig(network="mend", blocks=len(layers), rank=layers[0].v.shape[0])
    policy = MendPolicy(dict.fromkeys(modules, (transform.x_dim, transform.delta_dim)), config)
    in_public_units(policy, editor.edit_lrs)
    network = next(iter(policy.networks.values()))
    assert isinstance(network, HyperNetwork)
    for block, layer in zip(network.blocks, layers, strict=True):
        weights = {"down": layer.v.T, "up": layer.u.T, "bias": layer.bias}
        weights |= {"scale": layer.mode_scale.weight, "shift": layer.mode_shift.weight}
        block.load_state_dict(weights)
    mean = torch.cat([transform.u_mean, transform.v_mean])
    load_statistics(network, mean, torch.cat([transform.u_std, transform.v_std]), float(transform.k), TOKENS)
    return policy


EARLIER = "it takes every token of the prompt that has a gradient; behind the last layer only answer positions do"


def compare(clone: Path, tiny: TinyModel) -> Iterator[Comparison]:
    edits = tiny.edits(EDITS, ANSWER_TOKENS)
    equal = "network and statistics equal"
    for modules, what, observed, why in (
        ((LAST,), "a batch's delta, the last layer", "", "rounding"),
        ((FIRST, LAST), "a batch's delta, the last two layers", "", EARLIER),
        ((FIRST, LAST), "a batch's delta, the last two layers", ", every token observed here, too", "rounding"),
    ):
        editor = public_editor(clone, tiny, modules)
        before = {f"{name}.weight": editor.model.get_submodule(name).weight.detach().clone() for name in modules}
        batch = labelled(tiny.tokenizer, [(edit.prompt, edit.target) for edit in edits])
        editor.edit(batch)  # fills its statistics, as it does in training
        editor.mend.eval()
        edited, _ = editor.edit(batch)
        theirs = {
            name.removesuffix(".weight"): (edited.model.edited[name].detach() - start).T
            for name, start in before.items()
        }
        policy, env = our_policy(editor, modules), tiny.environment(edits, modules, edits_per_step=EDITS)
        gradients = env.gradient_of(edits)
        if observed:
            gradients = {name: gradient for name, (gradient, _) in gradients_of_all_tokens(env, edits).items()}
        with torch.no_grad():
            ours = {name: dense(delta) for name, delta in policy(gradients).items()}
        yield compared("mend", what, theirs, ours, equal + observed, why)
