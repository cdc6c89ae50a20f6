import numpy as np
import pytest

pytest.importorskip("stable_baselines3", reason="the sb3 extra is not installed")
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.rl.sb3_streams import StreamsVecEnv
from editenv.vector import LifelongEditVectorEnv
from editenv.wrappers import GradientStatistics, StepSizeAction

MODULES = ["model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"]


@pytest.fixture
def streams(model_folder):
    def make(mode="SameStep", **options):
        arguments = {
            "model": model_folder,
            "modules": MODULES,
            "split": "validation",
            "edits_per_step": 3,
            "horizon": 2,
        }
        envs = LifelongEditVectorEnv(2, mode, [StepSizeAction, GradientStatistics], **arguments)
        return StreamsVecEnv(envs, **options)

    return make


def test_it_is_what_stable_baselines_own_vector_is(streams, make_env):
    mine = streams()
    own = DummyVecEnv([lambda: Monitor(GradientStatistics(StepSizeAction(make_env(horizon=2))))] * 2)
    for envs in (mine, own):
        envs.seed(3)
    first, second = mine.reset(), own.reset()
    rng = np.random.default_rng(0)
    for _ in range(5):
        for key, values in first.items():
            np.testing.assert_allclose(values, second[key], rtol=2e-3, atol=2e-4)
        actions = rng.uniform(-1, 0, (2, 4)).astype(np.float32)
        (first, *one), (second, *two) = mine.step(actions), own.step(actions)
        np.testing.assert_allclose(one[0], two[0], rtol=2e-3)
        np.testing.assert_array_equal(one[1], two[1])
        for a, b in zip(one[2], two[2], strict=True):
            assert a.get("TimeLimit.truncated", False) == b["TimeLimit.truncated"]
            assert a["batch"] == b["batch"]
            assert a["reward_terms"] == pytest.approx(b["reward_terms"], rel=2e-3, abs=1e-4)
            assert ("terminal_observation" in a) == ("terminal_observation" in b)
            if "episode" in b:
                assert a["episode"]["r"] == pytest.approx(b["episode"]["r"], rel=2e-3)
                assert a["episode"]["l"] == b["episode"]["l"]
                for key, value in b["terminal_observation"].items():
                    np.testing.assert_allclose(a["terminal_observation"][key], value, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [(PPO, {"n_steps": 4, "batch_size": 4, "n_epochs": 1}), (SAC, {"learning_starts": 2, "buffer_size": 100})],
)
def test_algorithms_learn_on_it(streams, algorithm, options):
    model = algorithm("MultiInputPolicy", streams(reward_scale=0.1), seed=0, device="cpu", **options)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(16)
    assert model.num_timesteps == 16
    assert any(not value.equal(before[name]) for name, value in model.policy.state_dict().items())
    assert len(model.ep_info_buffer) == 8


def test_other_autoresets_are_refused(streams):
    with pytest.raises(ValueError, match="NextStep"):
        streams("NextStep")
