"""T-Patcher (Huang et al. 2023): one neuron beside the last MLP for each mistake, trained to fire on it alone."""

from typing import Any

import torch

from agents.base import Agent, Observation, ProgressCallback
from agents.baselines.side_memory import memory_beside, one_module, queries, queries_of_text, root_mean_square
from agents.baselines.target_loss import edit_prompts, negative_log_likelihood
from editenv.arguments import NonNegativeFloat, PositiveFloat, PositiveInt
from editenv.env import Action, LifelongEditEnv
from editenv.language_model.prompts import Prompts
from editenv.memories import PARTS, Memory, update


class TPatcher(Agent):
    """Puts a neuron beside the one edited module for each token of a target that the model gets wrong.

    With ``q_i`` the module's input at the i-th mistake and ``a_i(q) = k_i . q + b_i``, the module says

        y(q) = W q + sum_i relu(a_i(q)) v_i

    A neuron begins with ``k_i = q_i / |q_i|^2``, ``b_i = 0`` and ``v_i = 0``: it fires by 1 at its mistake. All neurons of
    a batch are then trained together by Adam on (section 3.3 of the paper, with exponential losses as in its code)

        l_e + activation mean_i exp(-a_i(q_i)) + memory mean_i hardest_m [exp(a_i(m) - a_i(q_i) + margin) + exp(a_i(m) + margin)]

    where ``l_e`` is the loss of the targets and m runs over tokens of text, the queries of earlier batches and those of
    the batch's other mistakes; of them the ``hardest`` count, the mean over those with the largest terms.

    Inputs and outputs are measured by their root mean squares (of text, and of the first batch), so that the learning
    rate is of the same meaning in every model. Precomputes the module's inputs at tokens of text.

    Args:
        steps: Adam steps on each batch.
        learning_rate: Of keys and biases.
        amplification: How much faster values are learned.
        tokens: Of text.
        hardest: Tokens that the memory loss is the mean over.
        activation: Weight of the activation loss.
        memory: Weight of the memory loss.
        margin: By how much a neuron is to be below zero, and below what its mistake has, elsewhere.
    """

    looks_at_model = True
    reads_text = True
    changes = ("side memory",)

    def __init__(
        self,
        steps: PositiveInt = 100,
        learning_rate: PositiveFloat = 0.001,
        amplification: PositiveFloat = 100.0,
        tokens: PositiveInt = 1000,
        hardest: PositiveInt = 100,
        activation: NonNegativeFloat = 1.0,
        memory: NonNegativeFloat = 5.0,
        margin: NonNegativeFloat = 3.0,
    ) -> None:
        self.steps, self.learning_rate, self.amplification = steps, learning_rate, amplification
        self.tokens, self.hardest = tokens, hardest
        self.activation, self.memory, self.margin = activation, memory, margin

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        one_module(env.language_model, "t-patcher")
        progress("queries of text", 0, 1)
        self._text = queries_of_text(env, self.text, self.tokens, seed)
        self._unit = root_mean_square(self._text)

    def begin(self, env: LifelongEditEnv) -> None:
        self._env = env
        lm = env.language_model
        self._module = one_module(lm, "t-patcher")
        self._text = self._text.to(lm.device)
        self._earlier = self._earlier_before = self._text[:0]
        self._output_unit = self._output_unit_before = 0.0

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        lm, prompts = self._env.language_model, edit_prompts(self._env.training_targets)
        self._earlier_before, self._output_unit_before = self._earlier, self._output_unit
        before = memory_beside(lm, self._module)
        inputs, outputs = queries(lm, self._module, prompts)
        self._output_unit = self._output_unit or root_mean_square(outputs)
        with torch.no_grad():
            mistakes = lm.logits(prompts).argmax(-1) != prompts.labels
        if not mistakes.any():
            return {self._module: update(before, before)}
        after = self._trained(before, inputs[mistakes], prompts)
        self._earlier = torch.cat([self._earlier, inputs[mistakes]])
        return {self._module: update(before, after)}

    def _trained(self, before: Memory, mistakes: torch.Tensor, prompts: Prompts) -> Memory:
        """The memory with a neuron for each of the ``(T, d_in)`` mistakes."""
        lm = self._env.language_model
        own = mistakes / self._unit
        others = torch.cat([self._text, self._earlier]) / self._unit
        keys = (own / own.square().sum(1, keepdim=True)).requires_grad_()
        biases = own.new_zeros(len(own)).requires_grad_()
        values = own.new_zeros(len(own), lm.shape(self._module)[1]).requires_grad_()
        optimizer = torch.optim.Adam(
            [
                {"params": [keys, biases], "lr": self.learning_rate},
                {"params": [values], "lr": self.learning_rate * self.amplification},
            ]
        )
        loss = negative_log_likelihood(prompts, len(self._env.batch))

        def with_new() -> Memory:
            new = (keys / self._unit, values * self._output_unit, -biases)
            if not len(before):
                return Memory("relu", *new)
            return Memory("relu", *(torch.cat([getattr(before, p), n]) for p, n in zip(PARTS, new, strict=True)))

        with lm.unchanged(), torch.enable_grad():
            for _ in range(self.steps):
                lm.apply({self._module: with_new()})
                total = loss(lm.logits(prompts)) + self.losses(keys, biases, own, others)
                optimizer.zero_grad()
                total.backward()
                optimizer.step()
        with torch.no_grad():
            memory = with_new()
        return Memory("relu", *(getattr(memory, part).detach() for part in PARTS))

    def losses(self, keys: torch.Tensor, biases: torch.Tensor, own: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """The activation and the memory loss of ``T`` neurons with ``(T, d_in)`` keys, each for its own query."""
        among = own @ keys.T + biases  # (T queries, T neurons)
        at_own = among.diagonal()
        itself = torch.eye(len(own), dtype=torch.bool, device=own.device)
        elsewhere = torch.cat([others @ keys.T + biases, among.masked_fill(itself, -torch.inf)])
        hardest = elsewhere.topk(min(self.hardest, len(elsewhere)), 0).values
        above = (hardest - at_own + self.margin).exp() + (hardest + self.margin).exp()
        return self.activation * (-at_own).exp().mean() + self.memory * above.mean()

    def revert_batch(self) -> None:
        self._earlier, self._output_unit = self._earlier_before, self._output_unit_before

    def batch_state(self) -> dict[str, torch.Tensor]:
        new = self._earlier[len(self._earlier_before) :]
        return {"queries": new, "output unit": torch.tensor(self._output_unit, dtype=torch.float64)}

    def load_batch_state(self, state: dict[str, torch.Tensor]) -> None:
        self._earlier_before = self._earlier
        self._earlier = torch.cat([self._earlier, state["queries"]])
        self._output_unit = self._output_unit_before = float(state["output unit"])
