"""The options of a hypernetwork and of its training; light to import, so that commands can show their help at once."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """Shape and starting point of a policy."""

    network: Literal["malmen", "mend"] = "malmen"
    """The hypernetwork's form: malmen's, which RLEdit has, or mend's, which has no ridge regression."""
    blocks: int = 4
    """Residual blocks."""
    rank: int = 64
    """Rank of each block's linear map."""
    step_size: float = 1.0
    """Start of lr_m: the change asked of a module's output for a typical gradient, relative to a typical output; of
    each of M modules that are edited together, an M-th.
    """
    ridge: float = 0.1
    """Start of lambda_m, relative to the mean squared norm of a key."""


@dataclass(frozen=True)
class TrainConfig:
    """How a policy is trained. Symbols are the paper's.

    gamma, mu, k, eta and lambda_loc are the paper's values (RLEdit, appendix A.5 and B).
    Its learning rates (1e-5 for the network, 1e-6 for step sizes in the model's own units) belong to networks of rank
    1,024 and more on models of 8 billion parameters.
    Here step sizes are relative to a typical output, and the rates are those of the embedded model's policies.

    Raises:
        ValueError: If a value is out of range or two do not fit together; names them.
    """

    trajectories: int = 60
    """Trajectories, each over a freshly drawn and shuffled training stream; one optimiser step each (eq. 12)."""
    horizon: int = 50
    """T: batches per trajectory."""
    edits_per_step: int = 20
    """n: edits per batch."""
    actions_per_batch: int = 1
    """K: how often each batch is shown, each time with the gradient at the current weights. The paper has 1."""
    learning_rate: float = 1e-3
    """Adam's rate for the network."""
    scalar_learning_rate: float = 0.03
    """Adam's rate for the logarithms of step size and ridge."""
    gradient_clip: float = 1.0
    """Largest norm of the policy gradient."""
    discount: float = 1.0
    """gamma of eq. 11."""
    credit: Literal["trajectory", "step"] = "trajectory"
    """Whether a delta answers for all later rewards, or (as the public code has it) only for its own."""
    environment: Literal["lifelong", "fixed"] = "lifelong"
    """fixed undoes every batch, so that the policy only ever sees theta_0: how MEND and MALMEN are trained."""
    locality: float = 0.6
    """lambda_loc of eq. 8."""
    reference: Literal["initial", "previous"] = "initial"
    """What all locality losses compare with: theta_0 (eq. 7), or, as the public code has it, theta_{t-1}."""
    memory_decay: float = 0.95
    """mu of eq. 9."""
    memory_batches: int = 10
    """k of eq. 9: how many past batches are looked back at."""
    memory_samples: int | None = None
    """Estimate the sum over the k past batches from so many of them, drawn anew at each step; None takes all."""
    regularization: float = 1e-4
    """eta of eq. 10; the squared norm carries gradient."""
    preconditioner: bool = False
    """Solve the ridge regression under the text's key covariance (not in the paper)."""
    covariance_texts: int = 3000
    """Sentences of the training split that the covariance is estimated from."""
    epsilon: float = 0.01
    """Ridge on that covariance, relative to its mean eigenvalue."""
    recursive: bool = True
    """Add the keys of finished batches to the covariance; needs the preconditioner."""
    absorb_noise: float = 1.0
    """How firmly they are added (smaller is firmer), relative to a typical key."""
    warm_up_batches: int = 50
    """Batches on theta_0 that the normalizer sees before training, of one stream: ``horizon`` at most."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """The network; the training is a plug-in to any of them (section 3.3)."""

    def __post_init__(self) -> None:
        least = {"trajectories": 0, "horizon": 1, "edits_per_step": 1, "actions_per_batch": 1, "memory_batches": 0}
        least |= {"memory_samples": 1, "warm_up_batches": 1, "covariance_texts": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name} must be {low} or more, not {value}")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount must be from 0 to 1, not {self.discount}")
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
    record["policy"] = PolicyConfig(**record["policy"])
    return TrainConfig(**record)
