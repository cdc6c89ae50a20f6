"""Fine-tuning batch after batch: plain, or with a bound on how far a batch may move a weight (FT-L)."""

from typing import Any

from agents.base import Agent, Observation
from agents.baselines.target_loss import edit_prompts
from agents.baselines.weight_training import WeightTraining
from editenv.arguments import PositiveFloat, PositiveInt
from editenv.env import Action, LifelongEditEnv


class FineTune(Agent):
    """Fine-tuning of the edited modules on each batch: plain, or with a norm constraint (FT-L, Zhu et al. 2021, eq. 2).

    Precomputes nothing; needs the model and the edits' prompts and targets, no subject, no text. The constraint is
    around the weights that the batch starts from, not theta_0, so that a stream can go as far as it takes; how wide
    it has to be depends on the model (ROME's code has 5e-4 for GPT-2 XL with 25 steps at 5e-4).

    Args:
        steps: Adam steps on each batch, from the weights as they stand.
        learning_rate: Adam's.
        norm_constraint: FT-L's delta: after every step no weight may be farther than this from where it stood
            before the batch (infinity norm); None does without.
    """

    looks_at_model = True

    def __init__(
        self,
        steps: PositiveInt = 20,
        learning_rate: PositiveFloat = 3e-3,
        norm_constraint: PositiveFloat | None = None,
        actions_per_batch: PositiveInt = 1,
    ) -> None:
        self.steps, self.learning_rate, self.norm_constraint = steps, learning_rate, norm_constraint
        self.actions_per_batch = actions_per_batch

    def begin(self, env: LifelongEditEnv) -> None:
        self._env = env

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        env, lm = self._env, self._env.language_model
        prompts = edit_prompts(env.training_targets)
        training = WeightTraining(lm, self.learning_rate)
        with lm.unchanged():
            for _ in range(self.steps):
                training.step(prompts, bound=self.norm_constraint)
        return training.deltas()
