"""Stable-Baselines3 on the tiny model: trained, saved, read without unpickling, resumed, played as a row."""

import json
import os
import pickle
import zipfile

import numpy as np
import pytest

pytest.importorskip("stable_baselines3", reason="the sb3 extra is not installed")
from stable_baselines3.common.callbacks import BaseCallback

from agents.hypernetwork.config import TrainConfig
from agents.rl.sb3 import Args, SB3Agent, check_identity, main, make_model, read_settings, train, wrapped
from agents.rl.sb3_checkpoints import load_buffer, restore, save, save_buffer
from editenv.env import LifelongEditEnv

NAMES = ("ppo", "a2c", "sac", "td3", "ddpg", "tqc")
CONFIG = TrainConfig(horizon=2, edits_per_step=3)


def quiet(what, done, total):
    pass


def quick(algo):
    settings = read_settings(algo)
    brief = {"n_steps": 4, "batch_size": 4, "n_epochs": 1} if algo == "ppo" else {"learning_starts": 3}
    return settings if algo == "a2c" else settings | {"algorithm": settings["algorithm"] | brief}


@pytest.mark.parametrize("algo", NAMES)
def test_training_moves_the_policy_and_takes_exactly_the_steps(make_env, algo):
    model = make_model(algo, make_env(), 0, quick(algo))
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    rewards = []

    class Watch(BaseCallback):
        def _on_step(self):
            rewards.append(float(np.squeeze(self.locals["rewards"])))
            return True

    train(model, 13, callbacks=[Watch()])
    assert model.num_timesteps == 13 == len(rewards)
    assert any(not value.equal(before[name]) for name, value in model.policy.state_dict().items())
    inner = model.get_env().envs[0].unwrapped
    # The reward learned from is the environment's, scaled.
    assert rewards[-1] / quick(algo)["reward_scale"] == pytest.approx(inner.history.steps[-1][2].reward, rel=1e-5) or (
        not inner.history.steps
    )


def test_the_bounded_reward_is_learned_from_as_it_is(make_env):
    model = make_model("a2c", make_env(reward="improvement"), 0)
    rewards, own = [], []

    class Watch(BaseCallback):
        def _on_step(self):
            rewards.append(float(np.squeeze(self.locals["rewards"])))
            own.append(model.get_env().envs[0].unwrapped.history.steps[-1:])
            return True

    train(model, 3, callbacks=[Watch()])
    terms = own[0][0][2]  # of the first step, before an episode ends
    unedited = make_env(reward="improvement")
    unedited.reset(seed=0)
    zero = {name: np.zeros(space.shape, np.float32) for name, space in unedited.action_space.items()}
    nats = unedited.step(zero)[4]["reward_terms"]["reward"]
    assert rewards[0] == pytest.approx(1 - terms.reward / nats, rel=1e-4)


@pytest.mark.parametrize(("options", "improvement"), [({}, True), ({"reward": "loss"}, False)])
def test_a_row_is_trained_on_the_bounded_reward_unless_told_otherwise(make_env, small_world, options, improvement):
    agent = SB3Agent("a2c", steps=1, config=CONFIG, **options)
    env = make_env(split="train")
    agent.prepare(env, 0, quiet)
    assert agent.model.get_env().envs[0].unwrapped.rewards_improvement == improvement
    # A policy that was kept before there was the choice is one of the paper's reward.
    assert agent._identity(env, 0).get("reward") == ("improvement" if improvement else None)


def test_a_budget_of_whole_rollouts_is_learned_from_to_the_last(make_env):
    model = train(make_model("ppo", make_env(), 0, quick("ppo")), 8)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    train(model, 12)
    assert any(not value.equal(before[name]) for name, value in model.policy.state_dict().items())
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    assert train(model, 15).num_timesteps == 15
    assert all(value.equal(before[name]) for name, value in model.policy.state_dict().items())


def test_seconds_and_callbacks_end_a_training(make_env):
    class Stop(BaseCallback):
        def _on_step(self):
            return self.num_timesteps < 3

    model = make_model("sac", make_env(), 0, quick("sac"))
    assert train(model, 50, callbacks=[Stop()]).num_timesteps == 3
    assert train(model, 50, seconds=0.0).num_timesteps == 4
    assert train(model, 6).num_timesteps == 6


