"""RLEdit (Li et al. 2025) against zhrli324/RLEdit."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from agents.hypernetwork.config import TrainConfig
from agents.hypernetwork.networks import MalmenPolicy
from agents.rledit.trainer import RLEditTrainer
from benchmarks.agreement_cases.comparison import Comparison, compared
from benchmarks.agreement_cases.networks import (
    STEP_SIZE,
    malmen_policy,
    our_gradients,
    public_gradients,
    shaken,
)
from benchmarks.agreement_cases.public_code import Repository, imported, leave_out
from benchmarks.agreement_cases.tiny_model import FIRST, LAST, TinyModel
from editenv.data import Edit
from editenv.deltas import dense
from editenv.env import LifelongEditEnv

SOURCE = Repository("zhrli324/RLEdit", "c6576a1e8e8a122c54d61ec5580ec7397e740a42")
EDITS, ANSWER_TOKENS, BATCHES = 6, 2, 3
TOKENS = EDITS * ANSWER_TOKENS
BOTH = (FIRST, LAST)
PORTION = 3
DEPTH = 2
"""Their back_depth: of a trajectory of three batches, so that it ends before the first."""
EQUAL = "network and statistics equal"
COUNT = {1: "one module", 2: "two modules"}


class KeepsGradients:
    """In the place of public code's optimiser: a step changes nothing, and the gradients stay."""

    def step(self) -> None: ...

    def zero_grad(self) -> None: ...


@dataclass(frozen=True)
class Public:
    """The public editor on the tiny model.

    Attributes:
        clone: The repository.
        tiny: The model and its tokenizer.
        modules: Edited modules.
        edits: Edits in a batch.
        portion: Edits in one of their forward passes.
    """

    clone: Path
    tiny: TinyModel
    modules: Sequence[str] = (LAST,)
    edits: int = EDITS
    portion: int = EDITS

    def editor(self, **options: Any) -> Any:
        """Their editor, its network shaken."""
        leave_out("wandb", "omegaconf", "glue_eval", "glue_eval.glue_eval")
        module = imported(self.clone, "editor.rledit")
        config = self.config("rledit", **options)
        model = self.tiny.model()
        for name in self.modules:
            model.get_submodule(name).weight.requires_grad_(True)
        torch.manual_seed(0)
        editor = module.RLEDIT(config, model)
        shaken(editor.net)
        editor.opt = KeepsGradients()
        return editor

    def config(self, name: str, **options: Any) -> SimpleNamespace:
        """Their configuration, without clipping: this project clips the sum once."""
        editor = {"name": name, "rank": 8, "n_blocks": 2, "lr": STEP_SIZE, "meta_lr": 1e-5, "loc_coef": 0.6}
        editor |= {"max_grad_norm": 1e30, "batch_size": 128, "token": "ans", "reg_coef": 0.0, "load_checkpoint": False}
        editor |= {"time_decay": 0.95, "back_depth": DEPTH, "cache_dir": str(self.tiny.folder / "cache")} | options
        data = SimpleNamespace(name="fever", n_edits=self.edits, batch_size=self.portion, num_seq=1_000)
        model = SimpleNamespace(name="tiny", name_or_path=str(self.tiny.folder), edit_modules=list(self.modules))
        return SimpleNamespace(
            model=model,
            editor=SimpleNamespace(**editor),
            dataset=data,
            data=data,
            num_seq=BATCHES,
            model_device="cpu",
            editor_device="cpu",
        )

    def batches(self, edits: Sequence[Edit]) -> list[Any]:
        """Edits as their loader gives them, batch after batch."""
        dataset_class = imported(self.clone, "data.fever").FEVERDataset
        records = [
            {
                "prompt": edit.prompt,
                "equiv_prompt": [edit.rephrases[0]],
                "alt": edit.target,
                "unrel_prompt": edit.locality[0].prompt,
                "unrel_ans": edit.locality[0].answer,
            }
            for edit in edits
        ]
        path = self.tiny.folder / "fever.json"
        path.write_text(json.dumps(records), encoding="utf-8")
        dataset = dataset_class(self.config("rledit").dataset, str(path), self.tiny.tokenizer, "cpu")
        return [
            dataset.collate_fn([dataset[i] for i in range(start, start + self.edits)])
            for start in range(0, len(edits), self.edits)
        ]


def frozen(editor: Any) -> None:
    """Keeps the statistics of their networks as they are."""
    for network in editor.net.values():
        network.normalizer.update = lambda values: None


def environment(tiny: TinyModel, edits: Sequence[Edit], modules: Sequence[str], config: TrainConfig) -> LifelongEditEnv:
    """What this project trains in, with the reward of a config."""
    return tiny.environment(
        edits,
        modules,
        edits_per_step=config.edits_per_step,
        locality=config.locality,
        reference=config.reference,
        memory_decay=config.memory_decay,
        memory_batches=config.memory_batches,
        regularization=config.regularization,
    )


def training(tiny: TinyModel, edits: Sequence[Edit], modules: Sequence[str], **options: Any) -> RLEditTrainer:
    """This project's training on a stream of these edits."""
    config = TrainConfig(horizon=BATCHES, edits_per_step=EDITS, warm_up_batches=1, **options)
    return RLEditTrainer(environment(tiny, edits, modules, config), config, 0, None)


def order_of(trainer: RLEditTrainer) -> list[Edit]:
    """The edits of the first trajectory, in order."""
    trainer.env.reset(seed=trainer.stream_seed)
    return list(trainer.env.stream)


