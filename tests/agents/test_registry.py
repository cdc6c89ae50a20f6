import copy
import json
import pickle
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch

from agents.base import Agent
from agents.baselines.malmen import MALMEN, MALMENConfig
from agents.hypernetwork.config import PolicyConfig, TrainConfig
from agents.hypernetwork.networks import make_policy, save_policy
from agents.registry import make_agent, make_method, resolved_settings, settings_of, takes_settings
from agents.rledit.agent import RLEdit
from agents.rows import ROWS
from agents.settings import merged, read_settings

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


@pytest.mark.parametrize("name", ROWS)
def test_every_name_makes_an_agent_of_its_own(name):
    first, second = make_agent(name), make_agent(name)
    assert isinstance(first, Agent)
    assert first is not second
    assert first.actions_per_batch >= 1
    assert ROWS[name].about
    assert ROWS[name].changes == first.changes, "as the class declares it"


def test_an_agent_of_your_own_by_file(make_env, tmp_path):
    file = tmp_path / "my_file.py"
    file.write_text(OWN)
    agent = make_agent(f"{file}:Mine")
    env = make_env(actions_per_batch=agent.actions_per_batch)
    _, info = env.reset(seed=0)
    agent.begin(env)
    before = env.language_model.snapshot()
    *_, info = env.step(agent.act(env.gradients, info))
    assert info["attempt"] == 1
    assert all(torch.equal(value, before[name]) for name, value in env.language_model.snapshot().items())


def test_an_agent_by_module():
    assert type(make_agent("agents.baselines.no_edit:NoEdit")).__name__ == "NoEdit"


@pytest.mark.parametrize(
    ("name", "words"),
    [("rl-edit", "rledit"), ("nowhere.py:Mine", "nowhere.py"), ("{file}:Other", "Other"), ("{file}:NotOne", "Agent"),
     ("agents.baselines.no_edit:Nothing", "Nothing"), ("no_such_module:Mine", "no_such_module")],
)  # fmt: skip
def test_what_is_no_agent_is_named(tmp_path, name, words):
    file = tmp_path / "my_file.py"
    file.write_text(OWN)
    with pytest.raises(ValueError, match=words):
        make_agent(name.format(file=file))


def test_a_method_with_settings_of_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "memit-seq.json").write_text(json.dumps({"settings": {"weight": 123.0}, "chosen": "by hand"}))
    agent = make_agent("memit-seq@./")
    assert (agent.weight, agent.cache_keys) == (123.0, True)
    assert make_agent(f"memit-seq@{tmp_path}/").weight == 123.0
    packaged = read_settings("memit-seq", "atlas-long")
    assert make_agent("memit-seq@atlas-long").weight == packaged["weight"] == make_agent("memit-seq-long").weight
    with pytest.raises(FileNotFoundError, match=r"no settings of 'memit' in './': there is no memit\.json"):
        make_agent("memit@./")
    with pytest.raises(FileNotFoundError, match=r"with a slash: \./mine"):
        make_agent("memit@mine")
    with pytest.raises(ValueError, match=r"unknown agent 'memitt@\./'"):
        make_agent("memitt@./")
    for content, words in (("{", "memit.json: "), ("[]", "must be an object"), ('{"settings": {"wait": 1}}', "'wait'")):
        (tmp_path / "memit.json").write_text(content)
        with pytest.raises(ValueError, match=words):
            make_agent("memit@./")


