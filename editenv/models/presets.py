"""Which modules are edited, and settings that go with them, by model: RLEdit's Table 3 (Li et al. 2025), and small public
models.

The small models' are by rule, and were not run here:

* methods that work on gradients edit the MLP's output in two layers, at two thirds and three quarters of the depth
  (:func:`gradient_layers`). Table 3 has 17 to 19 of 32 layers for Mistral, 11 to 30 of 32 for Llama, 32 to 40 of 42 for
  Gemma; on SmolLM2-135M such layers learn, and those in the middle hardly do.
* methods that look a fact up at its subject edit it in every layer from 15% to 30% of the depth
  (:func:`lookup_layers`). The paper of MEMIT has 3 to 8 of 28 layers for GPT-J, AlphaEdit's public code 4 to 8 of 32
  for Llama-3-8B.

Nothing here needs torch: command lines list the presets, and check a preset's name, before they import it.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

TABLE_3 = "RLEdit, Table 3"
BY_RULE = "by rule, not run here"


@dataclass(frozen=True, slots=True)
class Preset:
    """Where a model is edited, and settings of a hypernetwork that edits it there.

    Attributes:
        modules: Endings of the edited modules' names.
        rank: Of the hypernetwork's linear maps.
        locality: lambda_loc of eq. 8.
        methods: What it is for: methods that work on ``"gradients"``, or those that ``"look up"`` a fact at its
            subject, which take its modules alone.
        source: Where it comes from.
        observed_tokens: What the policy sees of a batch; this and what follows None where the source does not say.
        step_size: Start of lr_m, relative to a typical output.
        ridge: Start of lambda_m, relative to a key's mean squared norm.
        epsilon: Ridge on the text's key covariance; with it the network has the preconditioner P.
        learning_rate: Of the network.
        scalar_learning_rate: Of step size and ridge.
    """

    modules: tuple[str, ...]
    rank: int
    locality: float
    methods: Literal["gradients", "look up"] = "gradients"
    source: str = TABLE_3
    observed_tokens: Literal["answers", "all"] | None = None
    step_size: float | None = None
    ridge: float | None = None
    epsilon: float | None = None
    learning_rate: float | None = None
    scalar_learning_rate: float | None = None

    @property
    def said(self) -> dict[str, Any]:
        """Those of its fields that the source says something of."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def gradient_layers(layers: int) -> tuple[int, ...]:
    """Two layers at two thirds and three quarters of the depth; of a model of one layer that one."""
    first = min(2 * layers // 3, max(0, layers - 2))
    return tuple(dict.fromkeys((first, min(max(first + 1, 3 * layers // 4), layers - 1))))


def lookup_layers(layers: int) -> tuple[int, ...]:
    """Every layer from 15% to 30% of the depth."""
    return tuple(range(15 * layers // 100, 30 * layers // 100 + 1))


def _layers(projection: str, first: int, last: int) -> tuple[str, ...]:
    return tuple(f"layers.{i}.mlp.{projection}_proj" for i in range(first, last + 1))


def _by_rule(layers: int) -> dict[str, Preset]:
    """Both kinds, for a model of so many layers whose MLPs are Llama's; rank and lambda_loc are among Table 3's."""
    modules = {
        "gradients": tuple(f"layers.{i}.mlp.down_proj" for i in gradient_layers(layers)),
        "look-up": tuple(f"layers.{i}.mlp.down_proj" for i in lookup_layers(layers)),
    }
    return {
        "gradients": Preset(modules["gradients"], 512, 0.6, "gradients", BY_RULE),
        "look-up": Preset(modules["look-up"], 512, 0.6, "look up", BY_RULE),
    }


SMALL_MODELS = {
    "qwen3-0.6b": 28,
    "llama-3.2-1b": 16,
    "gemma-3-1b": 26,
    "smollm2-360m": 32,
    "smollm2-1.7b": 24,
}
"""Layers (``num_hidden_layers``) of Qwen/Qwen3-0.6B, meta-llama/Llama-3.2-1B, google/gemma-3-1b-pt,
HuggingFaceTB/SmolLM2-360M and HuggingFaceTB/SmolLM2-1.7B on the Hugging Face hub; read in copies of their
configurations, as the hub itself could not be reached."""

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
    # As in agents/settings/smollm2-135m/rledit-p.json.
    "smollm2-135m/counterfact": Preset(
        ("layers.26.mlp.down_proj",),
        rank=64,
        locality=2.0,
        source="searched here on CounterFact's validation subjects",
        observed_tokens="all",
        step_size=0.485,
        ridge=0.0149,
        epsilon=0.0889,
        learning_rate=0.001,
        scalar_learning_rate=0.05,
    ),
    # As in agents/settings/smollm2-135m/memit-rehearsed.json.
    "smollm2-135m/look-up": Preset(
        tuple(f"layers.{i}.mlp.down_proj" for i in (4, 6, 8)),
        rank=64,
        locality=2.0,
        methods="look up",
        source="chosen here by hand, on twelve corrections",
    ),
    **{f"{model}/{kind}": row for model, layers in SMALL_MODELS.items() for kind, row in _by_rule(layers).items()},
}
"""By model and data set, or by model and kind of method."""

OF_MODEL = {"smollm2-135m": "smollm2-135m/counterfact"}
"""Presets whose modules are edited by default, by the model's name."""


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
