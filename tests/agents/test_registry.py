import pytest
import torch

from agents.base import Agent
from agents.registry import AGENTS, make_agent

OWN = """
import torch
from agents.base import Agent

class Mine(Agent):
    actions_per_batch = 2
    def begin(self, env):
        self.env = env
    def act(self, observation, info):
        return {name: torch.zeros(env_shape) for name, env_shape in self.shapes().items()}
    def shapes(self):
        return {name: self.env.language_model.shape(name) for name in self.env.language_model.modules}

class NotOne:
    pass
"""


@pytest.mark.parametrize("name", AGENTS)
def test_every_name_makes_an_agent_of_its_own(name):
    first, second = make_agent(name), make_agent(name)
    assert isinstance(first, Agent)
    assert first is not second
    assert first.actions_per_batch >= 1
    assert AGENTS[name][0]


def test_an_agent_of_your_own_by_file(make_env, tmp_path):
    file = tmp_path / "my_file.py"
    file.write_text(OWN)
    agent = make_agent(f"{file}:Mine")
    env = make_env(actions_per_batch=agent.actions_per_batch)
    observation, info = env.reset(seed=0)
    agent.begin(env)
    before = env.language_model.snapshot()
    _, _, _, _, info = env.step(agent.act(observation, info))
    assert info["attempt"] == 1
    assert all(torch.equal(value, before[name]) for name, value in env.language_model.snapshot().items())


def test_an_agent_by_module():
    assert type(make_agent("agents.no_edit:NoEdit")).__name__ == "NoEdit"


@pytest.mark.parametrize(
    ("name", "words"),
    [("rl-edit", "rledit"), ("nowhere.py:Mine", "nowhere.py"), ("{file}:Other", "Other"), ("{file}:NotOne", "Agent"),
     ("agents.no_edit:Nothing", "Nothing"), ("no_such_module:Mine", "no_such_module")],
)  # fmt: skip
def test_what_is_no_agent_is_named(tmp_path, name, words):
    file = tmp_path / "my_file.py"
    file.write_text(OWN)
    with pytest.raises(ValueError, match=words):
        make_agent(name.format(file=file))
