"""CrispEdit (Ikram et al. 2026, ICML, arXiv 2602.15823): fine-tuning where text's loss has little curvature.

After the abstract and the public code (zarifikram/CrispEdit), in its sequential form.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional as F

from agents.base import Agent, Observation, ProgressCallback
from agents.baselines.target_loss import edit_prompts, negative_log_likelihood
from agents.covariance import sample_text, texts_of, training_edits
from editenv.arguments import NonNegativeFloat, PositiveFloat, PositiveInt, Share
from editenv.env import Action, LifelongEditEnv
from editenv.language_model.editable_lm import EditableLM, Gradient
from editenv.language_model.prompts import Prompts

LONGEST_TEXT = 512
"""Tokens that a text is cut to, as in the public code."""

TOKENS_TOGETHER = 2048
"""Tokens of text that go through the model together, at most; one text is always taken whole."""


@dataclass
class Curvature:
    """K-FAC's factors of one module's loss, as sums over tokens: the Gauss-Newton matrix is about ``A (x) B``.

    Attributes:
        keys: ``sum u u^T``, ``(d_in, d_in)``; A is their mean.
        value_grads: ``sum g g^T``, ``(d_out, d_out)``, g the gradient of the summed loss at an output; B is their mean.
        tokens: How many.
    """

    keys: torch.Tensor
    value_grads: torch.Tensor
    tokens: int = 0

    @classmethod
    def none(cls, lm: EditableLM, name: str) -> "Curvature":
        """Of no token."""
        d_in, d_out = lm.shape(name)
        return cls(torch.zeros(d_in, d_in, device=lm.device), torch.zeros(d_out, d_out, device=lm.device))

    def copy(self) -> "Curvature":
        """One of its own memory."""
        return Curvature(self.keys.clone(), self.value_grads.clone(), self.tokens)

    def add(self, gradient: Gradient) -> None:
        """Takes in tokens."""
        self.keys.addmm_(gradient.keys.T, gradient.keys)
        self.value_grads.addmm_(gradient.value_grads.T, gradient.value_grads)
        self.tokens += len(gradient.keys)


class LowCurvature:
    """The projection of a delta onto the directions in which the loss is least curved.

    In the eigenvectors of A and B the curvature is diagonal, the products of their eigenvalues. From the largest down,
    those that make up the share ``energy`` of their sum are taken out of a delta: exactly those that the public code
    takes out, ties with the smallest of them included. Only the eigenvectors that they need are kept.

    Args:
        curvature: Of text, and of edits.
        energy: gamma, from 0 to 1.
    """

    def __init__(self, curvature: Curvature, energy: float) -> None:
        key_values, key_vectors = torch.linalg.eigh(curvature.keys / curvature.tokens)
        grad_values, grad_vectors = torch.linalg.eigh(curvature.value_grads / curvature.tokens)
        products = torch.outer(key_values, grad_values)
        ordered = products.flatten().sort(descending=True).values.double()
        share = ordered.cumsum(0) / ordered.sum()
        last = min(int(torch.searchsorted(share, energy)), len(ordered) - 1)
        curved = products >= ordered[last].to(products)
        rows, columns = curved.any(1), curved.any(0)
        self._curved = curved[rows][:, columns]
        self._key_vectors, self._grad_vectors = key_vectors[:, rows], grad_vectors[:, columns]

    def __call__(self, delta: torch.Tensor) -> torch.Tensor:
        """``(d_in, d_out)`` of ``(d_in, d_out)``."""
        parts = (self._key_vectors.T @ delta @ self._grad_vectors) * self._curved
        return delta - self._key_vectors @ parts @ self._grad_vectors.T


class CrispEdit(Agent):
    """Adam on the edited modules, batch after batch, kept out of the directions in which text's loss is curved.

    For each module, with ``A = U_A diag(a) U_A^T`` the covariance of its inputs over text and ``B = U_B diag(b) U_B^T``
    that of the loss's gradients at its outputs, a gradient or delta D (d_in, d_out) becomes

        U_A (M * (U_A^T D U_B)) U_B^T,    M_ij = 1 where a_i b_j is below the threshold that ``energy`` says

    After each batch the factors of its own targets, at the edited weights, are added to the sums over text.

    Needs text (with its words: statistics of keys alone will not do), the model, and the edits. Precomputes A and B.

    Args:
        steps: Passes over a batch: 25 in the public code.
        learning_rate: Adam's: 5e-4 there for Llama-3-8B.
        minibatch: Edits of a step: 32 there.
        energy: gamma: 0.99 in its settings for Llama-3-8B, 0.8 in the commands of its README.
        samples: Texts for A and B: 1,000 in its settings.
        enough: Loss of a minibatch below which no step is taken, and mean loss of a pass after which the batch is done.
        projected: ``"update"`` projects the gradient and, after each step, what the batch has changed so far: nothing
            curved is written. ``"gradient"`` projects the gradient alone, as the public code does; Adam, which scales
            entry by entry, then leaves the subspace.
        refresh: Batches after which the projection is made anew with what they have added: 1 in the public code. It
            takes an eigendecomposition of d_in x d_in numbers.
    """

    reads_text = True
    looks_at_model = True

    def __init__(
        self,
        steps: PositiveInt = 25,
        learning_rate: PositiveFloat = 5e-4,
        minibatch: PositiveInt = 32,
        energy: Share = 0.99,
        samples: PositiveInt = 1000,
        enough: NonNegativeFloat = 1e-2,
        projected: Literal["update", "gradient"] = "update",
        refresh: PositiveInt = 1,
    ) -> None:
        self.steps, self.learning_rate, self.minibatch, self.energy = steps, learning_rate, minibatch, energy
        self.samples, self.enough, self.projected, self.refresh = samples, enough, projected, refresh

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        if self.text is not None and Path(self.text).is_dir():
            raise ValueError(
                f"text: {self.text} holds statistics of keys alone, and CrispEdit needs gradients, too; "
                "name the text itself"
            )
        if self.text is None:
            texts = sample_text(training_edits(env), self.samples)
        else:
            texts = list(texts_of(env.language_model, self.text, self.samples))
        self._text = text_curvature(env.language_model, texts, progress)
        self._text_projections = self._project(self._text)

    def _project(self, curvature: Mapping[str, Curvature]) -> dict[str, LowCurvature]:
        return {name: LowCurvature(factors, self.energy) for name, factors in curvature.items()}

    def begin(self, env: LifelongEditEnv) -> None:
        self._env = env
        self._curvature = {name: factors.copy() for name, factors in self._text.items()}
        self._projections: dict[str, LowCurvature] | None = self._text_projections
        self._batches = 0
        self._finished: dict[str, torch.Tensor] = {}

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        self.load_batch_state(self._finished)  # of the batch before, which has stayed
        self._finished = {}
        self._projections = self._projections or self._project(self._curvature)
        lm = self._env.language_model
        start = {name: lm.weight(name).clone() for name in lm.modules}
        prompts = edit_prompts(self._env.training_targets)
        with lm.unchanged():
            weights = self._fine_tuned(lm, prompts, start, self._projections)
            lm.assign(weights)
            for name, gradient in token_gradients(lm, prompts).items():
                self._finished[f"{name}/keys"] = gradient.keys
                self._finished[f"{name}/value_grads"] = gradient.value_grads
        return {name: weight - start[name] for name, weight in weights.items()}

    def _fine_tuned(
        self,
        lm: EditableLM,
        prompts: Prompts,
        start: Mapping[str, torch.Tensor],
        projections: Mapping[str, LowCurvature],
    ) -> dict[str, torch.Tensor]:
        """The weights after Adam's passes over the batch, from ``start``; the model is left at some of them."""
        weights = {name: weight.clone() for name, weight in start.items()}
        optimizer = torch.optim.Adam(weights.values(), lr=self.learning_rate)
        parts = [part_of(prompts, i, self.minibatch) for i in range(0, len(prompts), self.minibatch)]
        for _ in range(self.steps):
            total = 0.0
            for part in parts:
                loss, gradients = lm.gradients(part, negative_log_likelihood(part, len(part)))
                total += float(loss) * len(part) / len(prompts)
                if loss < self.enough:
                    continue
                for name, gradient in gradients.items():
                    weights[name].grad = projections[name](gradient.dense())
                optimizer.step()
                if self.projected == "update":
                    for name, weight in weights.items():
                        weight.copy_(start[name] + projections[name](weight - start[name]))
                lm.assign(weights)
            if total < self.enough:
                break
        return weights

    def revert_batch(self) -> None:
        self._finished = {}

    def batch_state(self) -> dict[str, torch.Tensor]:
        return self._finished

    def load_batch_state(self, state: dict[str, torch.Tensor]) -> None:
        if not state:
            return
        for name, factors in self._curvature.items():
            factors.add(Gradient(state[f"{name}/keys"], state[f"{name}/value_grads"]))
        self._batches += 1
        if self._batches % self.refresh == 0:
            self._projections = None


