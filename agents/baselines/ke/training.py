"""How KnowledgeEditor is trained: as likely an answer as a bound on the divergence elsewhere allows (eq. 2 and 3)."""

import random
from collections.abc import Sequence

import torch
from torch import nn

from agents.base import ProgressCallback
from agents.baselines.judging import judge
from agents.baselines.ke.network import KENetwork
from agents.baselines.kn import old_answer
from agents.baselines.target_loss import negative_log_likelihood
from editenv.data import Edit
from editenv.deltas import LowRank, inner
from editenv.env import LifelongEditEnv
from editenv.evaluation.batch import encode_evaluation
from editenv.language_model.editable_lm import EditableLM, Gradient
from editenv.language_model.prompts import Prompts


def condition_texts(lm: EditableLM, edits: Sequence[Edit]) -> list[torch.Tensor]:
    """Embeddings, ``(tokens, width)``, of what each edit was, what it is to be, and what is asked.

    Raises:
        ValueError: If an edit has no old answer; names it.
    """
    embeddings = lm.model.get_input_embeddings().weight
    texts = [f"{old_answer(edit)} >> {edit.target} || {edit.prompt}" for edit in edits]
    ids = lm.tokenizer(texts)["input_ids"]
    return [embeddings[torch.tensor(row, device=embeddings.device)].detach().float().to(lm.device) for row in ids]


def gradients_of(lm: EditableLM, prompts: Prompts) -> dict[str, Gradient]:
    """Each edit's own gradient, of the token mean of -log p of its target, at the model's weights."""
    _, gradients = lm.gradients(prompts, negative_log_likelihood(prompts, 1), observed_tokens="answers")
    return gradients


def deltas_of(network: KENetwork, lm: EditableLM, edits: Sequence[Edit], prompts: Prompts) -> dict[str, LowRank]:
    """The sum of the edits' deltas at the model's weights; carries gradient to the network.

    Args:
        network: The network.
        lm: The model.
        edits: ``n`` edits.
        prompts: Their prompts with their targets.
    """
    deltas: dict[str, LowRank] = network(condition_texts(lm, edits), gradients_of(lm, prompts), prompts.prompt_index)
    return deltas


def encode_targets(lm: EditableLM, edits: Sequence[Edit], append_eos: bool) -> Prompts:
    """The edits' prompts with their targets."""
    return lm.encode([edit.prompt for edit in edits], [edit.target for edit in edits], append_eos=append_eos)


class Constraint:
    """The divergence is to be below a margin: a multiplier that grows while it is not, a margin that shrinks.

    Attributes:
        multiplier: alpha, the weight of the divergence for now.
        margin: m, in nats.
    """

    def __init__(self, network: KENetwork) -> None:
        self._config = network.config
        self.multiplier, self.margin = 1.0, network.config.margin
        self._said: list[float] = []

    def update(self, divergence: float, said: float) -> None:
        """Takes in a step: gradient ascent on ``alpha (KL - m)``, kept at 0 or above; and at the end of a period in
        which the edits were made, a smaller m.
        """
        config = self._config
        self.multiplier = max(0.0, self.multiplier + config.multiplier_rate * (divergence - self.margin))
        self._said.append(said)
        if len(self._said) == config.period:
            if sum(self._said) / config.period > config.enough:
                self.margin = max(config.least_margin, config.shrinkage * self.margin)
            self._said = []


def train(network: KENetwork, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
    """Trains on batches of training edits, each made from theta_0.

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
    stream = env.stream
    network.observe(gradients_of(lm, encode_targets(lm, stream[: config.warm_up_edits], env.train_eos)), lm)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    constraint = Constraint(network)
    for step in range(config.steps):
        edits = [stream[i] for i in rng.sample(range(len(stream)), min(config.edits_per_step, len(stream)))]
        deltas = deltas_of(network, lm, edits, encode_targets(lm, edits, env.train_eos))
        batch = encode_evaluation(lm, edits, keep_log_probs=True, append_eos=env.train_eos)
        judgement = judge(lm, batch, deltas, (1.0, config.rephrases, constraint.multiplier))
        optimizer.zero_grad()
        # The chain rule through the language model: its gradient at the edited weights, times that of the delta.
        torch.stack([inner(g.dense(), deltas[name]) for name, g in judgement.gradients.items()]).sum().backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip, error_if_nonfinite=True)
        optimizer.step()
        constraint.update(judgement.divergence, judgement.said)
        progress(
            f"loss {judgement.loss:.3f}, divergence {judgement.divergence:.3f} (margin {constraint.margin:.3g})",
            step + 1,
            config.steps,
        )