def gradient(trainer: RLEditTrainer, policy: MalmenPolicy) -> dict[str, torch.Tensor]:
    """The policy gradient of a trajectory, summed over its batches as in public code (here it is their mean)."""
    trainer.policy = policy
    policy.zero_grad()
    trainer.backward(list(trainer.credited_roll_out()))
    return our_gradients(policy, factor=trainer.config.horizon)


def deltas(policy: MalmenPolicy, env: LifelongEditEnv, edits: Sequence[Edit]) -> dict[str, torch.Tensor]:
    """A batch's deltas at theta_0."""
    with torch.no_grad():
        return {name: dense(delta) for name, delta in policy(env.gradient_of(edits)).items()}


def compare(clone: Path, tiny: TinyModel) -> Iterator[Comparison]:
    yield from compare_deltas(clone, tiny)
    yield from compare_gradients(clone, tiny)


def compare_deltas(clone: Path, tiny: TinyModel) -> Iterator[Comparison]:
    """A batch's delta."""
    edits = tiny.edits(EDITS * BATCHES, ANSWER_TOKENS)
    public = Public(clone, tiny, BOTH)
    editor = public.editor()
    for batch in public.batches(edits):
        editor.cache(batch["edit_tuples"])
    theirs = {name: delta.clone() for name, delta in editor.predict_param_shifts().items()}
    env = tiny.environment(edits, BOTH, edits_per_step=EDITS)
    policy = malmen_policy(editor.net, BOTH, TOKENS)
    last = edits[-EDITS:]
    what = "a batch's delta, two modules"
    yield compared("rledit", what, theirs, deltas(policy, env, last), EQUAL)

    own = malmen_policy(editor.net, BOTH, TOKENS)
    network: Any = next(iter(own.networks.values()))
    network.normalizer = type(network.normalizer)(sum(network.split))
    for start in range(0, len(edits), EDITS):
        own.observe(env.gradient_of(edits[start : start + EDITS]))
    explanation = f"its normaliser adds up N times the unbiased variance, N - 1 is right (N = {TOKENS} tokens)"
    yield compared("rledit", what, theirs, deltas(own, env, last), "network equal", explanation)

    frozen(editor)
    longer = tiny.edits(EDITS, ANSWER_TOKENS + 1)
    editor.cache(public.batches(longer)[0]["edit_tuples"])
    what = "the delta of a batch with longer answers than those before"
    explanation = "the observed gradient is a sum over the batch's tokens here and their mean there"
    theirs = editor.predict_param_shifts()
    yield compared("rledit", what, theirs, deltas(policy, env, longer), EQUAL, explanation)
    as_mean = malmen_policy(editor.net, BOTH, EDITS * (ANSWER_TOKENS + 1))
    options = f"{EQUAL}, statistics of gradients in the units of a mean"
    yield compared("rledit", what, theirs, deltas(as_mean, env, longer), options)


def compare_gradients(clone: Path, tiny: TinyModel) -> Iterator[Comparison]:
    """The policy gradient of a trajectory: with the defaults, then with one documented difference after the other gone."""
    edits = tiny.edits(EDITS * BATCHES, ANSWER_TOKENS)
    steps: tuple[tuple[str, Any, str], ...] = (
        ("memory_batches", DEPTH - 1, "a delta answers for all later rewards here (eq. 11), for its own alone there"),
        ("credit", "step", "theta_0 (eq. 7) is the reference here, the weights before the batch there"),
        ("reference", "previous", "the squared norm carries gradient here (eq. 10), none there"),
        ("regularization", 0.0, "rounding"),
    )
    options: dict[str, Any] = {"regularization": 1e-4}
    for name, value, why in steps:
        options |= {name: value}
        yield gradients(clone, tiny, edits, (LAST,), options, why)
    unedited = "its locality loss goes backward through the weights without the delta"
    yield gradients(clone, tiny, edits, BOTH, options, unedited)
    yield gradients(clone, tiny, edits, BOTH, options | {"locality": 0.0}, "rounding")
    portions = f"it sums the means of its {EDITS // PORTION} forward passes, where here is one mean"
    yield gradients(clone, tiny, edits, (LAST,), options, portions, PORTION)
    depth = options | {"memory_batches": DEPTH}
    yield gradients(clone, tiny, edits, (LAST,), depth, f"its depth of {DEPTH} counts the batch at hand")


def gradients(
    clone: Path,
    tiny: TinyModel,
    edits: Sequence[Edit],
    modules: Sequence[str],
    options: dict[str, Any],
    why: str,
    portion: int = EDITS,
) -> Comparison:
    """Both sides' policy gradients, with these options of this project's, and so many edits in their forward passes."""
    trainer = training(tiny, edits, modules, **options)
    public = Public(clone, tiny, modules, portion=portion)
    editor = public.editor(reg_coef=options["regularization"], loc_coef=trainer.config.locality)
    batches = public.batches(order_of(trainer))
    editor.cache(batches[0]["edit_tuples"])
    frozen(editor)
    policy = malmen_policy(editor.net, modules, portion * ANSWER_TOKENS)
    editor.train(batches)
    what = f"the policy gradient of {BATCHES} batches, {COUNT[len(modules)]}"
    said = ", ".join(f"{name}={value!r}" for name, value in options.items())
    said = f"{EQUAL}; {said}"
    if portion != EDITS:
        said += f"; {portion} edits in a forward pass there"
    return compared("rledit", what, public_gradients(editor.net), gradient(trainer, policy), said, why)
