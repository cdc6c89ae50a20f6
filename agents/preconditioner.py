"""The key covariance of ordinary text, and the preconditioner made of it (an extension: the paper has none).

MEMIT (Meng et al. 2023, eq. 14) and AlphaEdit (Fang et al. 2024) protect what a model knows through the second moment
``C = E[u u^T]`` of a module's inputs over text. Here ``P = (C + eps I)^-1`` replaces the identity in the ridge solve:
``D = P U^T (U P U^T + lambda I)^-1 V``. Adding the keys of each finished batch to C makes it recursive least squares:
later batches leave earlier edits alone. All of it needs keys that do not drift.
"""

import random
from collections.abc import Callable, Sequence

import torch

from editenv.data import Edit, load_edits
from editenv.dynamics import EditableLM, Gradient
from editenv.env import LifelongEditEnv


@torch.no_grad()
def key_covariance(lm: EditableLM, texts: Sequence[str], batch_size: int = 128) -> dict[str, torch.Tensor]:
    """Second moment of each edited module's inputs at theta_0 over every token but BOS: ``(d_in, d_in)``."""
    keys: dict[str, torch.Tensor] = {}

    def tap(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            keys[name] = args[0]

        return hook

    total = {name: torch.zeros(lm.shape(name)[0], lm.shape(name)[0], device=lm.device) for name in lm.modules}
    count = 0
    handles = [module.register_forward_pre_hook(tap(name)) for name, module in lm.modules.items()]
    try:
        with lm.at_initial_weights():
            encoded = sorted(lm.tokenizer(list(texts))["input_ids"], key=len)
            for start in range(0, len(encoded), batch_size):
                rows = encoded[start : start + batch_size]
                width = max(map(len, rows))
                ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=lm.device)
                real = torch.arange(width, device=lm.device) < torch.tensor([[len(r)] for r in rows], device=lm.device)
                real &= ids != (lm.tokenizer.bos_token_id if lm.tokenizer.bos_token_id is not None else -1)
                lm.model.get_decoder()(input_ids=ids, use_cache=False)
                for name, key in keys.items():
                    picked = key[real].float()
                    total[name].addmm_(picked.T, picked)
                count += int(real.sum())
    finally:
        for handle in handles:
            handle.remove()
    return {name: matrix / count for name, matrix in total.items()}


def effective_dimension(covariance: torch.Tensor) -> float:
    """Participation ratio of the spectrum, ``tr(C)^2 / tr(C^2)``: how many directions the keys really use."""
    return float(covariance.trace() ** 2 / covariance.square().sum())


def training_edits(env: LifelongEditEnv) -> Sequence[Edit]:
    """The training split of an environment's data set, as it is published."""
    arguments = env.model_arguments
    return load_edits(arguments["dataset"], "train", options=arguments.get("dataset_options"))


def sample_text(edits: Sequence[Edit], count: int = 3000) -> list[str]:
    """Sentences that the model is taken to believe, made from edits; the same ones at every call."""
    texts: list[str] = []
    for edit in edits:
        texts += [f"{text} {edit.old_answer or ''}".rstrip() for text in (edit.prompt, *edit.rephrases)]
        texts += [f"{item.prompt} {item.answer}" for item in edit.locality]
    return random.Random(0).sample(texts, min(count, len(texts)))


class Preconditioner:
    """``P`` for each module, scaled so that a typical key of the text has ``u^T P u = 1``; recursive if asked.

    Args:
        covariance: Of each module, ``(d_in, d_in)``.
        epsilon: Ridge on the covariance, relative to its mean eigenvalue.
        recursive: Whether finished batches' keys are added.
    """

    def __init__(self, covariance: dict[str, torch.Tensor], epsilon: float, recursive: bool) -> None:
        self.recursive = recursive
        self._start: dict[str, torch.Tensor] = {}
        for name, matrix in covariance.items():
            identity = torch.eye(len(matrix), device=matrix.device)
            inverse = torch.linalg.inv(matrix + epsilon * matrix.trace() / len(matrix) * identity)
            self._start[name] = inverse / (inverse * matrix).sum()
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._now = {name: matrix.clone() for name, matrix in self._start.items()} if self.recursive else self._start

    def project(self, name: str, keys: torch.Tensor) -> torch.Tensor:
        """``P U^T``, ``(d_in, tokens)``, for keys ``(tokens, d_in)``."""
        return self._now[name] @ keys.T

    def absorb(
        self,
        gradients: dict[str, Gradient],
        noise: dict[str, float],
        projected: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Adds a finished batch's keys: ``P <- P - P U^T (U P U^T + noise I)^-1 U P``.

        Args:
            gradients: Whose keys U are added.
            noise: For each module; smaller is firmer.
            projected: ``P U^T`` of these keys, if it is known.
        """
        if not self.recursive:
            return
        for name, gradient in gradients.items():
            left = self.project(name, gradient.keys) if projected is None else projected[name]
            gram = gradient.keys @ left
            gram.diagonal().add_(noise[name])
            self._now[name].addmm_(left, torch.linalg.solve(gram, left.T), alpha=-1)
