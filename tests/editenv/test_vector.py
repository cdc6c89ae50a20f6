import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from editenv.vector import LifelongEditVectorEnv
from editenv.wrappers import (
    GradientSketch,
    GradientStatistics,
    LayerStatistics,
    RelativeReward,
    SketchedAction,
    StepSizeAction,
)

MODULES = ["model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"]
SMALL = [SketchedAction, GradientStatistics, LayerStatistics, GradientSketch]


@pytest.fixture
def make(model_folder):
    def make(num_envs=3, **arguments):
        defaults = {"model": model_folder, "modules": MODULES, "split": "validation", "edits_per_step": 3, "horizon": 3}
        return LifelongEditVectorEnv(num_envs, **(defaults | arguments))

    return make


def test_the_subjects_token_is_observed_in_every_stream(make):
    arguments = {"modules": ["layers.1.mlp.down_proj"], "observed_tokens": "subject"}
    name = "model.layers.1.mlp.down_proj"
    envs, single = make(2, **arguments), make(1, **arguments).streams[0]
    observations, _ = envs.reset(seed=4)
    observation, _ = single.reset(seed=5)
    for key, value in observation[name].items():
        np.testing.assert_allclose(observations[name][key][1], value, rtol=1e-3, atol=1e-5)
    assert observation[name]["token_mask"].tolist() == [1.0] * single.edits_per_step


def test_what_is_no_seed_option_or_wrapper_is_named(make):
    envs = make(2)
    for wrong in (1.5, "ab", [1.5, 2], True):
        with pytest.raises(ValueError, match="seed must be a whole number or a list"):
            envs.reset(seed=wrong)
    with pytest.raises(ValueError, match="reset: options must be an object"):
        envs.reset(options=[1])
    for argument, value in (("num_envs", 0), ("num_envs", 2.0), ("stream_wrappers", [3]), ("stream_wrappers", "x")):
        with pytest.raises(ValueError, match=f"^{argument} must be "):
            make(**{argument: value})
    envs.reset(seed=np.array([3, 4]))


def test_all_tokens_are_observed_in_every_stream(make):
    envs = make(2, observed_tokens="all")
    observations, _ = envs.reset(seed=4)
    single = make(1, observed_tokens="all").streams[0]
    for i in range(2):
        observation, _ = single.reset(seed=4 + i)
        for name in MODULES:
            mask = observations[name]["token_mask"][i]
            assert mask.sum() == len(single.gradients[name].keys)
            np.testing.assert_array_equal(mask, observation[name]["token_mask"])
    assert observations[MODULES[0]]["token_mask"].sum() > observations[MODULES[1]]["token_mask"].sum()


def random_actions(envs, rng):
    """A small delta of its own for each stream."""
    shapes = {name: space.shape for name, space in envs.action_space.items()}
    return {name: rng.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}


