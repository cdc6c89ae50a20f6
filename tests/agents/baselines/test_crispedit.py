"""CrispEdit: K-FAC's factors and their projection by brute force, and what fine-tuning under it leaves alone."""

import numpy as np
import pytest
import torch

from agents.baselines.crispedit import CrispEdit, Curvature, LowCurvature, text_curvature, together
from agents.covariance import sample_text, training_edits

MIDDLE = "layers.1.mlp.down_proj"
NAME = f"model.{MIDDLE}"
TEXTS = ["Ada is in Rome", "Tea", "So, people find the Long River in Ecuador and in Peru", "Who saw Kepler? Oslo"]


def matrix(rows, columns, seed):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nothing(*_):
    pass


def curvature_of(rows, columns):
    keys, grads = matrix(40, rows, 0), matrix(40, columns, 1)
    return Curvature(keys.T @ keys, grads.T @ grads, 40)


@pytest.mark.parametrize("energy", [0.0, 0.3, 0.9, 0.999])
def test_the_projection_is_that_of_the_whole_kronecker_product(energy):
    """Brute force: the 30 x 30 matrix itself, and numpy's eigenvectors of it."""
    curvature = curvature_of(6, 5)
    whole = np.kron(curvature.keys.numpy() / 40, curvature.value_grads.numpy() / 40)
    values, vectors = np.linalg.eigh(whole)
    share = np.cumsum(values[::-1]) / values.sum()
    taken_out = int((share < energy).sum()) + 1
    kept = vectors[:, : len(values) - taken_out]
    delta = matrix(6, 5, 2)
    expected = (kept @ kept.T @ delta.numpy().ravel()).reshape(6, 5)
    found = LowCurvature(curvature, energy)(delta)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)
    torch.testing.assert_close(LowCurvature(curvature, energy)(found), found)


def test_all_of_the_energy_leaves_nothing():
    assert LowCurvature(curvature_of(6, 5), 1.0)(matrix(6, 5, 2)).abs().max() < 1e-10


def test_the_factors_are_the_second_moments_of_keys_and_gradients(base, make_lm):
    """Against a plain backward pass through the whole model, one text at a time."""
    lm = make_lm(MIDDLE)
    keys, grads, tokens = torch.zeros(64, 64), torch.zeros(32, 32), 0
    for text in TEXTS:
        ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
        seen = []

        def tap(_, args, output, seen=seen):
            seen.extend([args[0].detach(), output.detach().requires_grad_()])
            return seen[1]

        handle = base.get_submodule(NAME).register_forward_hook(tap)
        loss = torch.nn.functional.cross_entropy(base(ids).logits[0, :-1], ids[0, 1:], reduction="sum")
        handle.remove()
        (gradient,) = torch.autograd.grad(loss, seen[1])
        keys += seen[0][0, :-1].T @ seen[0][0, :-1]
        grads += gradient[0, :-1].T @ gradient[0, :-1]
        tokens += ids.shape[1] - 1
    lm.apply({NAME: torch.randn(lm.shape(NAME))})  # it is taken at theta_0
    (found,) = text_curvature(lm, TEXTS, nothing).values()
    assert found.tokens == tokens
    torch.testing.assert_close(found.keys, keys, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.value_grads, grads, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="no text has two tokens"):
        text_curvature(lm, [""], nothing)


def test_texts_go_together_by_their_tokens(monkeypatch):
    monkeypatch.setattr("agents.baselines.crispedit.TOKENS_TOGETHER", 10)
    rows = [[0] * n for n in (2, 3, 3, 4, 5, 12)]
    assert [[len(row) for row in part] for part in together(rows)] == [[2, 3, 3], [4, 5], [12]]


def started(make_env, agent, **arguments):
    env = make_env(modules=[MIDDLE], **arguments)
    agent.prepare(env, 0, nothing)
    _, info = env.reset(seed=0)
    agent.begin(env)
    return env, info


