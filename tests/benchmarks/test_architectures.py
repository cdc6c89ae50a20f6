"""The table of architectures is what the code gives: each row is made again, and compared with the committed one."""

import json
import warnings

import pytest
import torch
from documents import ROOT
from plain import answer_logits
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from agents import cli
from agents.baselines.lookup import look_up, read_token
from agents.baselines.values import ValueConfig, optimise_values
from agents.covariance import key_covariance
from benchmarks import architectures
from benchmarks.architectures import ARCHITECTURES, EDITS, as_row, examine, save_tiny
from editenv.data import Edit
from editenv.language_model.cut import Cut
from editenv.language_model.editable_lm import EditableLM
from editenv.models import load_model
from editenv.models.modules import default_modules

DOCUMENT = ROOT / "docs" / "reference" / "architectures.md"

FAST = ("falcon-7b", "gpt1", "opt-350m", "mixtral", "gemma3-vl", "t5", "zamba2")
"""Each of a kind of its own: parallel blocks, lists of outputs, flat batches, fused experts, two towers, refused."""


def table():
    """The committed table: its rows by the models they are about."""
    text = DOCUMENT.read_text(encoding="utf-8")
    lines = text.partition(architectures.BEGIN)[2].partition(architectures.END)[0].strip().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines]
    assert rows[0] == list(architectures.HEADINGS)
    return {row[0]: row for row in rows[2:]}


def test_the_table_has_every_architecture():
    assert list(table()) == [architecture.models for architecture in ARCHITECTURES.values()]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in ARCHITECTURES])
def test_a_row_is_what_the_code_gives(name, tmp_path):
    """``editenv edit``, the environment, and plain transformers with what was saved."""
    architecture = ARCHITECTURES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        finding = examine(architecture, tmp_path)
    assert finding.same or finding.refusal
    if finding.same:
        before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("model", "out/model"))
        assert any(not torch.equal(weight, after[name]) for name, weight in before.items()), "nothing was edited"
    assert list(as_row(architecture, finding)) == table()[architecture.models]


UNUSUAL = (
    "falcon-7b",
    "falcon-new",
    "gpt1",
    "opt",
    "opt-350m",
    "qwen2-moe",
    "llama4",
    "mixtral",
    "qwen3-next",
    "bamba",
)


@pytest.mark.parametrize("name", UNUSUAL)
def test_the_observation_of_unusual_layers_is_that_of_the_plain_model(name, tmp_path):
    """Keys and gradients at answer positions, and the keys' covariance, against one prompt at a time."""
    save_tiny(ARCHITECTURES[name], tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, tokenizer = load_model(str(tmp_path))
        lm = EditableLM(model, tokenizer, default_modules(model, name))
    prompts = lm.encode(*zip(*EDITS, strict=True))
    _, gradients = lm.gradients(
        prompts, lambda logits: cross_entropy(logits, prompts.labels, reduction="sum"), observed_tokens="answers"
    )
    edits = [Edit(prompt, prompt, target) for prompt, target in EDITS]
    lookup, first = look_up(lm, edits, "last"), prompts.lengths.cumsum(0) - prompts.lengths
    for module, gradient in gradients.items():
        torch.testing.assert_close(read_token(lm, lm.modules[module], lookup)[0], gradient.keys[first])
        assert optimise_values(lm, lm.modules[module], edits, lookup, ValueConfig(steps=1, token="last")).norm() > 0
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval().requires_grad_(False)
    inputs = {module: [] for module in lm.modules}
    for module, kept in inputs.items():
        plain.get_submodule(module).register_forward_pre_hook(lambda _, args, kept=kept: kept.append(args[0]))
    for prompt, _ in EDITS:
        plain(input_ids=torch.tensor([tokenizer(prompt)["input_ids"]]), use_cache=False)
    kept_keys = {module: torch.cat([key.reshape(-1, key.shape[-1]) for key in kept]) for module, kept in inputs.items()}
    covariance = key_covariance(lm, [prompt for prompt, _ in EDITS], bos=True)
    for module, keys in kept_keys.items():
        torch.testing.assert_close(covariance[module], keys.T @ keys / len(keys), rtol=1e-3, atol=1e-5)
    for module, gradient in gradients.items():
        expected = [factors(plain, tokenizer, module, *pair) for pair in EDITS]
        for ours, theirs in zip(
            (gradient.keys, gradient.value_grads), map(torch.cat, zip(*expected, strict=True)), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))


def factors(model, tokenizer, name, prompt, answer):
    """A module's inputs at the token before each answer token, and the gradient at its outputs, of a zero added there."""
    kept = {}

    def hook(_, args, output):
        kept["keys"], kept["zero"] = args[0], torch.zeros_like(output, requires_grad=True)
        return output + kept["zero"]

    handle = model.get_submodule(name).register_forward_hook(hook)
    logits, labels = answer_logits(model, tokenizer, prompt, answer)
    handle.remove()
    (grads,) = torch.autograd.grad(cross_entropy(logits, labels, reduction="sum"), kept["zero"])
    return [tensor.reshape(-1, tensor.shape[-1])[-1 - len(labels) : -1] for tensor in (kept["keys"], grads)]


def test_the_command_prints_and_writes_rows(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(architectures, "ARCHITECTURES", {"t5": ARCHITECTURES["t5"]})
    architectures.main(architectures.Args(only=("t5",)))
    printed = capsys.readouterr().out.strip()
    assert "refused: the model is of type t5" in printed
    document = tmp_path / "table.md"
    document.write_text(f"Before.\n\n{architectures.BEGIN}\nold\n{architectures.END}\n\nAfter.\n")
    architectures.main(architectures.Args(document=document))
    text = f"Before.\n\n{architectures.BEGIN}\n{printed}\n{architectures.END}\n\nAfter.\n"
    assert document.read_text() == text
    with pytest.raises(SystemExit, match="unknown nope; there are t5"):
        architectures.main(architectures.Args(only=("nope",)))
    document.write_text("Nothing.\n")
    with pytest.raises(SystemExit, match="has no lines"):
        architectures.main(architectures.Args(document=document))
    assert architectures.FROM.keys() == set(Cut)


def test_a_mixture_without_linear_experts_is_evaluated(tmp_path, monkeypatch, capsys):
    """``editenv evaluate`` runs the model from its last module that can be edited, wherever that is."""
    save_tiny(ARCHITECTURES["mixtral"], tmp_path / "model")
    (tmp_path / "edits.jsonl").write_text(json.dumps(dict(zip(("prompt", "target"), EDITS[0], strict=True))) + "\n")
    words = ["evaluate", "--model", tmp_path / "model", "--edits", tmp_path / "edits.jsonl", "--json"]
    monkeypatch.setattr("sys.argv", ["editenv", *map(str, words)])
    cli.main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["edits"] == 1
