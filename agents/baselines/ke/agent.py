"""KnowledgeEditor as an agent: for each edit of a batch a masked gradient, all added up."""

from dataclasses import asdict
from typing import Any

import torch

from agents.base import Agent, Observation, ProgressCallback
from agents.baselines.ke.config import KEConfig
from agents.baselines.ke.network import KENetwork
from agents.baselines.ke.training import deltas_of, train
from agents.baselines.kept_network import train_once
from agents.baselines.target_loss import edit_prompts
from editenv.env import Action, LifelongEditEnv


class KE(Agent):
    """A network that reads an edit's prompt, its old and its new answer decides what of the gradient is added.

    With h what a bidirectional LSTM says of the edit, and G the gradient of ``-log p`` of its target at a module,

        alpha, gamma, beta, delta, eta = a small network of h, for each module
        D = sigmoid(eta) (softmax(alpha) gamma^T * G + softmax(beta) delta^T)                    eq. 4 and 5

    It is trained from theta_0 to make targets likely, on prompts and rephrases, with the mean divergence at other
    prompts below a margin m:

        min over the network, max over a >= 0:   -log p(target) + a (KL(theta_0 || theta) - m)   eq. 2 and 3

    The paper makes one edit at a time. The deltas of a batch are made from the weights before it, and add up; so are
    those of a training step. Gradients are taken at answer positions, whatever the environment shows; for the last
    layer's MLP these are all there are.
    Precomputes: the network. Needs: training edits with rephrases and locality prompts; the old answer of every edit.

    Args:
        config: Network and training.
    """

    learns = True
    looks_at_model = True

    def __init__(self, config: KEConfig | None = None) -> None:
        self.config = config or KEConfig()

    @property
    def needs(self) -> tuple[str, ...]:
        return (*super().needs, "old_answers")

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        lm = env.language_model
        lm.restore()
        width = lm.model.get_input_embeddings().weight.shape[1]
        with torch.random.fork_rng(devices=[]):  # the network is made on the CPU; the caller's generator is not touched
            torch.random.default_generator.manual_seed(seed)
            network = KENetwork({name: lm.shape(name) for name in lm.modules}, width, self.config)
        self.network = network.to(lm.device)
        config = {"ke": asdict(self.config)}
        train_once(self, self.network, env, seed, config, lambda: train(self.network, env, seed, progress))

    def begin(self, env: LifelongEditEnv) -> None:
        self._env = env

    @torch.no_grad()
    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        lm = self._env.language_model
        return deltas_of(self.network, lm, self._env.batch, edit_prompts(self._env.training_targets))