DEFINING = {
    "ft-l": lambda agent: agent.norm_constraint is not None,
    "memit-seq": lambda agent: agent.cache_keys,
    "locft-bf-batch": lambda agent: agent.edits == "batch",
    "memit-seq-nas": lambda agent: agent.cache_keys,
    "mend-retrained": lambda agent: agent.retrain_every == 3,
    "malmen-retrained": lambda agent: agent.retrain_every == 3,
    "mend": lambda agent: (agent.config.policy.network, agent.config.policy.blocks) == ("mend", 2),
    "malmen": lambda agent: (agent.config.policy.network, agent.config.policy.blocks) == ("malmen", 2),
    "mend-k4": lambda agent: agent.actions_per_batch == 4 and agent.config.policy.network == "mend",
    "malmen-k4": lambda agent: agent.actions_per_batch == 4 and agent.config.policy.network == "malmen",
    "ultraedit-k4": lambda agent: agent.actions_per_batch == 4,
    "stableedit-k4": lambda agent: agent.actions_per_batch == 4,
    "rledit-k4": lambda agent: agent.actions_per_batch == 4 and not agent.config.preconditioner,
    "mend-rledit": lambda agent: (agent.config.policy.network, agent.config.policy.blocks) == ("mend", 2),
    "malmen-rledit": lambda agent: (agent.config.policy.network, agent.config.policy.blocks) == ("malmen", 2),
    "untrained-p": lambda agent: agent.config.preconditioner and not agent.train,
    "rledit-p": lambda agent: agent.config.preconditioner,
    "rledit-p-long": lambda agent: agent.config.preconditioner and agent.config.horizon == 150,
    "rledit-p-k4": lambda agent: agent.config.preconditioner and agent.actions_per_batch == 4,
}


@pytest.mark.parametrize("name", DEFINING)
def test_a_row_is_that_row_whatever_its_settings(name):
    """On a model that no settings were chosen for, with settings about something else, and on the embedded model."""
    else_ = {
        "ft-l": {"steps": 2},
        "memit-seq": {"value": {"clamp": 2.0}},
        "locft-bf-batch": {"epochs": 2},
        "memit-seq-nas": {"value": {"clamp": 2.0}},
        "ultraedit-k4": {"ridge": 0.5},
        "stableedit-k4": {"ridge": 0.5},
    }.get(name, {"config": {"locality": 0.3, "policy": {"step_size": 0.1}}})
    for settings in ({}, else_, read_settings(name)):
        assert DEFINING[name](make_method(name, settings))


def test_rows_that_share_a_class_are_told_apart_by_what_defines_them():
    rows = [(row.agent, str(row.arguments), row.settings, str(row.fixed)) for row in ROWS.values()]
    assert len(set(rows)) == len(rows)
    own = {name for name, row in ROWS.items() if row.settings == f"atlas/{name}" and row.arguments}
    assert set(DEFINING) == own


def test_settings_are_merged_object_by_object():
    start = {"config": {"policy": {"network": "mend", "blocks": 2}, "horizon": 5}, "retrain_every": 3}
    over = {"config": {"policy": {"blocks": 4}}, "steps": 1}
    found = merged(start, over)
    assert found == {
        "config": {"policy": {"network": "mend", "blocks": 4}, "horizon": 5},
        "retrain_every": 3,
        "steps": 1,
    }
    assert start["config"]["policy"]["blocks"] == 2


def test_a_choice_that_there_is_none_of_is_refused():
    for method, settings, words in (
        ("rome", {"keys": "publik"}, "keys must be one of 'consistent', 'public', not 'publik'"),
        (
            "memit",
            {"value": {"token": "subject-last"}},
            "value.token must be one of 'subject_last', 'last', not 'subject-last'",
        ),
        ("rledit", {"config": {"credit": "trajectorie"}}, "config.credit must be one of"),
        ("mend", {"config": {"policy": {"network": "men"}}}, "config.policy.network must be one of"),
    ):
        with pytest.raises(ValueError, match=words):
            make_method(method, settings)


def test_a_policy_brings_its_own_config(tmp_path):
    save_policy(make_policy({"m": (4, 3)}, PolicyConfig()), tmp_path, {"train": asdict(TrainConfig())})
    with pytest.raises(ValueError, match="give one or the other"):
        RLEdit(TrainConfig(), policy=tmp_path)
    with pytest.raises(ValueError, match="give one or the other"):
        MALMEN(MALMENConfig(), policy=tmp_path)
    assert RLEdit(policy=tmp_path).config == TrainConfig()


