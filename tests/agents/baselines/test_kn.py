from dataclasses import replace

import pytest
import torch
from plain import tokens

from agents.baselines.kn import KN, attribute
from agents.editing.editor import LifelongEditor
from editenv.language_model.editable_lm import EditableLM

MODULES = ["model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"]


def probability(base, tokenizer, edit, name, shares, number):
    """P(old answer's token ``number``) of the plain model, with the module's inputs at that token times ``shares``."""
    head, tail = tokens(tokenizer, edit.prompt, edit.old_answer)
    ids = torch.tensor([head + tail[:number]])

    def scale(_, args):
        (inputs,) = args
        return (torch.cat([inputs[:, :-1], inputs[:, -1:] * shares], 1),)

    handle = base.get_submodule(name).register_forward_pre_hook(scale)
    try:
        return base(ids, use_cache=False).logits[0, -1].softmax(-1)[tail[number]]
    finally:
        handle.remove()


def brute_force(base, tokenizer, edit, name, steps):
    """Attr(w_i) by autograd: one prompt, one token, one module and one step at a time."""
    width = base.get_submodule(name).weight.shape[1]
    answer = tokens(tokenizer, edit.prompt, edit.old_answer)[1]
    total = torch.zeros(width)
    for number in range(len(answer)):
        for k in range(1, steps + 1):
            shares = torch.full((width,), k / steps, requires_grad=True)
            # The derivative by a share is w_i times that by the scaled input.
            total += torch.autograd.grad(probability(base, tokenizer, edit, name, shares, number), shares)[0]
    return total / steps / len(answer)


def activation(base, tokenizer, edit, name):
    """The module's inputs, averaged over the old answer's tokens."""
    head, tail = tokens(tokenizer, edit.prompt, edit.old_answer)
    seen = []
    handle = base.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    base(torch.tensor([head + tail[:-1]]), use_cache=False)
    handle.remove()
    return seen[0][-len(tail) :].mean(0)


@pytest.fixture
def facts(edits):
    return [
        replace(edit, old_answer=old) for edit, old in zip(edits, ("Paris", "a painter of houses", "IBM"), strict=False)
    ]


@pytest.mark.parametrize("modules", [MODULES, MODULES[1:]])
def test_attributions_are_integrated_gradients(make_lm, base, tokenizer, facts, modules):
    found = attribute(make_lm(*modules), facts, 4)
    assert list(found) == modules
    for name in modules:
        for row, edit in zip(found[name].attributions, facts, strict=True):
            expected = brute_force(base, tokenizer, edit, name, 4)
            assert expected.abs().max() > 1e-5
            assert (row - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("name", MODULES)
def test_attributions_add_up_to_what_the_neurons_do_for_the_answer(taught, tokenizer, edits, name):
    """The completeness of integrated gradients: their sum is P with the neurons minus P without them."""
    fact = replace(edits[0], old_answer=edits[0].target)
    neurons = attribute(EditableLM(taught, tokenizer, [name]), [fact], 100)[name]
    count = len(tokens(tokenizer, fact.prompt, fact.old_answer)[1])
    with_neurons, without = (
        sum(float(probability(taught, tokenizer, fact, name, torch.full((64,), share), i)) for i in range(count))
        / count
        for share in (1.0, 0.0)
    )
    assert abs(with_neurons - without) > 0.05
    assert float(neurons.attributions.sum()) == pytest.approx(with_neurons - without, abs=0.01)


@pytest.mark.parametrize("signed", [False, True])
def test_the_rows_of_the_neurons_are_turned_and_no_others(make_env, base, tokenizer, facts, signed):
    env = make_env(modules=MODULES, dataset=None)
    env.reset(seed=0)
    agent = KN(steps=3, threshold=0.3, old=1.5, new=4.0, signed=signed)
    agent.begin(env)
    _, info = env.present(facts)
    deltas = agent.act(env.gradients, info)
    embeddings = base.get_input_embeddings().weight  # the output's, too
    expected = {name: torch.zeros(64, 32) for name in MODULES}
    for edit in facts:
        scores = {name: brute_force(base, tokenizer, edit, name, 3) for name in MODULES}
        largest = max(float(score.max()) for score in scores.values())
        turn = torch.zeros(32)
        for factor, answer in ((4.0, edit.target), (-1.5, edit.old_answer)):
            for token in tokens(tokenizer, edit.prompt, answer)[1]:
                turn += factor * embeddings[token] / embeddings[token].norm()
        for name, score in scores.items():
            inputs = activation(base, tokenizer, edit, name)
            for i in range(64):
                if score[i] > 0.3 * largest:
                    sign = inputs[i].sign() if signed else 1
                    expected[name][i] += sign * base.get_submodule(name).weight[:, i].norm() * turn
    for name in MODULES:
        torch.testing.assert_close(deltas[name].dense(), expected[name], rtol=1e-3, atol=1e-4)
    untouched = sum(int((expected[name] == 0).all(1).sum()) for name in MODULES)
    assert untouched > 64


def test_rows_do_not_grow_from_edit_to_edit(make_env, base, facts):
    """Turns are as long as the unedited rows, not as the edited ones."""
    env = make_env(modules=MODULES[1:], dataset=None)
    env.reset(seed=0)
    agent = KN(steps=3, new=30.0)
    agent.begin(env)
    initial = base.get_submodule(MODULES[1]).weight.norm(dim=0)
    for _ in range(2):  # the same fact again: its rows are thirty times as long the second time
        _, info = env.present(facts[:1])
        deltas = agent.act(env.gradients, info)
        turned = deltas[MODULES[1]].dense().norm(dim=1) / initial
        assert (turned > 0).sum() > 1
        torch.testing.assert_close(turned[turned > 0], turned.max().expand(int((turned > 0).sum())))
        env.step(deltas)


def test_an_edit_without_an_old_answer_is_named(make_env, facts):
    env = make_env(modules=MODULES, dataset=None)
    env.reset(seed=0)
    agent = KN()
    assert "old_answers" in agent.needs
    agent.begin(env)
    _, info = env.present([facts[0], replace(facts[1], old_answer=None)])
    with pytest.raises(ValueError, match=rf"{facts[1].id} has no old_answer"):
        agent.act(env.gradients, info)


def test_modules_that_do_not_write_to_the_residual_stream_are_refused(make_env):
    env = make_env(modules=["layers.1.mlp.up_proj"])
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"up_proj is none"):
        KN().begin(env)


def test_the_editor_names_what_it_lacks_before_anything_is_prepared(model_folder, facts):
    without = replace(facts[1], old_answer=None)
    with pytest.raises(ValueError, match="has no old_answer"):
        LifelongEditor(model_folder, "kn", modules=MODULES, to_come=[facts[0], without])
    with LifelongEditor(model_folder, "kn", modules=MODULES) as editor:
        before = editor.lm.snapshot()
        with pytest.raises(ValueError, match="has no old_answer"):
            editor.edit([without])
        assert all(torch.equal(weight, before[name]) for name, weight in editor.lm.snapshot().items())
