"""On a CUDA device the same comes out as on the CPU, up to rounding."""

from dataclasses import replace

import pytest
import torch
from test_devices import LOWER, METHODS, UPPER, changes, play, same_draws
from test_rledit import CONFIG

from agents.editing.editor import LifelongEditor
from agents.hypernetwork.training import make_preconditioner, training_environment
from agents.registry import make_method
from agents.rledit.trainer import RLEditTrainer
from benchmarks import suites
from benchmarks.running.recording import Recording
from benchmarks.running.rollout import run
from editenv.evaluation import metrics
from editenv.evaluation.batch import encode_evaluation
from editenv.language_model.editable_lm import EditableLM
from editenv.models import load_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

DEVICES = ("cpu", "cuda")


@pytest.fixture(autouse=True)
def exact_products():
    """No TF32: rounding alone is to differ."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def close(one, two, tolerance=1e-3):
    scale = one.norm()
    assert (one - two.cpu()).norm() <= tolerance * scale, float((one - two.cpu()).norm() / scale)


@pytest.mark.parametrize(
    "modules", [[UPPER], [LOWER, UPPER], ["layers.1.mlp.gate_proj"], ["layers.2.self_attn.o_proj"]]
)
def test_gradients_and_judgements(model_folder, edits, modules):
    found = []
    for device in DEVICES:
        lm = EditableLM(*load_model(model_folder, device), modules)
        questions = encode_evaluation(lm, edits)
        prompts = questions.prompts
        loss, gradients = lm.gradients(
            prompts, lambda logits, labels=prompts.labels: torch.nn.functional.cross_entropy(logits, labels)
        )
        assert {g.keys.device.type for g in gradients.values()} == {device}
        lm.apply({name: -0.1 * gradient.dense() for name, gradient in gradients.items()})
        scores = metrics.teacher_forced(lm, questions).percentages(), metrics.generation(lm, questions).percentages()
        found.append((loss, [g.dense() for g in gradients.values()], lm.logits(prompts), scores))
        lm.restore()
        assert all(torch.equal(lm.weight(name), lm.initial_weight(name)) for name in lm.modules)
    (loss, dense, logits, scores), (loss2, dense2, logits2, scores2) = found
    close(loss, loss2)
    close(logits, logits2)
    assert scores == scores2
    for one, two in zip(dense, dense2, strict=True):
        close(one, two)


@pytest.mark.parametrize("name", METHODS)
def test_methods(make_env, name):
    """What is optimised or trained carries rounding on, so that weights are compared loosely."""
    found = [changes(play(make_env, name, same_draws(METHODS[name]), device=device)[0]) for device in DEVICES]
    for module, delta in found[0].items():
        assert delta.norm() > 0
        close(delta, found[1][module], 0.05)


@pytest.mark.parametrize("preconditioner", [False, True])
def test_the_policy_gradient(make_env, small_world, preconditioner):
    config = replace(CONFIG, preconditioner=preconditioner)
    found = []
    for device in DEVICES:
        env = make_env(modules=[LOWER, UPPER], split="train", device=device)
        P = make_preconditioner(env, config) if preconditioner else None
        trainer = RLEditTrainer(training_environment(env, config), config, 0, P)
        trainer.backward(list(trainer.credited_roll_out()))
        found.append([p.grad for p in trainer.policy.parameters() if p.grad is not None])
        assert {grad.device.type for grad in found[-1]} == {device}
    for one, two in zip(*found, strict=True):
        close(one, two, 0.01)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_the_editor_goes_on_from_its_journal_to_the_same_bits(model_folder, tmp_path, dtype, device):
    facts = [[{"prompt": f"The home of {fact} is", "target": fact}] for fact in ("Rome", "Oslo", "Bonn")]
    options = {"modules": [LOWER, UPPER], "device": device, "dtype": dtype}
    with LifelongEditor(model_folder, "ultraedit", output=tmp_path / "whole", **options) as editor:
        assert all(editor.edit(batch).applied for batch in facts)
        whole = editor.lm.snapshot()
    for part in (facts[:2], facts[2:]):
        with LifelongEditor(model_folder, "ultraedit", output=tmp_path / "parts", **options) as editor:
            assert all(editor.edit(batch).applied for batch in part)
            parts = editor.lm.snapshot()
            editor.save(tmp_path / f"model{len(part)}")
    assert {weight.device.type for weight in parts.values()} == {"cuda"}
    assert all(torch.equal(weight, parts[name]) for name, weight in whole.items())
    saved = EditableLM(*load_model(str(tmp_path / "model1"), dtype=dtype), [LOWER, UPPER])
    for name, weight in parts.items():
        assert torch.equal(saved.snapshot()[name], weight.to(saved.initial_weight(name).dtype).cpu().float())


def test_a_cell_of_a_suite():
    found = []
    for device in DEVICES:
        suite = replace(suites.find("smoke-v1").first(2), device=device)
        recording = Recording()
        agent = make_method("ultraedit", {})
        found.append(run(suite, "ultraedit", agent, 0, recording=recording))
    one, two = found
    assert one.teacher_forced == two.teacher_forced
    assert one.generation == two.generation
    assert two.mean_reward == pytest.approx(one.mean_reward, rel=1e-3)
    assert two.peak_memory_bytes == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.5)
