"""Options of KnowledgeEditor."""

from dataclasses import dataclass

from editenv.arguments import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    PositiveOrInfinite,
    PositiveShare,
    check_fields,
)


@dataclass(frozen=True)
class KEConfig:
    """Network and training. Values of the public code, for BART on zero-shot relation extraction, where ours differ."""

    lstm_width: PositiveInt = 128
    """Width of the encoder's LSTM in each direction."""
    condition_width: PositiveInt = 1024
    """Width of what it says of an edit."""
    hidden_width: PositiveInt = 128
    """Hidden width of the masks' networks."""
    step_size: PositiveFloat = 1.0
    """What a fresh network asks of a module's output at a typical key, relative to a typical output; of each of M
    modules that are edited together, an M-th.
    """
    learning_rate: NonNegativeFloat = 1e-3
    """Adam's (RMSprop's, 3e-4)."""
    steps: PositiveInt = 300
    """Optimiser steps (200,000)."""
    edits_per_step: PositiveInt = 20
    """Edits that are made together in a step, each by a delta of its own (1)."""
    rephrases: NonNegativeFloat = 1.0
    """Weight of -log p on rephrases; 0 leaves them out of the loss, as the public code does without --use_views."""
    margin: PositiveFloat = 0.1
    """m: largest mean divergence that is allowed elsewhere, in nats (1e-3)."""
    least_margin: PositiveFloat = 1e-5
    """What m is lowered to at most."""
    shrinkage: PositiveShare = 0.8
    """What m is multiplied by after a period in which edits were made."""
    period: PositiveInt = 50
    """Steps of a period (an epoch)."""
    enough: PositiveShare = 0.9
    """Share of target tokens that have to be the likeliest for that."""
    multiplier_rate: NonNegativeFloat = 0.1
    """Step of the Lagrange multiplier for each nat above m; the public code has RMSprop at this rate."""
    gradient_clip: PositiveOrInfinite = 1.0
    """Largest norm of the network's gradient (none)."""
    warm_up_edits: PositiveInt = 200
    """Edits that the units of step sizes come from."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.least_margin > self.margin:
            raise ValueError(f"least_margin must be at most margin, {self.margin:g}, not {self.least_margin:g}")
