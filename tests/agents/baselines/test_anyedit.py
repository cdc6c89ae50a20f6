"""AnyEdit: the chunks' search against Adam in the plain model, and the solve in dense matrices."""

from dataclasses import replace

import pytest
import torch
from plain import tokens
from torch.nn import functional as F

from agents.baselines.anyedit import AlphaEditAnyEdit, AnyEdit, ChunkValueConfig
from agents.covariance import key_covariance, sample_text
from editenv.data import load_edits
from editenv.deltas import dense
from editenv.language_model.editable_lm import EditableLM

MIDDLE, LAST = "layers.1.mlp.down_proj", "layers.2.mlp.down_proj"
VALUE = ChunkValueConfig(learning_rate=0.3, steps=6, weight_decay=0.5)


def nothing(*_):
    pass


@pytest.fixture
def long_targets(monkeypatch, edits):
    """Targets of very different lengths stand in for the data set."""
    targets = ("a chess player of New South Wales", "Oslo", "the Long River in Ecuador", "jazz and Latin")
    long = [replace(edit, target=target) for edit, target in zip(edits, targets, strict=False)]
    monkeypatch.setattr("editenv.env.load_edits", lambda dataset, split, seed=None, options=None: list(long))
    return long


def started(make_env, agent, module):
    env = make_env(modules=[module], edits_per_step=4, horizon=1)
    agent.prepare(env, 0, nothing)
    _, info = env.reset(seed=0)
    agent.begin(env)
    return env, info


def layer_outputs(model, layer, ids, changes):
    """Logits of a plain model and the layer's output, with vectors added to it at some columns."""
    seen = []

    def add(_, args, out):
        seen.append(out.detach())
        for column, change in changes:
            out = out + F.one_hot(torch.tensor(column), out.shape[1])[:, None] * change
        return out

    handle = model.get_submodule(f"model.layers.{layer}").register_forward_hook(add)
    logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    handle.remove()
    return logits, seen[0][0]


def plain_search(model, tokenizer, layer, edit, chunk, config):
    """Column and value of each chunk."""
    head, tail = tokens(tokenizer, edit.prompt, edit.target)
    done, values = [], []
    for start in range(0, len(tail), chunk):
        ids, labels = head + tail[:start], tail[start : start + chunk]
        column = len(ids) - 1
        original = layer_outputs(model, layer, ids, [])[1][column]
        change = torch.zeros_like(original, requires_grad=True)
        optimizer = torch.optim.Adam([change], lr=config.learning_rate)
        for _ in range(config.steps):
            logits, _ = layer_outputs(model, layer, ids + labels[:-1], [*done, (column, change)])
            loss = F.cross_entropy(logits[column:], torch.tensor(labels))
            loss = loss + config.weight_decay * change.norm() / original.norm() ** 2
            if loss < config.enough:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                change.mul_((config.clamp * original.norm() / change.norm()).clamp(max=1))
        done.append((column, change.detach()))
        values.append(original + change.detach())
    return [column for column, _ in done], values


@pytest.mark.parametrize(("module", "chunk"), [(MIDDLE, 3), (MIDDLE, 40), (LAST, 2)])
def test_each_chunk_is_searched_behind_the_changes_for_those_before(
    base, tokenizer, make_env, long_targets, module, chunk
):
    agent = AnyEdit(VALUE, samples=30, chunk=chunk)
    env, _ = started(make_env, agent, module)
    lookup = agent._look_up(env.batch)
    values = agent._target_output(env.batch, lookup)
    layer = int(module.split(".")[1])
    expected = [plain_search(base, tokenizer, layer, edit, chunk, VALUE) for edit in env.batch]
    assert len(values) == sum(len(columns) for columns, _ in expected)
    assert chunk == 40 or len(values) > 6
    flat = torch.stack([value for _, values in expected for value in values])
    assert (values - flat).norm() < 0.02 * flat.norm()
    if module == MIDDLE:
        assert lookup.columns.tolist() == [column for columns, _ in expected for column in columns]


