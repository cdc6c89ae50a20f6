"""Norm-Anchor Scaling: lengths by numpy, and what the edited module gives, seen in the plain model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.baselines.nas import NAS, AlphaEditNAS, anchored, trimmed_mean
from agents.baselines.values import LayerValueConfig

MIDDLE = "layers.1.mlp.down_proj"
VALUE = LayerValueConfig(learning_rate=0.3, steps=8, weight_decay=0.01, prefixes=0)
FREE = {
    NAS: {"weight": 1e-7, "samples": 30, "anchors": 6},
    AlphaEditNAS: {"threshold": 1e6, "ridge": 1e-7, "samples": 30, "anchors": 6},
}
"""Nothing to respect: what is asked for is written to the letter."""


def nothing(*_):
    pass


def test_solved_values_are_as_long_as_the_anchor_or_are_given_up():
    values, solved = torch.randn(3, 5).double(), torch.randn(3, 5).double()
    solved *= torch.tensor([[0.1], [1.9], [2.1]]) / solved.norm(dim=1, keepdim=True)
    ours = anchored(values, solved, 1.0).numpy()
    np.testing.assert_allclose(np.linalg.norm(ours[:2], axis=1), 1.0)
    np.testing.assert_allclose(ours[0], solved[0].numpy() / 0.1)
    np.testing.assert_array_equal(ours[2], values[2].numpy())
    assert anchored(values, torch.zeros(3, 5), 1.0).isfinite().all()


def test_the_longest_solved_values_are_left_out_of_the_anchor():
    lengths = torch.rand(40)
    kept = np.sort(lengths.numpy())[:36]
    assert trimmed_mean(lengths, 0.1) == pytest.approx(kept.mean())
    assert trimmed_mean(lengths, 0.0) == pytest.approx(lengths.numpy().mean())
    assert trimmed_mean(lengths, 1.0) == pytest.approx(lengths.numpy().min())


def given_by_module(env, model, tokenizer):
    """What the edited module gives at each subject's last token, in a plain model."""
    rows = []
    for edit in env.batch:
        spans = tokenizer(edit.prompt, return_offsets_mapping=True)["offset_mapping"]
        end = edit.prompt.index(edit.subject) + len(edit.subject)
        at = max(i for i, (start, stop) in enumerate(spans) if start < end and stop > start)
        seen = []
        module = model.get_submodule(f"model.{MIDDLE}")
        handle = module.register_forward_hook(lambda _, args, out, seen=seen: seen.append(out))
        model(torch.tensor([tokenizer(edit.prompt)["input_ids"]]))
        handle.remove()
        rows.append(seen[0][0, at])
    return torch.stack(rows)


@pytest.mark.parametrize("kind", FREE)
def test_what_is_written_has_the_length_of_the_anchor(make_env, small_world, tokenizer, kind):
    agent = kind(VALUE, **FREE[kind])
    env = make_env(modules=[MIDDLE], edits_per_step=4, horizon=2)
    agent.prepare(env, 0, nothing)
    _, info = env.reset(seed=0)
    agent.begin(env)
    before = given_by_module(env, env.language_model.model, tokenizer)
    env.language_model.apply(env.checked(agent.act(env.gradients, info)))
    after = given_by_module(env, env.language_model.model, tokenizer)
    assert (after - before).norm(dim=1).min() > 0.1
    torch.testing.assert_close(after.norm(dim=1), torch.full((4,), agent.anchor), rtol=1e-2, atol=1e-2)


def test_the_anchor_is_the_mean_length_of_values_in_the_unedited_model(make_env, small_world, base, tokenizer):
    """Of as many training edits as are asked for: without a change, what the module gives by itself."""
    agent = NAS(replace(VALUE, learning_rate=1e-6), **FREE[NAS] | {"anchors": 3, "trim": 0.0})
    env = make_env(modules=[MIDDLE], edits_per_step=4, horizon=2)
    agent.prepare(env, 0, nothing)
    env.reset(seed=0)
    lengths = given_by_module(env, base, tokenizer).norm(dim=1)
    assert agent.anchor == pytest.approx(float(lengths[:3].mean()), rel=1e-3)


def test_values_far_too_long_are_given_up(make_env, small_world):
    agent = NAS(VALUE, **FREE[NAS])
    env = make_env(modules=[MIDDLE], edits_per_step=4, horizon=2)
    agent.prepare(env, 0, nothing)
    _, info = env.reset(seed=0)
    agent.begin(env)
    agent.anchor = 1e-3
    (delta,) = env.checked(agent.act(env.gradients, info)).values()
    assert delta.dense().abs().max() < 1e-4
