"""How DAFNet is trained: sequences of edits that get longer, each made at once from theta_0 and judged as a whole."""

import math
import random
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from agents.base import ProgressCallback
from agents.baselines import judging
from agents.baselines.dafnet.config import DAFNetConfig
from agents.baselines.dafnet.network import DAFNetwork
from editenv.data import Edit
from editenv.deltas import LowRank, inner
from editenv.env import LifelongEditEnv
from editenv.evaluation.batch import EvaluationBatch, encode_evaluation
from editenv.language_model.editable_lm import EditableLM, Gradient
from editenv.language_model.prompts import Prompts


def gradients_of(lm: EditableLM, prompts: Prompts) -> dict[str, Gradient]:
    """The fine-tuning gradient of edits' prompts at theta_0, at their answer tokens."""
    with lm.at_initial_weights():
        _, gradients = lm.gradients(
            prompts, lambda logits: F.cross_entropy(logits, prompts.labels, reduction="sum"), observed_tokens="answers"
        )
    return gradients


class Curriculum:
    """How long sequences may be: longer ones once the running loss has stopped getting better.

    Attributes:
        longest: Edits in a sequence at most, for now.
    """

    def __init__(self, config: DAFNetConfig) -> None:
        self._config = config
        self.longest = config.shortest
        self._running_loss, self._best, self._steps_since_best = 1.0, math.inf, 0

    def update(self, loss: float) -> None:
        """Takes in the loss of a step."""
        config = self._config
        self._running_loss += config.loss_decay * (loss - self._running_loss)
        if self._running_loss < self._best:
            self._best, self._steps_since_best = self._running_loss, 0
        else:
            self._steps_since_best += 1
        patience = config.patience / max(1.0, math.log10(self.longest))
        if self._steps_since_best > patience and self.longest < config.longest:
            self.longest = min(config.longest, self.longest + max(int(config.growth * self.longest), 10))
            # Longer sequences are harder: the running loss has to settle anew before it can count as stuck.
            self._running_loss, self._best, self._steps_since_best = self._running_loss + 0.3, math.inf, 0


def train(network: DAFNetwork, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
    """Trains on sequences of training edits, each made at once from theta_0 and judged as a whole.

    Args:
        network: Trained in place.
        env: Its data set's training split is what is drawn from.
        seed: For everything that is drawn.
        progress: Called after each step.

    Raises:
        RuntimeError: If the gradient is not finite.
    """
    config, lm = network.config, env.language_model
    rng = random.Random(seed)
    env.reset(seed=seed)
    edits = env.stream

    def encode(sequence: Sequence[Edit]) -> Prompts:
        prompts, targets = [edit.prompt for edit in sequence], [edit.target for edit in sequence]
        return lm.encode(prompts, targets, append_eos=env.train_eos)

    first = [edits[i] for i in range(min(config.warm_up_edits, len(edits)))]
    network.observe(gradients_of(lm, encode(first)), lm)
    weights = [parameter for name, parameter in network.named_parameters() if name != "log_step_size"]
    optimizer = torch.optim.Adam(
        [
            {"params": weights, "lr": config.learning_rate},
            {"params": [network.log_step_size], "lr": config.scalar_learning_rate},
        ]
    )
    curriculum = Curriculum(config)
    for step in range(config.steps):
        length = min(rng.randint(config.shortest, curriculum.longest), len(edits))
        sequence = [edits[i] for i in rng.sample(range(len(edits)), length)]
        prompts = encode(sequence)
        deltas, _, _ = network(gradients_of(lm, prompts), prompts.lengths, network.nothing_past())
        judged = rng.sample(sequence, min(config.judged, len(sequence)))
        batch = encode_evaluation(lm, judged, append_eos=env.train_eos)
        loss, gradients = judge(lm, batch, deltas, config)
        optimizer.zero_grad()
        # The chain rule through the language model: its gradient at the edited weights, times that of the delta.
        surrogate = [inner(gradient.dense(), deltas[name]) for name, gradient in gradients.items()]
        torch.stack(surrogate).sum().backward()
        nn.utils.clip_grad_norm_(weights, config.gradient_clip, error_if_nonfinite=True)
        optimizer.step()
        curriculum.update(loss)
        progress(f"loss {loss:.3f}, sequences of up to {curriculum.longest}", step + 1, config.steps)


def judge(
    lm: EditableLM, batch: EvaluationBatch, deltas: Mapping[str, LowRank], config: DAFNetConfig
) -> tuple[float, dict[str, Gradient]]:
    """Loss of a delta from theta_0, and its gradient with respect to the weights; the model is left at theta_0.

    Args:
        lm: The model.
        batch: What is asked about the edits: their prompts, rephrases and locality prompts.
        deltas: For each module, from theta_0.
        config: Weights of the three terms.
    """
    judgement = judging.judge(lm, batch, deltas, (config.reliability, config.generality, config.locality))
    return judgement.loss, judgement.gradients
