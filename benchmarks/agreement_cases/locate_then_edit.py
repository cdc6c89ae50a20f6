"""What the public code of ROME and of everything that grew out of it is given."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from agents.baselines import values
from agents.baselines.memit import MEMIT
from agents.baselines.rome import ROME
from agents.baselines.values import LayerValueConfig, ValueConfig
from agents.covariance import covariance_of
from benchmarks.agreement_cases.tiny_model import LAYERS, TinyModel, prepared
from editenv.data import Edit
from editenv.env import LifelongEditEnv
from editenv.language_model.editable_lm import EditableLM

EDITED = (1, 2)
"""The edited layers: early ones, as a fact is looked up at its subject's last token."""
STEPS, RATE, WEIGHT, EDITS = 8, 0.1, 10.0, 4
PREFIXES = ("So they say.", "Once more.", "It is late.")


def module(layer: int) -> str:
    """Name of a layer's edited module."""
    return f"model.layers.{layer}.mlp.down_proj"


def public_model(tiny: TinyModel) -> Any:
    """The model with layers that give tuples, as those of transformers did when the public code was written.

    Each layer lies in another that takes the tuple apart: ``model.layers.1.inner`` is what public code hooks.
    """
    model = tiny.model()
    layers = model.model.layers
    for i, layer in enumerate(layers):
        layer.__class__ = type("TupleLayer", (_GivesTuple, type(layer)), {})
        layers[i] = _TakesApart(layer)
    return model


class _GivesTuple:
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return (super().forward(*args, **kwargs),)  # type: ignore[misc]


class _TakesApart(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)[0]


def settings(value: ValueConfig, layers: Sequence[int]) -> dict[str, Any]:
    """Their hyperparameters that say what ours do."""
    return {
        "layers": list(layers),
        "fact_token": "subject_last",
        "v_num_grad_steps": value.steps + 1,  # the last one only computes the loss
        "v_lr": value.learning_rate,
        "v_loss_layer": LAYERS - 1,
        "v_weight_decay": value.weight_decay,
        "clamp_norm_factor": value.clamp,
        "kl_factor": value.kl,
        "mom2_adjustment": True,
        "rewrite_module_tmp": "model.layers.{}.inner.mlp.down_proj",
        "layer_module_tmp": "model.layers.{}.inner",
        "mlp_module_tmp": "model.layers.{}.inner.mlp",
        "attn_module_tmp": "model.layers.{}.inner.self_attn",
        "ln_f_module": "model.norm",
        "lm_head_module": "model.embed_tokens",  # tied
        "mom2_dataset": "text",
        "mom2_n_samples": 0,
        "mom2_dtype": "float32",
    }


def batch_settings(value: ValueConfig, layers: Sequence[int] = EDITED) -> dict[str, Any]:
    """Those of MEMIT and its kin."""
    extra = {"layer_selection": "all", "mom2_update_weight": WEIGHT}
    return settings(value, layers) | extra


def requests(edits: Sequence[Edit]) -> list[dict[str, Any]]:
    """Edits as their data sets give them."""
    return [
        {
            "case_id": i,
            "prompt": edit.prompt.replace(str(edit.subject), "{}"),
            "subject": edit.subject,
            "target_new": {"str": edit.target},
        }
        for i, edit in enumerate(edits)
    ]


def covariances(env: LifelongEditEnv, tiny: TinyModel) -> dict[str, torch.Tensor]:
    """Of each edited module's keys, which both sides take."""
    return covariance_of(env, tiny.text, 100_000)


def covariance_cache(model: Any, covariance: dict[str, torch.Tensor]) -> dict[tuple[str, str], torch.Tensor]:
    """By the key that their caches have for it."""
    name = model.config._name_or_path.replace("/", "_")
    return {(name, public_name(module)): matrix for module, matrix in covariance.items()}


def public_name(module: str) -> str:
    """Of a module of :func:`public_model`."""
    return module.replace(".mlp", ".inner.mlp")


def weights_of(model: Any, modules: Sequence[str]) -> dict[str, torch.Tensor]:
    """Copies of edited weights, ``(d_in, d_out)``, by this project's names."""
    return {name: model.get_submodule(public_name(name)).weight.detach().T.clone() for name in modules}


def changed(model: Any, before: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What public code has changed."""
    return {name: weight - before[name] for name, weight in weights_of(model, list(before)).items()}


@contextmanager
def divergence_at_subject() -> Iterator[None]:
    """Within the context this project takes ROME's divergence where public code does, which it does not offer."""

    def at_subject(lm: EditableLM, module: nn.Module, edits: Sequence[Edit], token: str) -> values.Essence:
        # The token that predicts an answer's first one is the prompt's last: the subject's.
        about = [Edit(edit.id, str(edit.subject), "is a", subject=edit.subject) for edit in edits]
        lookup = values.look_up(lm, about, token)
        first = lookup.prompts.lengths.cumsum(0) - lookup.prompts.lengths
        with torch.no_grad():
            before = lm.cut_model.logits(lookup.prompts)[first].log_softmax(-1)
        return values.Essence(values.ChangedRun(lm, module, lookup), before)

    with patch.object(values.Essence, "of", at_subject):
        yield


def ready(agent: MEMIT | ROME, env: LifelongEditEnv, tiny: TinyModel, prefixes: Sequence[str]) -> MEMIT | ROME:
    """The agent, prepared, with given texts in the place of what the model would write before prompts."""
    prepared(agent, env, tiny.text)
    agent._prefixes = list(prefixes)
    return agent


def layer_search(**options: Any) -> LayerValueConfig:
    """MEMIT's search for values, without prefixes of the model's own and without the divergence."""
    return LayerValueConfig(
        **{"steps": STEPS, "learning_rate": RATE, "prefixes": 0, "kl": 0.0, "enough": 0.05} | options
    )
