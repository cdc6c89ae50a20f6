"""What a chain of action and observation wrappers does, without stepping: for agents that act outside of it."""

from typing import Any

import gymnasium as gym


def inner_action(env: gym.Env[Any, Any], action: Any) -> Any:
    """What the environment inside all wrappers is given for an action."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, gym.ActionWrapper):
            action = env.action(action)
        env = env.env
    return action


def outer_observation(env: gym.Env[Any, Any], observation: Any) -> Any:
    """What is seen outside all wrappers of an observation of the environment inside."""
    if not isinstance(env, gym.Wrapper):
        return observation
    observation = outer_observation(env.env, observation)
    return env.observation(observation) if isinstance(env, gym.ObservationWrapper) else observation
