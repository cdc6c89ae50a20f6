"""HiEdit (Wang et al. 2026) against yangfanww/hiedit."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from agents.hypernetwork.config import GatedPolicyConfig
from agents.hypernetwork.networks import Block, MendPolicy
from agents.rledit.hiedit import HiEditConfig, HiEditTrainer
from benchmarks.agreement_cases.comparison import Comparison, compared
from benchmarks.agreement_cases.networks import STEP_SIZE, load_network, our_gradients, public_gradients, shaken
from benchmarks.agreement_cases.public_code import Repository, imported, leave_out
from benchmarks.agreement_cases.rledit import DEPTH, EQUAL, KeepsGradients, environment, frozen, order_of
from benchmarks.agreement_cases.tiny_model import LAYERS, TinyModel
from editenv.data import Edit

SOURCE = Repository("yangfanww/hiedit", "1d76ab45bacb54e48f5813cecdbccf03a7a3bb02")
EDITS, ANSWER_TOKENS, BATCHES = 6, 2, 3
TOKENS = EDITS * ANSWER_TOKENS
MODULES = tuple(f"model.layers.{layer}.mlp.down_proj" for layer in range(LAYERS))
CHOSEN, WIDTH = 2, 8
BACKWARD = "its losses go backward through the weights without the delta"
CUT_OFF = (
    "of its losses the squared norm alone reaches the gate, as weights are changed outside of automatic differentiation; "
    "and of that the first batch's alone, as the gate's parameters carry no gradient afterwards"
)


class TheirPolicy(MendPolicy):
    """MEND's delta from blocks of MALMEN's form, as their MEND-style editor has it; not offered here."""

    block = Block


def compare(clone: Path, tiny: TinyModel) -> Iterator[Comparison]:
    edits = tiny.edits(EDITS * BATCHES, ANSWER_TOKENS)
    yield choice(clone, tiny, edits)
    for step_size, why in ((STEP_SIZE, BACKWARD), (1e-4 * STEP_SIZE, f"the same: {BACKWARD}")):
        yield network_gradients(Trajectory(clone, tiny, edits, step_size, regularization=0.0), why)
    yield from gate_gradients(Trajectory(clone, tiny, edits, STEP_SIZE, regularization=0.01))


def their_editor(clone: Path, tiny: TinyModel, regularization: float = 0.0, step_size: float = STEP_SIZE) -> Any:
    """Their MEND-style editor, network and gate shaken; the gate sees what the network's normaliser gives."""
    leave_out("swanlab", "omegaconf", "glue_eval", "glue_eval.glue_eval")
    model = tiny.model()
    for name in MODULES:
        model.get_submodule(name).weight.requires_grad_(True)
    torch.manual_seed(0)
    editor = imported(clone, "editor.hiedit").HIEDIT(configuration(tiny, regularization, step_size), model)
    shaken(editor.net)
    shaken(editor.hi_net)
    editor.opt, editor.hi_opt = KeepsGradients(), KeepsGradients()
    for shape, encoder in editor.hi_net.encoder.items():
        encoder.normalizer = editor.net[shape].normalizer
    return editor


def configuration(tiny: TinyModel, regularization: float = 0.0, step_size: float = STEP_SIZE) -> SimpleNamespace:
    """Theirs, without clipping: this project clips the sum once."""
    editor = {"name": "hiedit", "n_layers": CHOSEN, "hidden_size": WIDTH, "rank": 8, "n_blocks": 2, "lr": step_size}
    editor |= {"meta_lr": 1e-5, "loc_coef": 0.0, "max_grad_norm": 1e30, "batch_size": 128, "token": "ans"}
    editor |= {"reg_coef": regularization, "time_decay": 0.95, "back_depth": DEPTH}
    editor |= {"cache_dir": str(tiny.folder / "cache")}
    model = SimpleNamespace(name="tiny", name_or_path=str(tiny.folder), edit_modules=list(MODULES))
    return SimpleNamespace(
        model=model,
        editor=SimpleNamespace(**editor),
        dataset=SimpleNamespace(name="zsre", n_edits=EDITS, batch_size=EDITS),
        num_seq=BATCHES,
        model_device="cpu",
        editor_device="cpu",
    )


def their_batches(clone: Path, tiny: TinyModel, edits: Sequence[Edit]) -> list[Any]:
    """Edits as their loader gives them, batch after batch."""
    records = [
        {
            "src": edit.prompt,
            "rephrase": edit.rephrases[0],
            "ans": edit.target,
            "loc": edit.locality[0].prompt,
            "loc_ans": edit.locality[0].answer,
        }
        for edit in edits
    ]
    path = tiny.folder / "zsre.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    dataset_class = imported(clone, "data.zsre").ZSREDataset
    dataset = dataset_class(configuration(tiny).dataset, str(path), tiny.tokenizer, "cpu")
    return [
        dataset.collate_fn([dataset[i] for i in range(start, start + EDITS)]) for start in range(0, len(edits), EDITS)
    ]


