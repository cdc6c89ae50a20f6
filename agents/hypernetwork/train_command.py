"""The command that trains a policy, by RLEdit or another algorithm on its network: checkpoint, log, saved policy.

``python -m agents.rledit`` and ``editenv train`` are this with :class:`agents.rledit.trainer.RLEditTrainer`;
``agents.rl.online``, ``agents.rl.reinforce`` and ``agents.rl.evolution`` give theirs.
"""

import hashlib
import json
import pickle
from dataclasses import asdict
from pathlib import Path

import torch
from rich.progress import TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from agents.hypernetwork.arguments import Args, with_preset
from agents.hypernetwork.networks import save_policy
from agents.hypernetwork.training import (
    Trainer,
    describe,
    make_preconditioner,
    several_modules,
    training_environment,
)
from agents.progress import progress_bars
from editenv.atomic_files import atomic_write
from editenv.delta_files import fingerprint
from editenv.env import LifelongEditEnv


def main(args: Args, algorithm: type[Trainer]) -> None:
    """Trains with this algorithm, or goes on where its checkpoint stands.

    Raises:
        SystemExit: If the folder's checkpoint belongs to a run with other options.
        ValueError: If an option does not fit the model or the data set.
    """
    args = with_preset(args)
    args.output.mkdir(parents=True, exist_ok=True)
    trainer = make_trainer(args, algorithm)
    weights = fingerprint(trainer.lm)
    checkpoint = Checkpoint(args.output / "checkpoint.pt", identity_of(args, trainer, weights))
    if checkpoint.load(trainer):
        print(f"going on from trajectory {trainer.trajectory}")
    train(args, trainer, checkpoint)
    about = {"train": asdict(trainer.config), "model": args.model, "seed": args.seed, "weights": weights}
    about |= {"dataset": args.dataset, "end_of_answer": args.train_eos, "algorithm": algorithm.title}
    save_policy(trainer.policy, args.output, about)
    print(f"saved {args.output / 'policy.safetensors'}")


def make_trainer(args: Args, algorithm: type[Trainer]) -> Trainer:
    """The algorithm with an environment on the training split, before its first trajectory."""
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
    return algorithm(training_environment(env, args.train), args.train, args.seed, preconditioner)


def identity_of(args: Args, trainer: Trainer, weights: str) -> str:
    """SHA-256 over whatever decides what is learned: a checkpoint is gone on with by the same training only."""
    options = {k: v for k, v in asdict(args).items() if k not in ("output", "device", "checkpoint_every")}
    options |= {"algorithm": trainer.title, "weights": weights} | several_modules(trainer.env)
    options["end_of_answer"] = options.pop("train_eos")  # as checkpoints made before the option was renamed have it
    return hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()


class Checkpoint:
    """A training's state in a file.

    Args:
        path: The file.
        identity: Of the training.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity

    def load(self, trainer: Trainer) -> bool:
        """Gives the trainer the state in the file; whether there was one.

        Raises:
            SystemExit: If it is another training's, or cannot be read.
        """
        if not self.path.exists():
            return False
        try:
            # Nothing but tensors and plain values is unpickled.
            state = torch.load(self.path, map_location=trainer.lm.device, weights_only=True)
            identity = state["identity"]
        except (OSError, RuntimeError, EOFError, LookupError, TypeError, pickle.UnpicklingError):
            raise SystemExit(
                f"{self.path} is damaged, or no checkpoint: remove it to train anew, or choose another --output"
            ) from None
        if identity != self.identity:
            raise SystemExit(
                f"{self.path} belongs to a training run with other options; remove it or choose another --output"
            )
        trainer.load_state(state["trainer"])
        return True

    def save(self, trainer: Trainer) -> None:
        """Writes it, whole or not at all."""
        with atomic_write(self.path) as partial:
            torch.save({"identity": self.identity, "trainer": trainer.state()}, partial)


def train(args: Args, trainer: Trainer, checkpoint: Checkpoint) -> None:
    """The trajectories that are left, with a progress bar, a TensorBoard log and checkpoints."""
    writer = SummaryWriter(str(args.output / "tensorboard"), purge_step=trainer.trajectory + 1)
    with progress_bars(TimeRemainingColumn(), off_terminal=True) as bars:
        bar = bars.add_task(trainer.title, total=args.train.trajectories, completed=trainer.trajectory)

        def after_each(log: dict[str, float]) -> None:
            for key, value in log.items():
                writer.add_scalar(f"train/{key}", value, trainer.trajectory)
            bars.update(bar, completed=trainer.trajectory, description=f"{trainer.title} {describe(log)}")
            if trainer.trajectory % args.checkpoint_every == 0:
                checkpoint.save(trainer)

        trainer.run(args.train.trajectories, after_each)
    writer.close()
