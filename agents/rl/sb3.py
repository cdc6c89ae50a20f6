"""Stable-Baselines3 on the environment: its algorithms choose step sizes and ridges from gradient statistics.

    python -m agents.rl.sb3 --algo ppo --output runs/ppo            # trains on the embedded model
    python -m agents.rl.sb3 --algo sac --output runs/sac --steps 5000 --seed 1
    python -m agents.rl.sb3 --algo ppo --output runs/ppo8 --streams 8   # eight streams on one model
    python -m agents.rl.sb3 --algo ppo --output runs/loss --reward loss # on the paper's reward, which has no bound

OUTPUT gets the policy (policy.zip), result.json, checkpoints, evaluations.npz and best_model.zip of the evaluations
on the validation split, and a TensorBoard log. Killed, the same command goes on from the last checkpoint; not bit
by bit, as streams and noise are drawn anew. The zips are Stable-Baselines3's own format, whose loader unpickles:
use its `load` only on files you trust. This command and SB3Agent read nothing but the weights in them, which needs
no trust.
"""

import copy
import hashlib
import importlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import gymnasium as gym
import numpy as np

from agents.base import Agent, Observation, ProgressCallback
from agents.covariance import training_edits
from agents.hypernetwork.config import TrainConfig
from agents.hypernetwork.training import training_environment
from agents.rl.sb3_checkpoints import restore, restore_evaluations, save, save_buffer
from editenv.arguments import PositiveInt, check_fields
from editenv.atomic_files import atomic_write_text
from editenv.data import edits_digest
from editenv.data.files import FileOptions
from editenv.env import Action, LifelongEditEnv, lifelong_edit
from editenv.identity import fingerprint, frozen_fingerprint, same
from editenv.identity import identity as model_identity
from editenv.output_folders import check_output
from editenv.sealed_json import read_sealed, write_sealed
from editenv.wrappers import GradientStatistics, LayerStatistics, StepSizeAction
from editenv.wrappers.chain import inner_action, outer_observation

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import VecEnv

Algorithm = Literal["ppo", "a2c", "sac", "td3", "ddpg", "tqc"]
"""Name of an algorithm; tqc is of sb3-contrib."""

Settings = Mapping[str, Any]
"""``reward_scale``, what the paper's reward is multiplied by (the bounded one is learned from as it is), and
``algorithm``, keywords of the algorithm's class; its ``action_noise`` is a standard deviation."""

RewardName = Literal["improvement", "loss"]
"""What is learned from: the bounded reward of LifelongEdit-v1, or eq. 10 of RLEdit, in nats and without bound."""


def read_settings(algo: str, file: Path | None = None) -> Settings:
    """The settings of an algorithm: those that ship with the package, or a JSON file of the same form.

    Raises:
        ValueError: If there is no such algorithm, or the file is not of that form.
    """
    if algo not in get_args(Algorithm):
        raise ValueError(f"unknown algorithm {algo!r}; there are {', '.join(get_args(Algorithm))}")
    path = file or Path(str(resources.files("agents"))) / "settings" / "sb3" / f"{algo}.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"settings {path}: {error}") from None
    if not isinstance(settings, dict) or set(settings) != {"reward_scale", "algorithm"}:
        raise ValueError(f"settings {path}: expected an object with 'reward_scale' and 'algorithm'")
    return settings