@torch.no_grad()
def our_policy(editor: Any) -> TheirPolicy:
    """The policy that their editor is."""
    ((_, network),) = editor.net.items()
    shape = (network.key_size, network.value_size)
    sizes = {"blocks": len(network.blocks), "rank": network.blocks[0].A.shape[1]}
    config = GatedPolicyConfig(**sizes, share=CHOSEN / len(MODULES), gate_width=WIDTH)
    policy = TheirPolicy(dict.fromkeys(MODULES, shape), config)
    load_network(policy, network, TOKENS)
    assert policy.gate is not None
    policy.gate.load_state_dict(gate_tensors(editor.hi_net))
    return policy


def gate_tensors(hi_net: Any, gradients: bool = False) -> dict[str, torch.Tensor]:
    """The parameters of their gate, or the gradients, by this project's names."""
    ((shape, encoder),) = hi_net.encoder.items()
    key = shape.strip("()").replace(", ", "x")
    named = {
        f"encoders.{key}.linear.weight": encoder.block.linear.weight,
        f"encoders.{key}.linear.bias": encoder.block.linear.bias,
        f"encoders.{key}.scale": encoder.block.scale.weight,
        f"encoders.{key}.shift": encoder.block.shift.weight,
        "scoring.weight": hi_net.gate.weight,
        "scoring.bias": hi_net.gate.bias,
    }
    return {name: (p.grad if gradients else p).detach().clone() for name, p in named.items()}


def choice(clone: Path, tiny: TinyModel, edits: Sequence[Edit]) -> Comparison:
    """What the gate chooses, and the gradient of a fixed sum of it."""
    editor = their_editor(clone, tiny)
    editor.cache(their_batches(clone, tiny, edits)[0]["edit_tuples"])
    policy = our_policy(editor)
    weights = torch.arange(1.0, len(MODULES) + 1)
    _, mask = editor.predict_param_shifts()
    (mask * weights).sum().backward()
    public = {"choice": mask} | gate_tensors(editor.hi_net, gradients=True)
    env = tiny.environment(edits, MODULES, edits_per_step=EDITS)
    chosen = torch.stack(list(policy.choice(env.gradient_of(edits[:EDITS])).values()))
    (chosen * weights).sum().backward()
    ours = {"choice": chosen} | our_gate_gradients(policy)
    return compared("hiedit", "the choice of a batch, and the gate's gradient of a sum of it", public, ours, EQUAL)


def our_gate_gradients(policy: TheirPolicy, factor: float = 1.0) -> dict[str, torch.Tensor]:
    """Of the gate, times a factor."""
    assert policy.gate is not None
    return {name: factor * p.grad for name, p in policy.gate.named_parameters() if p.grad is not None}


class Trajectory:
    """A trajectory on both sides: their gradients are there, and what this project's steps answer for.

    Args:
        clone: The repository.
        tiny: The model.
        edits: The stream, in another order.
        step_size: Of their network.
        regularization: eta.
    """

    def __init__(
        self, clone: Path, tiny: TinyModel, edits: Sequence[Edit], step_size: float, regularization: float
    ) -> None:
        options: dict[str, Any] = {"credit": "step", "reference": "previous", "locality": 0.0}
        options |= {"memory_batches": DEPTH - 1, "regularization": regularization}
        config = HiEditConfig(horizon=BATCHES, edits_per_step=EDITS, warm_up_batches=1, **options)
        self.trainer = HiEditTrainer(environment(tiny, edits, MODULES, config), config, 0, None)
        self.editor = their_editor(clone, tiny, regularization, step_size)
        batches = their_batches(clone, tiny, order_of(self.trainer))
        self.editor.cache(batches[0]["edit_tuples"])
        frozen(self.editor)
        self.policy = our_policy(self.editor)
        self.editor.train(batches)
        self.trainer.policy = self.policy
        self.steps = list(self.trainer.credited_roll_out())
        self.options = f"{EQUAL}; " + ", ".join(f"{name}={value!r}" for name, value in options.items())
        self.options += f"; step size {step_size:g}"


def network_gradients(trajectory: Trajectory, why: str) -> Comparison:
    """Of a trajectory, summed over its batches as in public code (here it is their mean)."""
    trajectory.trainer.backward(trajectory.steps)
    ours = our_gradients(trajectory.policy, BATCHES)
    ours = {name: gradient for name, gradient in ours.items() if not name.startswith("gate.")}
    what = f"the network's gradient of {BATCHES} batches, {CHOSEN} of {len(MODULES)} modules"
    return compared("hiedit", what, public_gradients(trajectory.editor.net), ours, trajectory.options, why)


def gate_gradients(trajectory: Trajectory) -> Iterator[Comparison]:
    """Of a trajectory; then of what reaches the gate in public code."""
    what = f"the gate's gradient of {BATCHES} batches, {CHOSEN} of {len(MODULES)} modules"
    theirs = gate_tensors(trajectory.editor.hi_net, gradients=True)
    trajectory.trainer.backward(trajectory.steps)
    ours = our_gate_gradients(trajectory.policy, BATCHES)
    yield compared("hiedit", what, theirs, ours, trajectory.options, CUT_OFF)
    trajectory.policy.zero_grad()
    first = trajectory.steps[0]
    first.credit = {name: (0 * left, 0 * right) for name, (left, right) in first.credit.items()}
    trajectory.trainer.backward([first])
    alone = f"{trajectory.options}; the squared norm of the first batch alone here, too"
    yield compared("hiedit", what, theirs, our_gate_gradients(trajectory.policy), alone)
