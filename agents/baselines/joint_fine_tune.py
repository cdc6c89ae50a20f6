"""The ceiling that lifelong editors are measured against: fine-tuning on all edits of the stream at once."""

from typing import Any

import torch

from agents.base import Agent, Observation, ProgressCallback
from agents.baselines.target_loss import edit_prompts, negative_log_likelihood
from agents.covariance import covariance_of
from agents.preconditioner import inverse_root
from editenv.env import Action, LifelongEditEnv
from editenv.evaluation.batch import encode_evaluation
from editenv.language_model.prompts import Prompts


class JointFineTune(Agent):
    """The ceiling: all edits of the stream at once, to convergence, in the first action; no lifelong editor can do
    that.

    Minimises ``mean -log p + ridge * tr(D^T C D)`` with L-BFGS, where C is the text's key covariance: the best a
    single delta of these modules does at keeping everything else. What L-BFGS sees is Z of ``D = (C + eps I)^(-1/2)
    Z``: most directions hardly occur in text, and in D itself it would creep along them for thousands of
    iterations.

    Args:
        ridge: Weight of the penalty, per squared output: it has to fit the model.
        steps: L-BFGS iterations at most.
        tolerance: Smallest change of the objective that is worth another iteration.
        epsilon: Of the change of variables, relative to C's mean eigenvalue; what is minimised does not depend on it.
        samples: Texts for C.

    Raises:
        ValueError: By :meth:`begin`, if the environment has no stream and batches are presented one by one.
    """

    reads_text = True
    looks_at_model = True
    looks_ahead = True

    def __init__(
        self,
        ridge: float = 5e-6,
        steps: int = 300,
        tolerance: float = 1e-6,
        epsilon: float = 1e-4,
        samples: int = 3000,
    ) -> None:
        self.ridge, self.steps, self.tolerance, self.epsilon = ridge, steps, tolerance, epsilon
        self.samples = samples

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        self._covariance = covariance_of(env, self.text, self.samples, progress)
        self._whiten = {name: inverse_root(matrix, self.epsilon) for name, matrix in self._covariance.items()}

    def begin(self, env: LifelongEditEnv) -> None:
        if not len(env.stream):
            raise ValueError(
                "joint-fine-tune makes all edits of a stream at once, and here they come batch after batch"
            )
        self._env = env

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        lm = self._env.language_model
        if info["batch"] > 0 or info["attempt"] > 0:
            return {name: torch.zeros(lm.shape(name)) for name in lm.modules}
        prompts = edit_prompts(encode_evaluation(lm, self._env.stream, append_eos=self._env.train_eos))
        return self._minimise(prompts, len(self._env.stream))

    def _minimise(self, prompts: Prompts, edits: int) -> dict[str, torch.Tensor]:
        """D for each module, ``(d_in, d_out)``, where L-BFGS ends; the model is left as it was."""
        lm = self._env.language_model
        start = {name: lm.weight(name).clone() for name in lm.modules}
        loss = negative_log_likelihood(prompts, edits)
        whitened = {name: torch.zeros_like(weight) for name, weight in start.items()}
        optimizer = torch.optim.LBFGS(
            list(whitened.values()),
            max_iter=self.steps,
            tolerance_change=self.tolerance,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        def deltas() -> dict[str, torch.Tensor]:
            return {name: self._whiten[name] @ z for name, z in whitened.items()}

        def objective() -> float:
            """The objective at Z; leaves its gradient with respect to Z in ``whitened[...].grad``."""
            changes = deltas()
            lm.assign({name: start[name] + change for name, change in changes.items()})
            mean_loss, gradients = lm.gradients(prompts, loss)
            total = float(mean_loss)
            for name, change in changes.items():
                weighted_change = self._covariance[name] @ change  # C D
                total += self.ridge * float((change * weighted_change).sum())
                gradient = gradients[name].dense() + 2 * self.ridge * weighted_change
                whitened[name].grad = self._whiten[name] @ gradient
            return total

        with lm.unchanged():
            optimizer.step(objective)
        return deltas()
