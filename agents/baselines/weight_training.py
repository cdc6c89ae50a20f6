"""Adam on the weights of the edited modules, step after step: what all kinds of fine-tuning share."""

import json
from collections.abc import Iterable, Sequence

import torch

from agents.baselines.target_loss import negative_log_likelihood
from editenv.data import Edit
from editenv.language_model.editable_lm import EditableLM
from editenv.language_model.prompts import Prompts


class WeightTraining:
    """Adam on the edited weights. The model follows every step; the caller restores it (:meth:`EditableLM.unchanged`).

    Args:
        lm: The model, at the weights to start from.
        learning_rate: Adam's.

    Attributes:
        start: By module the weight at the start, ``(d_in, d_out)``.
        weights: The weight as it is now, likewise.
    """

    def __init__(self, lm: EditableLM, learning_rate: float) -> None:
        self._lm = lm
        self.start = {name: lm.weight(name).clone() for name in lm.modules}
        self.weights = {name: weight.clone() for name, weight in self.start.items()}
        self._optimizer = torch.optim.Adam(self.weights.values(), lr=learning_rate)

    def step(self, prompts: Prompts, least_loss: float = 0.0, bound: float | None = None) -> float:
        """One step down the mean loss of some edits, each a prompt with its target.

        Args:
            prompts: The edits' prompts with their targets, a prompt an edit.
            least_loss: No step is taken where the loss is below it already.
            bound: No entry of a weight goes farther than this from its start.

        Returns:
            The loss before the step, in nats.
        """
        mean_loss, gradients = self._lm.gradients(prompts, negative_log_likelihood(prompts, len(prompts)))
        loss = float(mean_loss)
        if loss < least_loss:
            return loss
        for name, gradient in gradients.items():
            self.weights[name].grad = gradient.dense()
        self._optimizer.step()
        if bound is not None:
            for name, weight in self.weights.items():
                weight.clamp_(self.start[name] - bound, self.start[name] + bound)
        self._lm.assign(self.weights)
        return loss

    def deltas(self) -> dict[str, torch.Tensor]:
        """By module how far the weight has come, ``(d_in, d_out)``."""
        return {name: weight - self.start[name] for name, weight in self.weights.items()}


def latest_targets(edits: Iterable[Edit]) -> dict[str, str]:
    """Each prompt once, with the target of the last edit that has it: an earlier one is no longer true."""
    targets: dict[str, str] = {}
    for edit in edits:
        targets.pop(edit.prompt, None)
        targets[edit.prompt] = edit.target
    return targets


def encode_targets(lm: EditableLM, targets: Sequence[tuple[str, str]], append_eos: bool) -> Prompts:
    """Pairs of prompt and target for :meth:`WeightTraining.step`."""
    return lm.encode([prompt for prompt, _ in targets], [target for _, target in targets], append_eos=append_eos)


def draws_seed(seed: int, attempt: int, edits: Iterable[Edit]) -> str:
    """What a batch's draws are seeded with: the batch itself, not how many came before, so that an interrupted run goes
    on the same.
    """
    return f"{seed}/{attempt}/" + "/".join(f"{edit.prompt} {edit.target}" for edit in edits)


def as_tensor(targets: dict[str, str]) -> torch.Tensor:
    """Prompts and targets as bytes, for :meth:`agents.base.Agent.batch_state`."""
    return torch.frombuffer(bytearray(json.dumps(list(targets.items())).encode()), dtype=torch.uint8)


def of_tensor(content: torch.Tensor) -> dict[str, str]:
    """What :func:`as_tensor` was given."""
    return dict(json.loads(bytes(content.cpu().tolist())))
