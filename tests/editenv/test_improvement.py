"""The reward as a share of what an unedited model loses, and episodes that end where the model breaks."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from plain import batch_loss, edited_weights, random_deltas

from editenv.data import Edit
from editenv.vector import LifelongEditVectorEnv
from editenv.wrappers import RelativeReward

MIDDLE, LAST = "model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"
NO_EDIT = {name: np.zeros((64, 32), np.float32) for name in (MIDDLE, LAST)}


def broken(size=1e4):
    return {MIDDLE: np.zeros((64, 32), np.float32), LAST: np.full((64, 32), size, np.float32)}


@pytest.fixture
def make(make_env):
    return lambda **arguments: make_env(**({"reward": "improvement"} | arguments))


@pytest.mark.parametrize("options", [{}, {"reference": "previous"}, {"train_eos": True}, {"actions_per_batch": 2}])
def test_an_unedited_model_earns_nothing_at_any_step(make, options):
    env = make(memory_decay=0.9, **options)
    env.reset(seed=0)
    over = False
    while not over:
        _, reward, terminated, over, info = env.step(NO_EDIT)
        assert reward == pytest.approx(0, abs=1e-5)
        assert not terminated
        assert info["broken"] is False
    assert info["reward_terms"]["memory"] > 1


def test_the_reward_is_one_less_the_share_that_is_lost(make, base, tokenizer):
    """Eq. 7 to 10 by the plain model, at the edited weights and at theta_0."""
    env = make(memory_decay=0.7, memory_batches=2, regularization=0.01, horizon=4, edits_per_step=2)
    env.reset(seed=0)
    batches, rewards, total = [], [], dict.fromkeys(NO_EDIT, 0.0)
    for step in range(4):
        batches.insert(0, list(env.batch))
        deltas = random_deltas(env.language_model, seed=step, scale=0.1)
        total = {name: total[name] + delta for name, delta in deltas.items()}
        lost = [
            sum(
                0.7**lag * float(batch_loss(base, tokenizer, batch, edited_weights(base, weights), 0.6))
                for lag, batch in enumerate(batches[:3])
            )
            for weights in (total, {})
        ]
        lost[0] += 0.01 * sum(float(delta.square().sum()) for delta in deltas.values())
        reward = env.step(deltas)[1]
        assert reward == pytest.approx(1 - lost[0] / lost[1], rel=1e-3, abs=1e-4)
        rewards.append(abs(reward))
    assert max(rewards) > 0.01


def test_what_is_known_already_is_measured_in_one_nat(make, monkeypatch):
    monkeypatch.setattr("editenv.rewards.SMALLEST_INITIAL_LOSS", 1000.0)
    env = make()
    env.reset(seed=0)
    _, reward, *_, info = env.step(NO_EDIT)
    assert reward == pytest.approx(1 + info["reward_terms"]["reward"] / 1000)


@pytest.mark.parametrize("size", [1e4, 1e17])  # the second overflows: the losses are no numbers
@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_broken_model_ends_the_episode_at_the_price_of_all_that_was_left(make, size, steps_before):
    env = make(actions_per_batch=2)
    env.reset(seed=0)
    for _ in range(steps_before):
        env.step(NO_EDIT)
    observation, reward, terminated, truncated, info = env.step(broken(size))
    assert (reward, terminated, truncated, info["broken"]) == (-(6.0 - steps_before), True, False, True)
    assert info["batch"] == steps_before // 2
    assert observation in env.observation_space
    assert not any(part["token_mask"].any() for part in observation.values())
    with pytest.raises(RuntimeError, match="reset"):
        env.step(NO_EDIT)
    env.reset(seed=0)
    assert env.step(NO_EDIT)[1] == pytest.approx(0, abs=1e-5)


def test_the_price_counts_batches_to_the_streams_end(make, small_world):
    env = make(horizon=None, edits_per_step=2)  # ten edits
    env.reset(seed=0)
    env.step(NO_EDIT)
    assert env.step(broken())[1] == -4.0


def test_a_batch_that_was_presented_costs_itself_alone(make):
    env = make(dataset=None, horizon=None)
    env.reset(seed=0)
    rows = [Edit(id=str(i), prompt=f"The colour of body {i} is", target="blue") for i in range(2)]
    env.present(rows)
    assert env.step(broken())[1:3] == (-1.0, True)
    env.reset(seed=0)
    env.present(rows)
    assert env.step(NO_EDIT)[1] == pytest.approx(0, abs=1e-5)


def test_no_return_is_below_the_number_of_steps(make):
    env = make()
    env.action_space.seed(0)
    for seed in range(5):
        env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, over = total + reward, terminated or truncated
        assert -3 <= total <= 3


def test_the_loss_has_no_floor_and_ends_nothing(make_env):
    env = make_env()
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(broken())
    assert reward == info["reward_terms"]["reward"] < -1000
    assert not terminated
    assert not truncated
    assert "broken" not in info


@pytest.mark.parametrize(("version", "unedited"), [("v0", False), ("v1", True)])
def test_versions(model_folder, version, unedited):
    arguments = {"model": model_folder, "modules": [MIDDLE, LAST], "split": "validation", "edits_per_step": 3}
    env = gym.make(f"editenv:LifelongEdit-{version}", **arguments)
    envs = gym.make_vec(f"editenv:LifelongEdit-{version}", num_envs=2, **arguments)
    env.reset(seed=0)
    envs.reset(seed=0)
    reward = env.step(NO_EDIT)[1]
    rewards = envs.step([NO_EDIT, NO_EDIT])[1]
    assert (reward == pytest.approx(0, abs=1e-5)) is unedited
    assert rewards[0] == pytest.approx(reward, abs=1e-4)
    assert gym.make("editenv:LifelongEdit", **arguments).spec.id == "LifelongEdit-v1"


def test_gymnasium_finds_nothing_wrong(make):
    check_env(make(), skip_render_check=True)


def test_streams_that_break_are_reset_alone(make, model_folder):
    arguments = {"model": model_folder, "modules": [MIDDLE, LAST], "split": "validation", "edits_per_step": 3}
    envs = LifelongEditVectorEnv(2, "SameStep", horizon=3, reward="improvement", **arguments)
    envs.reset(seed=0)
    envs.step([NO_EDIT, NO_EDIT])
    _, rewards, terminations, truncations, infos = envs.step([broken(), NO_EDIT])
    np.testing.assert_allclose(rewards, [-2, 0], atol=1e-5)
    assert terminations.tolist() == [True, False]
    assert not truncations.any()
    assert infos["final_info"]["broken"][0]
    assert infos["batch"].tolist() == [0, 2]
    _, rewards, terminations, truncations, _ = envs.step([NO_EDIT, NO_EDIT])
    np.testing.assert_allclose(rewards, [0, 0], atol=1e-5)
    assert truncations.tolist() == [False, True]


@pytest.mark.parametrize("reward", ["loss", "improvement"])
def test_relative_rewards_are_those_of_eq_10_and_have_a_floor(make, reward):
    env = RelativeReward(make(reward=reward), lowest=-5.0)
    env.reset(seed=0)
    assert env.step(NO_EDIT)[1] == pytest.approx(0, abs=1e-5)
    _, relative, terminated, _, info = env.step(broken())
    assert relative == -5.0
    assert terminated is (reward == "improvement")
    assert info["reward"] < -1000


def test_a_reward_that_there_is_not_is_refused(make_env):
    with pytest.raises(ValueError, match=r"reward must be one of 'loss', 'improvement'"):
        make_env(reward="nats")
