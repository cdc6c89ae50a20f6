"""An editor whose hypernetwork was trained beforehand: what RLEdit, MEND, MALMEN and the RL trainings share."""

import json
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch

from agents.base import Agent, Observation, ProgressCallback
from agents.covariance import training_edits
from agents.hypernetwork.config import TrainConfig, config_from_json
from agents.hypernetwork.networks import load_policy, save_policy
from agents.hypernetwork.training import (
    Trainer,
    describe,
    make_preconditioner,
    previous_reference,
    project,
    several_modules,
    training_environment,
)
from agents.preconditioner import Preconditioner
from editenv.arguments import PositiveInt
from editenv.data import edits_digest
from editenv.env import Action, LifelongEditEnv
from editenv.identity import differences, fingerprint, frozen_fingerprint, same
from editenv.identity import identity as model_identity
from editenv.language_model.editable_lm import Gradient


class HypernetworkAgent(Agent):
    """Turns a batch's fine-tuning gradient into the deltas of all edited modules by a trained network.

    Args:
        config: How it is trained; a policy trained before brings its own.
        policy: Folder of a policy trained before; without one, :meth:`prepare` trains.
        train: False leaves the network as it is initialised: the control every comparison needs.
        actions_per_batch: K at edit time; the training's by default.

    Raises:
        ValueError: If both a config and a policy are given.
    """

    trainer: type[Trainer]
    """What trains the network."""

    def __init__(
        self,
        config: TrainConfig | None = None,
        policy: str | Path | None = None,
        train: bool = True,
        actions_per_batch: PositiveInt | None = None,
    ) -> None:
        if config is not None and policy is not None:
            raise ValueError("config: a policy that was trained before brings its own; give one or the other")
        self.folder = Path(policy) if policy is not None else None
        self.train = train
        self.config = config or TrainConfig()
        self._trained_on: dict[str, Any] = {}
        if self.folder is not None:
            self.policy, record = load_policy(self.folder)
            try:
                self.config = config_from_json(record["train"])
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(
                    f"{self.folder / 'policy.json'} does not describe a training of this version: {error!r}"
                ) from error
            self._trained_on = record
        self.actions_per_batch = actions_per_batch or self.config.actions_per_batch
        self.learns = self.folder is None
        self.reads_text = self.config.preconditioner
        self._preconditioner: Preconditioner | None = None

    @classmethod
    def of(cls, trainer: Trainer) -> Self:
        """The editor that a training has made so far; it goes on changing with it."""
        agent = cls(trainer.config)
        agent.trainer = type(trainer)
        agent.policy, agent._preconditioner = trainer.policy, trainer.preconditioner
        return agent

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        lm = env.language_model
        lm.restore()
        if self.config.preconditioner:
            self._preconditioner = make_preconditioner(env, self.config, self.text, progress)
        if self.folder is None and not self._load_kept(env, seed):
            started = time.perf_counter()
            training = training_environment(env, self.config)
            trainer = self.trainer(training, self.config, seed, self._preconditioner)
            total = self.config.trajectories if self.train else 0
            trainer.run(total, lambda log: progress(describe(log), trainer.trajectory, total))
            self.policy = trainer.policy
            if self.workspace is not None:
                seconds = time.perf_counter() - started
                save_policy(self.policy, self.workspace, self._identity(env, seed) | {"seconds": seconds})
        self.policy.to(lm.device).eval()
        missing = set(lm.modules) ^ set(self.policy.shapes)
        if missing:
            raise ValueError(
                f"the policy and the environment do not edit the same modules; they differ in {sorted(missing)}: give the "
                f"policy's (--modules {' '.join(self.policy.shapes)})"
            )
        for name, shape in self.policy.shapes.items():
            if lm.shape(name) != tuple(shape):
                raise ValueError(
                    f"the policy was trained for another model: {name} is {lm.shape(name)} here, and {tuple(shape)} for it"
                )
        observed = self._trained_on.get("observed_tokens", "answers")  # there was no choice for older policies
        if self.folder is not None and observed != env.observed_tokens:
            raise ValueError(
                f"the policy of {self.folder} was trained with observed_tokens {observed!r}, and the environment has "
                f"{env.observed_tokens!r}: give observed_tokens={observed!r} (--observed-tokens {observed})"
            )
        self._warn_of_differences(env)

    def _warn_of_differences(self, env: LifelongEditEnv) -> None:
        """Says in what the model differs from the one that the policy was trained on, as far as the policy says."""
        lm, record = env.language_model, self._trained_on
        here: dict[str, Any] = {"weights": fingerprint(lm), "end_of_answer": env.train_eos}
        if "frozen" in record:
            here["frozen"] = frozen_fingerprint(lm)
        said = [
            f"with other {what}: {record[what]} there, {value} here"
            for what, value in here.items()
            if record.get(what, value) != value  # older policies do not say
        ]
        if "identity" in record:
            said += [f"on another model: {one}" for one in differences(record["identity"], model_identity(lm))]
        for one in said:
            warnings.warn(f"the policy of {self.folder} was trained {one}", stacklevel=3)

    def _identity(self, env: LifelongEditEnv, seed: int) -> dict[str, object]:
        """What a kept policy must agree on to be taken."""
        identity = {"trained": self.train, "train": asdict(self.config), "seed": seed, "model": env.model_arguments}
        identity["algorithm"] = self.trainer.title
        identity |= {"weights": fingerprint(env.language_model), "frozen": frozen_fingerprint(env.language_model)}
        identity["identity"] = model_identity(env.language_model)
        identity["edits"] = edits_digest(training_edits(env))
        identity |= several_modules(env) | previous_reference(self.config)
        if self.text is not None:
            identity["text"] = self.text
        return json.loads(json.dumps(identity))

    def _load_kept(self, env: LifelongEditEnv, seed: int) -> bool:
        if self.workspace is None or not (self.workspace / "policy.json").exists():
            return False
        try:
            policy, record = load_policy(self.workspace)
        except ValueError as error:
            raise ValueError(f"{error}; remove {self.workspace}, and what was in it is made anew") from error
        seconds = record.pop("seconds", 0.0)
        if not same(record, self._identity(env, seed)):
            return False
        self.policy, self.kept_seconds = policy, float(str(seconds))
        return True

    def begin(self, env: LifelongEditEnv) -> None:
        if env.actions_per_batch != self.actions_per_batch:
            raise ValueError(
                f"actions_per_batch: this agent looks at a batch {self.actions_per_batch} times, the environment shows it "
                f"{env.actions_per_batch} times"
            )
        self._finished: tuple[Observation, dict[str, torch.Tensor] | None] | None = None
        if self._preconditioner is not None:
            self._preconditioner.reset()

    @torch.no_grad()
    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        self._absorb_finished()
        projected = project(self._preconditioner, observation)
        deltas = self.policy(observation, projected)
        if self._preconditioner is not None and info["attempt"] == self.actions_per_batch - 1:
            self._finished = observation, projected
        return deltas

    def _absorb_finished(self) -> None:
        """Adds the keys of the batch before, which has stayed."""
        if self._preconditioner is not None and self._finished is not None:
            gradients, projected = self._finished
            self._preconditioner.absorb(gradients, dict.fromkeys(gradients, self.config.absorb_noise), projected)
        self._finished = None

    def revert_batch(self) -> None:
        self._finished = None

    def batch_state(self) -> dict[str, torch.Tensor]:
        return {} if self._finished is None else {name: g.keys for name, g in self._finished[0].items()}

    def load_batch_state(self, state: dict[str, torch.Tensor]) -> None:
        if self._preconditioner is not None:
            gradients = {name: Gradient(keys, keys[:, :0]) for name, keys in state.items()}
            projected = project(self._preconditioner, gradients)
            self._preconditioner.absorb(gradients, dict.fromkeys(gradients, self.config.absorb_noise), projected)
