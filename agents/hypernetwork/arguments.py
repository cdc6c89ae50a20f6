"""Options of the command that trains a policy; imported without torch, so that help and usage errors come at once."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from agents.hypernetwork.config import TrainConfig
from editenv.arguments import PositiveInt, check_fields
from editenv.data.options import FileOptions
from editenv.models.presets import preset


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        output: Folder for the policy (policy.safetensors, policy.json), the checkpoint and the TensorBoard log.
        train: Training and policy.
        model: A name of `editenv models`, a Hugging Face folder, a GGUF file or a hub id.
        dataset: Data set whose training split is used: atlas, or a file or folder as docs/reference/data_formats.md
            has it.
        dataset_options: How a file is read.
        modules: Edited modules, as endings of dotted names; the model's default if none are given.
        preset: Modules, rank and lambda_loc of the paper's Table 3, such as llama-3-8b/zsre, or of a small public
            model, by rule and not run here, such as qwen3-0.6b/gradients; smollm2-135m/counterfact, which was searched
            here, has the preconditioner, step size, ridge, epsilon, learning rates and observed tokens, too. It takes
            the place of these options. `editenv models` lists all presets.
        train_eos: Teach the end-of-sequence token after each target, and protect it after each locality answer.
        observed_tokens: Which tokens of a batch the policy sees: those that predict an answer token, all that have a
            gradient, or of each edit its subject's last. They differ where several layers are edited; the policy is
            for environments with the same.
        device: Torch device.
        seed: Seeds the network and every stream.
        checkpoint_every: Trajectories between checkpoints.
    """

    output: Path
    train: TrainConfig = field(default_factory=TrainConfig)
    model: str = "atlas"
    dataset: str = "atlas"
    dataset_options: FileOptions = field(default_factory=FileOptions)
    modules: tuple[str, ...] = ()
    preset: str | None = None
    train_eos: bool = False
    observed_tokens: Literal["answers", "all", "subject"] = "answers"
    device: str = "cpu"
    seed: int = 0
    checkpoint_every: PositiveInt = 5

    def __post_init__(self) -> None:
        check_fields(self)


def with_preset(args: Args) -> Args:
    """The options that a preset sets, set.

    Raises:
        ValueError: If there is no such preset, or it is for methods without a network.
    """
    if args.preset is None:
        return args
    chosen = preset(args.preset)
    if chosen.methods != "gradients":
        raise ValueError(
            f"preset: {args.preset} is for methods that look a fact up at its subject (MEMIT and its kin), and have "
            f"nothing to train; take {args.preset.partition('/')[0]}/gradients"
        )

    def said(*names: str) -> dict[str, Any]:
        return {name: chosen.said[name] for name in names if name in chosen.said}

    policy = replace(args.train.policy, rank=chosen.rank, **said("step_size", "ridge"))
    train = replace(
        args.train,
        locality=chosen.locality,
        policy=policy,
        preconditioner=args.train.preconditioner or chosen.epsilon is not None,
        **said("epsilon", "learning_rate", "scalar_learning_rate"),
    )
    options = replace(args, train=train, modules=args.modules or chosen.modules)
    return replace(options, **said("observed_tokens"))
