"""The modules and settings of RLEdit's Table 3 (Li et al. 2025), by model and data set.

Nothing here needs torch: command lines list the presets, and check a preset's name, before they import it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Preset:
    """One row of RLEdit's Table 3.

    Attributes:
        modules: Endings of the edited modules' names.
        rank: Of the hypernetwork's linear maps.
        locality: lambda_loc of eq. 8.
    """

    modules: tuple[str, ...]
    rank: int
    locality: float


def _layers(projection: str, first: int, last: int) -> tuple[str, ...]:
    return tuple(f"layers.{i}.mlp.{projection}_proj" for i in range(first, last + 1))


_GEMMA = _layers("gate", 32, 40) + _layers("up", 32, 40)
_LLAMA = _layers("gate", 22, 30) + _layers("up", 22, 30)

PRESETS: dict[str, Preset] = {
    "llama-3-8b/zsre": Preset(_layers("gate", 11, 15) + _layers("up", 18, 24), 1024, 0.6),
    "llama-3-8b/counterfact": Preset(_LLAMA, 512, 0.6),
    "llama-3-8b/fever": Preset(_LLAMA, 1024, 0.6),
    "gemma-2-9b/zsre": Preset(_GEMMA, 512, 0.6),
    "gemma-2-9b/counterfact": Preset(_GEMMA, 1024, 0.6),
    "gemma-2-9b/fever": Preset(_GEMMA, 1024, 0.6),
    "mistral-7b/zsre": Preset(_layers("down", 17, 18), 1024, 0.8),
    "mistral-7b/counterfact": Preset(_layers("down", 17, 19), 1024, 0.8),
    "mistral-7b/fever": Preset(_layers("down", 17, 18), 1024, 0.6),
}
"""RLEdit (Li et al. 2025), Table 3, by model and data set."""


def preset(name: str) -> Preset:
    """A preset by its name.

    Raises:
        ValueError: If there is none.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def modules_of(modules: tuple[str, ...], name: str | None) -> tuple[str, ...]:
    """The modules that were named, or those of a preset; none if neither was given.

    Args:
        modules: Endings of module names, as given to ``--modules``.
        name: Of a preset, as given to ``--preset``.

    Raises:
        ValueError: If both were given, or there is no such preset.
    """
    if modules and name is not None:
        raise ValueError("preset: it names the modules; give --modules or --preset")
    return preset(name).modules if name is not None else modules
