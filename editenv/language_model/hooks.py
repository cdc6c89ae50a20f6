"""Looking into a model's forward pass, and changing it, for as long as a context lasts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


class StopForward(Exception):  # noqa: N818 - a signal, not an error
    """Ends a forward pass once what it was for has been seen."""


@contextmanager
def hooked(handle: RemovableHandle) -> Iterator[None]:
    """Removes a hook when the context ends, also after an error."""
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within the context, calling the module calls ``forward`` instead; its hooks run all the same."""
    shadowing = module.__dict__.get("forward")  # accelerate puts its own there
    module.forward = forward  # an instance attribute shadows the class's method
    try:
        yield
    finally:
        if shadowing is None:
            del module.forward
        else:
            module.forward = shadowing
