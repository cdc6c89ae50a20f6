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
    """Network and training. Values of the public code, for BART on zero-shot relation extraction, where ours differ.

    Attributes:
        lstm_width: Width of the encoder's LSTM in each direction.
        condition_width: Width of what it says of an edit.
        hidden_width: Hidden width of the masks' networks.
        step_size: What a fresh network asks of a module's output at a typical key, relative to a typical output; of
            each of M modules that are edited together, an M-th.
        learning_rate: Adam's (RMSprop's, 3e-4).
        steps: Optimiser steps (200,000).
        edits_per_step: Edits that are made together in a step, each by a delta of its own (1).
        rephrases: Weight of -log p on rephrases; 0 leaves them out of the loss, as the public code does
            without --use_views.
        margin: m: largest mean divergence that is allowed elsewhere, in nats (1e-3).
        least_margin: What m is lowered to at most.
        shrinkage: What m is multiplied by after a period in which edits were made.
        period: Steps of a period (an epoch).
        enough: Share of target tokens that have to be the likeliest for that.
        multiplier_rate: Step of the Lagrange multiplier for each nat above m; the public code has RMSprop at this
            rate.
        gradient_clip: Largest norm of the network's gradient (none).
        warm_up_edits: Edits that the units of step sizes come from.
    """

    lstm_width: PositiveInt = 128
    condition_width: PositiveInt = 1024
    hidden_width: PositiveInt = 128
    step_size: PositiveFloat = 1.0
    learning_rate: NonNegativeFloat = 1e-3
    steps: PositiveInt = 300
    edits_per_step: PositiveInt = 20
    rephrases: NonNegativeFloat = 1.0
    margin: PositiveFloat = 0.1
    least_margin: PositiveFloat = 1e-5
    shrinkage: PositiveShare = 0.8
    period: PositiveInt = 50
    enough: PositiveShare = 0.9
    multiplier_rate: NonNegativeFloat = 0.1
    gradient_clip: PositiveOrInfinite = 1.0
    warm_up_edits: PositiveInt = 200

    def __post_init__(self) -> None:
        check_fields(self)
        if self.least_margin > self.margin:
            raise ValueError(f"least_margin must be at most margin, {self.margin:g}, not {self.least_margin:g}")
