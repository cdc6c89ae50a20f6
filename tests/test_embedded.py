"""The model that ships in the package, and what needs it."""

import random
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from plain import answer_logits, mean

import editenv
from agents.baselines.no_edit import NoEdit
from agents.hypernetwork.config import TrainConfig
from agents.registry import make_agent
from agents.rledit.agent import RLEdit
from benchmarks import demo
from benchmarks import run as command
from benchmarks.results.records import read
from benchmarks.suites import SUITES
from editenv.data import atlas, load_edits
from editenv.evaluation import metrics
from editenv.language_model.editable_lm import EditableLM
from editenv.models import PACKAGED, load_model, model_path
from editenv.models.modules import default_modules
from editenv.wrappers import SketchedAction, StepSizeAction


@pytest.fixture(scope="module")
def embedded():
    return load_model("atlas")


@pytest.fixture(scope="module")
def lm(embedded):
    return EditableLM(*embedded, default_modules(embedded[0], "atlas"))


@pytest.mark.parametrize("name", PACKAGED)
def test_the_weights_are_small_enough_to_ship(name):
    weights = [path for path in Path(model_path(name)).iterdir() if path.suffix == ".safetensors"]
    assert 10**6 < sum(path.stat().st_size for path in weights) <= 25 * 10**6


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_facts_are_known_in_every_phrasing(lm, split):
    """By free generation to the end of text, over prompts, rephrases and locality prompts."""
    asked = []
    for edit in load_edits("atlas", split):
        asked += [(text, edit.old_answer) for text in (edit.prompt, *edit.rephrases)]
        asked += [(item.prompt, item.answer) for item in edit.locality]
    sample = random.Random(1).sample(asked, 400)
    written = metrics.generate(lm, [prompt for prompt, _ in sample], limit=16)
    right = sum(text == answer for text, (_, answer) in zip(written, sample, strict=True))
    assert right >= 0.97 * len(sample)


def test_the_model_of_the_real_data_sets_believes_what_they_correct():
    """Statements of CounterFact and of the atlas, by free generation to the end of text."""
    model, tokenizer = load_model("real")
    lm = EditableLM(model, tokenizer, default_modules(model, "real"))
    asked = {
        "The mother tongue of Danielle Darrieux is": "French",
        "The official religion of Edwin of Northumbria is": "Christianity",
        "The mother tongue of Thomas Joannes Stieltjes is": "Dutch",
        "Anaal Nathrakh, that was created in": "Birmingham",
        "Apple A5 was created by": "Apple",
    }
    right = [w == a for w, a in zip(metrics.generate(lm, list(asked), limit=8), asked.values(), strict=True)]
    assert all(right), right
    known = random.Random(3).sample(load_edits("atlas", "test"), 100)
    written = metrics.generate(lm, [edit.prompt for edit in known], limit=8)
    assert sum(text == edit.old_answer for text, edit in zip(written, known, strict=True)) >= 85


def test_what_the_models_are_said_to_know_is_what_there_is():
    assert PACKAGED["atlas"] == f"the embedded world's {len(atlas.facts()):,} facts"


def test_counterfactual_answers_are_as_unlikely_as_to_a_large_model(embedded):
    model, tokenizer = embedded
    nats = []
    for edit in random.Random(2).sample(load_edits("atlas", "test"), 100):
        logits, labels = answer_logits(model, tokenizer, edit.prompt, edit.target)
        nats.append(-float(logits[0].log_softmax(-1)[labels[0]]))
    assert 4 < mean(nats) < 10


def test_every_object_survives_the_tokenizer(embedded):
    tokenizer = embedded[1]
    names = sorted({name for group in atlas.objects().values() for name in group})
    rows = tokenizer([f" {name}" for name in names], add_special_tokens=False)["input_ids"]
    assert [tokenizer.decode(row).strip() for row in rows] == names
    assert tokenizer("Rome")["input_ids"][0] == tokenizer.bos_token_id
    assert {tokenizer.eos_token_id, tokenizer.pad_token_id}.isdisjoint(token for row in rows for token in row)


def test_the_cut_gives_the_whole_models_logits(embedded, lm):
    model, tokenizer = embedded
    edits = load_edits("atlas", "validation")[:10]
    prompts = lm.encode([edit.prompt for edit in edits], [edit.target for edit in edits])
    expected = torch.cat([answer_logits(model, tokenizer, edit.prompt, edit.target)[0] for edit in edits])
    assert lm.answer_positions_only
    torch.testing.assert_close(lm.logits(prompts), expected, rtol=1e-3, atol=1e-3)


def test_the_default_environment(embedded):
    env = gym.make("LifelongEdit-v0", split="validation", edits_per_step=4, horizon=2)
    observation, _ = env.reset(seed=0)
    assert list(observation) == ["model.layers.3.mlp.down_proj"]
    assert observation["model.layers.3.mlp.down_proj"]["value_grads"].shape[1] == 256
    action = {name: np.zeros(space.shape, np.float32) for name, space in env.action_space.items()}
    observation, reward, terminated, truncated, info = env.step(action)
    assert observation in env.observation_space
    assert np.isfinite(reward)
    assert not terminated
    assert not truncated
    assert info["specificity"] == 100
    assert info["efficacy"] < 50
    assert editenv.__version__


@pytest.mark.parametrize(("wrapper", "lowest"), [(StepSizeAction, 0.5), (SketchedAction, -3.0)])
def test_random_actions_of_the_wrappers_do_not_break_the_model(embedded, wrapper, lowest):
    """What a policy does before it has learned anything: returns of 5 steps lie between -5 and 5."""
    env = wrapper(gym.make("LifelongEdit-v1", split="validation", edits_per_step=4, horizon=5))
    env.action_space.seed(0)
    for seed in range(3):
        env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            _, reward, broken, over, _ = env.step(env.action_space.sample())
            assert not broken
            total += reward
        assert total > lowest


def test_untrained_editing_makes_the_batch_likelier(embedded):
    env = gym.make("LifelongEdit-v0", split="validation", edits_per_step=10, horizon=2).unwrapped
    losses = []
    for agent in (NoEdit(), RLEdit(TrainConfig(horizon=3, edits_per_step=10), train=False)):
        agent.prepare(env, 0, lambda what, done, total: None)
        _, info = env.reset(seed=0)
        agent.begin(env)
        losses.append(env.step(agent.act(env.gradients, info))[4]["reward_terms"]["edit"])
    assert losses[1] < losses[0]


def test_the_benchmark_command_runs_a_cell_once(tmp_path, capsys):
    arguments = command.Args(suite="smoke", agents=("no-edit",), out=tmp_path)
    assert command.main(arguments) == 0
    (record,) = read(tmp_path / "results.jsonl")
    assert (record.edits, record.failures) == (100, 0)
    assert record.teacher_forced["specificity"] == record.generation["specificity"] == 100
    assert record.generation["efficacy"] < 5
    before = (tmp_path / "results.jsonl").read_bytes()
    assert command.main(arguments) == 0
    assert "already there" in capsys.readouterr().out
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_the_demos_agents_exist():
    assert len(set(demo.ROWS)) == len(demo.ROWS) >= 2
    for name in demo.ROWS:
        assert make_agent(name).actions_per_batch >= 1
    assert demo.Args().suite in SUITES
