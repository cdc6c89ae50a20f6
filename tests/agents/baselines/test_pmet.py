"""PMET: the joint search against Adam in the plain model, and the spread written out."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from plain import tokens
from torch.nn import functional as F

from agents.baselines.lookup import look_up, read_token
from agents.baselines.pmet import PMET
from agents.baselines.values import JointValueConfig, optimise_values
from agents.covariance import key_covariance, sample_text
from editenv.data import load_edits
from editenv.deltas import dense
from editenv.language_model.cut import Cut
from editenv.language_model.editable_lm import EditableLM

FIRST, MIDDLE, LAST = (f"layers.{i}.mlp.down_proj" for i in range(3))
VALUE = JointValueConfig(learning_rate=0.3, steps=8, weight_decay=0.5, prefixes=0)


def nothing(*_):
    pass


def plain_search(model, tokenizer, layer, edit, prefixes, config):
    """optimise_values for one edit and both modules: the whole model, one prompt at a time."""
    modules = [model.get_submodule(f"model.layers.{layer}.{name}") for name in ("mlp.down_proj", "self_attn")]
    at_subject = config.token == "subject_last"

    def logits(text, answer, end, change):
        head, tail = tokens(tokenizer, text, answer)
        spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        at = max(i for i, (start, stop) in enumerate(spans) if start < end and stop > start)
        seen = []

        def add(row):
            def hook(_, args, out):
                hidden = out[0] if isinstance(out, tuple) else out
                seen.append(hidden[0, at].detach())
                hidden = hidden + F.one_hot(torch.tensor(at), hidden.shape[1])[:, None] * row
                return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

            return hook

        handles = [module.register_forward_hook(add(row)) for module, row in zip(modules, change, strict=True)]
        rows = model(torch.tensor([head + tail]), use_cache=False).logits[0, len(head) - 1 : -1]
        for handle in handles:
            handle.remove()
        return rows, torch.tensor(tail), seen

    def end(start):
        whole = start + edit.prompt
        return len(start) + edit.prompt.index(edit.subject) + len(edit.subject) if at_subject else len(whole)

    starts = ["", *(f"{prefix} " for prefix in prefixes)]
    change = torch.zeros(2, 32, requires_grad=True)
    attention_first = logits(edit.prompt, edit.target, end(""), torch.zeros(2, 32))[2]  # in the order they are run
    lengths = torch.stack([attention_first[1].norm(), attention_first[0].norm()])
    about = (f"{edit.subject} is a", "thing", len(edit.subject))
    usual = logits(*about, torch.zeros(2, 32))[0][0].log_softmax(-1).detach()
    optimizer, weight = torch.optim.Adam([change], lr=config.learning_rate), 1.0
    steps = 0
    for _ in range(config.steps):
        answers = [logits(start + edit.prompt, edit.target, end(start), change)[:2] for start in starts]
        loss = weight * sum(F.cross_entropy(*answer) for answer in answers) / len(starts)
        certain = all(bool((rows.argmax(-1) == labels).all()) for rows, labels in answers)
        divergence = torch.zeros(())
        if at_subject:
            now = logits(*about, change)[0][0].log_softmax(-1)
            divergence = config.kl * F.kl_div(usual, now, reduction="sum", log_target=True)
        loss = loss + divergence + config.weight_decay * (change.norm(dim=1) / lengths.square()).sum()
        if loss < config.enough:
            break
        if at_subject:
            if certain and divergence <= config.kl_enough:
                break
            weight = config.certain_weight if certain else 1.0
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        with torch.no_grad():
            change.mul_((config.clamp * lengths / change.norm(dim=1)).clamp(max=1)[:, None])
    return change.detach(), steps


@pytest.fixture
def sharp(base):
    """A model that is sure of what it says, so that divergences are large."""
    model = copy.deepcopy(base)
    model.lm_head.weight = torch.nn.Parameter(5 * model.lm_head.weight.detach())  # no longer the embedding
    return model


CASES = {
    "an attention that is frozen, at the subject": ([MIDDLE], Cut.ATTENTION, VALUE, ["So it is."]),
    "an attention that is run, at the subject": ([FIRST, MIDDLE], Cut.ATTENTION, VALUE, ["So it is."]),
    "the last layer, whose MLP is not run either": ([LAST], Cut.KEYS, replace(VALUE, token="last"), []),
}


@pytest.mark.parametrize("case", CASES)
def test_both_changes_are_searched_together(sharp, tokenizer, edits, case):
    modules, cut, config, prefixes = CASES[case]
    config = replace(config, prefixes=len(prefixes))
    lm = EditableLM(copy.deepcopy(sharp), tokenizer, modules)
    assert lm.cut is cut
    name = list(lm.modules)[-1]
    lookup = look_up(lm, edits[:3], config.token, prefixes)
    both = (lm.modules[name], lm.attention_beside(name))
    changes = optimise_values(lm, both, edits[:3], lookup, config)
    for edit, change in zip(edits[:3], changes, strict=True):
        expected, _ = plain_search(sharp, tokenizer, int(name.split(".")[2]), edit, prefixes, config)
        assert (change - expected).norm() < 0.02 * expected.norm()


def almost_said(model, tokenizer, edit):
    """The edit with the likeliest word as its target that is not what the model says."""
    said = model(torch.tensor([tokenizer(edit.prompt)["input_ids"]])).logits[0, -1].argsort(descending=True)[1:]
    words = (tokenizer.decode([token]) for token in said)
    return replace(edit, target=next(w[1:] for w in words if w[:1] == " " and w[1:].isalpha()))


@pytest.mark.parametrize("kl_enough", [0.0, 1.0])
def test_once_a_target_is_certain_the_divergence_is_brought_down(base, tokenizer, edits, kl_enough):
    config = replace(VALUE, steps=20, kl=0.05, enough=0.0, kl_enough=kl_enough, certain_weight=0.3)
    lm = EditableLM(copy.deepcopy(base), tokenizer, [MIDDLE])
    edit = almost_said(base, tokenizer, edits[0])
    both = (lm.modules[f"model.{MIDDLE}"], lm.attention_beside(f"model.{MIDDLE}"))
    (change,) = optimise_values(lm, both, [edit], look_up(lm, [edit], config.token), config)
    expected, steps = plain_search(base, tokenizer, 1, edit, [], config)
    assert steps == 20 if kl_enough == 0 else 0 < steps < 20
    assert (change - expected).norm() < 0.02 * expected.norm()
    unweighted, _ = plain_search(base, tokenizer, 1, edit, [], replace(config, certain_weight=1.0))
    assert kl_enough > 0 or (unweighted - expected).norm() > 0.05 * expected.norm()


def test_the_mlps_value_is_spread_by_the_square_root_of_the_layers_left(base, tokenizer, make_env, small_world):
    env = make_env(modules=[FIRST, MIDDLE], edits_per_step=4, horizon=2)
    agent = PMET(VALUE, weight=2.0, samples=30, epsilon=0.01)
    agent.prepare(env, 0, nothing)
    _, info = env.reset(seed=0)
    agent.begin(env)
    deltas = agent.act(env.gradients, info)
    lm = EditableLM(base, tokenizer, [FIRST, MIDDLE])
    C = key_covariance(lm, sample_text(load_edits("atlas", "train"), 30))
    lookup = look_up(lm, env.batch, "subject_last")
    mlp = lm.modules[f"model.{MIDDLE}"]
    attention = lm.model.get_submodule("model.layers.1.self_attn")
    change = optimise_values(lm, (mlp, attention), env.batch, lookup, VALUE)
    values = read_token(lm, mlp, lookup)[1] + change[:, 0]
    for name, divisor in ((f"model.{FIRST}", math.sqrt(2)), (f"model.{MIDDLE}", 1.0)):
        missing = (values - read_token(lm, mlp, lookup)[1]) / divisor
        U = read_token(lm, lm.modules[name], lookup)[0]
        system = 2.0 * (C[name] + 0.01 * C[name].trace() / 64 * torch.eye(64)) + U.T @ U
        D = torch.linalg.solve(system, U.T @ missing)
        assert D.norm() > 0.1
        torch.testing.assert_close(dense(deltas[name]), D, rtol=2e-3, atol=2e-3)
        lm.apply({name: D})


@pytest.mark.parametrize("modules", [["layers.1.self_attn.o_proj"], [MIDDLE, "layers.2.self_attn.o_proj"]])
def test_what_lies_beside_no_attention_is_named(make_env, small_world, modules):
    env = make_env(modules=modules, edits_per_step=4, horizon=2)
    with pytest.raises(ValueError, match=r"PMET edits projections of an MLP.*o_proj is none"):
        PMET(VALUE, samples=30).prepare(env, 0, nothing)
