"""Trajectories for offline reinforcement learning: observations, actions and rewards as a Minari data set.

    python -m agents.rl.export_trajectories --output runs/minari                           # uniformly random actions
    python -m agents.rl.export_trajectories --output runs/minari --policy runs/ppo --name ppo-v0 --episodes 20

The environment is the one that agents/rl/sb3.py trains on: two numbers a module as action, statistics as
observation. Read them with

    MINARI_DATASETS_PATH=runs/minari python -c "import minari; print(minari.load_dataset('lifelongedit/random-v0'))"

The spaces without wrappers have fixed shapes too, and Minari could store them, but a step of the embedded model
would take 4 MB, mostly zeros and matrices of rank 20.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import numpy as np

import editenv  # noqa: F401 - registers the environment
from agents.rl.sb3 import make_model, wrapped
from editenv.env import lifelong_edit

if TYPE_CHECKING:
    from minari.data_collector import EpisodeBuffer


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        output: Folder in which Minari keeps data sets.
        name: Name and version; the data set's id is lifelongedit/NAME.
        policy: OUTPUT of `python -m agents.rl.sb3`: its policy acts, with its own exploration (TD3 and DDPG have
            none); without one, actions are uniformly random.
        episodes: Episodes recorded.
        horizon: T: batches per episode.
        edits_per_step: n: edits per batch.
        split: Of the data set.
        model: A name of `editenv models`, a Hugging Face folder, a GGUF file or a hub id.
        modules: Edited modules, as endings of dotted names; the model's default if none are given.
        observed_tokens: Which tokens of a batch are observed: those that predict an answer token, all that have a
            gradient, or of each edit its subject's last.
        seed: Seeds streams and actions.
    """

    output: Path
    name: str = "random-v0"
    policy: Path | None = None
    episodes: int = 10
    horizon: int = 25
    edits_per_step: int = 20
    split: str = "train"
    model: str = "atlas"
    modules: tuple[str, ...] = ()
    observed_tokens: Literal["answers", "all", "subject"] = "answers"
    seed: int = 0


def main(args: Args) -> None:
    os.environ["MINARI_DATASETS_PATH"] = str(args.output)
    from minari import create_dataset_from_buffers, list_local_datasets
    from rich.progress import track

    name = f"lifelongedit/{args.name}"
    args.output.mkdir(parents=True, exist_ok=True)
    if name in list_local_datasets():
        raise SystemExit(f"--name: {args.output} already has {name}; choose another name")
    env = wrapped(
        gym.make(
            "LifelongEdit-v1",
            reward="loss",
            model=args.model,
            modules=list(args.modules) or None,
            observed_tokens=args.observed_tokens,
            split=args.split,
            edits_per_step=args.edits_per_step,
            horizon=args.horizon,
        )
    )
    env.action_space.seed(args.seed)
    act = player(args.policy, env, args.seed) if args.policy else lambda observation: env.action_space.sample()
    episodes = [record(env, act, i, args.seed + i) for i in track(range(args.episodes), "Recording")]
    create_dataset_from_buffers(
        name,
        episodes,
        env=env,
        algorithm_name=args.policy.name if args.policy else "uniformly random",
        description=f"Lifelong editing of {Path(args.model).name}: step sizes and ridges chosen from gradient statistics.",
        data_format="arrow",
    )
    print(f"saved {name} in {args.output}")


def record(env: gym.Env[Any, Any], act: Callable[[Any], Any], number: int, seed: int) -> "EpisodeBuffer":
    """One episode.

    Args:
        env: Wrapped, with one-level observations.
        act: From an observation to an action.
        number: Of the episode in the data set.
        seed: Of its stream.
    """
    from minari.data_collector import EpisodeBuffer

    observation, _ = env.reset(seed=seed)
    observations, steps, done = [observation], [], False
    while not done:
        action = act(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        steps.append((action, float(reward), terminated, truncated))
        done = terminated or truncated
    actions, rewards, terminations, truncations = zip(*steps, strict=True)
    stacked = {key: np.stack([step[key] for step in observations]) for key in observation}
    return EpisodeBuffer(number, seed, None, stacked, np.stack(actions), rewards, terminations, truncations)


def player(folder: Path, env: gym.Env[Any, Any], seed: int) -> Callable[[Any], Any]:
    """What a policy trained by agents/rl/sb3.py does, with its own exploration.

    Raises:
        SystemExit: If the folder holds none.
    """
    for file in ("options.json", "policy.zip"):
        if not (folder / file).exists():
            raise SystemExit(
                f"--policy: {folder} holds no {file}; train one with: python -m agents.rl.sb3 --output {folder}"
            )
    options = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    model = make_model(options["algo"], lifelong_edit(env), seed, options["settings"])
    model.set_parameters(str(folder / "policy.zip"), device="cpu")
    return lambda observation: model.predict(observation, deterministic=False)[0]


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
