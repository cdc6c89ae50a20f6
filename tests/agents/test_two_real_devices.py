"""A model of which a part lies on a CUDA device and a part on the host, as accelerate spreads it, is edited like
one on the host.

The two are devices of different kinds: a tensor that is left on the wrong one is an error, as it is between two GPUs.
"""

import copy

import pytest
import torch
from test_cuda import close
from test_devices import LOWER, METHODS, UPPER, changes, play, same_draws
from torch.nn.functional import cross_entropy

from agents.editing.editor import LifelongEditor
from editenv.evaluation import metrics
from editenv.evaluation.batch import encode_evaluation
from editenv.language_model.editable_lm import EditableLM

pytest.importorskip("accelerate")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

PARTS = (
    "model.embed_tokens",
    "model.rotary_emb",
    "model.layers.0",
    "model.layers.1",
    "model.layers.2",
    "model.norm",
    "lm_head",
)


@pytest.fixture(params=["upper layer on the GPU", "upper layer on the host"])
def spread(request, base):
    """The layer of UPPER here, everything else there; without the main device accelerate would run the host's part
    on the GPU.
    """
    from accelerate import dispatch_model

    upper, others = (0, "cpu") if "on the GPU" in request.param else ("cpu", 0)
    places = {part: upper if part == "model.layers.2" else others for part in PARTS}
    return dispatch_model(copy.deepcopy(base), places, main_device="cpu")


def test_it_is_spread(spread):
    places = {name: module.weight.device.type for name, module in spread.named_modules() if name in (LOWER, UPPER)}
    assert sorted(places.values()) == ["cpu", "cuda"]


def test_gradients_and_judgements(base, spread, tokenizer, edits):
    found = []
    for model in (base, spread):
        lm = EditableLM(model, tokenizer, [LOWER, UPPER])
        questions = encode_evaluation(lm, edits)
        prompts = questions.prompts
        loss, gradients = lm.gradients(
            prompts, lambda logits, labels=prompts.labels: cross_entropy(logits, labels.to(logits.device))
        )
        lm.apply({name: -0.1 * gradient.dense() for name, gradient in gradients.items()})
        scores = metrics.teacher_forced(lm, questions).percentages(), metrics.generation(lm, questions).percentages()
        drift = metrics.drift(lm, [edit.prompt for edit in edits])
        found.append((loss, [g.dense() for g in gradients.values()], lm.logits(prompts), scores, drift))
        lm.restore()
        assert all(torch.equal(lm.weight(name), lm.initial_weight(name)) for name in lm.modules)
    (loss, dense, logits, scores, drift), (loss2, dense2, logits2, scores2, drift2) = found
    close(loss, loss2)
    close(logits, logits2)
    assert scores == scores2
    assert drift2 == pytest.approx(drift, rel=1e-2)
    for one, two in zip(dense, dense2, strict=True):
        close(one, two)


@pytest.mark.parametrize("name", METHODS)
def test_methods(make_env, spread, monkeypatch, tokenizer, name):
    """What is optimised or trained carries rounding on, so that weights are compared loosely."""
    found = []
    for model in (None, spread):
        with monkeypatch.context() as patched:
            if model is not None:
                patched.setattr("editenv.env.load_model", lambda *_: (spread, tokenizer))
            found.append(changes(play(make_env, name, same_draws(METHODS[name]))[0]))
    for module, delta in found[0].items():
        assert delta.norm() > 0
        close(delta, found[1][module], 0.05)


def test_the_editor_goes_on_from_its_journal_to_the_same_bits(model_folder, spread, monkeypatch, tokenizer, tmp_path):
    monkeypatch.setattr("editenv.env.load_model", lambda *_: (spread, tokenizer))
    facts = [[{"prompt": f"The home of {fact} is", "target": fact}] for fact in ("Rome", "Oslo", "Bonn")]
    with LifelongEditor(model_folder, "ultraedit", output=tmp_path / "whole", modules=[LOWER, UPPER]) as editor:
        assert all(editor.edit(batch).applied for batch in facts)
        whole = editor.lm.snapshot()
    for part in (facts[:2], facts[2:]):
        with LifelongEditor(model_folder, "ultraedit", output=tmp_path / "parts", modules=[LOWER, UPPER]) as editor:
            assert all(editor.edit(batch).applied for batch in part)
            parts = editor.lm.snapshot()
    assert sorted(weight.device.type for weight in parts.values()) == ["cpu", "cuda"]
    assert all(torch.equal(weight, parts[name]) for name, weight in whole.items())
