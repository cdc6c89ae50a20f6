import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from editenv.wrappers import (
    GradientSketch,
    GradientStatistics,
    LayerStatistics,
    RelativeReward,
    SketchedAction,
    StepSizeAction,
)

MODULES = ["model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"]


@pytest.fixture
def small(make_env):
    return lambda **arguments: GradientStatistics(StepSizeAction(make_env(**arguments)))


def test_gymnasium_finds_nothing_wrong(small):
    check_env(small(), skip_render_check=True)


def test_spaces_are_small_and_flat(small):
    env = small()
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
    assert all(isinstance(space, gym.spaces.Box) for space in env.observation_space.values())


@pytest.mark.parametrize("action", [[0, 0, 0, 0], [0.5, -0.25, 0.1, -1.0]])
def test_an_action_is_the_ridge_regression_of_scaled_gradients(make_env, base, action):
    env = StepSizeAction(make_env(), typical_step=0.4, typical_ridge=0.2, decades=1.0)
    env.reset(seed=0)
    action = np.array(action, np.float32)
    deltas = env.action(action)
    assert list(deltas) == MODULES
    for i, name in enumerate(MODULES):
        gradient = env.unwrapped.gradients[name]
        U = gradient.keys.double()
        weight = base.get_submodule(name).weight.double()
        V = [
            -0.4 * 10.0 ** float(action[i]) * (weight @ key).norm() * grad / grad.norm()
            for key, grad in zip(U, gradient.value_grads.double(), strict=True)
        ]
        ridge = 0.2 * 10.0 ** float(action[2 + i]) * (U * U).sum() / len(U)
        D = torch.linalg.solve(U.T @ U + ridge * torch.eye(64), U.T @ torch.stack(V))
        torch.testing.assert_close(deltas[name].dense().double(), D, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("wrapper", [StepSizeAction, SketchedAction])
def test_the_unit_of_an_action_does_not_grow_with_the_weights(make_env, wrapper):
    env = wrapper(make_env())
    env.reset(seed=0)
    action = np.full(env.action_space.shape, 0.5, np.float32)
    before = env.action(action)
    lm = env.unwrapped.language_model
    lm.apply({name: 5 * lm.weight(name) for name in MODULES})
    for name, delta in env.action(action).items():
        assert torch.equal(delta.dense(), before[name].dense())


def test_a_step_is_the_steps_of_the_environment_inside(make_env, small):
    outer, inner = small(), make_env()
    outer.reset(seed=2)
    inner.reset(seed=2)
    action = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    expected = inner.step(StepSizeAction.action(outer.env, action))
    _, reward, terminated, truncated, info = outer.step(action)
    assert (reward, terminated, truncated, info) == expected[1:]


def test_observations_are_statistics_of_the_factors(make_env, small):
    outer, inner = small(actions_per_batch=2, horizon=2), make_env(actions_per_batch=2, horizon=2)
    observation, _ = outer.reset(seed=1)
    factors, _ = inner.reset(seed=1)
    zero = {name: np.zeros((64, 32), np.float32) for name in MODULES}
    for step in range(4):
        for i, name in enumerate(MODULES):
            keys, grads = inner.gradients[name].keys, inner.gradients[name].value_grads
            lengths = [torch.linalg.vector_norm(x, dim=1) for x in (keys, grads)]
            expected = [float(torch.log10(x)) for v in lengths for x in (v.mean(), v.max())]
            cosines = [
                float(torch.cosine_similarity(keys[a], keys[b], dim=0))
                for a in range(len(keys))
                for b in range(len(keys))
                if a != b
            ]
            expected.append(sum(cosines) / len(cosines))
            np.testing.assert_allclose(observation["gradient"][i], expected, rtol=1e-3, atol=1e-4)
        expected = [(step // 2) / (len(inner.stream) // 3), (step % 2) / 2]
        np.testing.assert_allclose(observation["progress"], expected, atol=1e-6)
        assert observation in outer.observation_space
        observation, *_ = outer.env.env.step(zero)
        observation = outer.observation(observation)
        inner.step(zero)
    assert observation in outer.observation_space
    assert observation["gradient"].all()  # truncated: of the batch that would have come
    assert factors.keys() == set(MODULES)


def test_wrong_actions_are_refused(small):
    env = small()
    env.reset(seed=0)
    for wrong in (np.zeros(3), np.zeros((2, 2))):
        with pytest.raises(ValueError, match=r"\(4,\)"):
            env.step(wrong)
    before = env.unwrapped.language_model.snapshot()
    with pytest.raises(ValueError, match="NaN"):
        env.step(np.full(4, np.nan))
    assert all(torch.equal(value, before[name]) for name, value in env.unwrapped.language_model.snapshot().items())


def test_no_step_after_the_end(small):
    env = small(horizon=1)
    env.reset(seed=0)
    env.step(np.zeros(4, np.float32))
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros(4, np.float32))


def test_other_environments_are_refused():
    for wrapper in (
        StepSizeAction,
        GradientStatistics,
        SketchedAction,
        GradientSketch,
        LayerStatistics,
        RelativeReward,
    ):
        with pytest.raises(TypeError, match="CartPole"):
            wrapper(gym.make("CartPole-v1"))


def test_the_spec_remembers_the_wrappers(model_folder):
    arguments = {"model": model_folder, "modules": MODULES, "split": "validation"}
    env = GradientStatistics(StepSizeAction(gym.make("editenv:LifelongEdit-v0", **arguments), typical_step=0.5))
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    first, second = env.reset(seed=0)[0], again.reset(seed=0)[0]
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key])
    action = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    assert env.step(action)[1] == again.step(action)[1]