def plain_keys(model, tokenizer, module, edit):
    """The module's inputs at all tokens of prompt and target."""
    head, tail = tokens(tokenizer, edit.prompt, edit.target)
    seen = []
    handle = model.get_submodule(f"model.{module}").register_forward_hook(lambda _, args, out: seen.append(args[0]))
    model(torch.tensor([head + tail]), use_cache=False)
    handle.remove()
    return seen[0][0], len(head), len(tail)


@pytest.mark.parametrize("kind", [AnyEdit, AlphaEditAnyEdit])
def test_keys_of_the_other_tokens_are_in_the_solve(base, tokenizer, make_env, long_targets, kind):
    C = key_covariance(EditableLM(base, tokenizer, [MIDDLE]), sample_text(load_edits("atlas", "train"), 30))
    C = C[f"model.{MIDDLE}"].double()
    eigenvalues, vectors = torch.linalg.eigh(C)
    threshold = float(eigenvalues[48:50].mean())
    if kind is AnyEdit:
        agent = AnyEdit(VALUE, weight=2.0, samples=30, epsilon=0.01, chunk=3)
        Q, penalty = torch.eye(64).double(), 2.0 * (C + 0.01 * C.trace() / 64 * torch.eye(64).double())
    else:
        agent = AlphaEditAnyEdit(VALUE, threshold=threshold, ridge=0.5, samples=30, chunk=3)
        free = vectors[:, eigenvalues < threshold]
        Q, penalty = free @ free.T, 0.5 * torch.eye(64).double()
    env, info = started(make_env, agent, MIDDLE)
    U, others, R = [], [], []
    for edit in env.batch:
        keys, head, tail = plain_keys(base, tokenizer, MIDDLE, edit)
        columns, values = plain_search(base, tokenizer, 1, edit, 3, VALUE)
        assert columns == [head - 1 + start for start in range(0, tail, 3)]
        ids = [token for part in tokens(tokenizer, edit.prompt, edit.target) for token in part]
        outputs = layer_outputs(base, 1, ids, [])[1]
        U.append(keys[columns])
        others.append(keys[[column for column in range(len(keys)) if column not in columns]])
        R.append(torch.stack(values) - outputs[columns])
    U, others, R = (torch.cat(parts).double().detach() for parts in (U, others, R))
    expected = torch.linalg.solve(Q @ (U.T @ U + others.T @ others) + penalty, Q @ U.T @ R)
    (delta,) = agent.act(env.gradients, info).values()
    assert (dense(delta).double() - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("module", [MIDDLE, LAST])
def test_a_long_answer_becomes_likelier_than_by_one_value(make_env, long_targets, module):
    losses = {}
    for chunk in (1, 40):
        agent = AnyEdit(replace(VALUE, weight_decay=0.0, steps=20), weight=1e-3, samples=30, chunk=chunk)
        env, info = started(make_env, agent, module)
        before = env.language_model.snapshot()
        action = agent.act(env.gradients, info)
        assert all(torch.equal(before[name], weight) for name, weight in env.language_model.snapshot().items())
        prompts = env.language_model.encode([e.prompt for e in env.batch], [e.target for e in env.batch])
        losses[0] = F.cross_entropy(env.language_model.logits(prompts), prompts.labels)
        env.language_model.apply(env.checked(action))
        losses[chunk] = F.cross_entropy(env.language_model.logits(prompts), prompts.labels)
    assert losses[1] < 0.5 * losses[40] < 0.5 * losses[0]


def test_what_is_not_offered_is_refused():
    with pytest.raises(ValueError, match="prefixes: AnyEdit searches without, and was given 3"):
        ChunkValueConfig(prefixes=3)
    with pytest.raises(ValueError, match=r"token must be .*'last'"):
        ChunkValueConfig(token="subject_last")
    assert AnyEdit().needs == ("model", "text")
