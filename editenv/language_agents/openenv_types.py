"""What goes over the wire between an OpenEnv server and its client; needs the extra ``openenv``."""

from collections.abc import Mapping
from typing import Annotated, Any

from openenv.core.env_server.types import Action, Observation, State
from pydantic import Field, SkipValidation, WithJsonSchema

from editenv.language_agents.choices import StepSize

_STEP_SIZE = {
    "type": "object",
    "properties": {
        "step": {"type": "number", "minimum": 0, "description": "size of the gradient step; 0 changes nothing"},
        "ridge": {"type": "number", "exclusiveMinimum": 0, "default": 0.1, "description": "strength of the ridge"},
    },
    "required": ["step"],
    "additionalProperties": False,
}


class EditAction(Action):
    """A step size and a ridge for each module that is to be edited.

    The numbers are checked by the episode, whose message names the argument: OpenEnv's own says "Invalid message".
    """

    modules: Annotated[
        Mapping[str, StepSize | Mapping[str, float]],
        SkipValidation,
        WithJsonSchema({"type": "object", "additionalProperties": _STEP_SIZE}),
    ] = Field(description="by name of the edited module, in full or its ending; those left out stay as they are")


class EditObservation(Observation):
    """As :class:`editenv.language_agents.episode.Situation` has it; ``text`` is the same for a language model."""

    batch: int = 0
    batches: int = 0
    attempt: int = 0
    edits: list[dict[str, str]] = Field(default_factory=list)
    modules: dict[str, dict[str, float]] = Field(default_factory=dict)
    scores: dict[str, float | None] = Field(default_factory=dict)
    text: str = ""


class EditState(State):
    """Where an episode stands."""

    seed: int | None = None
    batches: int = 0
    returned: float = 0.0
    done: bool = False


def as_json(action: EditAction) -> dict[str, Any]:
    """An action as it goes over the wire."""
    modules = {
        name: {"step": size.step, "ridge": size.ridge} if isinstance(size, StepSize) else size
        for name, size in action.modules.items()
    }
    return {"modules": modules}
