"""Fine-tuning: batch after batch, and the ceiling of all edits at once."""

from collections.abc import Callable
from typing import Any

import torch

from agents.base import Agent, Observation, ProgressCallback
from agents.covariance import covariance_of
from agents.preconditioner import inverse_root
from editenv.env import Action, LifelongEditEnv
from editenv.evaluation.batch import PROMPT, EvaluationBatch, encode_evaluation
from editenv.language_model.prompts import Prompts


def negative_log_likelihood(prompts: Prompts, edits: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Mean over edits of the token mean of -log p(target | prompt), as a function of the logits."""
    weights = 1 / (edits * prompts.lengths[prompts.prompt_index])

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return (weights * torch.nn.functional.cross_entropy(logits, prompts.labels, reduction="none")).sum()

    return loss


def edit_prompts(questions: EvaluationBatch) -> Prompts:
    """The edits' own prompts, without rephrases and locality prompts."""
    return questions.prompts.select(questions.kind == PROMPT)


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
        steps: int = 20,
        learning_rate: float = 3e-3,
        norm_constraint: float | None = None,
        actions_per_batch: int = 1,
    ) -> None:
        self.steps, self.learning_rate, self.norm_constraint = steps, learning_rate, norm_constraint
        self.actions_per_batch = actions_per_batch

    def begin(self, env: LifelongEditEnv) -> None:
        self._env = env

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        env, lm = self._env, self._env.language_model
        start = {name: lm.weight(name).clone() for name in lm.modules}
        prompts = edit_prompts(env.training_targets)
        loss = negative_log_likelihood(prompts, len(env.batch))
        weights = {name: weight.clone() for name, weight in start.items()}
        optimizer = torch.optim.Adam(weights.values(), lr=self.learning_rate)
        with lm.unchanged():
            for _ in range(self.steps):
                _, gradients = lm.gradients(prompts, loss)
                for name, gradient in gradients.items():
                    weights[name].grad = gradient.dense()
                optimizer.step()
                if self.norm_constraint is not None:
                    for name, weight in weights.items():
                        weight.clamp_(start[name] - self.norm_constraint, start[name] + self.norm_constraint)
                lm.assign(weights)
        return {name: weight - start[name] for name, weight in weights.items()}


class JointFineTune(Agent):
    """The ceiling: all edits of the stream at once, to convergence, in the first action; no lifelong editor can do
    that.

    Minimises ``mean -log p + ridge * tr(D^T C D)`` with L-BFGS, where C is the text's key covariance: the best a
    single delta of these modules does at keeping everything else. What L-BFGS sees is Z of ``D = (C + eps I)^(-1/2)
    Z``: most directions hardly occur in text, and in D itself it would creep along them for thousands of
    iterations.

    Args:
        ridge: Weight of the penalty.
        steps: L-BFGS iterations at most.
        tolerance: Smallest change of the objective that is worth another iteration.
        epsilon: Of the change of variables, relative to C's mean eigenvalue; what is minimised does not depend on it.
        samples: Texts for C.
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
        env, lm = self._env, self._env.language_model
        if info["batch"] > 0 or info["attempt"] > 0:
            return {name: torch.zeros(lm.shape(name)) for name in lm.modules}
        start = {name: lm.weight(name).clone() for name in lm.modules}
        prompts = edit_prompts(encode_evaluation(lm, env.stream, append_eos=env.train_eos))
        loss = negative_log_likelihood(prompts, len(env.stream))
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

        def closure() -> float:
            changes = deltas()
            lm.assign({name: start[name] + change for name, change in changes.items()})
            value, gradients = lm.gradients(prompts, loss)
            total = float(value)
            for name, change in changes.items():
                pull = self._covariance[name] @ change
                total += self.ridge * float((change * pull).sum())
                whitened[name].grad = self._whiten[name] @ (gradients[name].dense() + 2 * self.ridge * pull)
            return total

        with lm.unchanged():
            optimizer.step(closure)
        return deltas()
