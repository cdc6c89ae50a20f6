"""MEND (Mitchell et al. 2022, "Fast Model Editing at Scale"): gradients to rank-one updates by a small network.

Of each token's gradient factors a network makes others (eq. 3), whose outer products are summed with a learned step
size: :class:`agents.hypernetwork.networks.MendPolicy`. It is trained on single batches of the initial model.
MEND+RLEdit, the paper's section 3.3 of RLEdit (Li et al. 2025), needs no class: it is
:class:`agents.rledit.agent.RLEdit` with ``policy.network="mend"``, trained over trajectories with memory
backtracking and regularisation.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from agents.baselines.fixed_model import TrainedOnFixedModel
from agents.hypernetwork.config import PolicyConfig, TrainConfig
from editenv.arguments import NonNegativeFloat, NonNegativeInt, PositiveInt


@dataclass(frozen=True)
class MENDConfig(TrainConfig):
    """RLEdit's options with MEND's defaults; the terms that MEND's loss does not have are 0.

    Attributes:
        locality: c_loc / c_edit of eq. 4; MEND's public configuration has 1 and 0.1.
        policy: MEND has two blocks of rank 1920, for models far wider than the embedded one.
    """

    environment: Literal["lifelong", "fixed"] = "fixed"
    credit: Literal["trajectory", "step"] = "step"
    locality: NonNegativeFloat = 10.0
    memory_batches: NonNegativeInt = 0
    regularization: NonNegativeFloat = 0.0
    policy: PolicyConfig = field(default_factory=lambda: PolicyConfig(network="mend", blocks=2))


class MEND(TrainedOnFixedModel):
    """Trained network, no regression: ``D = -lr sum over tokens of u~^T d~``.

    Gradients are those that the environment shows: at answer positions by default; the public code takes every token
    of the prompt, which is ``observed_tokens="all"``.

    Precomputes: the network, by Adam on ``c_edit (-log p(y | x')) + c_loc KL`` (eq. 4), an optimiser step for each
    batch of theta_0; ``trajectories * horizon`` batches in all. Needs: training edits with rephrases and locality
    prompts; no subject, no text. Everything is float32, and step sizes are in the units of
    :class:`agents.hypernetwork.networks.GradientPolicy` (the public code starts at 1e-4 in the model's own).

    Args:
        config: How it is trained; a policy trained before brings its own.
        policy: Folder of a policy trained before; without one, :meth:`prepare` trains.
        retrain_every: Makes it MEND* (Li et al. 2025, appendix A.1, with 3); see
            :class:`agents.baselines.fixed_model.TrainedOnFixedModel`.
        retrain_trajectories: How long each time, in trajectories of ``config.horizon`` batches.
        actions_per_batch: K at edit time; the training's by default.
    """

    def __init__(
        self,
        config: MENDConfig | None = None,
        policy: str | Path | None = None,
        retrain_every: PositiveInt | None = None,
        retrain_trajectories: PositiveInt = 1,
        actions_per_batch: PositiveInt | None = None,
    ) -> None:
        if policy is None:
            config = config or MENDConfig()
        super().__init__(config, "mend", policy, retrain_every, retrain_trajectories, actions_per_batch)
