"""The command that trains a policy, by RLEdit or another algorithm on its network: checkpoint, log, saved policy.

``python -m agents.rledit`` and ``editenv train`` are this with :class:`agents.rledit.trainer.RLEditTrainer`;
``agents.rl.online``, ``agents.rl.reinforce`` and ``agents.rl.evolution`` give theirs.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from rich.progress import TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from agents.covariance import training_edits
from agents.hypernetwork.arguments import Args, with_preset
from agents.hypernetwork.networks import save_policy
from agents.hypernetwork.training import (
    Trainer,
    describe,
    make_preconditioner,
    previous_reference,
    several_modules,
    training_environment,
)
from agents.progress import progress_bars
from editenv.atomic_files import atomic_write
from editenv.data import edits_digest
from editenv.env import LifelongEditEnv
from editenv.identity import cautions, differences, fingerprint, frozen_fingerprint, identity
from editenv.output_folders import check_output


def main(args: Args, algorithm: type[Trainer]) -> None:
    """Trains with this algorithm, or goes on where its checkpoint stands.

    Raises:
        SystemExit: If the folder's checkpoint belongs to a run with other options.
        ValueError: If an option does not fit the model or the data set, or the output is where one of them is read.
    """
    args = with_preset(args)
    check_output(args.output, args.model, dataset=args.dataset)
    args.output.mkdir(parents=True, exist_ok=True)
    trainer = make_trainer(args, algorithm)
    weights = fingerprint(trainer.lm)
    rest = {"frozen": frozen_fingerprint(trainer.lm), "identity": identity(trainer.lm)}
    edits = edits_digest(training_edits(trainer.env))
    checkpoint = Checkpoint(args.output / "checkpoint.pt", identity_of(args, trainer, weights), rest | {"edits": edits})
    if checkpoint.load(trainer):
        print(f"going on from trajectory {trainer.trajectory}")
    train(args, trainer, checkpoint)
    about = {"train": asdict(trainer.config), "model": args.model, "seed": args.seed, "weights": weights, **rest}
    about |= {"dataset": args.dataset, "end_of_answer": args.train_eos, "algorithm": algorithm.title}
    about["observed_tokens"] = args.observed_tokens
    save_policy(trainer.policy, args.output, about)
    print(f"saved {args.output / 'policy.safetensors'}")


def run(args: Args, algorithm: type[Trainer]) -> None:
    """:func:`main` as a command of its own: what is wrong is said in one line.

    Raises:
        SystemExit: If anything is.
    """
    try:
        main(args, algorithm)
    except (ValueError, OSError, FloatingPointError) as error:
        raise SystemExit(str(error)) from None


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
        observed_tokens=args.observed_tokens,
    )
    preconditioner = make_preconditioner(env, args.train) if args.train.preconditioner else None
    return algorithm(training_environment(env, args.train), args.train, args.seed, preconditioner)


def identity_of(args: Args, trainer: Trainer, weights: str) -> str:
    """SHA-256 over whatever decides what is learned: a checkpoint is gone on with by the same training only."""
    options = {k: v for k, v in asdict(args).items() if k not in ("output", "device", "checkpoint_every")}
    options |= {"algorithm": trainer.title, "weights": weights}
    options |= several_modules(trainer.env) | previous_reference(trainer.config)
    options["end_of_answer"] = options.pop("train_eos")  # as checkpoints made before the option was renamed have it
    if args.observed_tokens == "answers":
        del options["observed_tokens"]  # as in checkpoints from before there was the choice
    return hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()


DAMAGE = (BadZipFile, RuntimeError, EOFError, UnpicklingError, LookupError, ValueError, TypeError, AttributeError)
"""What reading a damaged checkpoint may end in."""


class Checkpoint:
    """A training's state in a file.

    Args:
        path: The file.
        identity: Of the training: of its options and the edited weights.
        made_of: ``frozen`` and ``identity`` of the rest of the model, and ``edits``, the digest of what it learns from.
    """

    def __init__(self, path: Path, identity: str, made_of: Mapping[str, Any]) -> None:
        self.path, self.identity, self.made_of = path, identity, made_of

    def load(self, trainer: Trainer) -> bool:
        """Gives the trainer the state in the file; whether there was one.

        Raises:
            SystemExit: If it is another training's, or damaged.
        """
        if not self.path.exists():
            return False
        try:
            with ZipFile(self.path) as parts:
                if (changed := parts.testzip()) is not None:  # torch does not look at checksums
                    raise BadZipFile(f"{changed} was changed")
            state = torch.load(self.path, map_location=trainer.lm.device, weights_only=True)
            if state["identity"] == self.identity and not (other := self._differences(state.get("made_of"))):
                trainer.load_state(state["trainer"])
                return True
        except DAMAGE as error:
            kind = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'nothing said'}"
            raise SystemExit(
                f"{self.path} is damaged or not a checkpoint of this version ({kind}); remove it to begin anew"
            ) from error
        how = "options" if state["identity"] != self.identity else f"data ({'; '.join(other)})"
        raise SystemExit(
            f"{self.path} belongs to a training run with other {how}; remove it or choose another --output"
        )

    def _differences(self, there: Mapping[str, Any] | None) -> list[str]:
        """In what the model or the edits are others than those of a checkpoint, in words."""
        if there is None:
            print(f"{self.path}: an earlier version wrote it: whether the training edits are the same was not checked")
            return []
        said = ["the training edits have changed"] if there["edits"] != self.made_of["edits"] else []
        if there["frozen"] != self.made_of["frozen"]:
            said.append("weights of the model that are not edited, or its vocabulary, have changed")
        for caution in cautions(there["identity"], self.made_of["identity"]):
            print(f"{self.path}: {caution}")
        return said + differences(there["identity"], self.made_of["identity"])

    def save(self, trainer: Trainer) -> None:
        """Writes it, whole or not at all.

        Raises:
            OSError: If it cannot be written.
        """
        state = {"identity": self.identity, "made_of": dict(self.made_of), "trainer": trainer.state()}
        with atomic_write(self.path) as partial, partial.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # what torch makes of a full disk
                raise OSError(f"{self.path} could not be written: {error.__context__ or error}") from error


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
