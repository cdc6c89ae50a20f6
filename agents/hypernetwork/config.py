"""The options of a hypernetwork and of its training; light to import, so that commands can show their help at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import ceil
from typing import Any, Literal

from editenv.arguments import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveOrInfinite,
    PositiveShare,
    Share,
    check_fields,
)


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """Shape and starting point of a policy.

    Attributes:
        network: The hypernetwork's form: malmen's, which RLEdit has, or mend's, which has no ridge regression.
        blocks: Residual blocks.
        rank: Rank of each block's linear map.
        step_size: Start of lr_m: the change asked of a module's output for a typical gradient, relative to a typical
            output; of each of M modules that are edited together, an M-th.
        ridge: Start of lambda_m, relative to the mean squared norm of a key.
    """

    network: Literal["malmen", "mend"] = "malmen"
    blocks: PositiveInt = 4
    rank: PositiveInt = 64
    step_size: PositiveFloat = 1.0
    ridge: PositiveFloat = 0.1

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True)
class GatedPolicyConfig(PolicyConfig):
    """A policy with a gate that chooses, for each batch, the modules that are edited (HiEdit).

    Attributes:
        share: Share of the modules that are edited, rounded up; the public code has 6 of 12. With 1 nothing is chosen.
        gate_width: Features of each module that the gate sees.
    """

    share: PositiveShare = 0.5
    gate_width: PositiveInt = 256

    def chosen(self, modules: int) -> int:
        """How many of so many modules are edited."""
        return ceil(self.share * modules)


def policy_config(record: Mapping[str, Any]) -> PolicyConfig:
    """The configuration that was written as this record; one with a gate says so by its fields."""
    return (GatedPolicyConfig if "share" in record else PolicyConfig)(**record)


@dataclass(frozen=True)
class TrainConfig:
    """How a policy is trained. Symbols are the paper's.

    gamma, mu, k, eta and lambda_loc are the paper's values (RLEdit, appendix A.5 and B).
    Its learning rates (1e-5 for the network, 1e-6 for step sizes in the model's own units) belong to networks of rank
    1,024 and more on models of 8 billion parameters.
    Here step sizes are relative to a typical output, and the rates are those of the embedded model's policies.

    Raises:
        ValueError: If a value is out of range or two do not fit together; names them.

    Attributes:
        trajectories: Trajectories, each over a freshly drawn and shuffled training stream; one optimiser step
            each (eq. 12).
        horizon: T: batches per trajectory.
        edits_per_step: n: edits per batch.
        actions_per_batch: K: how often each batch is shown, each time with the gradient at the current weights. The
            paper has 1.
        learning_rate: Adam's rate for the network.
        scalar_learning_rate: Adam's rate for the logarithms of step size and ridge.
        gradient_clip: Largest norm of the policy gradient.
        discount: gamma of eq. 11.
        credit: Whether a delta answers for all later rewards, or (as the public code has it) only for its own.
        environment: fixed undoes every batch, so that the policy only ever sees theta_0: how MEND and MALMEN are
            trained.
        locality: lambda_loc of eq. 8.
        reference: What all locality losses compare with: theta_0 (eq. 7), or, as the public code has it, theta_{t-1}.
        memory_decay: mu of eq. 9.
        memory_batches: k of eq. 9: how many past batches are looked back at.
        memory_samples: Estimate the sum over the k past batches from so many of them, drawn anew at each step; None
            takes all.
        regularization: eta of eq. 10; the squared norm carries gradient.
        preconditioner: Solve the ridge regression under the text's key covariance (not in the paper).
        covariance_texts: Sentences of the training split that the covariance is estimated from.
        epsilon: Ridge on that covariance, relative to its mean eigenvalue.
        recursive: Add the keys of finished batches to the covariance; needs the preconditioner.
        absorb_noise: How firmly they are added (smaller is firmer), relative to a typical key.
        warm_up_batches: Batches on theta_0 that the normalizer sees before training, of one stream: ``horizon`` at
            most.
        policy: The network; the training is a plug-in to any of them (section 3.3).
    """

    trajectories: NonNegativeInt = 60
    horizon: PositiveInt = 50
    edits_per_step: PositiveInt = 20
    actions_per_batch: PositiveInt = 1
    learning_rate: NonNegativeFloat = 1e-3
    scalar_learning_rate: NonNegativeFloat = 0.03
    gradient_clip: PositiveOrInfinite = 1.0
    discount: Share = 1.0
    credit: Literal["trajectory", "step"] = "trajectory"
    environment: Literal["lifelong", "fixed"] = "lifelong"
    locality: NonNegativeFloat = 0.6
    reference: Literal["initial", "previous"] = "initial"
    memory_decay: Share = 0.95
    memory_batches: NonNegativeInt = 10
    memory_samples: PositiveInt | None = None
    regularization: NonNegativeFloat = 1e-4
    preconditioner: bool = False
    covariance_texts: PositiveInt = 3000
    epsilon: NonNegativeFloat = 0.01
    recursive: bool = True
    absorb_noise: PositiveFloat = 1.0
    warm_up_batches: PositiveInt = 50
    policy: PolicyConfig = field(default_factory=PolicyConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.reference == "previous" and self.environment == "fixed":
            raise ValueError("reference: in the environment 'fixed' every batch comes to theta_0; there is no other")
        if self.preconditioner and self.policy.network != "malmen":
            raise ValueError(
                f"preconditioner: it goes into a ridge regression, which the network {self.policy.network!r} does not have"
            )


def config_from_json(record: Any) -> TrainConfig:
    """What every algorithm on this network shares; options of a single one are left out."""
    names = {field.name for field in fields(TrainConfig)}
    record = {name: value for name, value in record.items() if name in names}
    record["policy"] = policy_config(record["policy"])
    return TrainConfig(**record)
