"""ROME, MEMIT, PRUNE, RECT and AlphaEdit: closed forms against brute force, and the search for values."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from plain import random_deltas, tokens
from transformers import GPT2Config, GPT2LMHeadModel

from agents.baselines.alphaedit import AlphaEdit
from agents.baselines.lookup import look_up, mean_keys, read_keys, read_keys_and_values, read_token, read_values
from agents.baselines.memit import MEMIT
from agents.baselines.prune import PRUNE, condense
from agents.baselines.rect import RECT, keep_largest_relative
from agents.baselines.rome import ROME, rank_one_update
from agents.baselines.values import ChangedRun, Essence, ValueConfig, optimise_values, sample_prefixes
from agents.covariance import key_covariance, sample_text
from agents.preconditioner import null_space
from benchmarks.running.rollout import propose, take
from editenv.data import load_edits
from editenv.deltas import dense, ridge_regression
from editenv.language_model import editable_lm
from editenv.language_model.editable_lm import EditableLM, Gradient
from editenv.language_model.suffix import SuffixError

LAST = "layers.2.mlp.down_proj"
FIRST = "layers.0.mlp.down_proj"
MIDDLE = "layers.1.mlp.down_proj"
VALUE = ValueConfig(learning_rate=0.3, steps=30, weight_decay=0.01, prefixes=0)


def matrix(rows, columns, seed):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nothing(*_):
    pass


# -- closed forms
# -------------------------------------------------------------------------------------------------------


def test_rank_one_update_is_the_constrained_least_squares_solution():
    root, key, missing = matrix(7, 20, 0), matrix(7, 1, 1)[:, 0], matrix(4, 1, 2)[:, 0]
    C = root @ root.T
    delta = rank_one_update(key, missing, torch.linalg.inv(C)).dense()
    torch.testing.assert_close(key @ delta, missing)
    # Brute force: the optimality conditions of min tr(D^T C D) under k^T D = missing, one linear system with
    # multipliers.
    system = torch.zeros(8, 8, dtype=torch.float64)
    system[:7, :7], system[:7, 7], system[7, :7] = 2 * C, key, key
    right = torch.zeros(8, 4, dtype=torch.float64)
    right[7] = missing
    torch.testing.assert_close(delta, torch.linalg.solve(system, right)[:7])


@pytest.fixture
def memit_case():
    """Keys, what is missing, and C."""
    root = matrix(9, 30, 3)
    return matrix(4, 9, 4), matrix(4, 5, 5), root @ root.T / 30


def test_memit_solves_its_normal_equations(memit_case):
    U, R, C = memit_case
    agent = MEMIT(weight=50.0, epsilon=0.0)
    preconditioner = agent._precondition({"m": C})
    delta = ridge_regression(U, R, 1.0, preconditioner.project("m", U)).dense()
    torch.testing.assert_close(delta, torch.linalg.solve(50.0 * C + U.T @ U, U.T @ R))


def test_alphaedit_solves_its_equation_with_earlier_keys_and_leaves_the_texts_keys_alone(memit_case):
    U, R, C = memit_case
    values, vectors = torch.linalg.eigh(C)
    threshold = float(values[4:6].mean())
    agent = AlphaEdit(threshold=threshold, ridge=0.7)
    preconditioner = agent._precondition({"m": C})
    Q = null_space(C, threshold)
    earlier = [matrix(3, 9, 6), matrix(2, 9, 7)]
    for keys in earlier:
        preconditioner.absorb({"m": Gradient(keys, keys)}, {"m": 1.0})
    delta = ridge_regression(U, R, 1.0, preconditioner.project("m", U)).dense()
    K_p = torch.cat(earlier)
    # The published form: (Q (U^T U + K_p^T K_p) + L2 I) D = Q U^T R.
    system = Q @ (U.T @ U + K_p.T @ K_p) + 0.7 * torch.eye(9).double()
    torch.testing.assert_close(delta, torch.linalg.solve(system, Q @ U.T @ R))
    preserved = vectors[:, values > threshold].T
    assert (preserved @ delta).abs().max() < 1e-5
    preconditioner.reset()
    fresh = ridge_regression(U, R, 1.0, preconditioner.project("m", U)).dense()
    torch.testing.assert_close(fresh, torch.linalg.solve(Q @ U.T @ U + 0.7 * torch.eye(9).double(), Q @ U.T @ R))


def test_condensing_against_numpy():
    delta, weight = 3 * matrix(8, 5, 8), matrix(8, 5, 9)
    u, s, vh = np.linalg.svd(delta.numpy(), full_matrices=False)
    largest = np.linalg.svd(weight.numpy(), compute_uv=False)[0]
    assert (s > largest).any()
    assert (s < largest).any()
    held = [np.log(x) / np.log(1.2) - np.log(largest) / np.log(1.2) + largest if x > largest else x for x in s]
    np.testing.assert_allclose(condense(delta, weight, 1.2).numpy(), u @ np.diag(held) @ vh)
    torch.testing.assert_close(condense(delta, 100 * weight, 1.2), delta)


def test_the_largest_relative_changes_are_kept_against_numpy():
    delta, weight = matrix(6, 5, 10), matrix(6, 5, 11)
    weight[2, 3] = 0
    with np.errstate(divide="ignore"):
        ratio = np.abs(delta.numpy() / weight.numpy()).ravel()
    kept = np.argsort(-ratio)[:12]
    expected = np.zeros(30)
    expected[kept] = delta.numpy().ravel()[kept]
    np.testing.assert_array_equal(keep_largest_relative(delta, weight, 0.4).numpy().ravel(), expected)
    assert keep_largest_relative(delta, weight, 1.0).equal(delta)


# -- where a fact is looked up
# ------------------------------------------------------------------------------------------


def test_the_subjects_last_token_is_found(make_lm, edits):
    lm = make_lm(MIDDLE)
    lookup = look_up(lm, edits, "subject_last", ["Once upon a time."])
    for i, edit in enumerate(edits):
        for j, text in enumerate([edit.prompt, f"Once upon a time. {edit.prompt}"]):
            ids = lm.tokenizer(text)["input_ids"]
            column = int(lookup.columns[2 * i + j])
            up_to_token = lm.tokenizer.decode(ids[1 : column + 1])
            assert up_to_token.rstrip().endswith(edit.subject), up_to_token
            assert not lm.tokenizer.decode(ids[1:column]).endswith(edit.subject)


def test_inputs_and_outputs_at_the_token_are_the_whole_models(base, make_lm, edits):
    lm = make_lm(MIDDLE)
    for token in ("subject_last", "last"):
        lookup = look_up(lm, edits, token)
        keys, outputs = read_token(lm, lm.modules[f"model.{MIDDLE}"], lookup)
        for i, edit in enumerate(edits):
            seen = []
            module = base.get_submodule(f"model.{MIDDLE}")
            handle = module.register_forward_hook(lambda _, args, out, seen=seen: seen.append((args[0], out)))
            ids = lm.tokenizer(edit.prompt)["input_ids"]
            base(torch.tensor([ids]))
            handle.remove()
            column = len(ids) - 1 if token == "last" else int(lookup.columns[i])
            torch.testing.assert_close(keys[i], seen[0][0][0, column], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(outputs[i], seen[0][1][0, column], rtol=1e-4, atol=1e-5)


def test_reading_a_token_runs_no_layer_above_it(make_lm, edits):
    lm = make_lm(MIDDLE)
    lookup = look_up(lm, edits, "subject_last")
    run = []
    above = [lm.model.get_submodule("model.layers")[-1], lm.model.get_output_embeddings()]
    handles = [module.register_forward_pre_hook(lambda *_: run.append(1)) for module in above]
    read_token(lm, lm.layer_of(f"model.{MIDDLE}"), lookup)
    assert not run
    lm.cut_model.logits(lookup.prompts)
    assert len(run) == 2
    for handle in handles:
        handle.remove()


def test_what_cannot_be_looked_up_is_refused(make_lm, edits):
    with pytest.raises(ValueError, match="behind which no token sees another"):
        look_up(make_lm(LAST), edits, "subject_last")
    with pytest.raises(ValueError, match="small/0 has no subject"):
        look_up(make_lm(MIDDLE), [replace(edits[0], subject=None)], "subject_last")
    with pytest.raises(ValueError, match="'Nobody' does not stand in the prompt"):
        look_up(make_lm(MIDDLE), [replace(edits[0], subject="Nobody")], "subject_last")


# In a model of random weights one token has little to say about answers of several tokens.
PLACES = [(MIDDLE, "subject_last", 0.97), (MIDDLE, "last", 0.9), (LAST, "last", 0.9)]


@pytest.mark.parametrize(("module", "token", "share"), PLACES)
def test_the_value_makes_the_target_likely_and_edits_do_not_disturb_each_other(make_lm, edits, module, token, share):
    lm = make_lm(module)
    name = f"model.{module}"
    config = replace(VALUE, token=token, prefixes=1)
    prefixes = sample_prefixes(lm, config, seed=1)
    assert prefixes == sample_prefixes(lm, config, seed=1)
    lookup = look_up(lm, edits, token, prefixes)
    change = optimise_values(lm, lm.modules[name], edits, lookup, config)

    def nll(values):
        position = (lookup.rows, lookup.columns)
        handle = lm.modules[name].register_forward_hook(
            lambda _, args, out: out.index_put(position, values[lookup.owner], accumulate=True)
        )
        logits = lm.cut_model.logits(lookup.prompts)  # in one forward, which the hook is made for
        handle.remove()
        return torch.nn.functional.cross_entropy(logits, lookup.prompts.labels)

    assert nll(change) < share * nll(torch.zeros_like(change))
    _, outputs = read_token(lm, lm.modules[name], lookup)
    assert (change.norm(dim=1) <= config.clamp * outputs[lookup.plain].norm(dim=1) * (1 + 1e-5)).all()
    alone = optimise_values(lm, lm.modules[name], edits[3:4], look_up(lm, edits[3:4], token, prefixes), config)
    torch.testing.assert_close(change[3:4], alone, rtol=2e-2, atol=2e-2)


def plain_search(model, tokenizer, name, edit, prefixes, config):
    """optimise_values for one edit: the whole model, one prompt at a time."""
    module, losses = model.get_submodule(name), []

    def logits(text, answer, end, change):
        head, tail = tokens(tokenizer, text, answer)
        spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        at = max(i for i, (start, stop) in enumerate(spans) if start < end and stop > start)
        seen = []

        def add(_, args, out):
            seen.append(out[0, at].detach())
            return out + torch.nn.functional.one_hot(torch.tensor(at), out.shape[1])[:, None] * change

        handle = module.register_forward_hook(add)
        rows = model(torch.tensor([head + tail]), use_cache=False).logits[0, len(head) - 1 : -1]
        handle.remove()
        return rows, torch.tensor(tail), seen[0]

    def ends(start):
        return len(start) + edit.prompt.index(edit.subject) + len(edit.subject)

    starts = ["", *(f"{prefix} " for prefix in prefixes)]
    zero = torch.zeros(module.weight.shape[0])
    length = logits(edit.prompt, edit.target, ends(""), zero)[2].norm()
    about = (f"{edit.subject} is a", "thing", len(edit.subject))
    usual = logits(*about, zero)[0][0].log_softmax(-1).detach()
    change = torch.zeros_like(zero, requires_grad=True)
    adam = torch.optim.Adam([change], lr=config.learning_rate)
    idle = 0
    for step in range(config.steps):
        loss, looked_at = 0.0, [starts[step % len(starts)]] if config.in_turn else starts
        for start in looked_at:
            rows, labels, _ = logits(start + edit.prompt, edit.target, ends(start), change)
            loss = loss + torch.nn.functional.cross_entropy(rows, labels) / len(looked_at)
        now = logits(*about, change)[0][0].log_softmax(-1)
        # kl_div(input, target) is KL(target || input): of the edited model from the original, as eq. 4 has it.
        loss = loss + config.kl * torch.nn.functional.kl_div(usual, now, reduction="sum", log_target=True)
        loss = loss + config.weight_decay * change.norm() / length.square()
        losses.append(float(loss.detach()))
        idle = idle + 1 if losses[-1] < config.enough else 0
        if idle * len(looked_at) == len(starts):  # after all of them
            break
        before = change.detach().clone()
        adam.zero_grad()
        loss.backward()
        if config.optimizer == "adam":
            adam.step()
        with torch.no_grad():
            if config.optimizer == "normalised":
                change.sub_(config.learning_rate * change.grad / change.grad.norm())
            if idle:  # only Adam's moments have seen this step
                change.copy_(before)
            change.mul_((config.clamp * length / change.norm()).clamp(max=1))
    return change.detach(), losses


def test_reading_a_token_runs_none_behind_it_and_no_prefixed_prompt_for_its_value(make_lm, edits, monkeypatch):
    monkeypatch.setattr(editable_lm, "FORWARD_OVERHEAD", {"cpu": 0})  # one forward for each length
    lm = make_lm(FIRST, MIDDLE)
    lookup = look_up(lm, edits, "subject_last", ["So it is.", "Some say this and that of it."])
    layers = lm.model.get_submodule("model.layers")
    run = {0: 0, 1: 0}
    for number in run:
        # Prompts are run from the first edited layer's MLP on.
        module = layers[number].mlp if number == 0 else layers[number]

        def count(_, args, number=number):
            run[number] += args[0].shape[:2].numel()

        module.register_forward_pre_hook(count)
    tokens = lookup.columns + 1
    keys, values = read_keys_and_values(lm, lm.modules[f"model.{FIRST}"], layers[1], lookup)
    assert run == {0: tokens.sum(), 1: tokens[lookup.plain].sum()}
    torch.testing.assert_close(keys, read_token(lm, lm.modules[f"model.{FIRST}"], lookup)[0])
    torch.testing.assert_close(values, read_token(lm, layers[1], lookup)[1][lookup.plain])
    torch.testing.assert_close(values, read_values(lm, layers[1], lookup))
    for i, edit in enumerate(edits):  # one by one, in the whole model
        heard = []
        handle = layers[1].register_forward_hook(lambda _, args, out, heard=heard: heard.append(out))
        lm.model(torch.tensor([lm.tokenizer(edit.prompt)["input_ids"]]))
        handle.remove()
        hidden = heard[0][0] if isinstance(heard[0], tuple) else heard[0]
        expected = hidden.view(-1, hidden.shape[-1])[lookup.columns[lookup.plain[i]]]
        torch.testing.assert_close(values[i], expected, rtol=1e-4, atol=1e-5)


def test_the_keys_of_all_modules_are_read_at_once(make_lm, edits):
    lm = make_lm("layers.0.mlp.down_proj", MIDDLE)
    lookup = look_up(lm, edits, "subject_last", ["So it is."])
    keys = read_keys(lm, lookup)
    assert set(keys) == set(lm.modules)
    for name, module in lm.modules.items():
        torch.testing.assert_close(keys[name], read_token(lm, module, lookup)[0])


@pytest.fixture
def sharp(base):
    """A model that is sure of what it says: both directions of a divergence are alike where it hardly is."""
    model = copy.deepcopy(base)
    model.lm_head.weight = torch.nn.Parameter(20 * model.lm_head.weight.detach())  # no longer the embedding
    return model


def test_the_divergence_is_of_the_edited_model_from_the_original(sharp, tokenizer, edits):
    """KL(edited || original), as ROME's eq. 4 and torch's kl_div(input=original, target=edited) have it."""
    lm = EditableLM(copy.deepcopy(sharp), tokenizer, [MIDDLE])
    module, edit = sharp.get_submodule(f"model.{MIDDLE}"), edits[0]
    head = tokenizer(f"{edit.subject} is a", return_tensors="pt")["input_ids"]
    at = len(tokenizer(edit.subject)["input_ids"]) - 1
    change = torch.randn(1, module.weight.shape[0], generator=torch.Generator().manual_seed(2))
    change.requires_grad_()

    def plain(addition):
        row = torch.nn.functional.one_hot(torch.tensor(at), head.shape[1])[:, None] * addition
        handle = module.register_forward_hook(lambda _, args, out: out + row)
        logits = sharp(head, use_cache=False).logits[0, -1]
        handle.remove()
        return logits.log_softmax(-1)

    original, edited = plain(torch.zeros_like(change)), plain(change)
    expected = torch.nn.functional.kl_div(original, edited, reduction="sum", log_target=True)
    reverse = torch.nn.functional.kl_div(edited, original, reduction="sum", log_target=True)
    assert abs((expected / reverse).item() - 1) > 0.1
    essence = Essence.of(lm, lm.modules[f"model.{MIDDLE}"], [edit], "subject_last")
    (divergence,) = essence.divergence(change)
    assert divergence.item() == pytest.approx(expected.item(), rel=1e-3)
    (slope,), (expected_slope,) = torch.autograd.grad(divergence, change), torch.autograd.grad(expected, change)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-2, atol=1e-2 * float(expected_slope.abs().max()))


@pytest.mark.parametrize("optimizer", ["adam", "normalised"])
@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("enough", [False, True])
def test_the_search_steps_on_its_loss_in_the_plain_model(sharp, tokenizer, edits, enough, in_turn, optimizer):
    lm, name = EditableLM(copy.deepcopy(sharp), tokenizer, [MIDDLE]), f"model.{MIDDLE}"
    prefixes = ["So it is.", "In a year."]
    config = ValueConfig(learning_rate=0.3, steps=8, weight_decay=2.0, kl=1.0, prefixes=2, in_turn=in_turn)
    config = replace(config, optimizer=optimizer)
    if enough:
        config = replace(config, kl=0.0625, weight_decay=0.01)
        losses = plain_search(sharp, tokenizer, name, edits[0], prefixes, config)[1]
        assert in_turn or losses[4] < losses[3]
        config = replace(config, enough=(losses[3] + losses[4]) / 2)
    lookup = look_up(lm, edits[:2], "subject_last", prefixes)
    changes = optimise_values(lm, lm.modules[name], edits[:2], lookup, config)
    for edit, change in zip(edits[:2], changes, strict=True):
        expected, _ = plain_search(sharp, tokenizer, name, edit, prefixes, config)
        assert (change - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("together", [1, 7])
def test_how_many_prompts_are_searched_together_changes_nothing(make_lm, edits, monkeypatch, together):
    lm, name = make_lm(MIDDLE), f"model.{MIDDLE}"
    config = replace(VALUE, token="subject_last", prefixes=2, steps=5)
    lookup = look_up(lm, edits, config.token, ["So it is.", "In a year."])
    whole = optimise_values(lm, lm.modules[name], edits, lookup, config)
    monkeypatch.setattr("agents.baselines.values.PROMPTS_TOGETHER", together)
    parts = optimise_values(lm, lm.modules[name], edits, lookup, config)
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-3)


def test_only_the_tokens_from_the_subjects_last_on_are_searched(make_lm, edits):
    lm = make_lm(MIDDLE)
    lookup = look_up(lm, edits, "subject_last")
    run = ChangedRun(lm, lm.modules[f"model.{MIDDLE}"], lookup)
    sizes = torch.tensor([len(piece) for piece in lookup.prompts.pieces])
    assert run.suffix.hidden.shape[1] == (sizes - lookup.columns).max() < sizes.max()


def test_whole_prompts_give_the_same_values_and_it_is_said(make_lm, edits, monkeypatch):
    lm = make_lm(MIDDLE)
    config = replace(VALUE, token="subject_last", prefixes=0, steps=5)
    module, lookup = lm.modules[f"model.{MIDDLE}"], look_up(lm, edits, config.token)
    from_the_token = optimise_values(lm, module, edits, lookup, config)

    def refuse(*_):
        raise SuffixError("not this model")

    monkeypatch.setattr("agents.baselines.values.SuffixRun", refuse)
    with pytest.warns(UserWarning, match="whole prompts, which takes longer: not this model"):
        whole = optimise_values(lm, module, edits, lookup, config)
    torch.testing.assert_close(from_the_token, whole, rtol=1e-3, atol=1e-3)


def test_prefixes_are_written_by_theta_0_and_drawn_by_the_seed(make_lm):
    lm = make_lm(MIDDLE)
    prefixes = sample_prefixes(lm, ValueConfig(), 1)
    assert len(prefixes) == 20
    assert sample_prefixes(lm, ValueConfig(), 2) != prefixes
    lm.apply(random_deltas(lm, scale=1.0))
    assert sample_prefixes(lm, ValueConfig(), 1) == prefixes


# -- the agents
# ---------------------------------------------------------------------------------------------------------


def started(make_env, agent, module=MIDDLE, **arguments):
    env = make_env(modules=[module], edits_per_step=4, horizon=2, **arguments)
    agent.prepare(env, 0, nothing)
    observation, info = env.reset(seed=0)
    agent.begin(env)
    return env, observation, info


@pytest.mark.parametrize("kind", [ROME, MEMIT, RECT, PRUNE, AlphaEdit])
def test_an_update_leaves_the_model_as_it_was_and_brings_the_targets_nearer(make_env, small_world, kind):
    options = {"threshold": 100.0} if kind is AlphaEdit else {}
    if kind in (MEMIT, RECT, PRUNE):
        options["weight"] = 1.0
    agent = kind(replace(VALUE, token="last"), samples=30, **options)
    env, _, info = started(make_env, agent)
    before = env.language_model.snapshot()
    action = agent.act(env.gradients, info)
    assert all(torch.equal(before[name], weight) for name, weight in env.language_model.snapshot().items())
    prompts = env.evaluation_batch.prompts.select(env.evaluation_batch.kind == 0)
    loss = torch.nn.functional.cross_entropy(env.language_model.logits(prompts), prompts.labels)
    env.language_model.apply(env.checked(action))
    assert torch.nn.functional.cross_entropy(env.language_model.logits(prompts), prompts.labels) < 0.8 * loss


def test_rome_puts_each_value_where_it_was_looked_up(make_env, small_world):
    agent = ROME(replace(VALUE, prefixes=2), samples=30)
    env, _, _ = started(make_env, agent)
    lm, name = env.language_model, f"model.{MIDDLE}"
    edit = env.batch[0]
    lookup = look_up(lm, [edit], VALUE.token, agent._prefixes)
    change = optimise_values(lm, lm.modules[name], [edit], lookup, agent.value)
    keys, outputs = read_token(lm, lm.modules[name], lookup)
    delta = agent._write(edit)
    after = mean_keys(keys, lookup) @ (lm.weight(name) + delta.dense())
    torch.testing.assert_close(after, outputs[:1] + change, rtol=1e-3, atol=1e-4)
    agent.keys = "public"
    torch.testing.assert_close(keys[:1] @ agent._write(edit).dense(), change, rtol=1e-3, atol=1e-4)


def test_rome_makes_one_edit_after_the_other(make_env, small_world):
    agent = ROME(VALUE, samples=30)
    env, _, info = started(make_env, agent)
    name, total = f"model.{MIDDLE}", 0.0
    delta = dense(agent.act(env.gradients, info)[name])
    for edit in env.batch:
        update = agent._write(edit).dense()
        env.language_model.apply({name: update})
        total = total + update
    torch.testing.assert_close(delta, total, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("keys", ["consistent", "public"])
def test_rome_writes_to_a_module_with_a_bias(tokenizer, edits, monkeypatch, keys):
    """In a GPT-2 of random weights, whose projections add a bias."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2
    )
    model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    name = "transformer.h.0.mlp.c_proj"
    model.get_submodule(name).bias.normal_(std=3.0)
    lm = EditableLM(model, tokenizer, [name])
    agent = ROME(replace(VALUE, prefixes=2), keys=keys)
    agent._env, agent._module, agent._prefixes = SimpleNamespace(language_model=lm), name, ["So it is.", "In a year."]
    agent._inverse = torch.eye(128)
    lookup = look_up(lm, edits[:1], VALUE.token, agent._prefixes)
    change = optimise_values(lm, lm.modules[name], edits[:1], lookup, agent.value)
    _, before = read_token(lm, lm.modules[name], lookup)
    lm.apply({name: agent._write(edits[0])})
    _, after = read_token(lm, lm.modules[name], lookup)
    if keys == "public":
        torch.testing.assert_close(after[:1], before[:1] + change, rtol=1e-3, atol=1e-3)
    else:
        torch.testing.assert_close(after.mean(0, keepdim=True), before[:1] + change, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layers", [[1], [1, 2], [0, 1, 2]])
@pytest.mark.parametrize("token", ["subject_last", "last"])
def test_memit_changes_the_residual_stream_by_what_was_wanted(tokenizer, make_env, small_world, layers, token):
    """Without a covariance to respect, however many layers share the way there."""
    env = make_env(modules=[f"layers.{i}.mlp.down_proj" for i in layers], edits_per_step=4, horizon=2)
    value = replace(VALUE, token=token, steps=5)
    agent = MEMIT(value, weight=1e-7, samples=30)
    agent.prepare(env, 0, nothing)
    _, info = env.reset(seed=0)
    agent.begin(env)
    lm = env.language_model
    lookup = look_up(lm, env.batch, token)
    columns = (
        lookup.columns if token == "subject_last" else [len(tokenizer(e.prompt)["input_ids"]) - 1 for e in env.batch]
    )

    def stream():
        """Behind the last edited layer, run as a plain model."""
        rows = []
        for edit, column in zip(env.batch, columns, strict=True):
            seen = []
            layer = lm.model.get_submodule(f"model.layers.{layers[-1]}")
            handle = layer.register_forward_hook(lambda _, args, out, seen=seen: seen.append(out))
            lm.model(torch.tensor([tokenizer(edit.prompt)["input_ids"]]))
            handle.remove()
            rows.append(seen[0][0, int(column)])
        return torch.stack(rows)

    before = stream()
    change = optimise_values(lm, lm.layer_of(list(lm.modules)[-1]), env.batch, lookup, value)
    assert (change.norm(dim=1) <= value.clamp * before.norm(dim=1) * (1 + 1e-5)).all()
    lm.apply(env.checked(agent.act(env.gradients, info)))
    torch.testing.assert_close(stream(), before + change, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("prefixes", [0, 2])
def test_memit_spreads_what_is_missing_over_the_layers(base, tokenizer, make_env, small_world, prefixes):
    """Written out by hand: keys, what is missing in the residual stream, normal equations, layer by layer."""
    value, p = replace(VALUE, prefixes=prefixes), prefixes + 1
    env = make_env(modules=[FIRST, MIDDLE], edits_per_step=4, horizon=2)
    agent = MEMIT(value, weight=2.0, samples=30, epsilon=0.01)
    agent.prepare(env, 0, nothing)
    _, info = env.reset(seed=0)
    agent.begin(env)
    deltas = agent.act(env.gradients, info)
    lm = EditableLM(base, tokenizer, [FIRST, MIDDLE])
    C = key_covariance(lm, sample_text(load_edits("atlas", "train"), 30))
    names = list(lm.modules)
    lookup = look_up(lm, env.batch, "subject_last", agent._prefixes)
    stream = lm.model.get_submodule("model.layers.1")
    change = optimise_values(lm, stream, env.batch, lookup, value)
    values = read_token(lm, stream, lookup)[1][::p] + change
    for i, name in enumerate(names):
        missing = (values - read_token(lm, stream, lookup)[1][::p]) / (2 - i)
        keys = read_token(lm, lm.modules[name], lookup)[0]
        U = torch.stack([keys[p * j : p * (j + 1)].mean(0) for j in range(4)])
        size = len(C[name])
        system = 2.0 * (C[name] + 0.01 * C[name].trace() / size * torch.eye(size)) + U.T @ U
        D = torch.linalg.solve(system, U.T @ missing)
        assert D.norm() > 1
        torch.testing.assert_close(dense(deltas[name]), D, rtol=2e-3, atol=2e-3)
        lm.apply({name: D})


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        (["layers.1.mlp.gate_proj"], "gate_proj is none"),
        (["layers.1.self_attn.q_proj"], "q_proj is none"),
        (["layers.1.mlp.up_proj", MIDDLE], "up_proj is none"),
        (["layers.1.self_attn.o_proj", MIDDLE], "lie in the same one"),
    ],
)
def test_modules_that_memit_cannot_write_with_are_named(make_env, small_world, modules, words):
    env = make_env(modules=modules, edits_per_step=4, horizon=2)
    with pytest.raises(ValueError, match=words):
        MEMIT(VALUE, samples=30).prepare(env, 0, nothing)


