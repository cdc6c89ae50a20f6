"""DAFNet as an agent: what is known of all earlier edits, and the delta that mixes the total with an update."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from agents.base import Agent, Observation, ProgressCallback
from agents.baselines.dafnet.config import DAFNetConfig
from agents.baselines.dafnet.network import DAFNetwork
from agents.baselines.dafnet.training import gradients_of, train
from agents.baselines.kept_network import train_once
from agents.baselines.target_loss import edit_prompts
from editenv.env import Action, LifelongEditEnv


class DAFNet(Agent):
    """Edits with gradients of the *unedited* model, by a network that knows all earlier edits of the stream.

    For a batch ``total <- keep * total + update``, so that the delta is ``(keep - 1) (theta - theta_0) + update``.
    Precomputes: the network (:func:`train`). Needs: training edits with rephrases and locality prompts; no subject,
    no text. Gradients are taken at answer positions, whatever the environment shows; for the last layer's MLP these are
    all there are. The public code takes every token of the prompt.

    Args:
        config: Network and training.
    """

    learns = True
    looks_at_model = True

    def __init__(self, config: DAFNetConfig | None = None) -> None:
        self.config = config or DAFNetConfig()

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        lm = env.language_model
        lm.restore()
        with torch.random.fork_rng(devices=[]):  # the network is made on the CPU; the caller's generator is not touched
            torch.random.default_generator.manual_seed(seed)
            self.network = DAFNetwork({name: lm.shape(name) for name in lm.modules}, self.config).to(lm.device)
        config = {"dafnet": asdict(self.config)}
        train_once(self, self.network, env, seed, config, lambda: train(self.network, env, seed, progress))

    def begin(self, env: LifelongEditEnv) -> None:
        self._env = env
        self._past = self.network.nothing_past()
        self._batch_facts: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        lm = self._env.language_model
        if info["attempt"] == 0:
            self._before = dict(self._past)
        prompts = edit_prompts(self._env.training_targets)
        updates, keeps, facts = self.network(gradients_of(lm, prompts), prompts.lengths, self._past)
        self._batch_facts = {f"{name}/{i}": fact for name, layers in facts.items() for i, fact in enumerate(layers)}
        self._append_facts(self._batch_facts)
        return {
            name: update.dense() + (keeps[name] - 1) * (lm.weight(name) - lm.initial_weight(name))
            for name, update in updates.items()
        }

    def _append_facts(self, facts: Mapping[str, torch.Tensor]) -> None:
        """Adds a batch's representations, by ``module/layer``, to those of the edits before."""
        for name, layers in self._past.items():
            self._past[name] = [torch.cat([past, facts[f"{name}/{i}"]]) for i, past in enumerate(layers)]

    def revert_batch(self) -> None:
        self._past, self._batch_facts = self._before, {}

    def batch_state(self) -> dict[str, torch.Tensor]:
        return self._batch_facts

    def load_batch_state(self, state: dict[str, torch.Tensor]) -> None:
        if state:
            self._append_facts({name: value.to(self._env.language_model.device) for name, value in state.items()})