@pytest.mark.parametrize(
    ("name", "value"),
    [("trajectories", -1), ("horizon", 0), ("memory_samples", 0), ("discount", 1.1), ("actions_per_batch", 0)],
)
def test_what_no_training_can_be_is_refused(name, value):
    with pytest.raises(ValueError, match=name):
        TrainConfig(**{name: value})


VARIANTS = {
    "untrained": ("rledit", {"train": False}),
    "rledit-fixed": ("rledit", {"config.environment": "fixed"}),
    "rledit-step-credit": ("rledit", {"config.credit": "step"}),
    "rledit-no-memory": ("rledit", {"config.memory_batches": 0}),
    "rledit-no-regularization": ("rledit", {"config.regularization": 0.0}),
    "rledit-previous-reference": ("rledit", {"config.reference": "previous"}),
    "rledit-p-fixed": ("rledit-p", {"config.environment": "fixed"}),
    "rledit-p-long-step-credit": ("rledit-p-long", {"config.credit": "step"}),
    "untrained-p-k4": ("rledit-p-k4", {"train": False}),
    "demo-untrained": ("rledit-p", {"config.trajectories": 5, "train": False}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_differs_from_its_row_in_what_its_name_says_and_nothing_else(name):
    of, changes = VARIANTS[name]
    base, variant = ({s.name: s.value for s in resolved_settings(row)} for row in (of, name))
    assert {key: variant[key] for key in variant if variant[key] != base[key]} == changes
    settings = {"config": {"trajectories": 3, "environment": "lifelong", "credit": "trajectory"}, "train": True}
    agent = make_method(name, settings)  # settings of one's own do not undo it
    made = dict({f"config.{k}": v for k, v in asdict(agent.config).items()}, train=agent.train)
    assert all(made[key] == value for key, value in changes.items())


def test_each_hyperparameter_says_where_it_comes_from():
    sources = {s.name: (s.value, s.source) for s in resolved_settings("rledit-fixed")}
    settings = read_settings("rledit")["config"]
    assert sources["config.environment"] == ("fixed", "row")
    assert sources["config.learning_rate"] == (settings["learning_rate"], "settings")
    assert sources["config.policy.ridge"] == (settings["policy"]["ridge"], "settings")
    assert sources["config.gradient_clip"] == (1.0, "default")
    assert {s.name: s.source for s in resolved_settings("ft-l")}["norm_constraint"] == "settings"
    assert {s.name: s.source for s in resolved_settings("memit-seq")}["cache_keys"] == "row"
    with pytest.raises(ValueError, match="unknown row 'mimit'"):
        resolved_settings("mimit")


class Changing(Agent):
    """Keeps one argument under another name, and sets attributes that are no arguments."""

    flag = True

    def __init__(self, rate=0.5, *, table=None, config=None):
        self._rate, self.table = rate, table
        self.config = config or TrainConfig(horizon=7)
        self.scratch = 123

    def act(self, observation, info):
        return {}


def test_what_is_recorded_is_what_the_agent_was_constructed_with():
    agent = Changing(0.25, table={"a": 1})
    agent.later, agent._rate = "set by chance", 9.0
    assert settings_of("mine", agent) == {
        "actions_per_batch": 1,
        "rate": 0.25,
        "table": {"a": 1},
        "config": json.loads(json.dumps(asdict(TrainConfig(horizon=7)))),
    }
    for copied in (copy.deepcopy(agent), pickle.loads(pickle.dumps(agent))):
        assert settings_of("mine", copied) == settings_of("mine", agent)
    with pytest.raises(TypeError, match="speed"):
        Changing(speed=1)


def test_rows_are_listed_without_importing_torch():
    code = "import sys, agents.registry as r; assert len(r.ROWS) > 40; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"


def test_every_row_names_its_paper_or_is_ours():
    ours = {"no-edit", "fine-tune", "joint-fine-tune"}
    assert {name for name, row in ROWS.items() if not row.paper} == ours
    assert {name for name in ROWS if not takes_settings(name)} == {
        "no-edit", "rledit-packaged", *(name for name in ROWS if name.startswith("sb3-"))
    }  # fmt: skip
