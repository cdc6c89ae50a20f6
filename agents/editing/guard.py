"""What a batch of edits may do to a model before it is undone: bounds on held-out text and on the weights' norms."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from editenv.arguments import PositiveOrInfinite, check_fields

if TYPE_CHECKING:  # the command line's help is printed without torch
    import torch

HELD_OUT = (
    "The train left the station a few minutes late because of the snow.",
    "She put the letter on the table and opened the window.",
    "Most of the land along the river is used for growing wheat.",
    "The meeting was moved to Thursday so that everyone could come.",
    "He learned to play the piano when he was seven years old.",
    "In summer the lake is warm enough to swim in until the evening.",
    "The museum shows paintings, furniture and maps from three centuries.",
    "A good soup needs time, salt and vegetables that are in season.",
    "The old bridge was closed after engineers found cracks in its pillars.",
    "Children under twelve travel free if they come with an adult.",
    "The results will be published when the committee has read them.",
    "They walked through the forest until the path came to an end.",
    "Water freezes at zero degrees and boils at one hundred.",
    "The shop on the corner sells bread, milk and newspapers.",
    "After the war many families moved to the cities to find work.",
    "The software reads a file, checks every line and writes a report.",
)
"""Sentences of no particular subject, on which a broken model shows."""


class BadEditError(RuntimeError):
    """A batch broke a bound of the guard, and the run was to stop then."""


@dataclass(frozen=True)
class Guard:
    """What one batch may do to the model before it is taken back.

    Raises:
        ValueError: For a bound that is not a positive number (infinity is one); names it.

    Attributes:
        max_perplexity: Largest factor by which a batch may raise the perplexity of held-out text.
        max_weight_norm: Largest factor by which a batch may raise the norm of an edited weight.
        max_drift: Largest factor by which the perplexity of held-out text may be above the unedited model's, after any
            batch: small steps add up. None sets no such bound.
        max_lost: Largest share of earlier edits that a batch may undo, of up to 20 that held before it. None does not
            ask them.
        retry: Whether `editenv edit` tries a bad batch again in halves, down to single edits, before edits are given
            up.
        on_bad: Go on without a bad batch, or stop with an error; either way the model is as it was before the batch.
    """

    max_perplexity: PositiveOrInfinite = 3.0
    max_weight_norm: PositiveOrInfinite = 10.0
    max_drift: PositiveOrInfinite | None = 1.5
    max_lost: PositiveOrInfinite | None = 0.3
    retry: bool = True
    on_bad: Literal["roll-back", "stop"] = "roll-back"

    def __post_init__(self) -> None:
        check_fields(self)

    def broken_weight_bound(
        self, before: Mapping[str, "torch.Tensor"], after: Mapping[str, "torch.Tensor"]
    ) -> str | None:
        """Which weight a batch has made infinite, NaN or too large, as a sentence; None if there is none.

        Args:
            before: The edited weights by module before the batch, of any shape.
            after: The same weights after it.
        """
        for name, weight in after.items():
            norm, norm_before = float(weight.norm()), float(before[name].norm())
            if not math.isfinite(norm):
                return f"module {name} is no longer finite"
            if norm > self.max_weight_norm * norm_before:
                change = f"from {norm_before:.4g} to {norm:.4g}, over {self.max_weight_norm:g} times"
                return f"module {name}: its norm went {change}"
        return None

    def broken_memory_bound(self, held: int, lost: int) -> str | None:
        """Whether a batch has undone too many earlier edits, as a sentence; None if it has not.

        Args:
            held: Earlier edits that held before the batch, of those that were asked.
            lost: How many of them do not after it.
        """
        if self.max_lost is not None and lost > self.max_lost * held:
            return f"{lost} of {held} earlier edits that were asked do not hold any more, over {self.max_lost:.0%}"
        return None

    def broken_perplexity_bound(self, before: float, after: float, unedited: float) -> str | None:
        """By how much held-out text has become too unlikely, as a sentence; None if it has not.

        Args:
            before: Perplexity (per token) before the batch.
            after: Perplexity after it; NaN breaks every bound.
            unedited: Perplexity of the unedited model.
        """
        if not after <= self.max_perplexity * before:
            change = f"from {before:.4g} to {after:.4g}, over {self.max_perplexity:g} times"
            return f"perplexity of held-out text went {change}"
        if self.max_drift is not None and not after <= self.max_drift * unedited:
            above = f"over {self.max_drift:g} times the unedited model's {unedited:.4g}"
            return f"perplexity of held-out text is {after:.4g}, {above}"
        return None
