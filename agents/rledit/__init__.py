"""RLEdit (Li et al. 2025): a hypernetwork trained by reinforcement learning over whole editing trajectories.

    python -m agents.rledit --output runs/policy                 # trains on the embedded model
    python -m agents.rledit --output runs/policy --train.preconditioner --train.actions-per-batch 4

How it is trained is in :mod:`agents.rledit.trainer`. A killed run goes on from its checkpoint when the same command is
given again, to the same result.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.rledit.agent import RLEdit

__all__ = ["RLEdit"]


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: the command's help needs no torch."""
    if name == "RLEdit":
        from agents.rledit.agent import RLEdit

        return RLEdit
    raise AttributeError(f"module {__name__} has no attribute {name!r}")