def wrapped(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """The environment as the algorithms see it: one-level observations, two numbers a module as action."""
    return LayerStatistics(GradientStatistics(StepSizeAction(env, decades=1.0)))


def scale_of(settings: Settings, reward: RewardName) -> float:
    """What rewards are multiplied by before they are learned from."""
    return 1.0 if reward == "improvement" else float(settings["reward_scale"])


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
    keywords = copy.deepcopy(settings["algorithm"])  # A2C puts a class into its policy_kwargs
    ready = env
    if isinstance(env, gym.Env):
        scale = scale_of(settings, "improvement" if lifelong_edit(env).rewards_improvement else "loss")
        # Monitor is inside, so that what is logged is the environment's own reward.
        ready = gym.wrappers.TransformReward(Monitor(wrapped(env)), lambda reward: scale * float(reward))
    if "action_noise" in keywords:
        deviation = np.full(ready.action_space.shape or (), keywords["action_noise"])
        keywords["action_noise"] = NormalActionNoise(np.zeros_like(deviation), deviation)
    package = importlib.import_module("sb3_contrib" if algo == "tqc" else "stable_baselines3")
    log = None if tensorboard is None else str(tensorboard)
    model: BaseAlgorithm = getattr(package, algo.upper())(
        "MultiInputPolicy", ready, seed=seed, tensorboard_log=log, device="cpu", **keywords
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

    remaining = steps - model.num_timesteps
    if remaining > 0:
        all_callbacks = CallbackList([*callbacks, Budget()])
        model.learn(remaining, all_callbacks, reset_num_timesteps=False, progress_bar=progress_bar)
    return model


def progress_callback(progress: ProgressCallback, algo: str, steps: int) -> "BaseCallback":
    """Reports each step of a training, as :meth:`agents.base.Agent.prepare` has it."""
    from stable_baselines3.common.callbacks import BaseCallback

    class Report(BaseCallback):
        def _on_step(self) -> bool:
            progress(f"training {algo}", self.num_timesteps, steps)
            return True

    return Report()


class SB3Agent(Agent):
    """Plays a policy of Stable-Baselines3, by its mode and not by samples.

    Args:
        algo: Name of the algorithm.
        steps: Environment steps that :meth:`prepare` trains for.
        config: Horizon, batch size and the reward's coefficients, of the training environment.
        settings: As :func:`read_settings` gives them, which is the default.
        reward: What is learned from.
    """

    learns = True
    looks_at_model = True  # its observation has statistics of the edited layers, too

    def __init__(
        self,
        algo: str,
        steps: PositiveInt = 1000,
        config: TrainConfig | None = None,
        settings: Mapping[str, Any] | None = None,
        reward: RewardName = "improvement",
    ) -> None:
        self.algo, self.steps, self.reward = algo, steps, reward
        self.settings = dict(settings) if settings is not None else read_settings(algo)
        if self.settings.keys() != {"reward_scale", "algorithm"}:
            raise ValueError(f"settings must have 'reward_scale' and 'algorithm', not {sorted(self.settings)}")
        self.config = config or TrainConfig(horizon=25)
        self.actions_per_batch = self.config.actions_per_batch

    @classmethod
    def of(cls, algo: str, model: "BaseAlgorithm") -> "SB3Agent":
        """Plays a model as it is now; it goes on changing with it. Needs no :meth:`prepare`."""
        agent = cls(algo)
        agent.model = model
        return agent

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        training = training_environment(env, self.config, self.reward)
        self.model = make_model(self.algo, training, seed, self.settings)
        kept = None if self.workspace is None else self.workspace / "policy.json"
        identity = None if kept is None else self._identity(env, seed)
        if kept is not None and kept.exists():
            record = read_sealed(kept)
            if identity is not None and same(record["made_of"], identity):
                zipped = kept.with_suffix(".zip")
                if record.get("zip_sha256", digest := _digest(zipped)) != digest:
                    raise ValueError(
                        f"{zipped} is not the file that policy.json beside it was written for; remove {self.workspace}, and "
                        "what was in it is made anew"
                    )
                self.model.set_parameters(str(zipped), device="cpu")
                self.kept_seconds = float(record["seconds"])
                return
        started = time.perf_counter()
        train(self.model, self.steps, callbacks=[progress_callback(progress, self.algo, self.steps)])
        if kept is not None:
            kept.unlink(missing_ok=True)  # it is there only beside the weights that it is about
            save(self.model, kept.with_suffix(".zip"))
            record = {"made_of": identity, "seconds": time.perf_counter() - started}
            write_sealed(kept, record | {"zip_sha256": _digest(kept.with_suffix(".zip"))})

    def _identity(self, env: LifelongEditEnv, seed: int) -> dict[str, Any]:
        """What a kept policy must agree on to be taken, as JSON has it."""
        lm = env.language_model
        made_of = {
            "algo": self.algo,
            "steps": self.steps,
            "settings": self.settings,
            "train": asdict(self.config),
            "seed": seed,
            "model": env.model_arguments,
            "weights": fingerprint(lm),
            "frozen": frozen_fingerprint(lm),
            "identity": model_identity(lm),
            "edits": edits_digest(training_edits(env)),
        }
        if self.reward != "loss":  # there was no choice for older ones
            made_of["reward"] = self.reward
        identity: dict[str, Any] = json.loads(json.dumps(made_of))
        return identity

    def begin(self, env: LifelongEditEnv) -> None:
        self._env, self._wrapped = env, wrapped(env)

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        statistics = outer_observation(self._wrapped, self._env.padded(observation))
        action, _ = self.model.predict(statistics, deterministic=True)
        return inner_action(self._wrapped, action)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# -- command ------------------------------------------------------------------------------------------------------


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        output: Folder for everything that is written.
        algo: Algorithm; tqc is of sb3-contrib.
        steps: Environment steps in all.
        seconds: Seconds after which this call ends all the same.
        reward: What is learned from and judged by: the bounded reward of LifelongEdit-v1, or with loss the paper's.
        settings: JSON file of hyperparameters, of the form of agents/settings/sb3/ppo.json; the one that ships by
            default.
        horizon: T: batches per episode.
        edits_per_step: n: edits per batch.
        actions_per_batch: K: how often each batch is shown.
        model: A name of `editenv models`, a Hugging Face folder, a GGUF file or a hub id.
        dataset: Data set with a training and a validation split: atlas, or a file or folder as
            docs/reference/data_formats.md has it.
        dataset_options: How a file is read.
        modules: Edited modules, as endings of dotted names; the model's default if none are given.
        observed_tokens: Which tokens of a batch are observed: those that predict an answer token, all that have a
            gradient, or of each edit its subject's last.
        device: Torch device of the language model.
        streams: Streams that are played at once on one model; prompts that any of them has met cost less, so that
            training targets are not redrawn where there are several.
        seed: Seeds the networks, the exploration and the streams.
        checkpoint_every: Steps between checkpoints.
        evaluate_every: Steps between evaluations on one episode of the validation split.
    """

    output: Path
    algo: Algorithm = "ppo"
    steps: PositiveInt = 2000
    seconds: float | None = None
    reward: RewardName = "improvement"
    settings: Path | None = None
    horizon: PositiveInt = 25
    edits_per_step: PositiveInt = 20
    actions_per_batch: PositiveInt = 1
    model: str = "atlas"
    dataset: str = "atlas"
    dataset_options: FileOptions = field(default_factory=FileOptions)
    modules: tuple[str, ...] = ()
    observed_tokens: Literal["answers", "all", "subject"] = "answers"
    device: str = "cpu"
    streams: PositiveInt = 1
    seed: int = 0
    checkpoint_every: PositiveInt = 250
    evaluate_every: PositiveInt = 500

    def __post_init__(self) -> None:
        check_fields(self)


def main(args: Args) -> None:
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor

    try:
        settings = read_settings(args.algo, args.settings)
        check_output(args.output, args.model, dataset=args.dataset)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    args.output.mkdir(parents=True, exist_ok=True)
    arguments = _environment_arguments(args)
    training = _training_streams(args, arguments, settings)
    run = {name: value for name, value in arguments.items() if name != "device"}
    run |= {"algo": args.algo, "streams": args.streams, "seed": args.seed, "settings": settings}
    editing = LifelongEditEnv(**arguments, split="validation")
    check_identity(args.output / "options.json", json.loads(json.dumps(run | _learned_from(editing))))
    model = make_model(args.algo, training, args.seed, settings, args.output / "tensorboard")
    _resume(model, args)
    validation = Monitor(wrapped(SameStream(editing, args.seed)))
    callbacks = _callbacks(args, validation, model.num_timesteps)
    started = time.perf_counter()
    train(model, args.steps, args.seconds, callbacks, progress_bar=sys.stderr.isatty())
    seconds = time.perf_counter() - started
    save(model, args.output / "policy.zip")
    mean_return, _ = evaluate_policy(model, validation, n_eval_episodes=1)
    result = run | {"steps": model.num_timesteps, "seconds": seconds, "validation_return": float(mean_return)}
    atomic_write_text(args.output / "result.json", json.dumps(result, indent=2) + "\n")
    print(f"return on the validation stream {float(mean_return):.2f}; saved {args.output / 'policy.zip'}")


def _learned_from(env: LifelongEditEnv) -> dict[str, Any]:
    """Digests of the model and of the training edits."""
    lm = env.language_model
    weights = {"weights": fingerprint(lm), "frozen": frozen_fingerprint(lm), "identity": model_identity(lm)}
    return weights | {"edits": edits_digest(training_edits(env))}


def _environment_arguments(args: Args) -> dict[str, Any]:
    """Of the training and the validation environment."""
    arguments: dict[str, Any] = {
        "model": args.model,
        "dataset": args.dataset,
        "modules": args.modules or None,
        "device": args.device,
        "edits_per_step": args.edits_per_step,
        "actions_per_batch": args.actions_per_batch,
        "horizon": args.horizon,
    }
    if args.observed_tokens != "answers":
        arguments["observed_tokens"] = args.observed_tokens
    if args.reward != "loss":  # older folders do not say
        arguments["reward"] = args.reward
    if args.dataset != "atlas":
        arguments["dataset_options"] = asdict(args.dataset_options)
    return arguments


def _training_streams(args: Args, arguments: Mapping[str, Any], settings: Settings) -> "gym.Env[Any, Any] | VecEnv":
    """One environment for :func:`make_model` to wrap, or several streams on one model, wrapped."""
    if args.streams == 1:
        return LifelongEditEnv(**arguments, split="train", redraw=args.dataset == "atlas")
    from agents.rl.sb3_streams import StreamsVecEnv
    from editenv.vector import LifelongEditVectorEnv

    envs = LifelongEditVectorEnv(args.streams, "SameStep", [wrapped], **arguments, split="train")
    return StreamsVecEnv(envs, scale_of(settings, args.reward))


def _resume(model: "BaseAlgorithm", args: Args) -> None:
    """Goes on from the newest checkpoint of the output folder, if there is one."""
    restore(model, args.output)
    if model.num_timesteps:
        print(f"going on from step {model.num_timesteps}")
        assert model.env is not None
        model.env.seed(args.seed + 1_000_003 * model.num_timesteps)  # else the first streams would come again


def _callbacks(args: Args, validation: "gym.Env[Any, Any]", steps_done: int) -> "list[BaseCallback]":
    """Checkpoints with their replay buffers, and evaluations on the validation stream."""
    from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback

    # Callbacks count calls, each of which is a step of every stream.
    checkpoint_every = max(1, args.checkpoint_every // args.streams)
    evaluate_every = max(1, args.evaluate_every // args.streams)

    class BufferCallback(BaseCallback):
        """Before the checkpoint of the same step: a zip without its buffer is not gone on from."""

        def _on_step(self) -> bool:
            if self.n_calls % checkpoint_every == 0:
                save_buffer(self.model, args.output / f"buffer_{self.num_timesteps}_steps.safetensors")
            return True

    evaluations = EvalCallback(
        validation,
        n_eval_episodes=1,
        eval_freq=evaluate_every,
        log_path=str(args.output),
        best_model_save_path=str(args.output),
    )
    restore_evaluations(evaluations, steps_done)
    return [
        BufferCallback(),
        CheckpointCallback(checkpoint_every, str(args.output), name_prefix="checkpoint"),
        evaluations,
    ]


class SameStream(gym.Wrapper[Any, Any, Any, Any]):
    """Every episode is the same stream, so that evaluations can be compared; its encodings are kept."""

    def __init__(self, env: gym.Env[Any, Any], seed: int) -> None:
        super().__init__(env)
        self._seed = seed

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=self._seed, options={"keep_cache": True} | (options or {}))


def check_identity(file: Path, made_of: dict[str, Any]) -> None:
    """Whether a folder's training run is this one; a new folder becomes its.

    Of an older file, without digests of the model and of the edits, the options are compared.

    Raises:
        SystemExit: If the folder belongs to a run with other options, another model or other training edits, or if the
            file is damaged.
    """
    if file.exists():
        try:
            there = read_sealed(file)
        except ValueError as error:
            raise SystemExit(str(error)) from None
        here = made_of if "edits" in there else {name: made_of[name] for name in there.keys() & made_of.keys()}
        if there.get("reward") != made_of.get("reward") or not same(there, {"identity": made_of["identity"]} | here):
            raise SystemExit(
                f"{file.parent} belongs to a training run with other options, model or edits; choose another --output"
            )
    write_sealed(file, made_of)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
