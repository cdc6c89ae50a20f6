import copy
import json
import pickle
import subprocess
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from plain import answer_factors, answer_logits, batch_loss, edited_weights, mean, random_deltas

import editenv  # noqa: F401 - registers the environment
from editenv.data import load_edits
from editenv.deltas import LowRank
from editenv.language_model import editable_lm

LAST = "model.layers.2.mlp.down_proj"
MIDDLE = "model.layers.1.mlp.down_proj"


def arrays(deltas):
    return {name: delta.numpy() for name, delta in deltas.items()}


def deltas_for(env, seed=0, scale=0.1):
    return random_deltas(env.language_model, scale, seed)


def zeros(env):
    return arrays({name: torch.zeros(env.language_model.shape(name)) for name in env.language_model.modules})


def same(first, second):
    assert first.keys() == second.keys()
    for name, part in first.items():
        assert part.keys() == second[name].keys()
        for key, value in part.items():
            np.testing.assert_array_equal(value, second[name][key], err_msg=f"{name}/{key}")


def roll(env, seed, steps=3):
    observation, info = env.reset(seed=seed)
    found = [(observation, 0.0, False, False, info)]
    for step in range(steps):
        found.append(env.step(arrays(deltas_for(env, step))))
    return found


def check_observation(observation, env, model, tokenizer, deltas):
    """Against the whole model with ``deltas`` added, one prompt at a time."""
    pairs = [(edit.prompt, edit.target) for edit in env.batch]
    factors = answer_factors(model, tokenizer, pairs, edited_weights(model, deltas))
    assert set(observation) == {MIDDLE, LAST}
    for name, part in observation.items():
        keys, value_grads = factors[name]
        tokens = len(keys)
        assert part["token_mask"].tolist() == [1.0] * tokens + [0.0] * (env.max_tokens - tokens)
        np.testing.assert_allclose(part["keys"][:tokens], keys, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(part["value_grads"][:tokens], value_grads, rtol=1e-3, atol=1e-4)
        assert not part["keys"][tokens:].any()
        assert not part["value_grads"][tokens:].any()


def total_of(*parts):
    return {name: sum(deltas[name] for deltas in parts) for name in (MIDDLE, LAST)}


# -- Gymnasium's own rules --------------------------------------------------------------------------------------------


def test_gymnasium_finds_nothing_wrong(make_env):
    check_env(make_env(modules=["layers.2.mlp.down_proj"]), skip_render_check=True)


def test_make_and_a_spec_that_can_be_written_down(model_folder):
    arguments = {"model": model_folder, "modules": ["layers.2.mlp.down_proj"], "split": "validation", "horizon": 2}
    env = gym.make("LifelongEdit-v0", edits_per_step=2, **arguments)
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    assert json.loads(env.spec.to_json())["kwargs"]["modules"] == ["layers.2.mlp.down_proj"]
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    same(observation, again.reset(seed=0)[0])


def test_make_imports_the_package_by_itself(model_folder):
    arguments = {"model": model_folder, "modules": ["layers.2.mlp.down_proj"], "split": "validation"}
    code = f"import gymnasium; print(gymnasium.make('editenv:LifelongEdit-v0', **{arguments}).unwrapped)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LifelongEditEnv" in found.stdout


# -- determinism ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("redraw", [False, True])
def test_same_seed_same_trajectory(make_env, tenth_of_atlas, redraw):
    arguments = {"split": "train", "redraw": True} if redraw else {}
    first, second = make_env(**arguments), make_env(**arguments)
    second.reset(seed=77)
    second.step(arrays(deltas_for(second, 9)))
    trajectory = roll(first, seed=5)
    for one, two in zip(trajectory, roll(second, seed=5), strict=True):
        same(one[0], two[0])
        assert one[1:] == two[1:]
    assert list(first.stream) == list(second.stream)
    first.reset(seed=6)
    assert list(first.stream) != list(second.stream)


@pytest.mark.parametrize("module", [LAST, MIDDLE])
def test_an_episode_does_not_depend_on_those_before(make_env, small_world, module):
    """To the last bit, though they asked some of the same questions in other batches."""
    fresh, used = make_env(modules=[module]), make_env(modules=[module])
    for seed in range(3):
        roll(used, seed=seed, steps=1)
    for one, two in zip(roll(fresh, seed=5), roll(used, seed=5), strict=True):
        same(one[0], two[0])
        assert one[1:] == two[1:]


def test_an_unseeded_reset_goes_on_in_the_seeded_order(make_env):
    first, second = make_env(), make_env()
    streams = []
    for env in (first, second):
        env.reset(seed=1)
        env.reset()
        streams.append(list(env.stream))
    assert streams[0] == streams[1]
    first.reset(seed=1)
    assert list(first.stream) != streams[0]


def test_redraw_gives_each_episode_new_targets(make_env, tenth_of_atlas):
    env = make_env(split="train", redraw=True, edits_per_step=30)
    canonical = {edit.subject: edit.target for edit in load_edits("atlas", "train")}
    seen = []
    for _ in range(2):
        env.reset(seed=None if seen else 0)
        assert sum(edit.target != canonical[edit.subject] for edit in env.stream) > len(env.stream) / 2
        assert all(edit.target != edit.old_answer for edit in env.stream)
        seen.append({edit.subject for edit in env.stream})
    assert seen[0] != seen[1]


def test_shuffle_false_keeps_the_data_sets_order(make_env, small_world):
    env = make_env(horizon=None)
    env.reset(seed=3, options={"shuffle": False})
    assert list(env.stream) == small_world[:9]
    with pytest.raises(ValueError, match="shufle"):
        env.reset(options={"shufle": True})


# -- what is observed and how actions are taken -----------------------------------------------------------------------


def test_the_observation_is_the_fine_tuning_gradient_of_the_batch(make_env, base, tokenizer):
    env = make_env()
    observation, _ = env.reset(seed=2)
    check_observation(observation, env, base, tokenizer, deltas_for(env, scale=0))
    for name, part in observation.items():
        tokens = len(env.gradients[name].keys)
        assert 0 < tokens < env.max_tokens
        np.testing.assert_array_equal(part["keys"][:tokens], env.gradients[name].keys)
        np.testing.assert_array_equal(part["value_grads"][:tokens], env.gradients[name].value_grads)


@pytest.mark.parametrize("ends", [False, True])
def test_all_tokens_give_the_weight_gradient_in_every_layer_and_answers_in_the_last(make_env, base, tokenizer, ends):
    """Against autograd on the whole model, at edited weights, for every batch of a stream."""
    modules = [f"model.layers.{i}.mlp.down_proj" for i in range(3)]
    for observed in ("answers", "all"):
        env = make_env(modules=modules, observed_tokens=observed, train_eos=ends, actions_per_batch=2, horizon=2)
        observation, _ = env.reset(seed=3)
        deltas = {name: torch.zeros(env.language_model.shape(name)) for name in modules}
        for step in range(4):
            assert observation in env.observation_space
            weights = {n: w.requires_grad_() for n, w in edited_weights(base, deltas).items()}
            batch_loss = torch.zeros(())
            for edit in env.batch:
                logits, labels = answer_logits(base, tokenizer, edit.prompt, edit.target, weights, ends)
                batch_loss = batch_loss + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            batch_loss.backward()
            for name, part in observation.items():
                expected = weights[f"{name}.weight"].grad.T.numpy()
                actual = part["keys"].T @ part["value_grads"]
                difference = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
                assert (difference < 1e-4) == (observed == "all" or name == LAST), (observed, name, difference)
                assert difference < 1e-4 or difference > 0.1
            added = deltas_for(env, step)
            deltas = {name: deltas[name] + added[name] for name in modules}
            observation, *_ = env.step(arrays(added))


def test_the_last_layers_mlp_is_observed_alike_either_way(make_env):
    """No later token reads it: there is nothing but the answer positions."""
    answers, every = (make_env(modules=[LAST], observed_tokens=observed) for observed in ("answers", "all"))
    first, second = answers.reset(seed=0)[0], every.reset(seed=0)[0]
    tokens = len(answers.gradients[LAST].keys)
    assert second[LAST]["token_mask"].sum() == tokens
    for key, value in first[LAST].items():
        np.testing.assert_array_equal(value[:tokens], second[LAST][key][:tokens])


def token_of(tokenizer, text, end):
    """The first token up to which the decoded text reaches a number of characters."""
    ids = tokenizer(text)["input_ids"]
    lengths = [len(tokenizer.decode(ids[: i + 1], skip_special_tokens=True)) for i in range(len(ids))]
    return next(i for i, length in enumerate(lengths) if length >= end)


def contribution_of(base, tokenizer, edit, token, weights, names, ends):
    """What one token of a prompt adds to each module's weight gradient, ``(d_in, d_out)``: hooks on the whole model."""
    seen = {}

    def watch(name):
        def hook(_, args, output):
            seen[name] = (args[0].detach(), output.retain_grad() or output)

        return hook

    handles = [base.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    logits, labels = answer_logits(base, tokenizer, edit.prompt, edit.target, weights, ends)
    for handle in handles:
        handle.remove()
    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    return {name: torch.outer(keys[0, token], output.grad[0, token]) for name, (keys, output) in seen.items()}


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("overhead", [0, 10**6])
def test_the_subjects_last_token_alone_is_observed(make_env, base, tokenizer, monkeypatch, small_world, ends, overhead):
    """Against autograd on the whole model, one prompt at a time; prompts run apart or padded together."""
    monkeypatch.setattr(editable_lm, "FORWARD_OVERHEAD", {"cpu": overhead})
    modules = [f"model.layers.{i}.mlp.down_proj" for i in range(2)]
    env = make_env(modules=modules, observed_tokens="subject", train_eos=ends, edits_per_step=4, horizon=2)
    assert len({len(tokenizer(edit.prompt)["input_ids"]) for edit in small_world}) > 2
    observation, _ = env.reset(seed=1)
    deltas = {name: torch.zeros(env.language_model.shape(name)) for name in modules}
    for step in range(2):
        assert observation in env.observation_space
        weights = {n: w.requires_grad_() for n, w in edited_weights(base, deltas).items()}
        for i, edit in enumerate(env.batch):
            end = edit.prompt.index(edit.subject) + len(edit.subject)
            token = token_of(tokenizer, edit.prompt, end)
            expected = contribution_of(base, tokenizer, edit, token, weights, modules, ends)
            for name in modules:
                part = env.gradients[name]
                assert part.keys.shape == (4, 64)
                torch.testing.assert_close(
                    torch.outer(part.keys[i], part.value_grads[i]), expected[name], rtol=1e-3, atol=1e-6
                )
                assert expected[name].abs().max() > 1e-5
        torch.testing.assert_close(env.gradient_of(env.batch)[modules[0]].keys, env.gradients[modules[0]].keys)
        added = deltas_for(env, step)
        deltas = {name: deltas[name] + added[name] for name in modules}
        observation, *_ = env.step(arrays(added))


@pytest.mark.parametrize("modules", [[LAST], ["layers.0.mlp.down_proj", LAST]])
def test_the_subject_is_not_observed_where_it_has_no_gradient(make_env, modules):
    with pytest.raises(ValueError, match=rf"observed_tokens: 'subject' .*{LAST} lies in the last layer"):
        make_env(modules=modules, observed_tokens="subject")
    assert make_env(modules=["layers.2.self_attn.k_proj"], observed_tokens="subject").max_tokens == 3


def test_edits_without_their_subject_are_named_where_it_is_observed(make_env, small_world, monkeypatch):
    bare = replace(small_world[1], id="bare", subject=None)
    absent = replace(small_world[2], id="absent", subject="Nobody")
    for edit, words in (
        (bare, "bare has no subject.*observed_tokens"),
        (absent, "absent: the subject 'Nobody' does not"),
    ):
        monkeypatch.setattr("editenv.env.load_edits", lambda *_, edit=edit: [*small_world[3:], edit])
        with pytest.raises(ValueError, match=words):
            make_env(modules=[MIDDLE], observed_tokens="subject")
        env = make_env(modules=[MIDDLE], observed_tokens="subject", dataset=None)
        env.reset()
        env.present(small_world[3:5])
        before = env.gradients
        with pytest.raises(ValueError, match=words):
            env.present([small_world[0], edit])
        assert env.gradients is before
        assert env.batch == small_world[3:5]


@pytest.mark.parametrize("redraw", [False, True])
def test_the_space_holds_every_batch_of_all_tokens(make_env, tokenizer, tenth_of_atlas, redraw):
    split = "train" if redraw else "validation"
    env = make_env(modules=[MIDDLE], observed_tokens="all", redraw=redraw, split=split, edits_per_step=1)
    for seed in range(3):
        env.reset(seed=seed)
        prompts = [tokenizer(edit.prompt)["input_ids"] for edit in env._edits]
        targets = [tokenizer(f" {edit.target}", add_special_tokens=False)["input_ids"] for edit in env._edits]
        assert max(len(p) + len(t) - 1 for p, t in zip(prompts, targets, strict=True)) <= env.max_tokens
    assert env.observation_space[MIDDLE]["keys"].shape == (env.max_tokens, 64)


@pytest.mark.parametrize("observed", ["answers", "all"])
def test_the_space_holds_answers_before_which_no_space_stands(make_env, small_world, monkeypatch, observed):
    # The tokenizer has one token for a space and the word, and two for the word alone.
    world = [replace(edit, prompt=f"{edit.prompt}:\n", target="the") for edit in small_world[:2]]
    monkeypatch.setattr("editenv.env.load_edits", lambda *_: world)
    env = make_env(modules=[MIDDLE], observed_tokens=observed, edits_per_step=2)
    observation, _ = env.reset(seed=0)
    assert len(env.gradients[MIDDLE].keys) <= env.max_tokens
    assert observation in env.observation_space


def test_each_batch_again_with_new_gradients(make_env, base, tokenizer):
    env = make_env(actions_per_batch=2, horizon=2)
    observation, info = env.reset(seed=0)
    assert (info["batch"], info["attempt"], info["edits"]) == (0, 0, 0)
    batch, taken = env.batch, []
    places = [(0, 1, 0), (1, 0, 3), (1, 1, 3), (2, 0, 6)]
    for step, place in enumerate(places):
        taken.append(deltas_for(env, step))
        before = observation
        observation, _, terminated, truncated, info = env.step(taken[-1])
        assert (info["batch"], info["attempt"], info["edits"]) == place
        assert not terminated
        assert truncated == (step == 3)
        if not truncated:
            assert (env.batch == batch) == (place[0] == 0)
            check_observation(observation, env, base, tokenizer, total_of(*taken))
            assert not np.allclose(observation[LAST]["value_grads"], before[LAST]["value_grads"])


def test_repeated_batches_enter_the_memory_once(make_env):
    env = make_env(actions_per_batch=2, horizon=3)
    env.reset(seed=0)
    kept = [len(env.reward.memory)]
    for _ in range(5):
        env.step(zeros(env))
        kept.append(len(env.reward.memory))
    assert kept == [0, 0, 1, 1, 2, 2]


def test_forms_of_an_action_are_alike(make_env):
    generator = torch.Generator().manual_seed(0)
    factors = {
        name: LowRank(torch.randn(64, 2, generator=generator) * 0.1, torch.randn(2, 32, generator=generator))
        for name in (MIDDLE, LAST)
    }
    matrices = {name: pair.left @ pair.right for name, pair in factors.items()}
    forms = {
        "numpy": arrays(matrices),
        "torch": matrices,
        "double": {name: matrix.double().numpy() for name, matrix in matrices.items()},
        "requires grad": {name: matrix.clone().requires_grad_() for name, matrix in matrices.items()},
        "low rank": factors,
    }
    found = {}
    for form, action in forms.items():
        env = make_env()
        env.reset(seed=4)
        found[form] = env.step(action)
    reference = found["numpy"]
    for form in ("torch", "double", "requires grad"):
        same(found[form][0], reference[0])
        assert found[form][1:] == reference[1:]
    assert found["low rank"][1] == pytest.approx(reference[1], rel=1e-5)
    for name, part in found["low rank"][0].items():
        np.testing.assert_allclose(part["value_grads"], reference[0][name]["value_grads"], rtol=1e-3, atol=1e-5)


def test_the_action_is_not_kept(make_env):
    env = make_env()
    env.reset(seed=0)
    action = arrays(deltas_for(env))
    env.step(action)
    weights = env.language_model.snapshot()
    for array in action.values():
        array[:] = 100
    assert all(torch.equal(value, weights[name]) for name, value in env.language_model.snapshot().items())


def test_observations_share_no_memory(make_env):
    env, other = make_env(), make_env()
    first, _ = env.reset(seed=0)
    copy = {name: {key: value.copy() for key, value in part.items()} for name, part in first.items()}
    second, *_ = env.step(zeros(env))
    same(first, copy)
    for name in first:
        for key in first[name]:
            assert not np.shares_memory(first[name][key], second[name][key])
            second[name][key][:] = 7
    other.reset(seed=0)
    other.step(zeros(other))
    same(env.step(zeros(env))[0], other.step(zeros(other))[0])


# -- rewards ----------------------------------------------------------------------------------------------------------


def test_rewards_along_an_episode_are_equation_10(make_env, base, tokenizer):
    env = make_env(locality=0.5, memory_decay=0.8, memory_batches=1, regularization=0.02)
    env.reset(seed=0)
    total = {name: torch.zeros(64, 32) for name in (MIDDLE, LAST)}
    batches = []
    for step in range(3):
        batches.append(env.batch)
        deltas = deltas_for(env, step)
        total = {name: total[name] + deltas[name] for name in total}
        weights = edited_weights(base, total)
        _, reward, _, _, info = env.step(deltas)
        expected = batch_loss(base, tokenizer, batches[-1], weights, 0.5)
        if step:
            expected = expected + 0.8 * batch_loss(base, tokenizer, batches[-2], weights, 0.5)
        expected = float(expected + 0.02 * sum(delta.square().sum() for delta in deltas.values()))
        assert type(reward) is float
        assert reward == pytest.approx(-expected, rel=1e-4)
        assert info["reward_terms"]["reward"] == reward


def test_info_holds_the_batchs_own_scores(make_env, base, tokenizer):
    env = make_env()
    env.reset(seed=0)
    batch, deltas = env.batch, deltas_for(env, scale=0.3)
    *_, info = env.step(deltas)
    weights = edited_weights(base, deltas)

    def share(prompt, wanted, answer):
        logits, _ = answer_logits(base, tokenizer, prompt, answer, weights)
        return float((logits.argmax(-1) == wanted).float().mean())

    labels = [answer_logits(base, tokenizer, e.prompt, e.target)[1] for e in batch]
    efficacy = mean(share(e.prompt, wanted, e.target) for e, wanted in zip(batch, labels, strict=True))
    before = [[answer_logits(base, tokenizer, x.prompt, x.answer)[0].argmax(-1) for x in e.locality] for e in batch]
    specificity = mean(
        mean(share(x.prompt, w, x.answer) for x, w in zip(e.locality, row, strict=True))
        for e, row in zip(batch, before, strict=True)
    )
    assert info["efficacy"] == pytest.approx(100 * efficacy, abs=1e-3)
    assert info["specificity"] == pytest.approx(100 * specificity, abs=1e-3)
    assert info["specificity"] < 100


def test_core_and_shell_give_the_same_trajectory(make_env):
    shell, core = make_env(actions_per_batch=2, horizon=2), make_env(actions_per_batch=2, horizon=2)
    shell.reset(seed=1)
    core.reset(seed=1)
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        deltas = {
            name: LowRank(0.1 * torch.randn(64, 3, generator=generator), torch.randn(3, 32, generator=generator))
            for name in (MIDDLE, LAST)
        }
        observation, reward, _, _, info = shell.step(deltas)
        terms, _ = core.transition(deltas)
        assert info["reward_terms"] == pytest.approx(terms.as_dict(), rel=1e-6, abs=1e-7)
        assert reward == pytest.approx(terms.reward, rel=1e-6)
        assert (shell.batches_done, shell.batch) == (core.batches_done, core.batch)
        if step == 3:  # the shell shows the batch that would have come; training has no use for it
            assert not any(len(gradient.keys) for gradient in core.gradients.values())
            break
        for name, part in observation.items():
            tokens = len(core.gradients[name].keys)
            assert tokens == part["token_mask"].sum()
            gradient = core.gradients[name]
            np.testing.assert_allclose(part["keys"][:tokens], gradient.keys, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(part["value_grads"][:tokens], gradient.value_grads, rtol=1e-5, atol=1e-6)
    for name, weight in shell.language_model.snapshot().items():
        assert torch.equal(weight, core.language_model.snapshot()[name])


def test_the_cores_gradient_is_the_slope_of_the_shells_reward(make_env):
    """Along the gradient itself, for the second step, memory included; the L2 term is the delta's own affair."""
    env = make_env(regularization=0.0)

    def second_reward(extra):
        env.reset(seed=0)
        env.step(deltas_for(env, 0))
        return env.step({name: delta + extra[name] for name, delta in deltas_for(env, 1).items()})[1]

    env.reset(seed=0)
    env.transition(deltas_for(env, 0))
    _, gradients = env.transition(deltas_for(env, 1))
    dense = {name: gradient.dense() for name, gradient in gradients.items()}
    norm = sum(float(d.square().sum()) for d in dense.values()) ** 0.5
    step = 0.02
    up, down = (second_reward({name: sign * step * d / norm for name, d in dense.items()}) for sign in (1, -1))
    assert (down - up) / (2 * step) == pytest.approx(norm, rel=0.02)


def test_undoing_all_edits_in_the_middle_of_a_stream_is_theta_0_at_that_place(make_env, base):
    env, untouched = make_env(), make_env()
    env.reset(seed=0)
    untouched.reset(seed=0)
    env.step(arrays(deltas_for(env)))
    untouched.step(zeros(untouched))
    assert env.batches_in_memory == 1
    env.undo_all_edits()
    assert env.batches_in_memory == 0
    assert env.batch == untouched.batch
    for name, gradient in env.gradients.items():
        assert torch.equal(env.language_model.weight(name), base.get_submodule(name).weight.T)
        torch.testing.assert_close(gradient.value_grads, untouched.gradients[name].value_grads)
    *_, info = env.step(zeros(env))
    assert info["reward_terms"]["memory"] == 0


def test_agents_are_given_the_factors_and_gymnasium_the_same_padded(make_env):
    env = make_env()
    observation, _ = env.reset(seed=0)
    for name, part in env.padded(env.gradients).items():
        tokens = int(part["token_mask"].sum())
        assert tokens == len(env.gradients[name].keys) < env.max_tokens
        for factor in ("keys", "value_grads"):
            np.testing.assert_array_equal(part[factor], observation[name][factor])
            np.testing.assert_array_equal(part[factor][:tokens], getattr(env.gradients[name], factor).numpy())
            assert not part[factor][tokens:].any()


def test_an_agent_that_reads_the_factors_as_it_did_before_is_told_how(make_env):
    env = make_env()
    env.reset(seed=0)
    with pytest.raises(TypeError, match=r"observation\[module\].keys and .value_grads"):
        env.gradients[LAST]["keys"]


def test_what_there_is_before_the_first_reset(make_env):
    env = make_env()
    assert (env.batch, env.batches_done, len(env.stream), env.batches_in_memory) == ([], 0, 0, 0)
    assert all(len(gradient.keys) == 0 for gradient in env.gradients.values())
    for attribute in ("evaluation_batch", "training_targets"):
        with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
            getattr(env, attribute)


def test_names_of_the_version_before_work_with_a_warning(make_env):
    with pytest.warns(FutureWarning, match="end_of_answer is now called train_eos"):
        assert make_env(end_of_answer=True).train_eos
    env = make_env()
    with pytest.warns(FutureWarning, match="keep_encodings is now called keep_cache"):
        env.reset(seed=0, options={"keep_encodings": True})
    with pytest.raises(TypeError, match="unexpected keyword argument 'end_of_answers'"):
        make_env(end_of_answers=True)


def test_refresh_sees_weights_changed_from_outside(make_env, base, tokenizer):
    env = make_env()
    env.reset(seed=0)
    deltas = deltas_for(env)
    env.language_model.apply(deltas)
    env.refresh()
    pairs = [(edit.prompt, edit.target) for edit in env.batch]
    factors = answer_factors(base, tokenizer, pairs, edited_weights(base, deltas))
    for name, gradient in env.gradients.items():
        torch.testing.assert_close(gradient.keys, factors[name][0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(gradient.value_grads, factors[name][1], rtol=1e-3, atol=1e-4)


# -- beginnings and ends ----------------------------------------------------------------------------------------------


def test_reset_restores_theta_0_and_forgets(make_env, base):
    env = make_env()
    env.reset(seed=0)
    first = env.step(arrays(deltas_for(env)))
    for step in range(2):
        *_, info = env.step(arrays(deltas_for(env, step + 1)))
    assert info["reward_terms"]["memory"] > 0
    env.reset(seed=0)
    for name, module in env.language_model.modules.items():
        assert torch.equal(module.weight, base.get_submodule(name).weight)
    assert len(env.edits_done) == env.batches_done == 0
    again = env.step(arrays(deltas_for(env)))
    assert again[4]["reward_terms"]["memory"] == 0
    same(first[0], again[0])
    assert first[1:] == again[1:]


@pytest.mark.parametrize(
    ("horizon", "expected"),
    [(None, [(False, False), (False, False), (True, False)]), (2, [(False, False), (False, True)]),
     (3, [(False, False), (False, False), (True, False)]), (9, [(False, False), (False, False), (True, False)]),
     (1, [(False, True)])],
)  # fmt: skip
def test_the_end_of_the_stream_terminates_and_the_horizon_truncates(make_env, small_world, horizon, expected):
    """Ten edits are three batches of three; the tenth is never reached."""
    env = make_env(horizon=horizon)
    env.reset(seed=0)
    ends = []
    for i in range(len(expected)):
        assert len(env.edits_done) == 3 * i
        observation, _, terminated, truncated, info = env.step(zeros(env))
        ends.append((terminated, truncated))
    assert ends == expected
    assert info["edits"] == len(env.edits_done) == 3 * len(expected)
    assert len(env.batch) == 0
    assert observation in env.observation_space
    seen = [value.any() for part in observation.values() for value in part.values()]
    assert all(seen) if truncated else not any(seen)


@pytest.mark.parametrize("ends", [False, True])
def test_what_is_observed_at_a_truncation_is_the_batch_that_would_have_come(make_env, small_world, ends):
    """A value function is asked about it."""
    cut, whole = (make_env(horizon=horizon, train_eos=ends) for horizon in (1, None))
    rng = np.random.default_rng(0)
    for env in (cut, whole):
        env.reset(seed=4)
    action = {name: 0.1 * rng.standard_normal(cut.language_model.shape(name)) for name in cut.language_model.modules}
    one, _, _, truncated, _ = cut.step(action)
    other, _, _, goes_on, _ = whole.step(action)
    assert (truncated, goes_on) == (True, False)
    for name, part in other.items():
        for key, value in part.items():
            np.testing.assert_allclose(one[name][key], value, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="over"):
        cut.step(action)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_copy_is_an_environment_of_its_own(make_env, small_world, copied, dtype):
    env = make_env(dtype=dtype)
    env.reset(seed=0)
    action = {n: np.full(env.language_model.shape(n), 0.05, np.float32) for n in env.language_model.modules}
    env.step(action)
    other = copied(env)
    for _ in range(2):
        one, two = env.step(action), other.step(action)
        assert one[1] == two[1]
        assert one[4] == two[4]
    before = other.language_model.snapshot()
    env.reset(seed=0)
    assert all(torch.equal(weight, before[name]) for name, weight in other.language_model.snapshot().items())


def test_an_action_whose_square_is_infinite_is_refused(make_env, small_world):
    env = make_env()
    env.reset(seed=0)
    action = {n: np.full(env.language_model.shape(n), 1e30, np.float32) for n in env.language_model.modules}
    with pytest.raises(ValueError, match="NaN or infinity"):
        env.step(action)


def test_batches_are_presented_to_an_environment_without_a_stream(make_env, small_world):
    env = make_env(dataset=None)
    with pytest.raises(RuntimeError, match="call reset"):
        env.present(small_world[:2])
    env.reset(seed=0)
    with pytest.raises(ValueError, match="at least one edit"):
        env.present([])
    env.present(small_world[:2])
    assert list(env.batch) == small_world[:2]
    thrice = make_env(dataset=None, actions_per_batch=3)
    thrice.reset(seed=0)
    for _ in range(2):
        thrice.present(small_world[:2])
        nothing = {n: np.zeros(thrice.language_model.shape(n), np.float32) for n in thrice.language_model.modules}
        assert [thrice.step(nothing)[2] for _ in range(3)] == [False, False, True]
    streaming = make_env()
    streaming.reset(seed=0)
    before = list(streaming.batch)
    with pytest.raises(ValueError, match="dataset=None"):
        streaming.present(small_world[:2])
    assert list(streaming.batch) == before


def test_a_presented_batch_does_not_depend_on_those_before(make_env, small_world):
    used, fresh = make_env(dataset=None), make_env(dataset=None)
    action = {n: np.full((64, 32), 0.01, np.float32) for n in used.language_model.modules}
    for env in (used, fresh):
        env.reset(seed=0)
    for i in (0, 3):
        used.present(small_world[i : i + 3])
        used.step(action)
    used.language_model.restore()
    one, two = (env.present(small_world[2:5])[0] for env in (used, fresh))
    for name, part in one.items():
        for key, value in part.items():
            np.testing.assert_array_equal(value, two[name][key])
    assert used.step(action)[1] == fresh.step(action)[1]


def test_the_last_weights_stay_after_the_end_and_no_step_is_taken(make_env):
    env = make_env(horizon=1)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(zeros(env))
    env.reset(seed=0)
    env.step(arrays(deltas_for(env)))
    weights = env.language_model.snapshot()
    with pytest.raises(RuntimeError, match="reset"):
        env.step(arrays(deltas_for(env)))
    assert all(torch.equal(value, weights[name]) for name, value in env.language_model.snapshot().items())
    env.reset()
    env.step(zeros(env))


# -- refusals ---------------------------------------------------------------------------------------------------------


def with_entry(env, value):
    action = zeros(env)
    action[LAST][5, 7] = value
    return action


def low_rank(left, right):
    return lambda env: zeros(env) | {LAST: LowRank(left, right)}


REFUSED = {
    "nan": (lambda env: with_entry(env, np.nan), [LAST, "(64, 32)"]),
    "infinity": (lambda env: with_entry(env, -np.inf), [LAST, "(64, 32)"]),
    "torch nan": (lambda env: zeros(env) | {LAST: torch.full((64, 32), torch.nan)}, [LAST, "(64, 32)"]),
    "too large for float32": (lambda env: zeros(env) | {LAST: np.full((64, 32), 1e300)}, [LAST, "(64, 32)"]),
    "nan factor": (low_rank(torch.full((64, 1), torch.nan), torch.ones(1, 32)), [LAST, "(64, 32)"]),
    "infinite product": (low_rank(torch.full((64, 1), 1e30), torch.full((1, 32), 1e30)), [LAST, "(64, 32)"]),
    "infinite square of a product": (low_rank(torch.full((64, 1), 1e10), torch.full((1, 32), 1e10)), [LAST, "(64, 32)"]),
    "infinite square of a factor": (low_rank(torch.full((64, 1), 1e20), torch.full((1, 32), 1e-25)), [LAST, "(64, 32)"]),
    "transposed": (lambda env: zeros(env) | {LAST: np.zeros((32, 64))}, [LAST, "(64, 32)", "(32, 64)"]),
    "flat": (lambda env: zeros(env) | {LAST: np.zeros(64 * 32)}, [LAST, "(64, 32)", "(2048,)"]),
    "one number": (lambda env: zeros(env) | {LAST: np.zeros(())}, [LAST, "(64, 32)", "()"]),
    "factors of a wrong shape": (low_rank(torch.zeros(32, 2), torch.zeros(2, 64)), [LAST, "(64, 32)", "(32, 64)"]),
    "factors of different ranks": (low_rank(torch.zeros(64, 2), torch.zeros(3, 32)), [LAST, "(64, 2)", "(3, 32)"]),
    "unknown": (lambda env: zeros(env) | {"layers.0": np.zeros((64, 32))}, ["layers.0", MIDDLE, LAST]),
    "missing": (lambda env: {MIDDLE: np.zeros((64, 32))}, [LAST]),
    "empty": (lambda env: {}, [MIDDLE]),
    "no mapping": (lambda env: np.zeros((64, 32)), ["ndarray"]),
    "None": (lambda env: None, ["NoneType"]),
    "a list": (lambda env: zeros(env) | {LAST: [[0.0] * 32] * 64}, [LAST]),
    "text": (lambda env: zeros(env) | {LAST: "none"}, [LAST]),
    "complex": (lambda env: zeros(env) | {LAST: np.zeros((64, 32), complex)}, [LAST, "complex128"]),
    "torch complex": (lambda env: zeros(env) | {LAST: torch.zeros(64, 32, dtype=torch.complex64)}, [LAST, "complex64"]),
    "bools": (lambda env: zeros(env) | {LAST: np.zeros((64, 32), bool)}, [LAST, "bool"]),
    "torch bools": (lambda env: zeros(env) | {LAST: torch.zeros(64, 32, dtype=torch.bool)}, [LAST, "torch.bool"]),
    "objects": (lambda env: zeros(env) | {LAST: np.zeros((64, 32), object)}, [LAST, "object"]),
    "texts": (lambda env: zeros(env) | {LAST: np.full((64, 32), "0")}, [LAST, "<U1"]),
    "masked": (lambda env: zeros(env) | {LAST: np.ma.masked_array(np.zeros((64, 32)), True)}, [LAST, "MaskedArray"]),
    "sparse": (lambda env: zeros(env) | {LAST: torch.zeros(64, 32).to_sparse()}, [LAST, "sparse"]),
    "nowhere": (lambda env: zeros(env) | {LAST: torch.zeros(64, 32, device="meta")}, [LAST, "meta"]),
    "a row, which would be repeated": (lambda env: zeros(env) | {LAST: np.zeros((1, 32))}, [LAST, "(64, 32)", "(1, 32)"]),
    "vectors as factors": (low_rank(torch.zeros(64), torch.zeros(32)), [LAST, "left factor", "(64,)"]),
    "lists as factors": (low_rank([[0.0]] * 64, [[0.0] * 32]), [LAST, "left factor", "list"]),
    "complex factor": (low_rank(np.zeros((64, 1)), np.zeros((1, 32), complex)), [LAST, "right factor", "complex128"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_action_is_refused_and_changes_nothing(make_env, case):
    """The other module's delta is sound and would show."""
    env = make_env()
    env.reset(seed=0)
    env.step(arrays(deltas_for(env)))
    weights, batch, gradients = env.language_model.snapshot(), env.batch, env.gradients
    build, named = REFUSED[case]
    action = build(env)
    if isinstance(action, dict) and MIDDLE in action:
        action[MIDDLE] = np.ones((64, 32), np.float32)
    with pytest.raises(ValueError) as refusal:
        env.step(action)
    for words in named:
        assert words in str(refusal.value)
    for name, value in env.language_model.snapshot().items():
        assert torch.equal(value, weights[name])
    assert env.batch == batch
    assert env.gradients is gradients
    _, reward, _, _, info = env.step(zeros(env))
    assert np.isfinite(reward)
    assert info["batch"] == 2


REAL = {
    "negative strides": lambda delta: delta[::-1, ::-1][::-1, ::-1],
    "upside down": lambda delta: np.ascontiguousarray(delta[::-1])[::-1],
    "by column": np.asfortranarray,
    "float16": lambda delta: delta.astype(np.float16),
    "float64": lambda delta: delta.astype(np.float64),
    "long double": lambda delta: delta.astype(np.longdouble),
    "big-endian": lambda delta: delta.astype(">f4"),
    "not writable": lambda delta: np.broadcast_to(delta, delta.shape),
    "every other row of twice as many": lambda delta: delta.repeat(2, 0)[::2],
    "bfloat16 tensor": lambda delta: torch.from_numpy(delta).bfloat16(),
    "tensor with gradient": lambda delta: torch.from_numpy(delta).requires_grad_(),
    "numpy factors": lambda delta: LowRank(np.eye(64)[:, ::-1], delta[::-1]),
}


@pytest.mark.parametrize("kind", REAL)
@pytest.mark.filterwarnings("error")
def test_real_numbers_of_any_type_and_strides_are_taken_for_what_they_are(make_env, kind):
    env = make_env(modules=[LAST])
    env.reset(seed=0)
    delta = np.random.default_rng(0).integers(-8, 8, (64, 32)).astype(np.float32) / 64  # exact in every type
    before = env.language_model.weight(LAST).clone()
    env.step({LAST: REAL[kind](delta)})
    assert torch.equal(env.language_model.weight(LAST), before + torch.from_numpy(delta))


def test_deltas_and_weights_of_a_wrong_shape_are_not_repeated_over_a_module(make_env):
    lm = make_env().language_model
    before = lm.snapshot()
    for change in (lm.apply, lm.assign):
        for wrong in (torch.ones(1, 32), torch.ones(64, 1), torch.ones(32, 64), torch.ones(())):
            with pytest.raises(ValueError, match=r"down_proj' expects shape \(64, 32\), was given"):
                change({MIDDLE: torch.ones(64, 32), LAST: wrong})
        with pytest.raises(ValueError, match=r"unknown module .layers\.0."):
            change({MIDDLE: torch.ones(64, 32), "layers.0": torch.ones(64, 32)})
    assert all(torch.equal(value, before[name]) for name, value in lm.snapshot().items())


@pytest.mark.parametrize("mode", ["ansi", "human", "rgb_array"])
def test_there_is_nothing_to_render_before_the_first_reset(make_env, mode):
    env = make_env(render_mode=mode)
    with pytest.raises(RuntimeError, match=r"render: .* call reset\(\) first"):
        env.render()
    env.close()


@pytest.mark.parametrize("batch", [[{"prompt": "Ada is in", "target": "Rome"}], "Ada", None, ["Ada"]])
def test_a_batch_of_something_else_than_edits_is_refused(make_env, batch):
    env = make_env(dataset=None, horizon=None)
    env.reset()
    with pytest.raises(ValueError, match="present: edits must be a list, each entry an Edit"):
        env.present(batch)
    for wrong in (-1, 1.5):
        with pytest.raises(ValueError, match="batches must be a whole number of at least 0"):
            env.continue_after(wrong)


@pytest.mark.parametrize("options", [5, ["shuffle"], {"shuffle": 0}, {"keep_cache": "no"}, {1: True}])
def test_options_of_reset_that_are_none_are_refused_before_anything_changes(make_env, options):
    env = make_env()
    env.reset(seed=0)
    env.step(arrays(deltas_for(env)))
    before = env.language_model.snapshot()
    with pytest.raises(ValueError, match="reset: "):
        env.reset(options=options)
    assert all(torch.equal(value, before[name]) for name, value in env.language_model.snapshot().items())


@pytest.mark.parametrize(
    ("argument", "value"),
    [("edits_per_step", 0), ("actions_per_batch", 0), ("horizon", 0), ("render_mode", "video"), ("split", "dev"),
     ("dataset", "zsre"), ("modules", ["layers.7.mlp.down_proj"]), ("memory_decay", 2.0), ("memory_batches", -1),
     ("edits_per_step", 1001), ("dtype", "int8")],
)  # fmt: skip
def test_wrong_arguments_are_named(make_env, argument, value):
    with pytest.raises((ValueError, FileNotFoundError)) as refusal:
        make_env(**{argument: value})
    words = str(refusal.value)
    assert argument.rstrip("s") in words
    assert str(value[0] if isinstance(value, list) else value) in words


def test_the_test_split_cannot_be_redrawn(make_env):
    with pytest.raises(ValueError, match="test"):
        make_env(split="test", redraw=True)


def test_half_precision_environment(make_env, base):
    env = make_env(dtype="bfloat16")
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    observation, reward, *_ = env.step(arrays(deltas_for(env)))
    assert observation in env.observation_space
    assert np.isfinite(reward)
    env.reset(seed=0)
    for name, module in env.language_model.modules.items():
        assert torch.equal(module.weight, base.get_submodule(name).weight.bfloat16())


def test_the_end_of_an_answer_is_taught_but_not_asked_for(make_env, small_world, base, tokenizer):
    """The observed gradient is that of -log p(answer and end), the reward is over the end too, metrics are as ever."""
    env, plain = (make_env(modules=[LAST], train_eos=ends, memory_batches=0) for ends in (True, False))
    for each in (env, plain):
        each.reset(seed=0, options={"shuffle": False})

    def asked(prompt, answer, weight):
        head = tokenizer(prompt)["input_ids"]
        tail = [*tokenizer(f" {answer}", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        ids = torch.tensor([head + tail])
        replaced = {f"{LAST}.weight": weight}
        logits = torch.func.functional_call(base, replaced, (ids,), {"use_cache": False}).logits[0, len(head) - 1 : -1]
        return logits.float().log_softmax(-1), torch.tensor(tail)

    def nlls(prompt, answer, weight):
        log_probs, labels = asked(prompt, answer, weight)
        return -log_probs.gather(1, labels[:, None]).squeeze(1)

    weight = base.get_submodule(LAST).weight.clone().requires_grad_()
    sum(nlls(edit.prompt, edit.target, weight).sum() for edit in env.batch).backward()
    torch.testing.assert_close(env.gradients[LAST].dense(), weight.grad.T, rtol=1e-3, atol=1e-5)
    assert len(env.gradients[LAST].keys) == len(plain.gradients[LAST].keys) + len(env.batch) <= env.max_tokens

    batch, delta = list(env.batch), random_deltas(env.language_model, scale=0.2)
    info, plain_info = env.step(delta)[-1], plain.step(delta)[-1]
    assert {name: info[name] for name in ("efficacy", "generalization", "specificity")} == {
        name: plain_info[name] for name in ("efficacy", "generalization", "specificity")
    }
    before = base.get_submodule(LAST).weight
    after = before + delta[LAST].T
    with torch.no_grad():
        edit = mean(mean(nlls(text, e.target, after).mean() for text in e.rephrases or (e.prompt,)) for e in batch)
        locality = []
        for e in batch:
            old = [asked(item.prompt, item.answer, before)[0] for item in e.locality]
            new = [asked(item.prompt, item.answer, after)[0] for item in e.locality]
            locality.append(mean((o.exp() * (o - n)).sum(-1).mean() for o, n in zip(old, new, strict=True)))
    assert info["reward_terms"]["edit"] == pytest.approx(float(edit), rel=1e-3)
    assert info["reward_terms"]["locality"] == pytest.approx(float(mean(locality)), rel=1e-3)
    assert info["reward_terms"]["edit"] != pytest.approx(plain_info["reward_terms"]["edit"], rel=1e-2)


def test_a_tokenizer_without_an_end_cannot_teach_it(make_env, monkeypatch):
    from transformers import PreTrainedTokenizerFast

    monkeypatch.setattr(PreTrainedTokenizerFast, "eos_token_id", None, raising=False)
    with pytest.raises(ValueError, match="end-of-sequence"):
        make_env(train_eos=True)


def test_the_action_space_is_made_when_it_is_asked_for(make_env):
    """Its boxes hold two bounds for every weight: of a large model, gigabytes that editing has no use for."""
    env = make_env()
    env.reset(seed=0)
    env.step({name: np.full(env.language_model.shape(name), 0.1, np.float32) for name in env.language_model.modules})
    assert "action_space" not in vars(env)
    largest = {name: float(env.language_model.initial_weight(name).abs().max()) for name in env.language_model.modules}
    assert {name: float(box.high.max()) for name, box in env.action_space.items()} == pytest.approx(largest)
    assert env.action_space is env.action_space
