"""What a training of Stable-Baselines3 leaves on disk and goes on from, read without unpickling anything."""

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from editenv.atomic_files import atomic_write

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.callbacks import EvalCallback


def save(model: "BaseAlgorithm", file: Path) -> None:
    """Writes Stable-Baselines3's zip, whole or not at all."""
    with atomic_write(file) as partial, partial.open("wb") as opened:
        model.save(opened)


def save_buffer(model: "BaseAlgorithm", file: Path) -> None:
    """The replay buffer of an off-policy algorithm as plain arrays (Stable-Baselines3's own format is a pickle)."""
    buffer: Any = getattr(model, "replay_buffer", None)
    if buffer is None:
        return
    size = buffer.buffer_size if buffer.full else buffer.pos
    arrays = {name: getattr(buffer, name)[:size] for name in ("actions", "rewards", "dones", "timeouts")}
    for kind in ("observations", "next_observations"):
        arrays |= {f"{kind}/{key}": values[:size] for key, values in getattr(buffer, kind).items()}
    metadata = {"position": str(buffer.pos), "full": str(int(buffer.full))}
    with atomic_write(file) as partial:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial, metadata)


def load_buffer(model: "BaseAlgorithm", file: Path) -> None:
    """Puts back what :func:`save_buffer` wrote; nothing for an algorithm without a buffer."""
    buffer: Any = getattr(model, "replay_buffer", None)
    if buffer is None:
        return
    for name, array in load_file(file).items():
        kind, _, key = name.partition("/")
        target = getattr(buffer, kind)
        (target[key] if key else target)[: len(array)] = array
    with safe_open(file, "numpy") as opened:
        metadata = opened.metadata()
    buffer.pos, buffer.full = int(metadata["position"]), bool(int(metadata["full"]))


def restore(model: "BaseAlgorithm", folder: Path) -> None:
    """Puts the newest complete checkpoint of a folder into the model, if there is one.

    Its steps are ``model.num_timesteps`` afterwards.
    """
    checkpoints = {int(file.stem.split("_")[1]): file for file in folder.glob("checkpoint_*_steps.zip")}
    for steps in sorted(checkpoints, reverse=True):
        checkpoint, buffer = checkpoints[steps], folder / f"buffer_{steps}_steps.safetensors"
        if is_whole(checkpoint) and (buffer.exists() or not hasattr(model, "replay_buffer")):
            model.set_parameters(str(checkpoint), device="cpu")
            load_variables(model, checkpoint)
            load_buffer(model, buffer)
            model.num_timesteps = steps
            return


def load_variables(model: "BaseAlgorithm", file: Path) -> None:
    """What an algorithm learns outside its networks: the entropy coefficient of SAC and TQC."""
    from stable_baselines3.common.save_util import load_from_zip_file

    _, _, variables = load_from_zip_file(file, load_data=False, device="cpu")
    for name, value in (variables or {}).items():
        if value is not None:
            getattr(model, name).data.copy_(value.data)


def restore_evaluations(callback: "EvalCallback", steps: int) -> None:
    """Puts the evaluations of an earlier call, up to so many steps, back: what was the best policy stays it."""
    file = Path(f"{callback.log_path}.npz")
    if not file.exists():
        return
    with np.load(file) as evaluations:
        # The best policy is on disk, also if it came after the checkpoint that is gone on from.
        callback.best_mean_reward = max(map(float, evaluations["results"].mean(1)), default=-np.inf)
        kept = evaluations["timesteps"] <= steps
        callback.evaluations_timesteps = evaluations["timesteps"][kept].tolist()
        callback.evaluations_results = evaluations["results"][kept].tolist()
        callback.evaluations_length = evaluations["ep_lengths"][kept].tolist()


def is_whole(file: Path) -> bool:
    """Whether a zip was written to its end: Stable-Baselines3 writes checkpoints in place, and may be killed."""
    try:
        with zipfile.ZipFile(file) as opened:  # of a torn one, this may find a zip inside it
            return "policy.pth" in opened.namelist() and opened.testzip() is None
    except zipfile.BadZipFile:
        return False