def test_a_general_agent_takes_it(small):
    sb3 = pytest.importorskip("stable_baselines3", reason="the sb3 extra is not installed")
    model = sb3.PPO("MultiInputPolicy", small(), n_steps=4, batch_size=4, n_epochs=1, seed=0, device="cpu")
    model.learn(8)
    assert model.num_timesteps == 8
    action, _ = model.predict(small().reset(seed=0)[0], deterministic=True)
    assert action in model.action_space


ALL = {
    "sketched": lambda env: GradientSketch(GradientStatistics(SketchedAction(env)), size=5),
    "layers": lambda env: LayerStatistics(GradientStatistics(StepSizeAction(env))),
    "relative": lambda env: GradientStatistics(RelativeReward(StepSizeAction(env), step=0.5)),
}


@pytest.mark.parametrize("wrap", ALL.values(), ids=ALL)
def test_both_checkers_find_nothing_wrong(make_env, wrap):
    checker = pytest.importorskip("stable_baselines3.common.env_checker", reason="the sb3 extra is not installed")
    check_env(wrap(make_env()), skip_render_check=True)
    checker.check_env(wrap(make_env()))


@pytest.mark.parametrize("wrap", ALL.values(), ids=ALL)
def test_every_spec_makes_the_same_environment_again(model_folder, wrap):
    arguments = {"model": model_folder, "modules": MODULES, "split": "validation", "edits_per_step": 3}
    env = wrap(gym.make("editenv:LifelongEdit-v0", **arguments))
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    action = np.full(env.action_space.shape, 0.25, np.float32)
    for first, second in zip(
        (env.reset(seed=0), env.step(action)), (again.reset(seed=0), again.step(action)), strict=True
    ):
        for key, value in first[0].items():
            np.testing.assert_array_equal(value, second[0][key])
        assert first[1:] == second[1:]


def test_a_sketched_action_is_linear_and_in_the_span_of_the_keys(make_env, base):
    env = SketchedAction(make_env(), features=3, largest_step=2.0, ridge=0.2, seed=4)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    one, two = (rng.uniform(-1, 1, 6).astype(np.float32) for _ in range(2))
    deltas = [env.action(action) for action in (one, two, 0.5 * one - 2 * two, np.zeros(6, np.float32))]
    for name in MODULES:
        first, second, combined, none = (delta[name].dense() for delta in deltas)
        torch.testing.assert_close(combined, 0.5 * first - 2 * second, rtol=1e-3, atol=1e-5)
        assert not none.any()
        keys = env.unwrapped.gradients[name].keys
        inside = torch.linalg.lstsq(keys.T, first).solution
        torch.testing.assert_close(keys.T @ inside, first, rtol=1e-3, atol=1e-4)


def test_the_first_coefficient_of_a_sketch_is_a_gradient_step(make_env):
    env = SketchedAction(make_env(), features=3, largest_step=2.0, ridge=0.1)
    env.reset(seed=0)
    action = np.zeros(6, np.float32)
    action[[0, 3]] = 0.5, 0.25
    sketched = env.action(action)
    for name, step in zip(MODULES, (1.0, 0.5), strict=True):
        plain = StepSizeAction(env.env, typical_step=step).action(np.zeros(4, np.float32))
        torch.testing.assert_close(sketched[name].dense(), plain[name].dense())


def test_features_of_a_sketch_have_unit_variance(make_env):
    """Over seeds: the values that a coefficient of 1 asks for are as long, on average, as those of the plain step."""
    inner = make_env(edits_per_step=6)
    inner.reset(seed=0)
    ratios = []
    for seed in range(40):
        env = SketchedAction(inner, features=2, seed=seed, ridge=1e-4)
        plain, other = (env.action(np.array(action, np.float32))[MODULES[0]] for action in ([1, 0, 0, 0], [0, 1, 0, 0]))
        gram = inner.gradients[MODULES[0]].keys
        moved = [(gram @ delta.dense()).norm() for delta in (plain, other)]
        ratios.append(float(moved[1] / moved[0]) ** 2)
    # A chi-squared mean over 40 seeds and at least a few directions each: four standard errors.
    assert np.mean(ratios) == pytest.approx(1.0, abs=4 * np.std(ratios, ddof=1) / 40**0.5)