def test_the_same_seed_trains_the_same_policy(make_env):
    first, again, other = (train(make_model("a2c", make_env(), seed, quick("a2c")), 12) for seed in (1, 1, 2))
    values = [[value.numpy() for value in model.policy.state_dict().values()] for model in (first, again, other)]
    assert all(np.array_equal(a, b) for a, b in zip(values[0], values[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(values[0], values[2], strict=True))


def test_an_agent_plays_what_the_model_predicts(make_env):
    model = train(make_model("ppo", make_env(), 0, quick("ppo")), 8)
    agent, plain, around = SB3Agent.of("ppo", model), make_env(), wrapped(make_env())
    _, info = plain.reset(seed=5)
    small, _ = around.reset(seed=5)
    agent.begin(plain)
    done = False
    while not done:
        _, reward, terminated, truncated, info = plain.step(agent.act(plain.gradients, info))
        small, expected, *_ = around.step(model.predict(small, deterministic=True)[0])
        assert reward == expected
        done = terminated or truncated


def test_a_row_is_prepared_once_and_kept(make_env, small_world, tmp_path):
    agents = [SB3Agent("sac", steps=9, config=CONFIG) for _ in range(3)]
    for agent, seed in zip(agents, (0, 0, 1), strict=True):
        agent.workspace = tmp_path
        agent.prepare(make_env(split="train"), seed, quiet)
    assert [agent.model.num_timesteps for agent in agents] == [
        9,
        0,
        9,
    ]  # the second was read, the third is another seed's
    assert agents[1].kept_seconds > 0
    env = make_env()
    actions = []
    for agent in agents:
        _, info = env.reset(seed=0)
        agent.begin(env)
        actions.append(agent.act(env.gradients, info))
    for name in actions[0]:
        assert actions[0][name].dense().equal(actions[1][name].dense())
        assert not actions[0][name].dense().equal(actions[2][name].dense())


def test_a_replay_buffer_comes_back_as_it_was(make_env, tmp_path):
    model = train(make_model("td3", make_env(), 0, quick("td3")), 7)
    save_buffer(model, tmp_path / "buffer.safetensors")
    again = make_model("td3", make_env(), 0, quick("td3"))
    load_buffer(again, tmp_path / "buffer.safetensors")
    one, two = model.replay_buffer, again.replay_buffer
    assert (two.pos, two.full) == (one.pos, one.full) == (7, False)
    for name in ("actions", "rewards", "dones", "timeouts"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    for key in one.observations:
        np.testing.assert_array_equal(one.observations[key], two.observations[key])
        np.testing.assert_array_equal(one.next_observations[key], two.next_observations[key])


def test_checkpoints_are_read_without_unpickling(make_env, tmp_path):
    """A zip whose pickled part would run code gives its weights and runs nothing."""

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    model = train(make_model("ppo", make_env(), 0, quick("ppo")), 8)
    save(model, tmp_path / "whole.zip")
    import base64

    trap = json.dumps(
        {"policy_class": {":type:": "x", ":serialized:": base64.b64encode(pickle.dumps(Trap())).decode()}}
    )
    with (
        zipfile.ZipFile(tmp_path / "whole.zip") as source,
        zipfile.ZipFile(tmp_path / "checkpoint_8_steps.zip", "w") as target,
    ):
        for name in source.namelist():
            target.writestr(name, trap if name == "data" else source.read(name))
    again = make_model("ppo", make_env(), 3, quick("ppo"))
    restore(again, tmp_path)
    assert again.num_timesteps == 8
    assert not (tmp_path / "sprung").exists()
    for name, value in model.policy.state_dict().items():
        assert value.equal(again.policy.state_dict()[name])


def test_a_torn_checkpoint_is_passed_over(make_env, tmp_path):
    model = make_model("sac", make_env(), 0, quick("sac"))
    for steps in (4, 8):
        train(model, steps)
        save_buffer(model, tmp_path / f"buffer_{steps}_steps.safetensors")
        save(model, tmp_path / f"checkpoint_{steps}_steps.zip")
    newest = tmp_path / "checkpoint_8_steps.zip"
    newest.write_bytes(newest.read_bytes()[:-100])
    again = make_model("sac", make_env(), 0, quick("sac"))
    restore(again, tmp_path)
    assert (again.num_timesteps, again.replay_buffer.pos) == (4, 4)


@pytest.mark.parametrize("algo", ["sac", "tqc"])
def test_the_entropy_coefficient_is_gone_on_with(make_env, tmp_path, algo):
    model = make_model(algo, make_env(), 0, quick(algo))
    model.log_ent_coef.data.fill_(-3.0)
    save_buffer(model, tmp_path / "buffer_0_steps.safetensors")
    save(model, tmp_path / "checkpoint_0_steps.zip")
    again = make_model(algo, make_env(), 0, quick(algo))
    assert again.log_ent_coef.item() != -3
    restore(again, tmp_path)
    assert again.log_ent_coef.item() == -3
    assert again.ent_coef_optimizer.param_groups[0]["params"][0] is again.log_ent_coef


def test_the_command_trains_goes_on_and_refuses_other_options(model_folder, small_world, tmp_path, capsys):
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(quick("sac")))
    arguments = {
        "output": tmp_path / "run", "algo": "sac", "settings": settings, "horizon": 2, "edits_per_step": 3,
        "model": model_folder, "modules": ("layers.2.mlp.down_proj",), "checkpoint_every": 4, "evaluate_every": 5,
    }  # fmt: skip
    main(Args(**arguments, steps=6))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {
        "policy.zip",
        "result.json",
        "evaluations.npz",
        "best_model.zip",
        "checkpoint_4_steps.zip",
        "tensorboard",
    } <= names
    first = json.loads((tmp_path / "run" / "result.json").read_text())
    assert first["steps"] == 6
    assert -2 <= first["validation_return"] <= 2, "the bounded reward's"
    capsys.readouterr()
    with np.load(tmp_path / "run" / "evaluations.npz") as evaluations:
        assert evaluations["timesteps"].tolist() == [5]
    (tmp_path / "run" / "best_model.zip").write_bytes(b"the best so far")
    # The evaluation at step 5 came after the checkpoint at 4; one at 3 is made up, and cannot be beaten.
    np.savez(tmp_path / "run" / "evaluations.npz", timesteps=[3, 5], results=[[1e9], [2e9]], ep_lengths=[[2], [2]])
    main(Args(**arguments, steps=10))
    with np.load(tmp_path / "run" / "evaluations.npz") as evaluations:
        assert evaluations["timesteps"].tolist() == [3, 9]
    assert (tmp_path / "run" / "best_model.zip").read_bytes() == b"the best so far"
    assert "going on from step 4" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 10
    with pytest.raises(SystemExit, match="other options"):
        main(Args(**arguments | {"seed": 1}, steps=10))
    with pytest.raises(SystemExit, match="other options"):
        main(Args(**arguments | {"reward": "loss"}, steps=10))


def test_a_training_that_goes_on_does_not_play_its_first_streams_again(
    model_folder, small_world, tmp_path, monkeypatch
):
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(quick("ppo")))
    played = []

    def draw(env, seed, options, real=LifelongEditEnv._draw_stream):
        real(env, seed, options)
        if env.split == "train":
            played.append([edit.id for edit in env.stream])

    monkeypatch.setattr(LifelongEditEnv, "_draw_stream", draw)
    arguments = {"horizon": 2, "edits_per_step": 3, "model": model_folder, "modules": ("layers.2.mlp.down_proj",)}
    for steps in (8, 16):
        main(
            Args(tmp_path / "run", "ppo", steps, settings=settings, checkpoint_every=4, evaluate_every=99, **arguments)
        )
    assert len(played) >= 8
    assert len({tuple(stream) for stream in played}) == len(played)


def test_the_command_plays_several_streams(model_folder, small_world, tmp_path):
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(quick("td3")))
    arguments = {"horizon": 2, "edits_per_step": 3, "model": model_folder, "modules": ("layers.2.mlp.down_proj",)}
    every = {"checkpoint_every": 4, "evaluate_every": 4}
    main(Args(tmp_path / "run", "td3", steps=8, settings=settings, streams=2, **arguments, **every))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["steps"], result["streams"]) == (8, 2)
    assert (tmp_path / "run" / "checkpoint_4_steps.zip").exists()
    with np.load(tmp_path / "run" / "evaluations.npz") as evaluations:
        assert evaluations["timesteps"].tolist() == [4, 8]


