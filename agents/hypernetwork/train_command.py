"""The command that trains a policy, by RLEdit or another algorithm on its network: options, checkpoint, log.

``python -m agents.rledit`` and ``editenv train`` are this with :class:`agents.rledit.trainer.RLEditTrainer`;
``agents.rl.online``, ``agents.rl.reinforce`` and ``agents.rl.evolution`` give theirs.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from agents.hypernetwork.config import TrainConfig
from agents.progress import progress_bars
from editenv.data.files import FileOptions
from editenv.models.modules import preset

if TYPE_CHECKING:
    from agents.hypernetwork.training import Trainer


@dataclass
class Args:
    output: Path
    """Folder for the policy (policy.safetensors, policy.json), the checkpoint and the TensorBoard log."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Training and policy."""
    model: str = "atlas"
    """Embedded model, Hugging Face folder or hub id."""
    dataset: str = "atlas"
    """Data set whose training split is used: atlas, or a file or folder as docs/reference/data_formats.md has it."""
    dataset_options: FileOptions = field(default_factory=FileOptions)
    """How a file is read."""
    modules: tuple[str, ...] = ()
    """Edited modules, as endings of dotted names; the model's default if none are given."""
    preset: str | None = None
    """Modules, rank and lambda_loc of the paper's Table 3, such as llama-3-8b/zsre, in place of --train.policy.rank and
    --train.locality; `editenv models` lists them."""
    train_eos: bool = False
    """Teach the end-of-sequence token after each target, and protect it after each locality answer."""
    device: str = "cpu"
    """Torch device."""
    seed: int = 0
    """Seeds the network and every stream."""
    checkpoint_every: int = 5
    """Trajectories between checkpoints."""


def with_preset(args: Args) -> Args:
    """The options that a preset sets, set.

    Raises:
        ValueError: If there is no such preset.
    """
    if args.preset is None:
        return args
    chosen = preset(args.preset)
    policy = replace(args.train.policy, rank=chosen.rank)
    train = replace(args.train, locality=chosen.locality, policy=policy)
    return replace(args, train=train, modules=args.modules or chosen.modules)


def main(args: Args, algorithm: type["Trainer"]) -> None:
    """Trains with this algorithm, or goes on where its checkpoint stands."""
    args = with_preset(args)
    import torch
    from rich.progress import TimeRemainingColumn
    from torch.utils.tensorboard import SummaryWriter

    from agents.hypernetwork.networks import save_policy
    from agents.hypernetwork.training import describe, make_preconditioner, several_modules, training_environment
    from editenv.atomic_files import atomic_write
    from editenv.delta_files import fingerprint
    from editenv.env import LifelongEditEnv

    args.output.mkdir(parents=True, exist_ok=True)
    checkpoint = args.output / "checkpoint.pt"
    env = LifelongEditEnv(
        model=args.model,
        dataset=args.dataset,
        split="train",
        modules=args.modules or None,
        device=args.device,
        dataset_options=None if args.dataset == "atlas" else asdict(args.dataset_options),
        train_eos=args.train_eos,
    )
    preconditioner = make_preconditioner(env, args.train) if args.train.preconditioner else None
    trainer = algorithm(training_environment(env, args.train), args.train, args.seed, preconditioner)
    options = {k: v for k, v in asdict(args).items() if k not in ("output", "device", "checkpoint_every")}
    options["algorithm"] = algorithm.title
    options["end_of_answer"] = options.pop("train_eos")  # as checkpoints made before the option was renamed have it
    options["weights"] = fingerprint(env.language_model)
    options |= several_modules(env)
    identity = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=env.language_model.device, weights_only=True)
        if state["identity"] != identity:
            raise SystemExit(
                f"{checkpoint} belongs to a training run with other options; remove it or choose another --output"
            )
        trainer.load_state(state["trainer"])
        print(f"going on from trajectory {trainer.trajectory}")

    writer = SummaryWriter(str(args.output / "tensorboard"), purge_step=trainer.trajectory + 1)
    with progress_bars(TimeRemainingColumn(), off_terminal=True) as progress:
        bar = progress.add_task(algorithm.title, total=args.train.trajectories, completed=trainer.trajectory)

        def after_each(log: dict[str, float]) -> None:
            for key, value in log.items():
                writer.add_scalar(f"train/{key}", value, trainer.trajectory)
            progress.update(bar, completed=trainer.trajectory, description=f"{algorithm.title} {describe(log)}")
            if trainer.trajectory % args.checkpoint_every == 0:
                with atomic_write(checkpoint) as partial:
                    torch.save({"identity": identity, "trainer": trainer.state()}, partial)

        trainer.run(args.train.trajectories, after_each)
    writer.close()
    about = {"train": asdict(trainer.config), "model": args.model, "seed": args.seed, "weights": options["weights"]}
    about |= {"dataset": args.dataset, "end_of_answer": args.train_eos, "algorithm": algorithm.title}
    save_policy(trainer.policy, args.output, about)
    print(f"saved {args.output / 'policy.safetensors'}")
