"""Online RLEdit: an optimiser step after every reward, which the paper considers and rejects (Li et al. 2025,
section 3.2).

    python -m agents.rl.online --output runs/online                 # trains on the embedded model

The same network, rewards and streams as RLEdit. Each delta answers for its own reward alone, because the later ones
are not known yet, and the next delta of the same trajectory comes from the policy just changed. With
``environment="fixed"`` it is the usual meta-learning on single batches of one model (see
:mod:`agents.baselines.fixed_model`). Resumes like RLEdit.
"""

from collections.abc import Sequence
from dataclasses import replace

from agents.hypernetwork import train_command
from agents.hypernetwork.training import Step, TrainConfig, Trainer
from agents.preconditioner import Preconditioner
from editenv.env import LifelongEditEnv


class Online(Trainer):
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
        for step in self.roll_out():
            self.optimizer.zero_grad()
            self.backward([step])
            norms.append(self.ascend())
            steps.append(step)
        return steps, sum(norms) / len(norms)


if __name__ == "__main__":
    import tyro

    train_command.main(tyro.cli(train_command.Args, description=__doc__), Online)
