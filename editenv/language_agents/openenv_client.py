"""A client of the OpenEnv server; needs the extra ``openenv``, and neither torch nor the model.

with LifelongEditClient(base_url="http://localhost:8000").sync() as client:
    result = client.reset(seed=0)
    result = client.step(EditAction(modules={"layers.3.mlp.down_proj": StepSize(1.0, 0.1)}))
"""

from typing import Any

from openenv.core.client_types import StepResult
from openenv.core.env_client import EnvClient

from editenv.language_agents.openenv_types import EditAction, EditObservation, EditState, as_json


class LifelongEditClient(EnvClient[EditAction, EditObservation, EditState]):
    """Plays an episode on a server; ``.sync()`` for a client that is not asynchronous.

    ``reset`` and ``step`` raise a RuntimeError with the server's message where it refuses something; the episode is
    then as it was.
    """

    def _step_payload(self, action: EditAction) -> dict[str, Any]:
        return as_json(action)

    def _parse_result(self, payload: dict[str, Any]) -> StepResult[EditObservation]:
        reward, done = payload.get("reward"), payload.get("done", False)
        observation = EditObservation(**payload["observation"], reward=reward, done=done)
        return StepResult(observation=observation, reward=reward, done=done)

    def _parse_state(self, payload: dict[str, Any]) -> EditState:
        return EditState(**payload)
