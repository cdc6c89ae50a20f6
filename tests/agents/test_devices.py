"""A model whose layers lie on two devices is edited, judged and learned from like one on a single device, to the
bit.
"""

import pytest
import torch
from devices import FIRST, SECOND, Devices, device_of, spread
from torch.nn.functional import cross_entropy

from agents.editing.editor import LifelongEditor
from agents.registry import make_method
from editenv.deltas import LowRank
from editenv.evaluation import metrics
from editenv.evaluation.batch import encode_evaluation
from editenv.language_model.editable_lm import EditableLM

pytest.importorskip("accelerate")

LOWER, UPPER = "model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"


def upper_half(name):
    """The last layer, the norm and the head are on the second device."""
    return SECOND if name.startswith(("model.layers.2", "model.norm", "lm_head")) else FIRST


def numbers(tensor):
    return tensor.held if device_of(tensor) != torch.device("cpu") else tensor


@pytest.fixture
def two_devices(base):
    with Devices():
        yield spread(base, upper_half)


def test_the_devices_of_the_tests_do_not_mix(base, two_devices):
    with pytest.raises(RuntimeError, match=r"cpu:0.*cpu:1"):
        torch.ones(2, device=FIRST) + torch.ones(2, device=SECOND)
    with pytest.raises(RuntimeError, match="indices"):
        torch.ones(2, device=FIRST)[torch.zeros(1, dtype=torch.long, device=SECOND)]
    assert device_of(2 * torch.ones(2, device=SECOND).cumsum(0)) == SECOND
    assert {device_of(p) for p in two_devices.parameters()} == {FIRST, SECOND}
    ids = torch.tensor([[0, 7, 30]])
    logits = two_devices(ids.to(FIRST)).logits
    assert device_of(logits) == FIRST  # accelerate brings the output back
    assert torch.equal(numbers(logits), base(ids).logits)


@pytest.mark.parametrize(
    "modules", [[UPPER], [LOWER], [LOWER, UPPER], ["layers.2.mlp.gate_proj"], ["layers.2.self_attn.o_proj"]]
)
def test_gradients_and_deltas(base, two_devices, tokenizer, edits, modules):
    pairs = [edit.prompt for edit in edits], [edit.target for edit in edits]
    found = []
    for model in (base, two_devices):
        lm = EditableLM(model, tokenizer, modules)
        prompts = lm.encode(*pairs)
        loss, gradients = lm.gradients(
            prompts, lambda logits, prompts=prompts: cross_entropy(logits, prompts.labels, reduction="sum"), True
        )
        for name, gradient in gradients.items():
            lm.apply({name: LowRank(-0.1 * gradient.keys.T, gradient.value_grads)})
        weights = {name: lm.weight(name).clone() for name in lm.modules}
        if model is two_devices:
            assert {device_of(g.keys) for g in gradients.values()} == {FIRST}
            assert {device_of(weight) for weight in weights.values()} == {FIRST}
            assert all(device_of(module.weight) == upper_half(name) for name, module in lm.modules.items())
        found.append([loss, *(g.dense() for g in gradients.values()), *weights.values(), lm.logits(prompts)])
        lm.restore()
        assert all(torch.equal(numbers(lm.weight(n)), base.get_submodule(n).weight.T) for n in lm.modules)
        lm.assign({name: 2 * lm.weight(name) for name in lm.modules})
        found[-1] += [lm.weight(name).clone() for name in lm.modules]
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, numbers(two))


def test_judgements(base, two_devices, tokenizer, edits):
    found = []
    for model in (base, two_devices):
        lm = EditableLM(model, tokenizer, [LOWER, UPPER])
        questions = encode_evaluation(lm, edits)
        found.append(
            [
                metrics.teacher_forced(lm, questions).percentages(),
                metrics.generation(lm, questions).percentages(),
                metrics.probability(lm, edits).percentages(),
                metrics.drift(lm, [edit.prompt for edit in edits]),
            ]
        )
    assert found[0] == found[1]