def test_prune_ends_in_the_condensed_sum_of_all_updates(make_env, small_world):
    agent, plain = PRUNE(VALUE, weight=0.01, samples=30), MEMIT(VALUE, weight=0.01, samples=30)
    ends = {}
    for which in (agent, plain):
        env, _, info = started(make_env, which)
        lm, name = env.language_model, f"model.{MIDDLE}"
        start, done = lm.weight(name).clone(), False
        while not done:
            _, _, terminated, truncated, info = env.step(which.act(env.gradients, info))
            done = terminated or truncated
        ends[which] = lm.weight(name).clone()
    largest = torch.linalg.matrix_norm(start, 2)
    total = ends[plain] - start
    assert torch.linalg.matrix_norm(total, 2) > largest
    torch.testing.assert_close(ends[agent], start + condense(total, start, 1.2), rtol=1e-3, atol=1e-3)


def played(make_env, agent, module=MIDDLE):
    """The model after two batches; what has no number in it is not done, as in the benchmarks."""
    env, observation, info = started(make_env, agent, module)
    lm, done = env.language_model, False
    while not done:
        action = propose(agent, observation, info, lm)
        (observation, _, terminated, truncated, info), _ = take(env, agent, action)
        done = terminated or truncated
    (name,) = lm.modules
    return lm.weight(name).clone(), lm.initial_weight(name).clone()


