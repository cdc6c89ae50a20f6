"""TorchRL takes the wrapped environment as it is."""

import gymnasium as gym
import pytest

pytest.importorskip("torchrl", reason="the interop extra is not installed")
from torchrl.envs import GymEnv, GymWrapper
from torchrl.envs.utils import check_env_specs

from editenv.wrappers import GradientStatistics, StepSizeAction


def test_torchrl_rolls_out_what_gymnasium_does(model_folder, make_env):
    arguments = {"modules": ["layers.2.mlp.down_proj"], "split": "validation", "edits_per_step": 3, "horizon": 3}
    small = GradientStatistics(StepSizeAction(gym.make("editenv:LifelongEdit-v0", model=model_folder, **arguments)))
    gym.register("SmallLifelongEdit-v0", lambda: small)
    try:
        for env in (GymWrapper(small), GymEnv("SmallLifelongEdit-v0")):
            check_env_specs(env)
            env.set_seed(3)
            rollout = env.rollout(10)
            assert len(rollout) == 3
            assert rollout["next", "truncated"].flatten().tolist() == [False, False, True]
            # The stream's seed is TorchRL's to choose: the return must be that of the same stream and actions.
            played = small.unwrapped.history.steps
            rewards = rollout["next", "reward"].flatten().tolist()
            assert rewards == pytest.approx([terms.reward for _, _, terms, *_ in played], rel=1e-5)
            assert rollout["gradient"].shape == (3, 1, 5)
    finally:
        gym.registry.pop("SmallLifelongEdit-v0")
