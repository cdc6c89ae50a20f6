"""Many streams on one model: the vector form of LifelongEdit-v1.

    envs = gym.make_vec("LifelongEdit-v1", num_envs=8, horizon=25)
    small = gym.make_vec("LifelongEdit-v1", num_envs=8, stream_wrappers=[StepSizeAction, GradientStatistics])

Each stream has edited weights of its own and shares everything else with the others: the frozen layers, the data
set, and what the frozen layers made of prompts. At each step the prompts of all streams' next batches that no
stream has met before go through the frozen layers together; a prompt met before, by any stream in any episode,
costs nothing. From there on, where the weights differ, the streams are run one after another: each is already a few
large products.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from editenv.arguments import PositiveInt, check, checked_arguments
from editenv.env import LifelongEditEnv
from editenv.evaluation.batch import warm_cache
from editenv.language_model.editable_lm import EditableLM
from editenv.models import load_model
from editenv.wrappers.chain import inner_action, outer_observation


class LifelongEditVectorEnv(VectorEnv[Any, Any, np.ndarray]):
    """``num_envs`` streams of :class:`editenv.env.LifelongEditEnv`, as Gymnasium's vector environments are.

    Every stream does what an environment of its own would do with the same seed and actions, to float tolerance:
    prompts are padded together with other prompts, which changes last bits.

    Args:
        num_envs: N.
        autoreset_mode: ``"NextStep"`` (a stream that is over is reset by the next step, whose action it ignores),
            ``"SameStep"`` (it is reset within the step that ended it; ``infos["final_obs"]`` and
            ``infos["final_info"]`` have what that step led to) or ``"Disabled"`` (by ``reset`` with
            ``options["reset_mask"]``).
        stream_wrappers: Action and observation wrappers of single environments, the first one innermost; they are
            put around each stream. (Those of :mod:`editenv.wrappers` look at the environment inside, which
            Gymnasium's vector wrappers do not have.)
        **arguments: As for a single environment; ``render_mode`` must be None.

    Attributes:
        streams: The ``N`` single environments.
        wrapped: The same with their wrappers.

    Raises:
        ValueError: As a single environment does, and for an unknown mode.
        TypeError: For a wrapper that does more than change actions or observations.
    """

    @checked_arguments
    def __init__(
        self,
        num_envs: PositiveInt = 1,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        stream_wrappers: Sequence[Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]] = (),
        **arguments: Any,
    ) -> None:
        if arguments.get("render_mode") is not None:
            raise ValueError("render_mode must be None: what a vector of streams looks like is not defined")
        self.num_envs = num_envs
        self.metadata = {"render_modes": [], "autoreset_mode": AutoresetMode(autoreset_mode)}
        first = LifelongEditEnv(**arguments)
        self.streams = [first, *(_sibling(first) for _ in range(num_envs - 1))]
        self.wrapped = [_wrap(stream, stream_wrappers) for stream in self.streams]
        self.single_observation_space = self.wrapped[0].observation_space
        self.single_action_space = self.wrapped[0].action_space
        self.observation_space = _batched_space(self.single_observation_space, num_envs)
        self.action_space = _batched_space(self.single_action_space, num_envs)
        self._ended = np.zeros(num_envs, dtype=bool)  # by the last step
        self._observations: list[Any] = [None] * num_envs  # None before a stream's first reset

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begins a stream in every environment, or in those of ``options["reset_mask"]``.

        Args:
            seed: One for each environment, or a first one from which they count up.
            options: ``shuffle`` as for a single environment; ``keep_cache=False`` drops what is shared;
                ``reset_mask`` ``(N,)`` bools.

        Returns:
            A batch of the observation space, and the infos as Gymnasium's vector environments have them.

        Raises:
            ValueError: For a wrong number of seeds, a wrong mask or an unknown option.
            RuntimeError: If the mask leaves out a stream that never began.
        """
        check("reset: options", Mapping[str, Any] | None, options)
        options = dict(options or {})
        mask = self._checked_mask(options.pop("reset_mask", np.ones(self.num_envs, dtype=bool)))
        seeds = self._seeds(seed)
        keep_cache = options.pop("keep_cache", True)
        check("reset: keep_cache", bool, keep_cache)
        if not keep_cache:
            self.streams[0].language_model.clear_cache()
        infos: dict[str, Any] = {}
        for i, info in self._begin(np.flatnonzero(mask).tolist(), seeds, options).items():
            infos = self._add_info(infos, info, i)
        self._ended &= ~mask
        return self._batched_observation(), infos

    def _checked_mask(self, mask: Any) -> np.ndarray:
        """``(N,)`` bool: which streams to reset."""
        if not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
            raise ValueError(f"reset_mask must be an array of {self.num_envs} bools, at least one of them true")
        if any(self._observations[i] is None for i in np.flatnonzero(~mask)):
            raise RuntimeError("reset: the environments left out by reset_mask never began; reset all of them first")
        return mask

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        """One for each stream."""
        seed = seed.tolist() if isinstance(seed, np.ndarray) else seed
        check("seed", int | Sequence[int | None] | None, seed)
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + i for i in range(self.num_envs)]
        seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed must be a number or {self.num_envs} of them, not {len(seeds)}")
        return seeds

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One action for each stream: a batch of the action space, or a list of what a single environment takes.

        A wrong action for any stream leaves all of them as they were.

        Returns:
            A batch of the observation space; rewards, terminations and truncations, ``(N,)``; and the infos as
            Gymnasium's vector environments have them.

        Raises:
            ValueError: For a wrong action.
            RuntimeError: If a stream is over and not to be reset by this step.
        """
        split = list(actions) if isinstance(actions, list | tuple) else list(iterate(self.action_space, actions))
        if len(split) != self.num_envs:
            raise ValueError(f"step: expected actions for {self.num_envs} environments, was given {len(split)}")
        mode = self.metadata["autoreset_mode"]
        resetting = np.flatnonzero(self._ended).tolist() if mode == AutoresetMode.NEXT_STEP else []
        acting = [i for i in range(self.num_envs) if i not in resetting]
        if over := [i for i in acting if self.streams[i]._over]:
            raise RuntimeError(
                f"step: the episodes of environments {over} are over (or never began); call reset() first"
            )
        # All actions are checked before any stream is edited, and all are edited before any goes on: the prompts of
        # the next batches then go through the frozen layers together.
        deltas = {i: self.streams[i].checked(inner_action(self.wrapped[i], split[i])) for i in acting}
        judged = {i: self.streams[i]._edit(deltas[i]) for i in acting}
        infos_by_stream = self._begin(resetting, going_on=acting)
        rewards = np.zeros(self.num_envs)
        terminations, truncations = np.zeros((2, self.num_envs), dtype=bool)
        for i in acting:
            observation, rewards[i], terminations[i], truncations[i], infos_by_stream[i] = self.streams[i]._move_on(
                *judged[i]
            )
            self._observations[i] = outer_observation(self.wrapped[i], observation)
        self._ended = terminations | truncations
        infos: dict[str, Any] = {}
        if mode == AutoresetMode.SAME_STEP:
            ended = np.flatnonzero(self._ended).tolist()
            for i in ended:
                final = {"final_obs": self._observations[i], "final_info": infos_by_stream[i]}
                infos = self._add_info(infos, final, i)
            infos_by_stream |= self._begin(ended)
        for i in range(self.num_envs):
            infos = self._add_info(infos, infos_by_stream[i], i)
        return self._batched_observation(), rewards, terminations, truncations, infos

    def _begin(
        self,
        resetting: Sequence[int],
        seeds: Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
        going_on: Sequence[int] = (),
    ) -> dict[int, dict[str, Any]]:
        """Resets some streams.

        Args:
            resetting: Their places.
            seeds: ``(N,)``; None draws none anew.
            options: As for a single environment.
            going_on: Streams whose next batches are encoded together with the first ones of those reset.

        Returns:
            The info of each stream that was reset.
        """
        for i in resetting:
            self.streams[i]._draw_stream(None if seeds is None else seeds[i], {**(options or {}), "keep_cache": True})
        first = self.streams[0]
        edits = [edit for i in resetting for edit in self.streams[i].stream[: first.edits_per_step]]
        edits += [edit for i in going_on for edit in self.streams[i]._upcoming()]
        # Metrics are over the answers alone, the gradient and the reward with their ends, if those are trained.
        for append_eos in (False, True) if first.train_eos else (False,):
            warm_cache(first.language_model, edits, append_eos)
        infos = {}
        for i in resetting:
            observation, infos[i] = self.streams[i]._open_stream()
            self._observations[i] = outer_observation(self.wrapped[i], observation)
        return infos

    def _batched_observation(self) -> Any:
        empty: Any = create_empty_array(self.single_observation_space, self.num_envs)
        return concatenate(self.single_observation_space, self._observations, empty)

    def close_extras(self, **_: Any) -> None:
        for stream in self.streams:
            stream.close()


def _batched_space(space: spaces.Space[Any], count: int) -> spaces.Space[Any]:
    """Gymnasium's batch of a space. Its bounds would be copies as large as the weights of all streams; here they
    are views.
    """
    batched = batch_space(space, count)
    pairs = [(batched, space)]
    while pairs:
        many, one = pairs.pop()
        if isinstance(many, spaces.Dict) and isinstance(one, spaces.Dict):
            pairs += [(many[name], one[name]) for name in one]
        elif isinstance(many, spaces.Box) and isinstance(one, spaces.Box):
            for name in ("low", "high", "bounded_below", "bounded_above"):
                setattr(many, name, np.broadcast_to(getattr(one, name), many.shape))
    return batched


def _sibling(env: LifelongEditEnv) -> LifelongEditEnv:
    """Another environment with the same arguments; they share the data set, the frozen layers and their outputs."""
    other = copy.copy(env)
    lm, arguments = env.language_model, env.model_arguments
    base, tokenizer = load_model(arguments["model"], arguments["device"], arguments["dtype"])
    other.language_model = EditableLM(base, tokenizer, list(lm.modules), activation_cache=lm.activation_cache)
    return other


def _wrap(stream: LifelongEditEnv, wrappers: Sequence[Callable[..., gym.Env[Any, Any]]]) -> gym.Env[Any, Any]:
    """Puts wrappers around a stream, the first one innermost.

    Raises:
        TypeError: If one has a reset or step of its own: streams are stepped in two halves, around all wrappers.
    """
    env: gym.Env[Any, Any] = stream
    for wrapper in wrappers:
        env = wrapper(env)
    resets = (gym.Wrapper.reset, gym.ObservationWrapper.reset)
    steps = (gym.Wrapper.step, gym.ObservationWrapper.step, gym.ActionWrapper.step)
    layer = env
    while isinstance(layer, gym.Wrapper):
        if type(layer).reset not in resets or type(layer).step not in steps:
            raise TypeError(f"stream_wrappers: {type(layer).__name__} does more than change actions or observations")
        layer = layer.env
    return env