def part_of(prompts: Prompts, start: int, size: int) -> Prompts:
    """So many prompts from one on."""
    index = torch.arange(len(prompts), device=prompts.lengths.device)
    return prompts.select((start <= index) & (index < start + size))


def token_gradients(lm: EditableLM, prompts: Prompts) -> dict[str, Gradient]:
    """Keys and value gradients at the tokens that predict an answer token, of the loss summed over all of them."""
    return lm.gradients(prompts, lambda logits: F.cross_entropy(logits, prompts.labels, reduction="sum"), "answers")[1]


def text_curvature(lm: EditableLM, texts: Sequence[str], progress: ProgressCallback) -> dict[str, Curvature]:
    """K-FAC's factors at theta_0 over every token of texts that predicts a next one.

    Args:
        lm: The model.
        texts: Each is cut to :data:`LONGEST_TEXT` tokens; those of a single token predict nothing.
        progress: Called with how many are done.

    Raises:
        ValueError: If no text has two tokens.
    """
    rows = [ids[:LONGEST_TEXT] for ids in lm.tokenizer(list(texts))["input_ids"]]
    rows = sorted((ids for ids in rows if len(ids) > 1), key=len)
    if not rows:
        raise ValueError("text: no text has two tokens, of which one could predict the other")
    curvature = {name: Curvature.none(lm, name) for name in lm.modules}
    done = 0
    with lm.at_initial_weights():
        for part in together(rows):
            progress("curvature of the text's loss", done, len(rows))
            prompts = lm.encode_tokens([(ids[:1], ids[1:]) for ids in part], reuse=False)
            for name, gradient in token_gradients(lm, prompts).items():
                curvature[name].add(gradient)
            done += len(part)
    return curvature


def together(rows: Sequence[list[int]]) -> Iterator[Sequence[list[int]]]:
    """Texts, the shortest first, in groups of at most :data:`TOKENS_TOGETHER` tokens."""
    start = 0
    for stop in range(1, len(rows) + 1):
        if stop == len(rows) or len(rows[stop]) * (stop + 1 - start) > TOKENS_TOGETHER:
            yield rows[start:stop]
            start = stop
