"""Options of DAFNet."""

from dataclasses import dataclass

from editenv.arguments import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveOrInfinite,
    check_fields,
)


@dataclass(frozen=True)
class DAFNetConfig:
    """Network and training. The public configuration is for LLaMA-7B, and its values are given where ours differ.

    Attributes:
        layers: Fusion layers.
        token_width: Hidden width of the intra-editing attention (1024).
        attention_width: Width of an inter-editing head (1024).
        score_width: Width of a head of the attention that weighs edits (256).
        heads: Heads of both.
        feed_forward: Hidden width of the feed-forward part (1536).
        step_size: Start of lr_m: the change asked of a module's output for a typical gradient, relative to a typical
            output. An edit of n has a share of about 1/n of it.
        learning_rate: Adam's (1e-6).
        scalar_learning_rate: Adam's for the logarithm of the step size (1e-4 for the step size itself).
        steps: Optimiser steps, each on one sequence of edits.
        reliability: Weight of -log p on the edits' own prompts.
        generality: Weight of -log p on their rephrases.
        locality: Weight of the KL divergence from theta_0 on their locality prompts.
        judged: Edits of a sequence that the loss is taken on, drawn anew each time (48).
        shortest: Edits in a sequence at least, where the curriculum begins (1). An edit of n counts for about 1/n of
            the step size, so that no one step size serves both few and many: what is trained from 1 on does little
            once there are many.
        longest: Where the curriculum ends: edits in a sequence (1000).
        patience: Steps without a better running loss, divided by log10 of the length, after which sequences get
            longer (3000).
        growth: By which share of their length they do, but by 10 at least.
        loss_decay: Of the running loss (0.01).
        gradient_clip: Largest norm of the gradient.
        warm_up_edits: Edits that the normaliser and the units come from. The public code lets the normaliser go on
            while it trains.
    """

    layers: PositiveInt = 2
    token_width: PositiveInt = 64
    attention_width: PositiveInt = 64
    score_width: PositiveInt = 32
    heads: PositiveInt = 2
    feed_forward: PositiveInt = 96
    step_size: PositiveFloat = 10.0
    learning_rate: NonNegativeFloat = 1e-3
    scalar_learning_rate: NonNegativeFloat = 0.03
    steps: PositiveInt = 300
    reliability: NonNegativeFloat = 0.1
    generality: NonNegativeFloat = 0.1
    locality: NonNegativeFloat = 0.2
    judged: PositiveInt = 16
    shortest: PositiveInt = 1
    longest: PositiveInt = 200
    patience: NonNegativeInt = 30
    growth: NonNegativeFloat = 0.25
    loss_decay: NonNegativeFloat = 0.03
    gradient_clip: PositiveOrInfinite = 100.0
    warm_up_edits: PositiveInt = 500

    def __post_init__(self) -> None:
        check_fields(self)
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(f"shortest must be from 1 to longest, not {self.shortest} with longest {self.longest}")