def test_prune_as_alphaedits_public_code_has_it_adds_the_condensed_sum_to_what_is_there(make_env, small_world):
    end, start = played(make_env, MEMIT(VALUE, weight=0.01, samples=30))
    weights, _ = played(make_env, PRUNE(VALUE, weight=0.01, samples=30, onto="edited"))
    torch.testing.assert_close(weights, end + condense(end - start, start, 1.2), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="choose one of the two"):
        PRUNE(VALUE, every_batch=True, onto="edited")


@pytest.mark.parametrize("how", ["nan", "error"])
def test_prune_condenses_though_its_last_batch_comes_to_nothing(make_env, small_world, monkeypatch, how):
    agent = PRUNE(VALUE, weight=0.01, samples=30)
    written, write = [], MEMIT._write

    def fails_at_last(self, edits):
        written.append(write(self, edits))
        if len(written) == 2 and how == "error":
            raise torch.linalg.LinAlgError
        return {n: dense(d) * (torch.nan if len(written) == 2 else 1.0) for n, d in written[-1].items()}

    monkeypatch.setattr(MEMIT, "_write", fails_at_last)
    with pytest.warns(UserWarning, match="no update was found for the last batch, 4 edits"):
        end, start = played(make_env, agent)
    (first,) = (dense(delta) for delta in written[0].values())
    torch.testing.assert_close(end, start + condense(first, start, 1.2), rtol=1e-3, atol=1e-3)


