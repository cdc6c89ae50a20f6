"""The native vector environment as Stable-Baselines3 takes it."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv

from editenv.vector import LifelongEditVectorEnv


class StreamsVecEnv(VecEnv):
    """Stable-Baselines3's conventions, a reset within the ending step and a list of infos, around several streams.

    Args:
        envs: With ``autoreset_mode="SameStep"``, which is how Stable-Baselines3 resets.
        reward_scale: What rewards are multiplied by; ``infos[i]["episode"]`` has the return before that, as Monitor
            does.

    Raises:
        ValueError: If the environment resets in another way.
    """

    def __init__(self, envs: LifelongEditVectorEnv, reward_scale: float = 1.0) -> None:
        if envs.metadata["autoreset_mode"] != AutoresetMode.SAME_STEP:
            raise ValueError(f"autoreset_mode must be 'SameStep' here, not {envs.metadata['autoreset_mode'].value!r}")
        self.envs, self.reward_scale = envs, reward_scale
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> Any:
        seeds = self._seeds if any(seed is not None for seed in self._seeds) else None
        observations, infos = self.envs.reset(seed=seeds)
        self.reset_infos = [_info_of(infos, i) for i in range(self.num_envs)]
        self._returns, self._lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=int)
        self._reset_seeds()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observations, rewards, terminations, truncations, vector_infos = self.envs.step(list(self._actions))
        self._returns += rewards
        self._lengths += 1
        dones = terminations | truncations
        infos = []
        for i, done in enumerate(dones):
            info = _info_of(vector_infos, i)
            if done:
                # Of the step that ended the episode, not of the reset after it.
                info = info.pop("final_info") | {"terminal_observation": info["final_obs"]}
                info["TimeLimit.truncated"] = bool(truncations[i] and not terminations[i])
                info["episode"] = {"r": float(self._returns[i]), "l": int(self._lengths[i]), "t": 0.0}
                self._returns[i], self._lengths[i] = 0.0, 0
            infos.append(info)
        return observations, self.reward_scale * rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        self.envs.close()

    # -- attributes and methods of single environments, as Stable-Baselines3 asks for them ---------------------------

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(env, attr_name) for env in self._streams(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        for env in self._streams(indices):
            setattr(env, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [getattr(env, method_name)(*args, **kwargs) for env in self._streams(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None) -> list[bool]:
        from stable_baselines3.common.env_util import is_wrapped

        return [is_wrapped(env, wrapper_class) for env in self._streams(indices)]

    def _streams(self, indices: Any) -> Sequence[gym.Env[Any, Any]]:
        return [self.envs.wrapped[i] for i in self._get_indices(indices)]


def _info_of(infos: dict[str, Any], i: int) -> dict[str, Any]:
    """The infos of one environment out of Gymnasium's vector form."""
    info = {}
    for key, values in infos.items():
        if not key.startswith("_") and infos[f"_{key}"][i]:
            info[key] = _info_of(values, i) if isinstance(values, dict) else values[i]
    return info
