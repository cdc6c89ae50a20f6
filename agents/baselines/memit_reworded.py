"""memit-rehearsed whose values hold for other wordings of a fact, which it learned from training edits."""

from collections.abc import Sequence

from agents.base import ProgressCallback
from agents.baselines.lookup import Lookup, look_up
from agents.baselines.memit_rehearsed import RehearsedMEMIT
from agents.baselines.rewordings import Rewordings
from agents.baselines.values import LayerValueConfig, ValueConfig
from agents.covariance import training_edits
from editenv.arguments import NonNegativeFloat, PositiveFloat, PositiveInt
from editenv.data import Edit
from editenv.env import LifelongEditEnv


class RewordedMEMIT(RehearsedMEMIT):
    """ROME and MEMIT put texts that the model wrote itself before a prompt, so that a value does not depend on what came
    before (x_j of eq. 4).
    It then holds after any beginning, but for the prompt's own words.

    Here other wordings of the same question take the place of those texts
    (:class:`agents.baselines.rewordings.Rewordings`): a value is searched for all of them, by default one a step in
    turn, and its key is the mean of their keys.
    Where training edits do not show as many wordings as there are prefixes, the rest are prefixes as before.
    Whether a fact is said (passes) is judged by its own prompt alone.

    Args:
        value: As MEMIT has it; by default 12 steps of 1.0 within 2.25 times the value's length, over the prompt and three
            others in turn.
        weight, samples, epsilon, passes: As :class:`agents.baselines.memit_rehearsed.RehearsedMEMIT` has them.
    """

    learns = True

    def __init__(
        self,
        value: LayerValueConfig | ValueConfig | None = None,
        weight: PositiveFloat = 1000.0,
        samples: PositiveInt = 400,
        epsilon: NonNegativeFloat = 1e-4,
        passes: PositiveInt = 5,
    ) -> None:
        value = value or LayerValueConfig(steps=12, learning_rate=1.0, clamp=2.25, prefixes=3, in_turn=True)
        super().__init__(value, weight, samples, epsilon, passes)

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        super().prepare(env, seed, progress)
        self._rewordings = Rewordings(training_edits(env))

    def _look_up(self, edits: Sequence[Edit]) -> Lookup:
        rewordings = [self._rewordings.of(edit, self.value.prefixes) for edit in edits]
        return look_up(self._env.language_model, edits, self.value.token, self._prefixes, rewordings)