def test_prune_without_an_end_says_so(make_env):
    agent = PRUNE(VALUE, samples=30)
    agent.prepare(make_env(modules=[MIDDLE]), 0, nothing)
    with pytest.raises(ValueError, match="set every_batch"):
        agent.begin(make_env(modules=[MIDDLE], dataset=None))


@pytest.mark.parametrize("kind", [AlphaEdit, PRUNE])
def test_an_interrupted_run_goes_on_from_what_was_remembered(make_env, small_world, kind):
    options = {"threshold": 100.0} if kind is AlphaEdit else {"every_batch": True, "weight": 1.0}

    agent = kind(VALUE, samples=30, **options)
    env, _, info = started(make_env, agent)
    action = agent.act(env.gradients, info)
    memory = agent.batch_state()
    *_, info = env.step(action)
    second = agent.act(env.gradients, info)

    other = kind(VALUE, samples=30, **options)
    with env.language_model.at_initial_weights():
        other.prepare(env, 0, nothing)
    now = env.language_model.snapshot()
    env.language_model.restore()
    other.begin(env)
    env.language_model.restore(now)
    other.load_batch_state(memory)
    again = other.act(env.gradients, info)
    for name in second:
        torch.testing.assert_close(dense(again[name]), dense(second[name]), rtol=1e-4, atol=1e-5)


