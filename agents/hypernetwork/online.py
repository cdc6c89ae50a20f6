"""Online training: an optimiser step after every reward.

RLEdit's paper considers it for trajectories and rejects it (Li et al. 2025, section 3.2): later rewards are not known
yet, so that each delta answers for its own reward alone, and the next delta of the same trajectory comes from a policy
that has just changed.
With ``environment="fixed"`` it is the usual meta-learning on single batches of one model, by which MEND and MALMEN are
trained (:mod:`agents.baselines.fixed_model`).
"""

from collections.abc import Sequence
from dataclasses import replace

from agents.hypernetwork.config import TrainConfig
from agents.hypernetwork.training import Step, Trainer, step_credit
from agents.preconditioner import Preconditioner
from editenv.env import LifelongEditEnv


class OnlineTrainer(Trainer):
    """Trajectories in which the policy changes at each step.

    Each step stands alone: ``credit`` is ``"step"`` and ``discount`` 1, whatever the config says.
    """

    title = "online RLEdit"

    def __init__(
        self, env: LifelongEditEnv, config: TrainConfig, seed: int, preconditioner: Preconditioner | None
    ) -> None:
        super().__init__(env, replace(config, credit="step", discount=1.0), seed, preconditioner)

    def learn(self) -> tuple[Sequence[Step], float]:
        """Acts, is rewarded and takes an optimiser step, all along a trajectory; the gradients' mean norm."""
        steps, norms = [], []
        for step in step_credit(self.roll_out()):
            self.optimizer.zero_grad()
            self.backward([step])
            norms.append(self.ascend())
            steps.append(step)
        return steps, sum(norms) / len(norms)
