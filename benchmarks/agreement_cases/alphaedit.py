"""AlphaEdit (Fang et al. 2025), and the baselines of its experiments, against jianghoucheng/AlphaEdit.

All but fine-tuning are run by the repository's own experiment, which makes the null space and condenses for PRUNE.
"""

import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from agents.baselines.alphaedit import AlphaEdit
from agents.baselines.fine_tune import FineTune
from agents.baselines.memit import MEMIT
from agents.baselines.nse import NSE
from agents.baselines.prune import PRUNE
from agents.baselines.rect import RECT
from benchmarks.agreement_cases.comparison import Comparison, compared
from benchmarks.agreement_cases.locate_then_edit import (
    EDITED,
    EDITS,
    WEIGHT,
    batch_settings,
    changed,
    covariance_cache,
    covariances,
    layer_search,
    module,
    public_model,
    public_name,
    ready,
    requests,
    weights_of,
)
from benchmarks.agreement_cases.public_code import Repository, imported, leave_out
from benchmarks.agreement_cases.tiny_model import LAST, TinyModel, total_delta
from editenv.data import Edit
from editenv.env import LifelongEditEnv

SOURCE = Repository("jianghoucheng/AlphaEdit", "f5248d3d25f1b3863bff19c387293d635866079f")
BATCHES = 2
NULL_SPACE, RIDGE = 0.5, 1.0
"""In the tiny model's units, in which the former leaves about half of the directions."""
ENOUGH = 0.1
"""Distance at which NSE counts an edit as made: some are before its second round."""
LIGHT = 1e-3
"""Weight of the covariance where updates must have singular values above the weight's, for PRUNE to do something."""


def compare(clone: Path, tiny: TinyModel) -> Iterator[Comparison]:
    edits = tiny.edits(EDITS * BATCHES)
    modules = list(map(module, EDITED))
    env = tiny.environment(edits, modules, edits_per_step=EDITS)
    experiment = Experiment(clone, tiny, env, edits)
    value = layer_search()
    search = "no prefixes, kl=0"
    memit = MEMIT(value, WEIGHT, epsilon=0.0)
    sequence = MEMIT(value, WEIGHT, epsilon=0.0, cache_keys=True)
    alphaedit = AlphaEdit(value, NULL_SPACE, RIDGE)
    rect = RECT(value, WEIGHT, epsilon=0.0, keep=0.4)
    yield experiment.compare("memit", "MEMIT", memit, search)
    yield experiment.compare("memit-seq", "MEMIT_seq", sequence, f"{search}; its earlier keys passed on")
    yield experiment.compare("alphaedit", "AlphaEdit", alphaedit, f"{search}; threshold and ridge equal")
    entries = "its 40 per cent are 821 of 2,048 entries, here 819"
    yield experiment.compare("rect", "MEMIT_rect", rect, f"{search}; keep=0.4", entries)
    rect = RECT(value, WEIGHT, epsilon=0.0, keep=821 / 2048)
    yield experiment.compare("rect", "MEMIT_rect", rect, f"{search}; keep=821/2048")
    condensed = "it adds the condensed sum to weights that hold the edits already"
    far = layer_search(learning_rate=0.5, clamp=4.0)
    prune = PRUNE(far, LIGHT, epsilon=0.0, base=math.e)
    yield experiment.compare("prune", "MEMIT_prune", prune, f"{search}; base=e", condensed, weight=LIGHT)
    prune = PRUNE(far, LIGHT, epsilon=0.0, base=math.e, onto="edited")
    yield experiment.compare("prune", "MEMIT_prune", prune, f"{search}; base=e, onto='edited'", weight=LIGHT)
    for share in (1.0, 0.8):
        nse = NSE(value, WEIGHT, epsilon=0.0, neurons=share, enough=ENOUGH, too_far=100.0)
        yield experiment.compare("nse", "NSE", nse, f"{search}; neurons={share}, bounds and rounds equal")
    yield fine_tuning(clone, tiny)