def test_the_cache_of_keys_does_not_leak_between_runs(make_env, small_world):
    agent = AlphaEdit(VALUE, threshold=100.0, samples=30)
    env, _, info = started(make_env, agent)
    first = agent.act(env.gradients, info)
    for _ in range(2):  # the keys of a batch are taken in when the next one comes
        *_, info = env.step(agent.act(env.gradients, info))
    _, info = env.reset(seed=0)
    agent.begin(env)
    again = agent.act(env.gradients, info)
    for name in first:
        assert torch.equal(dense(first[name]), dense(again[name]))


@pytest.mark.parametrize("kind", [AlphaEdit, MEMIT])
def test_earlier_batches_keys_are_in_the_solve(base, tokenizer, make_env, small_world, kind):
    """Two batches through the agent; the second solved densely, with the keys of the first."""
    lm = EditableLM(base, tokenizer, [MIDDLE])
    C = key_covariance(lm, sample_text(load_edits("atlas", "train"), 30))[f"model.{MIDDLE}"].double()
    eigenvalues, vectors = torch.linalg.eigh(C)
    threshold = float(eigenvalues[48:50].mean())  # of 64: some of the text's directions are projected away
    if kind is AlphaEdit:
        agent = AlphaEdit(VALUE, threshold=threshold, ridge=0.5, samples=30)
        free = vectors[:, eigenvalues < threshold]
        Q, penalty = free @ free.T, 0.5 * torch.eye(64).double()
    else:
        agent = MEMIT(VALUE, weight=2.0, samples=30, epsilon=0.01, cache_keys=True)
        Q, penalty = torch.eye(64).double(), 2.0 * (C + 0.01 * C.trace() / 64 * torch.eye(64).double())
    env, _, info = started(make_env, agent)
    lm = env.language_model
    layer, name = lm.model.get_submodule("model.layers.1"), f"model.{MIDDLE}"
    earlier = torch.zeros(64, 64).double()
    for _ in range(2):
        lookup = look_up(lm, env.batch, "subject_last")
        U = read_token(lm, lm.modules[name], lookup)[0].double()
        change = optimise_values(lm, layer, env.batch, lookup, VALUE).double()
        expected = torch.linalg.solve(Q @ (U.T @ U + earlier) + penalty, Q @ U.T @ change)
        action = agent.act(env.gradients, info)
        torch.testing.assert_close(dense(action[name]).double(), expected, rtol=5e-3, atol=5e-3)
        if kind is AlphaEdit:
            preserved = vectors[:, eigenvalues > threshold].T
            assert (preserved @ dense(action[name]).double()).abs().max() < 1e-5 * float(expected.abs().max()) + 1e-5
        earlier += U.T @ U
        *_, info = env.step(action)


