import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from agents.preconditioner import Preconditioner, effective_dimension, key_covariance, sample_text
from editenv.data import load_edits
from editenv.dynamics import EditableLM, Gradient

TEXTS = ["Ada is in Rome", "Tea", "So, people find the Long River in Ecuador and in Peru", "Who saw Kepler? Oslo"]


def covariance(size, seed=0):
    root = torch.randn(size, 2 * size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T / (2 * size)


@pytest.mark.parametrize("modules", [["layers.2.mlp.down_proj"], ["layers.0.mlp.up_proj", "layers.2.self_attn.o_proj"]])
def test_covariance_is_the_second_moment_of_the_modules_inputs(base, tokenizer, modules):
    lm = EditableLM(base, tokenizer, modules)
    expected = {name: torch.zeros(lm.shape(name)[0], lm.shape(name)[0]) for name in lm.modules}
    count = 0
    for text in TEXTS:
        inputs = {}

        def keep(module, args, into=inputs):
            into[module] = args[0]

        handles = [base.get_submodule(name).register_forward_pre_hook(keep) for name in lm.modules]
        ids = tokenizer(text)["input_ids"]
        base(torch.tensor([ids]))
        for handle in handles:
            handle.remove()
        for name in lm.modules:
            for token in inputs[base.get_submodule(name)][0, 1:]:
                expected[name] += torch.outer(token, token)
        count += len(ids) - 1
    lm.apply({name: torch.randn(lm.shape(name)) for name in lm.modules})
    for batch_size in (128, 1, 3):
        found = key_covariance(lm, TEXTS, batch_size)
        for name in lm.modules:
            torch.testing.assert_close(found[name], expected[name] / count, rtol=1e-4, atol=1e-5)


def test_every_token_counts_where_the_tokenizer_adds_no_bos(base, tokenizer):
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.ByteLevel()
    bare = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    lm = EditableLM(base, bare, ["layers.2.mlp.down_proj"])
    (name,) = lm.modules
    rows = []
    handle = base.get_submodule(name).register_forward_pre_hook(lambda _, args: rows.append(args[0][0]))
    for text in TEXTS:
        ids = bare(text)["input_ids"]
        assert ids[0] != tokenizer.bos_token_id
        base(torch.tensor([ids]))
    handle.remove()
    keys = torch.cat(rows)
    torch.testing.assert_close(key_covariance(lm, TEXTS)[name], keys.T @ keys / len(keys), rtol=1e-4, atol=1e-5)


def test_effective_dimension():
    assert effective_dimension(torch.eye(7)) == pytest.approx(7)
    assert effective_dimension(torch.ones(5, 5)) == pytest.approx(1)
    assert effective_dimension(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(16 / 10)


def test_sampled_text_is_true_and_from_the_training_split():
    texts = sample_text(load_edits("atlas", "train"), 200)
    assert texts == sample_text(load_edits("atlas", "train"), 200)
    assert len(texts) == 200
    true = set()
    for edit in load_edits("atlas", "train"):
        true |= {f"{text} {edit.old_answer}" for text in (edit.prompt, *edit.rephrases)}
        true |= {f"{item.prompt} {item.answer}" for item in edit.locality}
    assert set(texts) <= true


def test_start_is_the_scaled_inverse_of_the_covariance():
    C = covariance(6)
    found = Preconditioner({"m": C}, epsilon=0.1, recursive=True).project("m", torch.eye(6).double())
    inverse = torch.linalg.inv(C + 0.1 * torch.linalg.eigvalsh(C).mean() * torch.eye(6))
    torch.testing.assert_close(found / found[0, 0], inverse / inverse[0, 0])
    assert (found * C).sum() == pytest.approx(1)  # E[u^T P u] of the text


def test_absorbing_is_the_inverse_of_the_grown_covariance():
    shapes = {"a": 6, "b": 9}
    preconditioner = Preconditioner({name: covariance(size) for name, size in shapes.items()}, 0.1, recursive=True)
    identity = {name: torch.eye(size).double() for name, size in shapes.items()}
    grown = {name: torch.linalg.inv(preconditioner.project(name, identity[name])) for name in shapes}
    start = {name: preconditioner.project(name, identity[name]) for name in shapes}
    noise = {"a": 0.5, "b": 2.0}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        keys = {name: torch.randn(4, size, generator=generator, dtype=torch.float64) for name, size in shapes.items()}
        preconditioner.absorb({name: Gradient(value, value) for name, value in keys.items()}, noise)
        for name, value in keys.items():
            grown[name] = grown[name] + value.T @ value / noise[name]
            torch.testing.assert_close(preconditioner.project(name, identity[name]), torch.linalg.inv(grown[name]))
    preconditioner.reset()
    for name in shapes:
        assert torch.equal(preconditioner.project(name, identity[name]), start[name])


def test_without_recursion_nothing_is_absorbed():
    preconditioner = Preconditioner({"m": covariance(5)}, 0.1, recursive=False)
    identity = torch.eye(5).double()
    before = preconditioner.project("m", identity)
    preconditioner.absorb({"m": Gradient(identity, identity)}, {"m": 1.0})
    assert torch.equal(preconditioner.project("m", identity), before)


def test_project_takes_keys_as_rows():
    preconditioner = Preconditioner({"m": covariance(5)}, 0.1, recursive=True)
    P = preconditioner.project("m", torch.eye(5).double())
    keys = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(preconditioner.project("m", keys), P @ keys.T)
