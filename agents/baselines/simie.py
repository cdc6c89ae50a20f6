"""SimIE (Guo et al. 2025, ICML): any editor, made lifelong by recursive least squares.

"Towards Lifelong Model Editing via Simulating Ideal Editor", openreview.net/forum?id=VdEG08ZJCH; after the public code,
zjunlp/EasyEdit's ``models/simie``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from agents.base import Agent, Observation, ProgressCallback
from agents.baselines.fine_tune import FineTune
from agents.baselines.lora import LoRA
from agents.baselines.memit import MEMIT
from agents.baselines.rome import ROME
from agents.covariance import keys_of_tokens
from agents.preconditioner import Preconditioner
from agents.settings import build
from editenv.arguments import PositiveFloat
from editenv.contexts import Context
from editenv.data import Edit
from editenv.deltas import Delta, LowRank, ridge_regression
from editenv.env import Action, LifelongEditEnv
from editenv.language_model.editable_lm import EditableLM, Gradient
from editenv.memories import Memory

EDITORS: Mapping[str, type[Agent]] = {"fine-tune": FineTune, "lora": LoRA, "memit": MEMIT, "rome": ROME}
"""The editors that can be wrapped: they look at the model themselves, and keep nothing of one batch for the next."""


class SimIE(Agent):
    """Lets an editor edit each batch by itself, and adds up by recursive least squares what it did.

    The ideal weight has, at the keys K_i of every batch so far, the outputs of the weight W_i that the editor made of
    the unedited model for that batch alone:

        W = argmin_W  sum_i |K_i (W - W_i)|^2 + ridge |W - W_0|^2

    In recursive form, with ``P_0 = ridge I``, ``K`` (tokens, d_in) the keys of a batch and W_edited its W_i,

        P_t = P_{t-1} + K^T K
        D = P_t^{-1} K^T K (W_edited - W_{t-1})

    (the public code's ``update``; its P is the inverse of what :class:`agents.preconditioner.Preconditioner` keeps).
    The keys are those of every token of prompt and target.

    Needs and precomputes what the editor does, and the model. The paper makes one edit a batch; a batch of several
    is here one edit of an editor that takes several.

    Args:
        base: The editor.
        editor: Its settings, as its own row takes them.
        ridge: lambda, in units of a squared key: it has to fit the model. 10 in the paper's own repository for MEMIT,
            10,000 in EasyEdit for ROME.
        start: ``"initial"``: the editor edits theta_0 and the keys are theta_0's (EasyEdit's ``init_model: true``).
            ``"current"``: the weights as they stand, and W_edited is what the editor makes of W_{t-1} (the default
            of the paper's own repository).

    Raises:
        ValueError: If the editor has no such setting, naming it.
    """

    looks_at_model = True

    def __init__(
        self,
        base: Literal["fine-tune", "lora", "memit", "rome"] = "memit",
        editor: Mapping[str, Any] | None = None,
        ridge: PositiveFloat = 10.0,
        start: Literal["initial", "current"] = "initial",
    ) -> None:
        try:
            self.editor = build(EDITORS[base], editor or {})
        except ValueError as error:
            raise ValueError(f"editor: {error}") from None
        if getattr(self.editor, "cache_keys", False):
            raise ValueError("editor: cache_keys keeps earlier batches' keys, which SimIE does itself; leave it out")
        self.ridge, self.start = ridge, start
        self.learns, self.reads_text = self.editor.learns, self.editor.reads_text

    @property
    def needs(self) -> tuple[str, ...]:
        return self.editor.needs

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        self.editor.text = self.text
        self.editor.prepare(env, seed, progress)

    def begin(self, env: LifelongEditEnv) -> None:
        self._env = env
        lm = env.language_model
        sizes = {name: lm.shape(name)[0] for name in lm.modules}
        start = {name: torch.eye(size, device=lm.device) / self.ridge for name, size in sizes.items()}
        self._inverse = Preconditioner(start, recursive=True)
        self._finished: dict[str, torch.Tensor] = {}
        self.editor.begin(env)

    @torch.no_grad()
    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        self._absorb(self._finished)  # of the batch before, which has stayed
        self._finished = {}
        lm = self._env.language_model
        before = {name: lm.weight(name).clone() for name in lm.modules}
        with lm.unchanged():
            if self.start == "initial":
                lm.restore()
            keys = keys_of_edits(lm, self._env.batch)
            values = {name: key @ (lm.weight(name) - before[name]) for name, key in keys.items()}
            self.editor.begin(self._env)  # it knows of no earlier batch
            with torch.enable_grad():
                edited = self.editor.act(observation, info)
        self._finished = keys
        weight_deltas = {name: delta for name, delta in edited.items() if not isinstance(delta, Memory | Context)}
        deltas: dict[str, Delta] = {}
        for name, key in keys.items():
            wanted = values[name] + outputs_of(weight_deltas[name], key)
            deltas[name] = ridge_regression(key, wanted, 1.0, self._inverse.project(name, key))
        return deltas

    def _absorb(self, keys: Mapping[str, torch.Tensor]) -> None:
        gradients = {name: Gradient(key, key[:, :0]) for name, key in keys.items()}
        self._inverse.absorb(gradients, dict.fromkeys(keys, 1.0))

    def revert_batch(self) -> None:
        self._finished = {}

    def batch_state(self) -> dict[str, torch.Tensor]:
        return self._finished

    def load_batch_state(self, state: dict[str, torch.Tensor]) -> None:
        self._absorb(state)


def keys_of_edits(lm: EditableLM, edits: Sequence[Edit]) -> dict[str, torch.Tensor]:
    """What each edited module is given at every token of the edits' prompts and targets, at the current weights.

    Args:
        lm: The model.
        edits: A batch.

    Returns:
        ``(tokens, d_in)`` for each module.
    """
    pairs = lm.tokenize([edit.prompt for edit in edits], [edit.target for edit in edits])
    (keys,) = keys_of_tokens(lm, [[*prompt, *target] for prompt, target in pairs], batch_size=len(edits))
    return keys


def outputs_of(delta: Delta | np.ndarray, keys: torch.Tensor) -> torch.Tensor:
    """``K D``, ``(tokens, d_out)``, of a delta in any form."""
    if isinstance(delta, LowRank):
        return (keys @ delta.left.to(keys)) @ delta.right.to(keys)
    return keys @ torch.as_tensor(delta).to(keys)