def test_nothing_curved_is_written_and_the_targets_come_nearer(make_env, small_world):
    agent = CrispEdit(learning_rate=1e-2, energy=0.5, samples=30)
    env, info = started(make_env, agent)
    before = env.language_model.snapshot()
    delta = agent.act(env.gradients, info)[NAME]
    assert all(torch.equal(before[name], weight) for name, weight in env.language_model.snapshot().items())
    torch.testing.assert_close(agent._text_projections[NAME](delta), delta, rtol=1e-3, atol=1e-5)
    prompts = env.evaluation_batch.prompts.select(env.evaluation_batch.kind == 0)
    loss = torch.nn.functional.cross_entropy(env.language_model.logits(prompts), prompts.labels)
    env.language_model.apply({NAME: delta})
    assert torch.nn.functional.cross_entropy(env.language_model.logits(prompts), prompts.labels) < 0.5 * loss


def test_projected_gradients_alone_are_adam_on_them(make_env, small_world):
    """As the public code has it: autograd of the plain model, the projection written out, torch's own Adam."""
    agent = CrispEdit(steps=3, learning_rate=1e-2, energy=0.5, samples=30, projected="gradient", minibatch=2)
    env, info = started(make_env, agent, edits_per_step=3)
    lm = env.language_model
    (delta,) = agent.act(env.gradients, info).values()
    factors = text_curvature(lm, sample_text(training_edits(env), 30), nothing)[NAME]
    a, U_A = torch.linalg.eigh(factors.keys.double() / factors.tokens)
    b, U_B = torch.linalg.eigh(factors.value_grads.double() / factors.tokens)
    products = torch.outer(a, b)
    ordered = products.flatten().sort(descending=True).values
    at = int((ordered.cumsum(0) / ordered.sum() < 0.5).sum())
    M = products < ordered[at]
    weight = lm.initial_weight(NAME).clone().requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=1e-2)
    for _ in range(3):
        for edits in (env.batch[:2], env.batch[2:]):
            losses = []
            for edit in edits:
                head, whole = (
                    lm.tokenizer(text)["input_ids"] for text in (edit.prompt, f"{edit.prompt} {edit.target}")
                )
                changed = {f"{NAME}.weight": weight.T}
                logits = torch.func.functional_call(lm.model, changed, (torch.tensor([whole]),)).logits
                losses.append(
                    torch.nn.functional.cross_entropy(logits[0, len(head) - 1 : -1], torch.tensor(whole[len(head) :]))
                )
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            gradient = weight.grad.double()
            weight.grad = (U_A @ (M * (U_A.T @ gradient @ U_B)) @ U_B.T).float()
            optimizer.step()
    expected = weight.detach() - lm.initial_weight(NAME)
    # Adam's first steps have the sign of the gradient alone: entries near zero may go either way.
    assert torch.nn.functional.cosine_similarity(delta.flatten(), expected.flatten(), dim=0) > 0.999


def test_a_finished_batch_adds_its_own_curvature(make_env, small_world):
    agent = CrispEdit(steps=2, energy=0.5, samples=30, refresh=2)
    env, info = started(make_env, agent, horizon=3)
    text = agent._text[NAME].copy()
    *_, info = env.step(agent.act(env.gradients, info))
    state = agent.batch_state()
    keys, grads = state[f"{NAME}/keys"], state[f"{NAME}/value_grads"]
    prompts = env.language_model.encode([e.prompt for e in env.stream[:3]], [e.target for e in env.stream[:3]])
    assert len(keys) == len(prompts.labels)
    projections = agent._projections
    *_, info = env.step(agent.act(env.gradients, info))
    assert agent._projections is projections  # after two batches only
    torch.testing.assert_close(agent._curvature[NAME].keys, text.keys + keys.T @ keys)
    torch.testing.assert_close(agent._curvature[NAME].value_grads, text.value_grads + grads.T @ grads)
    assert agent._curvature[NAME].tokens == text.tokens + len(keys)
    agent.act(env.gradients, info)
    assert agent._projections is not projections
    assert torch.equal(agent._text[NAME].keys, text.keys)
    agent.begin(env)
    assert agent._curvature[NAME].tokens == text.tokens


def test_statistics_of_keys_alone_will_not_do(make_env, tmp_path):
    agent = CrispEdit()
    agent.text = str(tmp_path)
    with pytest.raises(ValueError, match="holds statistics of keys alone"):
        agent.prepare(make_env(), 0, nothing)
