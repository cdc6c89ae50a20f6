"""Hypernetworks trained batch by batch on a model that stands still, as MEND and MALMEN are; and their starred forms.

The training is :class:`agents.hypernetwork.online.OnlineTrainer`, an optimiser step for each batch, with ``environment="fixed"``:
the batch is undone before the next one comes, so that the network only ever sees one state of the model. That state
is theta_0; the starred forms (MEND*, MALMEN*; Li et al. 2025, appendix A.1) train again on the model as the edits
have left it, every three batches.
"""

import copy
from pathlib import Path
from typing import Any

import torch

from agents.base import Observation, ProgressCallback, nan_action
from agents.hypernetwork.agent import HypernetworkAgent
from agents.hypernetwork.config import TrainConfig
from agents.hypernetwork.online import OnlineTrainer
from agents.hypernetwork.training import training_environment
from editenv.env import Action, LifelongEditEnv


class TrainedOnFixedModel(HypernetworkAgent):
    """An editor whose network is trained on single batches of theta_0, and may be trained again along the stream.

    Args:
        config: How it is trained; ``environment`` must be ``"fixed"``. None with a policy, which brings its own.
        network: The form of network that it is about; ``config.policy`` must name it, and a policy of the folder be
            of it.
        policy: Folder of a policy trained before; without one, :meth:`prepare` trains.
        retrain_every: Train again after so many batches, on the model as it is then; the paper has 3. None never
            does. It happens in :meth:`act` and counts as editing time: that is when a user would wait for it.
        retrain_trajectories: How long each time, in trajectories of ``config.horizon`` batches. The paper does not say.
        actions_per_batch: K at edit time; the training's by default.

    Each time, the network goes on from the parameters it has; the normaliser's statistics are taken anew from the
    edited model, whose gradients differ, and so is the optimiser's state. The units of its step size and ridge stay
    those of theta_0: of the edited model's outputs they would grow with the edits. Where the
    edits have broken the model so far that training's gradient is not finite, the network is lost: all further
    actions are NaN, and refused.
    """

    trainer = OnlineTrainer

    def __init__(
        self,
        config: TrainConfig | None,
        network: str,
        policy: str | Path | None = None,
        retrain_every: int | None = None,
        retrain_trajectories: int = 1,
        actions_per_batch: int | None = None,
    ) -> None:
        if retrain_every is not None and retrain_every < 1:
            raise ValueError(f"retrain_every must be at least 1 batch, or None, not {retrain_every}")
        super().__init__(config, policy, actions_per_batch=actions_per_batch)
        if (self.config.environment, self.config.policy.network) != ("fixed", network):
            raise ValueError(
                f"{type(self).__name__} is trained with environment 'fixed' and network {network!r}, not with "
                f"{self.config.environment!r} and {self.config.policy.network!r}"
            )
        self.retrain_every, self.retrain_trajectories = retrain_every, retrain_trajectories
        self.learns = self.learns or retrain_every is not None
        self.looks_at_model = retrain_every is not None

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        super().prepare(env, seed, progress)
        self._seed, self._prepared = seed, self.policy
        if self.retrain_every is not None:
            self._training = training_environment(env, self.config)

    def begin(self, env: LifelongEditEnv) -> None:
        super().begin(env)
        self._env = env
        self.policy = self._prepared
        self._batches, self._trajectory = 0, self.config.trajectories
        self._retrained = self._lost = False

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        self._absorb_finished()
        if info["attempt"] == 0:
            self._before = self.policy, self._batches, self._trajectory
            self._retrained = False
            due = self.retrain_every is not None and self._batches and self._batches % self.retrain_every == 0
            if due and not self._lost:
                try:
                    self._retrain()
                except FloatingPointError:
                    self._lost = True
            self._batches += 1
        if self._lost:
            return nan_action(self._env.language_model)
        return super().act(observation, info)

    def _retrain(self) -> None:
        """Trains on the model as it stands: it is what the training edits start from and are put back to."""
        self._training.language_model.rebase(self._env.language_model.snapshot())
        # A copy: training must not disturb what has been absorbed from the stream.
        preconditioner = copy.deepcopy(self._preconditioner)
        trainer = self.trainer(self._training, self.config, self._seed, preconditioner)
        with torch.no_grad():
            for parameter, learned in zip(trainer.policy.parameters(), self.policy.parameters(), strict=True):
                parameter.copy_(learned)
            trainer.policy.key_scale.copy_(self._prepared.key_scale)
            trainer.policy.value_scale.copy_(self._prepared.value_scale)
        trainer.trajectory = self._trajectory
        self._trajectory += self.retrain_trajectories
        trainer.run(self._trajectory)
        self.policy = trainer.policy.eval()
        self._retrained = True

    def revert_batch(self) -> None:
        super().revert_batch()
        self.policy, self._batches, self._trajectory = self._before
        self._retrained = False

    def batch_state(self) -> dict[str, torch.Tensor]:
        state = super().batch_state() | {"batches": torch.tensor(self._batches)}
        if self._retrained:
            state |= {f"policy/{name}": value for name, value in self.policy.state_dict().items()}
        return state

    def load_batch_state(self, state: dict[str, torch.Tensor]) -> None:
        prefix = "policy/"
        learned = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
        if learned:
            self.policy = copy.deepcopy(self._prepared)
            self.policy.load_state_dict(learned)
            self._trajectory += self.retrain_trajectories
        self._batches = int(state["batches"])
        rest = {name: value for name, value in state.items() if name != "batches" and not name.startswith(prefix)}
        super().load_batch_state(rest)