def assert_like(actual, expected):
    """The same structure; numbers to float tolerance, everything else exactly."""
    assert type(actual) is type(expected), (actual, expected)
    if isinstance(actual, dict):
        assert actual.keys() == expected.keys()
        for key in actual:
            assert_like(actual[key], expected[key])
    elif isinstance(actual, tuple) or (isinstance(actual, np.ndarray) and actual.dtype == object):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_like(one, other)
    elif isinstance(actual, np.ndarray):
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        if actual.dtype.kind == "f":
            np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=2e-4)
        else:
            np.testing.assert_array_equal(actual, expected)
    elif isinstance(actual, float):
        assert actual == pytest.approx(expected, rel=2e-3, abs=2e-4)
    else:
        assert actual == expected


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"modules": ["layers.2.mlp.down_proj"], "actions_per_batch": 2, "horizon": 2}, {"split": "train", "redraw": True}],
    ids=["two-layers", "two-attempts", "redrawn"],
)  # fmt: skip
def test_trajectories_are_those_of_single_environments(make, make_env, tenth_of_atlas, mode, arguments):
    """Over autoresets and seeds, beside Gymnasium's own vector of as many environments."""
    envs = make(autoreset_mode=mode, **arguments)
    singles = SyncVectorEnv([lambda: make_env(**arguments)] * 3, autoreset_mode=mode)
    assert envs.observation_space == singles.observation_space
    assert envs.action_space == singles.action_space
    assert envs.action_space.sample() in singles.action_space
    for name, many in envs.action_space.items():  # the bounds of N weights take no more room than one's
        assert np.shares_memory(many.low, envs.single_action_space[name].low)
    assert_like(envs.reset(seed=7), singles.reset(seed=7))
    rng = np.random.default_rng(0)
    for _ in range(7):
        actions = random_actions(envs, rng)
        assert_like(envs.step(actions), singles.step(actions))
        for stream, single in zip(envs.streams, singles.envs, strict=True):
            assert [edit.id for edit in stream.batch] == [edit.id for edit in single.batch]
            for name in stream.language_model.modules:
                torch.testing.assert_close(stream.language_model.weight(name), single.language_model.weight(name))
    assert_like(envs.reset(seed=[5, None, 2]), singles.reset(seed=[5, None, 2]))
    actions = random_actions(envs, rng)
    assert_like(envs.step(actions), singles.step(actions))


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_wrappers_of_streams_are_wrappers_of_single_environments(make, make_env, mode):
    def single():
        env = make_env()
        for wrapper in SMALL:
            env = wrapper(env)
        return env

    envs = make(autoreset_mode=mode, stream_wrappers=SMALL)
    singles = SyncVectorEnv([single] * 3, autoreset_mode=mode)
    assert envs.single_action_space == gym.spaces.Box(-1.0, 1.0, (8,), np.float32)
    assert envs.observation_space == singles.observation_space
    assert_like(envs.reset(seed=1), singles.reset(seed=1))
    rng = np.random.default_rng(0)
    for _ in range(5):
        actions = rng.uniform(-0.2, 0.2, (3, 8)).astype(np.float32)
        assert_like(envs.step(actions), singles.step(actions))


def test_streams_do_not_touch_each_other(make):
    envs = make()
    envs.reset(seed=0)
    base = envs.streams[1].language_model.snapshot()
    actions = {name: np.zeros(space.shape, np.float32) for name, space in envs.action_space.items()}
    actions[MODULES[0]][0] = 0.1
    envs.step(actions)
    first, second, third = (stream.language_model for stream in envs.streams)
    assert not torch.equal(first.weight(MODULES[0]), second.weight(MODULES[0]))
    assert torch.equal(second.weight(MODULES[0]), third.weight(MODULES[0]))
    assert all(torch.equal(value, base[name]) for name, value in second.snapshot().items())
    shared = [dict(lm.model.named_parameters()) for lm in (first, second)]
    edited = {f"{name}.weight" for name in MODULES}
    assert {name for name, value in shared[0].items() if value is not shared[1][name]} == edited


def test_the_frozen_layers_run_once_for_all_streams_and_episodes(make, monkeypatch):
    envs = make(num_envs=4, horizon=2)
    rows = []
    for stream in envs.streams:
        cut = stream.language_model.cut_model
        whole = cut.frozen_output
        monkeypatch.setattr(cut, "frozen_output", lambda ids, whole=whole: rows.append(len(ids)) or whole(ids))
    zero = {name: np.zeros(space.shape, np.float32) for name, space in envs.action_space.items()}
    envs.reset(seed=0)
    envs.step(zero)
    distinct = set()
    for stream in envs.streams:
        lm = stream.language_model
        for edits in (stream.stream[:3], stream.stream[3:6]):
            for edit in edits:
                texts = [(edit.prompt, edit.target), *((text, edit.target) for text in edit.rephrases)]
                texts += [(item.prompt, item.answer) for item in edit.locality]
                distinct |= {(len(h), tuple(h + t[:-1])) for h, t in lm.tokenize(*map(list, zip(*texts, strict=True)))}
    assert sum(rows) == len(distinct)
    rows.clear()
    envs.reset(seed=0)
    envs.step(zero)
    assert not rows
    envs.reset(seed=0, options={"keep_cache": False})
    assert rows


