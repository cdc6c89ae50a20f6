"""Stable-Baselines3 on the environment: its algorithms choose step sizes and ridges from statistics of gradients
and layers.

    python -m agents.rl.sb3 --algo ppo --output runs/ppo            # trains on the embedded model
    python -m agents.rl.sb3 --algo sac --output runs/sac --steps 5000 --seed 1
    python -m agents.rl.sb3 --algo ppo --output runs/ppo8 --streams 8   # eight streams on one model

OUTPUT gets the policy (policy.zip), result.json, checkpoints, evaluations.npz and best_model.zip of the evaluations
on the validation split, and a TensorBoard log. Killed, the same command goes on from the last checkpoint; not bit
by bit, as streams and noise are drawn anew. The zips are Stable-Baselines3's own format, whose loader unpickles:
use its `load` only on files you trust. This command and SB3Agent read nothing but the weights in them, which needs
no trust.
"""

import importlib
import json
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import gymnasium as gym
import numpy as np
from safetensors.numpy import load_file, save_file

from agents.base import Agent, Observation, ProgressCallback
from agents.covariance import training_edits
from agents.hypernetwork.config import TrainConfig
from agents.hypernetwork.training import training_environment
from editenv.atomic_files import atomic_write, atomic_write_text
from editenv.data import edits_digest
from editenv.data.files import FileOptions
from editenv.delta_files import fingerprint, frozen_fingerprint
from editenv.env import Action, LifelongEditEnv
from editenv.wrappers import GradientStatistics, LayerStatistics, StepSizeAction
from editenv.wrappers.chain import inner_action, outer_observation

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
    from stable_baselines3.common.vec_env import VecEnv

Algorithm = Literal["ppo", "a2c", "sac", "td3", "ddpg", "tqc"]
Settings = Mapping[str, Any]
"""``reward_scale``, and ``algorithm``: keywords of the algorithm's class; ``action_noise`` there is a standard
deviation.
"""


def read_settings(algo: str, file: Path | None = None) -> Settings:
    """The settings of an algorithm: those that ship with the package, or a JSON file of the same form.

    Raises:
        ValueError: If there is no such algorithm, or the file is not of that form.
    """
    if algo not in get_args(Algorithm):
        raise ValueError(f"unknown algorithm {algo!r}; there are {', '.join(get_args(Algorithm))}")
    place = file or Path(str(resources.files("agents"))) / "settings" / "sb3" / f"{algo}.json"
    try:
        settings = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"settings {place}: {error}") from None
    if not isinstance(settings, dict) or set(settings) != {"reward_scale", "algorithm"}:
        raise ValueError(f"settings {place}: expected an object with 'reward_scale' and 'algorithm'")
    return settings