SMALL = {"trajectories": 2, "horizon": 2, "edits_per_step": 3, "warm_up_batches": 2, "policy": {"rank": 2}}
VALUE = {"token": "last", "steps": 3, "prefixes": 1}
METHODS = {
    "fine-tune": {"steps": 3},
    "ft-l": {"steps": 3},
    "fine-tune-replay": {"steps": 3},
    "locft-bf-batch": {"epochs": 2, "mini_batch": 2},
    "lora": {"steps": 3},
    "lora-merge": {"epochs": 2, "mini_batch": 2},
    "kn": {"steps": 3},
    "rome": {"value": VALUE, "samples": 20},
    "memit": {"value": VALUE, "samples": 20},
    "memit-seq": {"value": VALUE, "samples": 20},
    "memit-rehearsed": {"value": VALUE, "samples": 20},
    "memit-reworded": {"value": VALUE, "samples": 20},
    "prune": {"value": VALUE, "samples": 20},
    "rect": {"value": VALUE, "samples": 20},
    "alphaedit": {"value": VALUE, "samples": 20, "threshold": 100.0},
    "memit-seq-nas": {"value": VALUE, "samples": 20, "anchors": 5},
    "pmet": {"value": VALUE, "samples": 20},
    "nse": {"value": VALUE, "samples": 20, "neurons": 0.8, "enough": 0.0, "too_far": 1e6},
    "rlsedit": {"value": VALUE, "samples": 20},
    "o-edit": {"value": VALUE, "samples": 20},
    "simie": {"editor": {"value": VALUE, "samples": 20}},
    "crispedit": {"steps": 3, "samples": 20, "energy": 0.5},
    "ultraedit": {},
    "stableedit": {"warm_up_batches": 1},
    "mend": {"config": SMALL},
    "malmen": {"config": SMALL},
    "rledit": {"config": SMALL},
    "rledit-p": {"config": SMALL | {"covariance_texts": 20}},
    "malmen-retrained": {"config": SMALL, "retrain_every": 1},
    "dafnet": {"config": {"steps": 2, "judged": 4}},
}


def play(make_env, name, settings, **device):
    """The method prepared and played through two batches: the model as it is then, and the rewards."""
    agent = make_method(name, settings)
    modules = [UPPER] if name == "rome" else [LOWER, UPPER]
    agent.prepare(make_env(split="train", modules=modules, **device), 0, lambda *_: None)
    env = make_env(horizon=2, modules=modules, actions_per_batch=agent.actions_per_batch, **device)
    _, info = env.reset(seed=0)
    agent.begin(env)
    over = False
    rewards = []
    while not over:
        _, reward, terminated, truncated, info = env.step(agent.act(env.gradients, info))
        rewards.append(reward)
        over = terminated or truncated
    return env.language_model, rewards


def same_draws(settings):
    """Without prefixes, which are drawn on the device: another device draws others."""
    return settings | {"value": settings["value"] | {"prefixes": 0}} if "value" in settings else settings


def changes(lm):
    return {name: lm.weight(name) - lm.initial_weight(name) for name in lm.modules}


@pytest.mark.parametrize("name", METHODS)
def test_methods(make_env, two_devices, monkeypatch, tokenizer, name):
    found = []
    for model in (None, two_devices):
        with monkeypatch.context() as patched:
            if model is not None:
                patched.setattr("editenv.env.load_model", lambda *_: (two_devices, tokenizer))
            lm, rewards = play(make_env, name, METHODS[name])
            found.append((lm.snapshot(), rewards))
    (one, rewards), (two, same) = found
    assert {device_of(weight) for weight in two.values()} <= {FIRST, SECOND}
    assert rewards == same
    assert all(torch.equal(weight, numbers(two[n])) for n, weight in one.items())
    assert any(not torch.equal(w, model_weight(make_env, n)) for n, w in one.items())


def model_weight(make_env, name):
    return make_env().language_model.initial_weight(name).T


def test_the_editor_and_its_journal(model_folder, two_devices, monkeypatch, tokenizer, tmp_path):
    found = []
    for kind in ("one", "two"):
        with monkeypatch.context() as patched:
            if kind == "two":
                patched.setattr("editenv.env.load_model", lambda *_: (two_devices, tokenizer))
            for facts in (["Rome", "Oslo"], ["Bonn"]):  # the second time it goes on from its journal
                with LifelongEditor(
                    model_folder, "ultraedit", output=tmp_path / kind, modules=[LOWER, UPPER]
                ) as editor:
                    for fact in facts:
                        assert editor.edit([{"prompt": f"The home of {fact} is", "target": fact}]).applied
                    found.append((editor.lm.snapshot(), editor.evaluate()))
    for (one, figures), (two, same) in zip(found[:2], found[2:], strict=True):
        assert all(torch.equal(weight, numbers(two[name])) for name, weight in one.items())
        assert figures == same
