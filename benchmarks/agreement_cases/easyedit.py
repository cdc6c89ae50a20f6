"""Fine-tuning, SimIE around it, and PMET (Li et al. 2024) against zjunlp/EasyEdit."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents.baselines.fine_tune import FineTune
from agents.baselines.pmet import PMET
from agents.baselines.simie import SimIE
from agents.baselines.values import JointValueConfig
from benchmarks.agreement_cases.comparison import Comparison, compared
from benchmarks.agreement_cases.locate_then_edit import (
    EDITED,
    RATE,
    STEPS,
    WEIGHT,
    batch_settings,
    covariances,
    divergence_at_subject,
    module,
    ready,
    requests,
)
from benchmarks.agreement_cases.public_code import Repository, imported, without_init
from benchmarks.agreement_cases.tiny_model import LAST, TinyModel, total_delta
from editenv.data import Edit

SOURCE = Repository("zjunlp/EasyEdit", "14cea8245f06715684592ab55184939b99d70784")
EDITS = 4
RIDGE = 1.0
"""SimIE's, in the tiny model's units: its keys are of length 1 or so."""


def compare(clone: Path, tiny: TinyModel) -> Iterator[Comparison]:
    for package in (
        "easyeditor",
        "easyeditor.models",
        "easyeditor.util",
        "easyeditor.models.pmet",
        "easyeditor.models.rome",
        "easyeditor.models.simie",
    ):
        without_init(package, clone / package.replace(".", "/"))
    plain = FineTune(steps=10, learning_rate=1e-2)
    bounded = FineTune(steps=10, learning_rate=1e-2, norm_constraint=3e-2)
    any_length, one, two = tiny.edits(EDITS), tiny.edits(EDITS, answer_tokens=1), tiny.edits(EDITS, answer_tokens=2)
    yield run(clone, tiny, any_length, plain, "target_new", "FT-M", "steps and rate equal")
    equal, one_token = "steps, rate and norm_constraint equal", "FT-L, targets of one token"
    at_last = "it asks for all of a target's tokens at the prompt's last one"
    yield run(clone, tiny, two, bounded, "prompt_last", "FT-L, targets of two tokens", equal, at_last)
    padding = (
        "padded on the left, as in its editor, it takes another token for the last one of all but the longest prompt"
    )
    yield run(clone, tiny, one, bounded, "prompt_last", one_token, f"{equal}; its padding", padding, "left")
    yield run(clone, tiny, one, bounded, "prompt_last", one_token, f"{equal}; padded on the right")
    for start in ("initial", "current"):
        yield simie(clone, tiny, any_length, start)
    value = JointValueConfig(steps=STEPS, learning_rate=RATE, prefixes=0)
    yield pmet(clone, tiny, replace(value, kl=0.0), "no prefixes, kl=0")
    with divergence_at_subject():
        yield pmet(clone, tiny, value, "no prefixes, kl=1 (taken there here, too)")


def pmet(clone: Path, tiny: TinyModel, value: JointValueConfig, options: str) -> Comparison:
    """A batch's delta on both sides."""
    public = imported(clone, "easyeditor.models.pmet.pmet_main")
    edits = tiny.edits(EDITS)
    modules = list(map(module, EDITED))
    env = tiny.environment(edits, modules, edits_per_step=EDITS)
    model = tiny.model()
    name = model.config._name_or_path.replace("/", "_")
    public.COV_CACHE = {(name, layer): matrix for layer, matrix in covariances(env, tiny).items()}
    public.CONTEXT_TEMPLATES_CACHE = [["{}"]]
    before = {name: model.get_submodule(name).weight.detach().T.clone() for name in modules}
    hyperparameters = public.PMETHyperParams(
        **batch_settings(value)
        | {
            "rewrite_module_tmp": "model.layers.{}.mlp.down_proj",
            "rewrite_module_tmps": ["model.layers.{}.mlp.down_proj"],
            "layer_module_tmp": "model.layers.{}",
            "mlp_module_tmp": "model.layers.{}.mlp.down_proj",
            "attn_module_tmp": "model.layers.{}.self_attn.o_proj",
            "nll_loss_factor": 1,
            "alg_name": "PMET",
            "device": "cpu",
            "model_name": "tiny",
            "stats_dir": "",
        }
    )
    asked = [request | {"target_new": f" {request['target_new']['str']}"} for request in requests(edits)]
    public.apply_pmet_to_model(model, tiny.tokenizer, asked, hyperparameters)
    theirs = {name: model.get_submodule(name).weight.detach().T - weight for name, weight in before.items()}
    ours = total_delta(env, ready(PMET(value, WEIGHT, epsilon=0.0), env, tiny, ()))
    return compared("pmet", f"the delta of a batch of {EDITS} edits, two layers", theirs, ours, options)