def test_a_prompt_is_held_once_whatever_streams_look_back_at_it(make):
    """All edits of the split in each stream: what is kept of them is what the streams hold, until it is forgotten."""
    envs = make(edits_per_step=20, horizon=4, num_envs=2)
    zero = {name: np.zeros(space.shape, np.float32) for name, space in envs.action_space.items()}
    kept = envs.streams[0].language_model.activation_cache
    for _ in range(2):
        envs.reset(seed=0, options={"keep_cache": False})
        for _ in range(3):
            envs.step(zero)
        held = [batch.prompts for stream in envs.streams for batch in stream.reward.memory]
        assert len(held) == 6
        assert {id(piece) for prompts in held for piece in prompts.pieces} <= {
            id(piece) for piece in kept._outputs.values()
        }
    texts = {
        text for stream in envs.streams for edits in [stream.stream] for e in edits for text in (e.prompt, *e.rephrases)
    }
    assert len(kept.token_ids) <= len(texts) + sum(len(e.locality) for s in envs.streams for e in s.stream)


def test_a_wrong_action_of_one_leaves_all_as_they_were(make):
    envs, plain = make(), make()
    envs.reset(seed=0)
    plain.reset(seed=0)
    actions = random_actions(envs, np.random.default_rng(0))
    wrong = {name: value.copy() for name, value in actions.items()}
    wrong[MODULES[1]][2, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        envs.step(wrong)
    with pytest.raises(ValueError, match="3 environments"):
        envs.step([{}])
    assert_like(envs.step(actions), plain.step(actions))


def test_resets_by_mask(make):
    envs = make(autoreset_mode="Disabled", horizon=1)
    zero = {name: np.zeros(space.shape, np.float32) for name, space in envs.action_space.items()}
    with pytest.raises(RuntimeError, match="reset"):
        envs.step(zero)
    envs.reset(seed=0)
    *_, truncations, _ = envs.step(zero)
    assert truncations.all()
    with pytest.raises(RuntimeError, match=r"\[0, 1, 2\]"):
        envs.step(zero)
    _, infos = envs.reset(options={"reset_mask": np.array([True, False, True])})
    assert infos["_batch"].tolist() == [True, False, True]
    with pytest.raises(RuntimeError, match=r"\[1\]"):
        envs.step(zero)


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [(lambda make: make(num_envs=0), ValueError, "num_envs"),
     (lambda make: make(render_mode="ansi"), ValueError, "render_mode"),
     (lambda make: make(autoreset_mode="never"), ValueError, "never"),
     (lambda make: make(stream_wrappers=[RelativeReward]), TypeError, "RelativeReward"),
     (lambda make: make(stream_wrappers=[lambda e: GradientStatistics(RelativeReward(e))]), TypeError, "RelativeReward"),
     (lambda make: make().reset(seed=[1, 2]), ValueError, "seed"),
     (lambda make: make().reset(options={"colour": 1}), ValueError, "colour"),
     (lambda make: make().reset(options={"reset_mask": np.array([False] * 3)}), ValueError, "reset_mask"),
     (lambda make: make().reset(options={"reset_mask": np.array([True, False, True])}), RuntimeError, "never began")],
)  # fmt: skip
def test_wrong_arguments_are_named(make, call, error, word):
    with pytest.raises(error, match=word):
        call(make)


def test_gymnasium_makes_it(model_folder):
    arguments = {"model": model_folder, "modules": MODULES, "split": "validation", "edits_per_step": 3, "horizon": 2}
    envs = gym.make_vec(
        "editenv:LifelongEdit-v0", num_envs=2, stream_wrappers=[StepSizeAction, GradientStatistics], **arguments
    )
    assert isinstance(envs, LifelongEditVectorEnv)
    assert isinstance(envs, VectorEnv)
    assert envs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    recorded = gym.wrappers.vector.RecordEpisodeStatistics(envs)
    observations, _ = recorded.reset(seed=0)
    assert observations in recorded.observation_space
    total = np.zeros(2)
    for _ in range(2):
        _, rewards, _, _, infos = recorded.step(np.zeros((2, 4), np.float32))
        total += rewards
    np.testing.assert_allclose(infos["episode"]["r"], total, rtol=1e-5)