class Experiment:
    """Their ``experiments/evaluate.py`` on the tiny model, without its evaluations.

    Args:
        clone: The repository.
        tiny: The model.
        env: This project's environment of the same edits.
        edits: In order.
    """

    def __init__(self, clone: Path, tiny: TinyModel, env: LifelongEditEnv, edits: list[Edit]) -> None:
        leave_out("baselines.mend", "dsets", "glue_eval.glue_eval", "experiments.py.eval_utils_counterfact")
        leave_out("experiments.py.eval_utils_zsre", "glue_eval")
        self.clone, self.tiny, self.env = clone, tiny, env
        records = [{"case_id": i, "requested_rewrite": request} for i, request in enumerate(requests(edits))]
        self.evaluate = imported(clone, "experiments.evaluate")
        self.evaluate.args = SimpleNamespace(downstream_eval_steps=0)
        self.evaluate.DS_DICT = {"mcf": (lambda *args, **kwargs: records, lambda *args: {})}
        self.evaluate.KnownsDataset = lambda folder: [{"template": "{} is", "subject": edits[0].subject}]
        self.count = len(edits)

    def compare(
        self, method: str, algorithm: str, agent: MEMIT, options: str, why: str = "rounding", weight: float = WEIGHT
    ) -> Comparison:
        """The delta of all batches, on both sides."""
        public = self.change(algorithm, agent, weight)
        ours = total_delta(self.env, ready(agent, self.env, self.tiny, ()))
        what = f"the delta of {BATCHES} batches of {EDITS} edits, two layers"
        return compared(method, what, public, ours, options, why)

    def change(self, algorithm: str, agent: MEMIT, weight: float) -> dict[str, torch.Tensor]:
        """What their experiment changes in a fresh model."""
        model = public_model(self.tiny)
        cache = covariance_cache(model, covariances(self.env, self.tiny))
        for name in (
            "memit.memit_main",
            "memit.memit_seq_main",
            "memit.memit_rect_main",
            "AlphaEdit.AlphaEdit_main",
            "nse.nse_main",
        ):
            main = imported(self.clone, name)
            main.COV_CACHE, main.CONTEXT_TEMPLATES_CACHE = dict(cache), [["{}"]]
        hyperparameters: dict[str, Any] = batch_settings(agent.value) | {
            "model_name": "Llama3-8B",
            "mom2_update_weight": weight,
        }
        if algorithm == "AlphaEdit":
            hyperparameters |= {"nullspace_threshold": NULL_SPACE, "L2": RIDGE}
        if isinstance(agent, NSE):
            hyperparameters |= {"alpha": agent.enough, "upper_bound": agent.too_far, "neuron_threshold": agent.neurons}
            hyperparameters["max_iterations"] = agent.rounds + 1
        path = self.tiny.folder / f"{algorithm}.json"
        path.write_text(json.dumps(hyperparameters), encoding="utf-8")
        if algorithm == "MEMIT_seq":
            self.pass_keys_on()
        before = weights_of(model, list(self.env.language_model.modules))
        self.evaluate.main(
            algorithm,
            (model, self.tiny.tokenizer),
            str(path),
            "mcf",
            self.count,
            None,
            True,
            1,
            False,
            dir_name=str(self.tiny.folder / "results"),
            num_edits=EDITS,
        )
        return changed(model, before)

    def pass_keys_on(self) -> None:
        """As published, MEMIT_seq does not hand the earlier keys to the function that adds them, which fails."""
        main = imported(self.clone, "memit.memit_seq_main")
        lm = self.env.language_model
        sizes = [lm.shape(name)[0] for name in lm.modules]
        main.execute_memit = partial(main.execute_memit, cache_c=torch.zeros(len(sizes), sizes[0], sizes[0]))


def fine_tuning(clone: Path, tiny: TinyModel) -> Comparison:
    """FT-L on targets of one token."""
    public = imported(clone, "baselines.ft.ft_main")
    edits = tiny.edits(EDITS, answer_tokens=1)
    agent = FineTune(steps=10, learning_rate=1e-2, norm_constraint=3e-2)
    model = public_model(tiny)
    before = weights_of(model, [LAST])
    layer = LAST.split(".")[2]
    templates = {"layer_module_tmp": "", "mlp_module_tmp": "", "attn_module_tmp": ""}
    hyperparameters = public.FTHyperParams(
        layers=[int(layer)],
        num_steps=agent.steps,
        lr=agent.learning_rate,
        weight_decay=0,
        kl_factor=0,
        norm_constraint=agent.norm_constraint,
        rewrite_module_tmp=public_name(LAST).replace(layer, "{}", 1) + ".weight",
        ln_f_module="",
        lm_head_module="",
        **templates,
    )
    public.apply_ft_to_model(model, tiny.tokenizer, requests(edits), hyperparameters)
    ours = total_delta(tiny.environment(edits, [LAST], edits_per_step=EDITS), agent)
    what = f"the delta of a batch of {EDITS} targets of one token"
    return compared("ft-l", what, changed(model, before), ours, "steps, rate and norm_constraint equal")
