"""RLEdit's training (Li et al. 2025, Algorithm 1): the policy gradient over whole editing trajectories.

In each trajectory the policy, frozen, edits a fresh stream from theta_0, and each reward (eq. 10) is differentiated
with respect to the *weights*.
theta_t holds every earlier delta, so a delta answers for all rewards from its own on:

    dR/dphi = sum_i < S_i , dD_i/dphi >        S_i = sum_{t >= i} gamma^t d(-r_t)/d theta_t

Then the policy runs once more over what it observed, this time with a graph, which turns the S_i into the gradient
with respect to the *policy*; and the optimiser takes one step (eq. 12).
"""

from collections.abc import Iterable, Iterator, Sequence

import torch

from agents.hypernetwork.training import Credit, CreditedStep, Step, Trainer, Transition, step_credit
from editenv.deltas import inner_gradient
from editenv.language_model.editable_lm import EditableLM


class RLEditTrainer(Trainer):
    """Algorithm 1: a trajectory, its rewards, one policy gradient step."""

    title = "RLEdit"

    def learn(self) -> tuple[Sequence[Step], float]:
        """The steps of a whole trajectory, then one optimiser step; its gradient's norm."""
        steps = list(self.credited_roll_out())
        self.optimizer.zero_grad()
        self.backward(steps)
        return steps, self.ascend()

    def credited_roll_out(self) -> Iterator[CreditedStep]:
        """The steps of a trajectory, each with what its delta answers for."""
        transitions = self.roll_out()
        return (
            trajectory_credit(transitions, self.lm) if self.config.credit == "trajectory" else step_credit(transitions)
        )


@torch.no_grad()
def trajectory_credit(transitions: Iterable[Transition], lm: EditableLM) -> Iterator[CreditedStep]:
    """Each delta answers for its own reward and all later ones, as far as they share weights.

    No step keeps its S_i, which is as large as the weight.
    With ``G_t = sum_{s <= t} gamma^s g_s`` (g_s the gradient of minus the reward at step s) it is
    ``S_i = G_T - G_{i-1}``, so that one running G is enough: of each step the products of its factors with G_{i-1} are
    kept, and taken from those with G_T at the end.
    """
    so_far = {name: torch.zeros(lm.shape(name), device=lm.device) for name in lm.modules}
    waiting: list[tuple[Transition, Credit]] = []
    for step in transitions:
        waiting.append((step, _inner_gradients(so_far, step)))
        for name, gradient in step.loss_gradient.items():
            so_far[name].addmm_(gradient.left, gradient.right)
        step.loss_gradient = {}  # of as many tokens as the reward looks at: not to be held for a whole trajectory
        if step.weights_end:
            for earlier, before in waiting:
                whole = _inner_gradients(so_far, earlier)
                credit = {n: (whole[n][0] - before[n][0], whole[n][1] - before[n][1]) for n in whole}
                yield CreditedStep(earlier.gradients, earlier.projected, earlier.terms, credit, unit=earlier.unit)
            waiting = []
            for matrix in so_far.values():
                matrix.zero_()


def _inner_gradients(matrices: dict[str, torch.Tensor], step: Transition) -> Credit:
    """``(G R^T, L^T G)`` for each module."""
    return {name: inner_gradient(matrices[name], delta) for name, delta in step.deltas.items()}
