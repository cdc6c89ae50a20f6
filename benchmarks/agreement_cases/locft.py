"""LocFT-BF (Yang et al. 2026) against its public code, epochs of shuffled mini-batches included."""

import random
from collections.abc import Iterator
from pathlib import Path

from agents.baselines.locft_bf import LocFTBF
from agents.baselines.weight_training import draws_seed
from benchmarks.agreement_cases.comparison import Comparison, compared
from benchmarks.agreement_cases.public_code import Repository, imported
from benchmarks.agreement_cases.tiny_model import LAST, TinyModel, prepared, total_delta

SOURCE = Repository("ICT-STAR/LocFT", "51db7854feb3596085051e45bf8b3147bfb0ccb1")
EDITS = 10


def compare(clone: Path, tiny: TinyModel) -> Iterator[Comparison]:
    what = f"the delta of {EDITS} edits, mini-batches of 4"
    # The least loss is a constant of the public code: the second time epochs end by it.
    for agent in (
        LocFTBF(epochs=5, mini_batch=4, learning_rate=1e-2),
        LocFTBF(epochs=200, mini_batch=4, learning_rate=1e-2),
    ):
        public = imported(clone, "fine-tune")
        edits, layer = tiny.edits(EDITS), LAST.split(".")[2]
        model, tokenizer = tiny.model(), tiny.tokenizer
        before = model.get_submodule(LAST).weight.detach().clone()
        settings = public.FTHyperParams(
            model_name_or_path="tiny",
            data_path="",
            save_model_dir="",
            layer=int(layer),
            rewrite_module=LAST.replace(layer, "{}", 1) + ".weight",
            batch_size=agent.mini_batch,
            lr=agent.learning_rate,
            num_steps=agent.epochs,
        )
        random.seed(draws_seed(0, 0, edits))  # it shuffles by the global generator, here by one of the batch's own
        try:
            public.execute_ft(model, tokenizer, [{"prompt": e.prompt, "target_new": e.target} for e in edits], settings)
        finally:
            tokenizer.padding_side = "right"
        theirs = {LAST: (model.get_submodule(LAST).weight.detach() - before).T}
        env = tiny.environment(edits, [LAST], edits_per_step=EDITS)
        options = f"rate, mini-batch and draws equal, {agent.epochs} epochs at most"
        yield compared("locft-bf", what, theirs, total_delta(env, prepared(agent, env, tiny.text)), options)
