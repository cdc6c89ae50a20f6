"""MALMEN (Tan et al. 2024, "Massive Editing for Large Language Models via Meta Learning"): MEND for many edits at once.

The network gives a change asked of the output at each token, and the normal equation turns the changes of all
tokens of a batch into one delta (section 4.1): :class:`agents.hypernetwork.networks.MalmenPolicy`, the form that RLEdit
took over. It is trained on batches of the initial model. MALMEN+RLEdit (Li et al. 2025, section 3.3 and figure 6)
needs no class: it is :class:`agents.rledit.agent.RLEdit` with MALMEN's network, two blocks and lambda_loc = 1,
where the row ``rledit`` has RLEdit's own four blocks and lambda_loc = 0.6; nothing else sets the two apart by
default, as nothing in the paper does (on the embedded model each has settings of its own).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from agents.baselines.fixed_model import TrainedOnFixedModel
from agents.hypernetwork.config import PolicyConfig, TrainConfig
from editenv.arguments import NonNegativeFloat, NonNegativeInt, PositiveInt


@dataclass(frozen=True)
class MALMENConfig(TrainConfig):
    """RLEdit's options with MALMEN's defaults; the terms that MALMEN's loss does not have are 0.

    Attributes:
        locality: lambda_loc; MALMEN's public configuration has 1.
        policy: MALMEN has two blocks of rank 1920, for models far wider than the embedded one.
    """

    environment: Literal["lifelong", "fixed"] = "fixed"
    credit: Literal["trajectory", "step"] = "step"
    locality: NonNegativeFloat = 1.0
    memory_batches: NonNegativeInt = 0
    regularization: NonNegativeFloat = 0.0
    policy: PolicyConfig = field(default_factory=lambda: PolicyConfig(blocks=2))


class MALMEN(TrainedOnFixedModel):
    """Trained network, then ridge regression: ``D = (U^T U + lambda I)^-1 U^T V``, solved in token space.

    Precomputes: the network, by Adam on ``-log p(y | x') + lambda_loc KL``, an optimiser step for each batch of
    theta_0; ``trajectories * horizon`` batches in all. The backward pass is the paper's in two stages (section
    4.2): first the loss with respect to the delta, through the language model alone, then through the network
    alone; that is :meth:`agents.hypernetwork.training.Trainer.backward`. Needs: training edits with rephrases and
    locality prompts; no subject, no text.

    Args:
        config: How it is trained; a policy trained before brings its own.
        policy: Folder of a policy trained before; without one, :meth:`prepare` trains.
        retrain_every: Makes it MALMEN* (Li et al. 2025, appendix A.1, with 3); see
            :class:`agents.baselines.fixed_model.TrainedOnFixedModel`.
        retrain_trajectories: How long each time, in trajectories of ``config.horizon`` batches.
        actions_per_batch: K at edit time; the training's by default.
    """

    def __init__(
        self,
        config: MALMENConfig | None = None,
        policy: str | Path | None = None,
        retrain_every: PositiveInt | None = None,
        retrain_trajectories: PositiveInt = 1,
        actions_per_batch: PositiveInt | None = None,
    ) -> None:
        if policy is None:
            config = config or MALMENConfig()
        super().__init__(config, "malmen", policy, retrain_every, retrain_trajectories, actions_per_batch)
