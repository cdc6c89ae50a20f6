"""What a language agent chooses: for each edited module a step size and a ridge, as JSON."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from editenv.arguments import NonNegativeFloat, PositiveFloat, check_fields

EXAMPLE = '{"modules": {"layers.3.mlp.down_proj": {"step": 1.0, "ridge": 0.1}}}'


class BadChoiceError(ValueError):
    """What was chosen cannot be read, or is no choice; names what is wrong with it. Nothing was changed."""


@dataclass(frozen=True)
class StepSize:
    """The two numbers of :class:`editenv.wrappers.StepSizeAction`, as they are and not as powers of ten.

    Attributes:
        step: How far the gradient step moves the module's outputs at the batch's tokens, relative to the length of the
            unedited outputs.
        ridge: Strength of the ridge, relative to the mean squared length of a key.
    """

    step: NonNegativeFloat
    ridge: PositiveFloat = 0.1

    def __post_init__(self) -> None:
        check_fields(self)


def step_sizes(chosen: Any, modules: Iterable[str]) -> dict[str, StepSize]:
    """The choice for each module that is to be edited, by its full name.

    Args:
        chosen: By module, named in full or by an ending of its name: a :class:`StepSize` or its fields.
        modules: Full names of the edited modules.

    Raises:
        BadChoiceError: If it is something else; names the argument.
    """
    modules = list(modules)
    if not isinstance(chosen, Mapping):
        raise BadChoiceError(f"modules must map names of modules to step and ridge, not be {chosen!r:.80}")
    sizes: dict[str, StepSize] = {}
    for ending, numbers in chosen.items():
        names = [name for name in modules if name == ending or name.endswith(f".{ending}")]
        if len(names) != 1:
            problem = "unknown module" if not names else "more than one module is called"
            raise BadChoiceError(f"modules: {problem} {ending!r}; the edited modules are {', '.join(modules)}")
        if names[0] in sizes:
            raise BadChoiceError(f"modules: {names[0]} is chosen twice")
        sizes[names[0]] = _step_size(ending, numbers)
    return sizes


def _step_size(module: str, numbers: Any) -> StepSize:
    """One module's two numbers."""
    if isinstance(numbers, StepSize):
        return numbers
    where = f"modules[{module!r}]"
    if not isinstance(numbers, Mapping):
        raise BadChoiceError(f'{where} must be {{"step": ..., "ridge": ...}}, not {numbers!r:.80}')
    if unknown := set(numbers) - {"step", "ridge"}:
        raise BadChoiceError(f"{where}: unknown {', '.join(sorted(map(str, unknown)))}; known are step and ridge")
    if "step" not in numbers:
        raise BadChoiceError(f"{where}: step is missing")
    try:
        return StepSize(**numbers)
    except ValueError as error:
        raise BadChoiceError(f"{where}: {error}") from None


def modules_in(reply: str) -> Any:
    """What the last JSON object with ``modules`` in a reply has there; the reply may say other things around it.

    Raises:
        BadChoiceError: If there is no such object.
    """
    decoder, position, choice = json.JSONDecoder(), 0, None
    while (position := reply.find("{", position)) >= 0:
        try:
            content, position = decoder.raw_decode(reply, position)
        except (ValueError, RecursionError):
            position += 1
        else:
            choice = content if "modules" in content else choice
    if choice is None:
        raise BadChoiceError(f"the reply holds no JSON object with modules; give {EXAMPLE}")
    if unknown := set(choice) - {"modules"}:
        raise BadChoiceError(f"the reply's JSON has unknown {', '.join(sorted(unknown))}; give {EXAMPLE}")
    return choice["modules"]
