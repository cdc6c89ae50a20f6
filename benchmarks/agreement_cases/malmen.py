"""MALMEN (Tan et al. 2024) against ChenmienTan/malmen."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from agents.baselines.malmen import MALMENConfig
from agents.hypernetwork.online import OnlineTrainer
from agents.hypernetwork.training import step_credit
from benchmarks.agreement_cases.comparison import Comparison, compared
from benchmarks.agreement_cases.networks import malmen_policy, our_gradients, public_gradients, shaken
from benchmarks.agreement_cases.public_code import Repository, imported, leave_out
from benchmarks.agreement_cases.rledit import (
    ANSWER_TOKENS,
    BOTH,
    EDITS,
    TOKENS,
    KeepsGradients,
    Public,
    deltas,
    environment,
    frozen,
)
from benchmarks.agreement_cases.tiny_model import TinyModel, labelled
from editenv.data import Edit

SOURCE = Repository("ChenmienTan/malmen", "1df295dc032b3ff9a002976e081432cb4f09d342")


class PublicMALMEN(Public):
    """RLEdit's code grew out of MALMEN's: it takes the same model, configuration and batches."""

    def batches(self, edits: Sequence[Edit]) -> list[Any]:
        """Their loader knows GPT-2's tokenizer and T5's."""
        asked = {
            "edit_tuples": [(edit.prompt, edit.target) for edit in edits],
            "equiv_tuples": [(edit.rephrases[0], edit.target) for edit in edits],
            "unrel_tuples": [(edit.locality[0].prompt, edit.locality[0].answer) for edit in edits],
        }
        batch = {}
        for kind, pairs in asked.items():
            texts = labelled(self.tiny.tokenizer, pairs)
            labels = texts.pop("labels")[:, 1:]  # theirs stand where they are predicted
            batch[kind] = [{name: values[:, :-1] for name, values in texts.items()} | {"labels": labels}]
        return [batch]

    def editor(self, **options: Any) -> Any:
        leave_out("wandb", "omegaconf")
        module = imported(self.clone, "editor.malmen")
        config = self.config("malmen", **options)
        (self.tiny.folder / "cache").mkdir(exist_ok=True)
        model = self.tiny.model()
        for name in self.modules:
            model.get_submodule(name).weight.requires_grad_(True)
        torch.manual_seed(0)
        editor = module.MALMEN(config, model)
        shaken(editor.net)
        editor.opt = KeepsGradients()
        return editor


def compare(clone: Path, tiny: TinyModel) -> Iterator[Comparison]:
    edits = tiny.edits(EDITS, ANSWER_TOKENS)
    public = PublicMALMEN(clone, tiny, BOTH)
    editor = public.editor(loc_coef=1.0)
    config = MALMENConfig(horizon=1, edits_per_step=EDITS, warm_up_batches=1)
    trainer = OnlineTrainer(environment(tiny, edits, BOTH, config), config, 0, None)
    trainer.env.reset(seed=trainer.stream_seed)
    batches = public.batches(list(trainer.env.stream))

    editor.cache(batches[0]["edit_tuples"])
    frozen(editor)
    policy = malmen_policy(editor.net, BOTH, TOKENS)
    theirs = editor.predict_param_shifts()
    equal = "network and statistics equal"
    yield compared("malmen", "a batch's delta, two modules", theirs, deltas(policy, trainer.env, edits), equal)

    editor.train(batches)
    trainer.policy = policy
    trainer.backward(list(step_credit(trainer.roll_out())))
    gradients = our_gradients(policy)
    what = "the gradient of the network, two modules"
    yield compared("malmen", what, public_gradients(editor.net), gradients, equal)