def wrapped(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """The environment as the algorithms see it: one-level observations, two numbers a module as action."""
    return LayerStatistics(GradientStatistics(StepSizeAction(env, decades=1.0)))


def make_model(
    algo: str,
    env: "gym.Env[Any, Any] | VecEnv",
    seed: int,
    settings: Settings | None = None,
    tensorboard: Path | None = None,
) -> "BaseAlgorithm":
    """An untrained algorithm on a LifelongEdit environment, which is wrapped here.

    Args:
        algo: Name of the algorithm.
        env: Not wrapped yet; or, ready as it is, a vector environment of Stable-Baselines3's.
        seed: Of the networks, the exploration and the environment's streams (Stable-Baselines3 seeds Python, NumPy
            and torch).
        settings: As :func:`read_settings` gives them, which is the default.
        tensorboard: Folder for the log.
    """
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.noise import NormalActionNoise

    settings = settings or read_settings(algo)
    keywords = dict(settings["algorithm"])
    scale = float(settings["reward_scale"])
    small = env
    if isinstance(env, gym.Env):
        # Monitor is inside, so that what is logged is the environment's own reward.
        small = gym.wrappers.TransformReward(Monitor(wrapped(env)), lambda reward: scale * float(reward))
    if "action_noise" in keywords:
        deviation = np.full(small.action_space.shape or (), keywords["action_noise"])
        keywords["action_noise"] = NormalActionNoise(np.zeros_like(deviation), deviation)
    package = importlib.import_module("sb3_contrib" if algo == "tqc" else "stable_baselines3")
    log = None if tensorboard is None else str(tensorboard)
    model: BaseAlgorithm = getattr(package, algo.upper())(
        "MultiInputPolicy", small, seed=seed, tensorboard_log=log, device="cpu", **keywords
    )
    if log is None:
        model.set_logger(Logger(None, []))  # its own would leave an empty folder in the temporary one at every training
    return model


def train(
    model: "BaseAlgorithm",
    steps: int,
    seconds: float | None = None,
    callbacks: "Sequence[BaseCallback]" = (),
    progress_bar: bool = False,
) -> "BaseAlgorithm":
    """Trains until the model has taken so many environment steps in all, or so many seconds have gone by.

    Args:
        model: From :func:`make_model`; a restored one goes on from the steps it has.
        steps: Budget. A rollout that it cuts short is not learned from.
        seconds: Budget; None for none.
        callbacks: Stable-Baselines3's; one that returns False ends the training.
        progress_bar: Show one.
    """
    from stable_baselines3.common.callbacks import BaseCallback, CallbackList

    deadline = None if seconds is None else time.perf_counter() + seconds

    class Budget(BaseCallback):
        """The seconds; and the steps in the middle of a rollout, which on-policy algorithms would finish."""

        def _on_step(self) -> bool:
            rollout = getattr(self.model, "rollout_buffer", None)
            cut = rollout is not None and self.num_timesteps >= steps and rollout.pos < rollout.buffer_size - 1
            return not cut and (deadline is None or time.perf_counter() < deadline)

    left = steps - model.num_timesteps
    if left > 0:
        model.learn(left, CallbackList([*callbacks, Budget()]), reset_num_timesteps=False, progress_bar=progress_bar)
    return model


class SB3Agent(Agent):
    """Plays a policy of Stable-Baselines3, by its mode and not by samples.

    Args:
        algo: Name of the algorithm.
        steps: Environment steps that :meth:`prepare` trains for.
        config: Horizon, batch size and reward of the training environment.
    """

    learns = True
    looks_at_model = True  # its observation has statistics of the edited layers, too

    def __init__(
        self,
        algo: str,
        steps: int = 1000,
        config: TrainConfig | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.algo, self.steps = algo, steps
        self.settings = dict(settings) if settings is not None else read_settings(algo)
        self.config = config or TrainConfig(horizon=25)
        self.actions_per_batch = self.config.actions_per_batch

    @classmethod
    def of(cls, algo: str, model: "BaseAlgorithm") -> "SB3Agent":
        """Plays a model as it is now; it goes on changing with it. Needs no :meth:`prepare`."""
        agent = cls(algo)
        agent.model = model
        return agent

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        from stable_baselines3.common.callbacks import BaseCallback

        class Report(BaseCallback):
            def _on_step(self) -> bool:
                progress(f"training {algo}", self.num_timesteps, steps)
                return True

        algo, steps = self.algo, self.steps
        self.model = make_model(algo, training_environment(env, self.config), seed, self.settings)
        identity = {"algo": algo, "steps": steps, "settings": self.settings, "train": asdict(self.config), "seed": seed}
        identity |= {"model": env.model_arguments}
        kept = None if self.workspace is None else self.workspace / "policy.json"
        if kept is not None:
            lm = env.language_model
            identity |= {"weights": fingerprint(lm), "frozen": frozen_fingerprint(lm)}
            identity |= {"edits": edits_digest(training_edits(env))}
        identity = json.loads(json.dumps(identity))
        if kept is not None and kept.exists():
            record = json.loads(kept.read_text(encoding="utf-8"))
            if record["made_of"] == identity:
                self.model.set_parameters(str(kept.with_suffix(".zip")), device="cpu")
                self.kept_seconds = float(record["seconds"])
                return
        started = time.perf_counter()
        train(self.model, steps, callbacks=[Report()])
        if kept is not None:
            kept.unlink(missing_ok=True)  # it is there only beside the weights that it is about
            save(self.model, kept.with_suffix(".zip"))
            told = {"made_of": identity, "seconds": time.perf_counter() - started}
            atomic_write_text(kept, json.dumps(told, indent=2) + "\n")

    def begin(self, env: LifelongEditEnv) -> None:
        self._env, self._wrapped = env, wrapped(env)

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        statistics = outer_observation(self._wrapped, self._env.padded(observation))
        action, _ = self.model.predict(statistics, deterministic=True)
        return inner_action(self._wrapped, action)


# -- files --------------------------------------------------------------------------------------------------------


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
    place = {"position": str(buffer.pos), "full": str(int(buffer.full))}
    with atomic_write(file) as partial:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial, place)


def load_buffer(model: "BaseAlgorithm", file: Path) -> None:
    """What :func:`save_buffer` wrote."""
    from safetensors import safe_open

    buffer: Any = getattr(model, "replay_buffer", None)
    if buffer is None:
        return
    for name, array in load_file(file).items():
        kind, _, key = name.partition("/")
        target = getattr(buffer, kind)
        (target[key] if key else target)[: len(array)] = array
    with safe_open(file, "numpy") as opened:
        place = opened.metadata()
    buffer.pos, buffer.full = int(place["position"]), bool(int(place["full"]))


def restore(model: "BaseAlgorithm", folder: Path) -> None:
    """Puts the newest complete checkpoint of a folder into the model, if there is one; its steps are
    ``num_timesteps``.
    """
    found = {int(file.stem.split("_")[1]): file for file in folder.glob("checkpoint_*_steps.zip")}
    for steps in sorted(found, reverse=True):
        buffer = folder / f"buffer_{steps}_steps.safetensors"
        if is_whole(found[steps]) and (buffer.exists() or not hasattr(model, "replay_buffer")):
            model.set_parameters(str(found[steps]), device="cpu")
            load_variables(model, found[steps])
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


def go_on_evaluating(callback: "EvalCallback", steps: int) -> None:
    """Puts the evaluations of an earlier call, up to so many steps, back: what was the best policy stays it."""
    file = Path(f"{callback.log_path}.npz")
    if not file.exists():
        return
    with np.load(file) as found:
        # The best policy is on disk, also if it came after the checkpoint that is gone on from.
        callback.best_mean_reward = max(map(float, found["results"].mean(1)), default=-np.inf)
        kept = found["timesteps"] <= steps
        callback.evaluations_timesteps = found["timesteps"][kept].tolist()
        callback.evaluations_results = found["results"][kept].tolist()
        callback.evaluations_length = found["ep_lengths"][kept].tolist()


def is_whole(file: Path) -> bool:
    """Whether a zip was written to its end: Stable-Baselines3 writes checkpoints in place, and may be killed
    meanwhile.
    """
    try:
        with zipfile.ZipFile(file) as opened:  # of a torn one, this may find a zip inside it
            return "policy.pth" in opened.namelist() and opened.testzip() is None
    except zipfile.BadZipFile:
        return False


# -- command ------------------------------------------------------------------------------------------------------


@dataclass
class Args:
    output: Path
    """Folder for everything that is written."""
    algo: Algorithm = "ppo"
    """Algorithm; tqc is of sb3-contrib."""
    steps: int = 2000
    """Environment steps in all."""
    seconds: float | None = None
    """Seconds after which this call ends all the same."""
    settings: Path | None = None
    """JSON file of hyperparameters, of the form of agents/settings/sb3/ppo.json; the one that ships by default."""
    horizon: int = 25
    """T: batches per episode."""
    edits_per_step: int = 20
    """n: edits per batch."""
    actions_per_batch: int = 1
    """K: how often each batch is shown."""
    model: str = "atlas"
    """Embedded model, Hugging Face folder or hub id."""
    dataset: str = "atlas"
    """Data set with a training and a validation split: atlas, or a file or folder as docs/data.md has it."""
    dataset_options: FileOptions = field(default_factory=FileOptions)
    """How a file is read."""
    modules: tuple[str, ...] = ()
    """Edited modules, as endings of dotted names; the model's default if none are given."""
    device: str = "cpu"
    """Torch device of the language model."""
    streams: int = 1
    """Streams that are played at once on one model; prompts that any of them has met cost less, so that training
    targets are not redrawn where there are several.
    """
    seed: int = 0
    """Seeds the networks, the exploration and the streams."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""
    evaluate_every: int = 500
    """Steps between evaluations on one episode of the validation split."""


def main(args: Args) -> None:
    from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor

    try:
        settings = read_settings(args.algo, args.settings)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    args.output.mkdir(parents=True, exist_ok=True)
    arguments: dict[str, Any] = {
        "model": args.model,
        "dataset": args.dataset,
        "modules": args.modules or None,
        "device": args.device,
        "edits_per_step": args.edits_per_step,
        "actions_per_batch": args.actions_per_batch,
        "horizon": args.horizon,
    }
    if args.dataset != "atlas":
        arguments["dataset_options"] = asdict(args.dataset_options)
    training: Any
    if args.streams == 1:
        training = LifelongEditEnv(**arguments, split="train", redraw=args.dataset == "atlas")
    else:
        from agents.rl.sb3_streams import StreamsVecEnv
        from editenv.vector import LifelongEditVectorEnv

        envs = LifelongEditVectorEnv(args.streams, "SameStep", [wrapped], **arguments, split="train")
        training = StreamsVecEnv(envs, float(settings["reward_scale"]))
    made_of = {name: value for name, value in arguments.items() if name != "device"}
    made_of |= {"algo": args.algo, "streams": args.streams, "seed": args.seed, "settings": settings}
    check_identity(args.output / "options.json", json.loads(json.dumps(made_of)))
    model = make_model(args.algo, training, args.seed, settings, args.output / "tensorboard")
    restore(model, args.output)
    if model.num_timesteps:
        print(f"going on from step {model.num_timesteps}")
        assert model.env is not None
        model.env.seed(args.seed + 1_000_003 * model.num_timesteps)  # else the first streams would come again

    judged = Monitor(wrapped(SameStream(LifelongEditEnv(**arguments, split="validation"), args.seed)))

    every = max(
        1, args.checkpoint_every // args.streams
    )  # callbacks count calls, each of which is a step of every stream

    class BufferCallback(BaseCallback):
        """Before the checkpoint of the same step: a zip without its buffer is not gone on from."""

        def _on_step(self) -> bool:
            if self.n_calls % every == 0:
                save_buffer(self.model, args.output / f"buffer_{self.num_timesteps}_steps.safetensors")
            return True

    evaluating = EvalCallback(
        judged,
        n_eval_episodes=1,
        eval_freq=max(1, args.evaluate_every // args.streams),
        log_path=str(args.output),
        best_model_save_path=str(args.output),
    )
    go_on_evaluating(evaluating, model.num_timesteps)
    callbacks = [
        BufferCallback(),
        CheckpointCallback(every, str(args.output), name_prefix="checkpoint"),
        evaluating,
    ]
    started = time.perf_counter()
    train(model, args.steps, args.seconds, callbacks, progress_bar=sys.stderr.isatty())
    seconds = time.perf_counter() - started
    save(model, args.output / "policy.zip")
    mean, _ = evaluate_policy(model, judged, n_eval_episodes=1)
    result = made_of | {"steps": model.num_timesteps, "seconds": seconds, "validation_return": float(mean)}
    atomic_write_text(args.output / "result.json", json.dumps(result, indent=2) + "\n")
    print(f"return on the validation stream {float(mean):.2f}; saved {args.output / 'policy.zip'}")


class SameStream(gym.Wrapper[Any, Any, Any, Any]):
    """Every episode is the same stream, so that evaluations can be compared; encodings are kept from one to the
    next.
    """

    def __init__(self, env: gym.Env[Any, Any], seed: int) -> None:
        super().__init__(env)
        self._seed = seed

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=self._seed, options={"keep_cache": True} | (options or {}))


def check_identity(file: Path, made_of: dict[str, Any]) -> None:
    """A folder belongs to one training run."""
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != made_of:
        raise SystemExit(f"{file.parent} belongs to a training run with other options; choose another --output")
    atomic_write_text(file, json.dumps(made_of, indent=2) + "\n")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