def run(
    clone: Path,
    tiny: TinyModel,
    edits: list[Edit],
    agent: FineTune,
    objective: str,
    what: str,
    options: str,
    why: str = "rounding",
    padding_side: str | None = None,
) -> Comparison:
    """The delta of a batch on both sides."""
    public = imported(clone, "easyeditor.models.ft.ft_main")
    model, tokenizer = tiny.model(), tiny.tokenizer
    tokenizer.padding_side = padding_side or ("left" if objective == "target_new" else "right")
    before = model.get_submodule(LAST).weight.detach().clone()
    hyperparameters = settings(public, agent, objective)
    requests = [{"prompt": edit.prompt, "target_new": edit.target} for edit in edits]
    try:
        public.apply_ft_to_model(model, tokenizer, requests, hyperparameters)
    finally:
        tokenizer.padding_side = "right"
    theirs = (model.get_submodule(LAST).weight.detach() - before).T
    ours = total_delta(tiny.environment(edits, [LAST], edits_per_step=EDITS), agent)
    method = "fine-tune" if agent.norm_constraint is None else "ft-l"
    return compared(method, f"the delta of a batch of {EDITS} edits, {what}", {LAST: theirs}, ours, options, why)


def settings(public: Any, agent: FineTune, objective: str) -> Any:
    """Their hyperparameters of fine-tuning that say what ours do."""
    layer = LAST.split(".")[2]
    return public.FTHyperParams(
        layers=[int(layer)],
        num_steps=agent.steps,
        lr=agent.learning_rate,
        weight_decay=0,
        kl_factor=0,
        norm_constraint=agent.norm_constraint or False,
        rewrite_module_tmp=LAST.replace(layer, "{}", 1) + ".weight",
        layer_module_tmp="",
        mlp_module_tmp="",
        attn_module_tmp="",
        ln_f_module="",
        lm_head_module="",
        device="cpu",
        alg_name="FT",
        model_name="tiny",
        objective_optimization=objective,
    )


def simie(clone: Path, tiny: TinyModel, edits: list[Edit], start: str) -> Comparison:
    """SimIE around fine-tuning, one edit after the other."""
    fine_tuning, public = (imported(clone, f"easyeditor.models.{name}") for name in ("ft.ft_main", "simie.simie"))
    options: dict[str, Any] = {"steps": 10, "learning_rate": 1e-2}
    model, tokenizer, weight = tiny.model(), tiny.tokenizer, f"{LAST}.weight"
    before = model.get_submodule(LAST).weight.detach().clone()
    hyperparameters = settings(fine_tuning, FineTune(**options), "target_new")
    theirs = public.SimIE(lamHyper=RIDGE, init=start == "initial")
    theirs.initialization("llama", {weight: before}, "cpu")
    tokenizer.padding_side = "left"
    try:
        for edit in edits:
            request = {"prompt": edit.prompt, "target_new": edit.target}
            if theirs.init:
                theirs.reset_parameter(model)
            keys = theirs.cache(model, [request], tokenizer)
            fine_tuning.apply_ft_to_model(model, tokenizer, [request], hyperparameters)
            theirs.update(model, keys)
    finally:
        tokenizer.padding_side = "right"
    agent = SimIE("fine-tune", options, RIDGE, start)  # type: ignore[arg-type] # one of the two
    ours = total_delta(tiny.environment(edits, [LAST], edits_per_step=1), agent)
    change = (model.get_submodule(LAST).weight.detach() - before).T
    what = f"the delta of {EDITS} edits in a row, each fine-tuned from {start} weights"
    return compared("simie", what, {LAST: change}, ours, f"steps, rate and ridge equal; start={start!r}")