@pytest.mark.parametrize(
    ("content", "word"), [("{", "settings"), ('{"algorithm": {}}', "reward_scale"), (None, "No such")]
)
def test_bad_settings_are_named(tmp_path, content, word):
    file = tmp_path / "mine.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=word):
        read_settings("ppo", file)


def test_unknown_algorithms_are_named():
    with pytest.raises(ValueError, match="ppo, a2c"):
        SB3Agent("reinforce")


def test_a_folder_is_of_one_model_and_one_set_of_edits(tmp_path):
    file = tmp_path / "options.json"
    rest = {"config": {"hidden_act": "silu"}, "tokenizer": {"merges": "a"}, "buffers": "b"}
    identity = rest | {"libraries": {"torch": "1", "transformers": "1", "tokenizers": "1"}}
    run = {"algo": "ppo", "weights": "1", "frozen": "2", "edits": "3", "identity": identity}
    file.write_text(json.dumps({"algo": "ppo"}))  # as an earlier version wrote it
    with pytest.raises(SystemExit, match="other options"):
        check_identity(file, run | {"reward": "improvement"})  # earlier versions had the paper's alone
    check_identity(file, run)
    check_identity(file, run)
    gelu = identity | {"config": {"hidden_act": "gelu"}}
    for other in ({"algo": "sac"}, {"edits": "4"}, {"frozen": "5"}, {"identity": gelu}):
        with pytest.raises(SystemExit, match="other options, model or edits"):
            check_identity(file, run | other)
    file.write_text(file.read_text().replace('"3"', '"4"'))
    with pytest.raises(SystemExit, match=r"options\.json was changed after it was written"):
        check_identity(file, run)