def test_a_gradient_sketch_is_linear_in_directions_and_keeps_lengths_apart(make_env):
    env = GradientSketch(make_env(), size=400, seed=1)
    observation, _ = env.reset(seed=0)
    for i, name in enumerate(MODULES):
        gradient = env.unwrapped.gradients[name]
        for j, factor in enumerate((gradient.keys, gradient.value_grads)):
            sketch = observation["gradient_sketch"][i].reshape(2, 401)[j]
            assert sketch[-1] == pytest.approx(float(np.log10(np.linalg.norm(factor.numpy().mean(0)))), abs=1e-4)
            # The squared length of a unit vector's sketch is chi-squared(400) / 400: within five standard
            # deviations of 1.
            assert np.square(sketch[:-1]).sum() == pytest.approx(1.0, abs=5 * (2 / 400) ** 0.5)
    again = GradientSketch(make_env(), size=400, seed=1).reset(seed=0)[0]["gradient_sketch"]
    other = GradientSketch(make_env(), size=400, seed=2).reset(seed=0)[0]["gradient_sketch"]
    np.testing.assert_array_equal(observation["gradient_sketch"], again)
    assert not np.allclose(observation["gradient_sketch"], other)


def test_layer_statistics_are_those_of_the_weights(make_env, base):
    env = LayerStatistics(make_env(horizon=2))
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    total = {name: np.zeros((64, 32), np.float32) for name in MODULES}
    for _ in range(2):  # the last one is truncated, and shows the batch that would have come
        deltas = {name: rng.normal(0, 0.1, (64, 32)).astype(np.float32) for name in MODULES}
        total = {name: total[name] + deltas[name] for name in MODULES}
        observation, *_ = env.step(deltas)
        for i, name in enumerate(MODULES):
            initial = base.get_submodule(name).weight.numpy().T
            weight = initial + total[name]
            expected = [
                np.log10(np.linalg.norm(weight)),
                np.linalg.norm(total[name]) / np.linalg.norm(initial),
                0,
                0,
                0,
            ]
            keys = env.unwrapped.gradients[name].keys.numpy()
            lengths = np.linalg.norm(keys @ weight, axis=1)
            expected[2:4] = np.log10(lengths.mean()), lengths.std() / lengths.mean()
            expected[4] = np.linalg.norm(keys @ total[name]) / np.linalg.norm(keys @ initial)
            np.testing.assert_allclose(observation["layers"][i], expected, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_layer_statistics_of_a_model_in_half_precision(make_env, dtype):
    env = LayerStatistics(make_env(dtype=dtype))
    observation, _ = env.reset(seed=0)
    assert np.isfinite(observation["layers"]).all()
    assert (observation["layers"][:, 2] != 0).all()


def test_relative_rewards_refuse_a_reference_that_moves(make_env):
    with pytest.raises(ValueError, match="reference='initial'"):
        RelativeReward(make_env(reference="previous"))


def test_relative_rewards_are_measured_on_the_same_stream(make_env):
    """0 for no edit, 1 for the reference itself; the rewards in info are those of separate environments."""
    arguments = {"horizon": 3, "actions_per_batch": 2}
    none, reference = make_env(**arguments), StepSizeAction(make_env(**arguments), typical_step=0.3)
    as_none, as_reference = (RelativeReward(make_env(**arguments), step=0.3) for _ in range(2))
    for env in (none, reference, as_none, as_reference):
        env.reset(seed=3)
    zero = {name: np.zeros((64, 32), np.float32) for name in MODULES}
    done = False
    while not done:
        delta = {name: factors.dense() for name, factors in reference.action(np.zeros(4, np.float32)).items()}
        expected = none.step(zero)[1], reference.step(np.zeros(4, np.float32))[1]
        _, relative, *_, info = as_none.step(zero)
        assert relative == pytest.approx(0.0, abs=1e-5)
        assert (info["no_edit_reward"], info["reference_reward"]) == pytest.approx(expected, rel=1e-5)
        _, relative, terminated, truncated, info = as_reference.step(delta)
        assert abs(relative) == pytest.approx(
            abs(expected[1] - expected[0]) / max(abs(expected[1] - expected[0]), 0.1), rel=1e-4
        )
        assert np.sign(relative) == np.sign(expected[1] - expected[0])
        assert info["reward"] == pytest.approx(expected[1], rel=1e-5)
        done = terminated or truncated


def test_a_refused_action_moves_neither_model_nor_reference(make_env):
    env, plain = (RelativeReward(make_env()) for _ in range(2))
    env.reset(seed=0)
    plain.reset(seed=0)
    zero = {name: np.zeros((64, 32), np.float32) for name in MODULES}
    with pytest.raises(ValueError, match="NaN"):
        env.step({name: np.full((64, 32), np.nan) for name in MODULES})
    for _ in range(2):
        assert env.step(zero)[1:] == plain.step(zero)[1:]


@pytest.mark.parametrize(
    ("wrapper", "arguments", "word"),
    [(SketchedAction, {"features": 0}, "features"), (GradientSketch, {"size": 0}, "size"),
     (RelativeReward, {"smallest": 0.0}, "smallest")],
)  # fmt: skip
def test_wrong_arguments_are_named(make_env, wrapper, arguments, word):
    with pytest.raises(ValueError, match=word):
        wrapper(make_env(), **arguments)
