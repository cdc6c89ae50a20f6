"""An episode played through an OpenEnv server is that of the Gymnasium wrappers."""

import socket
import threading
import time

import pytest

pytest.importorskip("openenv.core", reason="the extra openenv is not installed")
import uvicorn
from fastapi.testclient import TestClient
from openenv.core import GenericEnvClient

from editenv.language_agents.choices import StepSize
from editenv.language_agents.openenv_client import LifelongEditClient
from editenv.language_agents.openenv_server import make_app
from editenv.language_agents.openenv_types import EditAction


@pytest.fixture
def app(arguments):
    return make_app(**arguments)


@pytest.fixture
def address(app):
    """Of the server in a thread of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def test_the_typed_client_plays_an_episode(address, choices, by_gymnasium):
    observations, rewards = by_gymnasium
    with LifelongEditClient(base_url=address).sync() as client:
        result = client.reset(seed=5, episode_id="mine")
        assert (result.done, result.reward, result.observation.batches) == (False, None, 3)
        assert result.observation.text.startswith("0 of 3 batches are done.")
        for number, (chosen, reward) in enumerate(zip(choices, rewards, strict=True)):
            sizes = {module: StepSize(**numbers) for module, numbers in chosen.items()}
            layers = [numbers["log10_weight_norm"] for numbers in result.observation.modules.values()]
            assert layers == observations[number]["layers"][:, 0].tolist()
            result = client.step(EditAction(modules=sizes))
            assert (result.reward, result.done) == (reward, number == 2)
        state = client.state()
        assert (state.episode_id, state.seed, state.step_count, state.done) == ("mine", 5, 3, True)
        assert state.returned == pytest.approx(sum(rewards))
        with pytest.raises(RuntimeError, match="the episode is over"):
            client.step(EditAction(modules={}))


def test_a_bad_action_is_named_and_changes_nothing(address, choices, by_gymnasium):
    with GenericEnvClient(base_url=address).sync() as client, LifelongEditClient(base_url=address).sync() as other:
        client.reset(seed=5)
        other.reset(seed=6)
        for action, said in (
            ({"modules": {"layers.1.mlp.down_proj": {"step": "big"}}}, "step must be a finite number"),
            (
                {"modules": {"layers.1.mlp.down_proj": {"step": 1}, "layers.9": {"step": 1}}},
                "unknown module 'layers.9'",
            ),
            ({"modules": ["layers.1.mlp.down_proj"]}, "modules must map names"),
        ):
            with pytest.raises(RuntimeError, match=said):
                client.step(action)
        with pytest.raises(RuntimeError, match="reset: unknown horizon"):
            client.reset(seed=5, horizon=2)
        other.step(EditAction(modules=choices[1]))  # an episode of its own, on weights of its own
        result = client.step({"modules": choices[0]})
        assert result.reward == by_gymnasium[1][0]


def test_what_the_server_says_of_itself(app):
    with TestClient(app) as client:
        assert client.get("/health").json()["status"] == "healthy"
        schema = client.get("/schema").json()
        step_size = schema["action"]["properties"]["modules"]["additionalProperties"]
        assert step_size["required"] == ["step"]
        assert set(step_size["properties"]) == {"step", "ridge"}
        assert "returned" in schema["state"]["properties"]
        assert client.get("/metadata").json()["name"] == "lifelong_edit"
        begun = client.post("/reset", json={"seed": 5}).json()
        assert len(begun["observation"]["edits"]) == 3