def test_the_keys_that_are_kept_are_those_of_the_edited_model(make_env, small_world):
    agent = MEMIT(VALUE, weight=1.0, samples=30, cache_keys=True)
    env = make_env(modules=[FIRST, MIDDLE], edits_per_step=4, horizon=2)
    agent.prepare(env, 0, nothing)
    _, info = env.reset(seed=0)
    agent.begin(env)
    lm, name = env.language_model, f"model.{MIDDLE}"
    lookup = look_up(lm, env.batch, "subject_last")
    action, before = agent.act(env.gradients, info), read_token(lm, lm.modules[name], lookup)[0]
    lm.apply(env.checked(action))
    after = read_token(lm, lm.modules[name], lookup)[0]
    assert (after - before).norm() > 0.05 * before.norm()
    torch.testing.assert_close(agent.batch_state()[name], after, rtol=1e-3, atol=1e-3)


def test_rect_thins_out_each_layers_update_at_the_weights_it_is_for(make_env, small_world):
    arguments = {"weight": 1.0, "samples": 30}
    agent, plain = RECT(VALUE, keep=0.3, **arguments), MEMIT(VALUE, **arguments)
    env = make_env(modules=[FIRST, MIDDLE], edits_per_step=4, horizon=2)
    for which in (agent, plain):
        which.prepare(env, 0, nothing)
    _, info = env.reset(seed=0)
    for which in (agent, plain):
        which.begin(env)
    lm = env.language_model
    for _ in range(2):
        whole, sparse = plain.act(env.gradients, info), agent.act(env.gradients, info)
        for name in lm.modules:
            delta, weight = dense(whole[name]).numpy(), lm.weight(name).numpy()
            assert np.abs(delta).max() > 0.01
            ratio = np.abs(delta / weight)
            kept = ratio >= np.sort(ratio.ravel())[-round(0.3 * ratio.size)]
            np.testing.assert_allclose(sparse[name].numpy(), np.where(kept, delta, 0), rtol=1e-4, atol=1e-6)
        *_, info = env.step(sparse)


def test_rome_wants_one_module(make_env):
    with pytest.raises(ValueError, match="ROME edits one module"):
        ROME(VALUE, samples=30).prepare(make_env(modules=[MIDDLE, LAST]), 0, nothing)
