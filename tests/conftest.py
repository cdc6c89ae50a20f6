"""A tiny, randomly initialised Llama as a Hugging Face folder, and a few edits to try on it."""

import os

import pytest
import torch
from plain import teach
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from agents import cli
from editenv.data import Edit, Locality, atlas, load_edits
from editenv.env import LifelongEditEnv
from editenv.language_model.editable_lm import EditableLM
from editenv.models import load_model

LAST = "layers.2.mlp.down_proj"

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """What a killed process has written is there without it; a power failure is not tried here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level BPE of a few hundred tokens that puts a BOS before every text."""
    bpe = Tokenizer(models.BPE(unk_token=None))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator((f"{e.prompt} {e.target}" for e in load_edits("atlas", "validation")[:100]), trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )


@pytest.fixture(scope="session")
def model_folder(tokenizer, tmp_path_factory):
    """Weights are large enough that every layer matters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def base(model_folder):
    """The plain model that every environment on the folder shares."""
    return load_model(model_folder)[0]


@pytest.fixture(scope="session")
def edits():
    """Ten edits with answers, rephrases and locality prompts of different lengths and numbers."""
    subjects = ("Ada", "Mount Blue", "Kepler", "the Long River", "Iris", "Old Harbour", "Nils", "Vega", "Omar", "Tea")
    targets = ("Rome", "a chess player", "Oslo", "Ecuador", "jazz", "New South Wales", "Peru", "IBM", "Latin", "Bonn")
    found = []
    for i, (subject, target) in enumerate(zip(subjects, targets, strict=True)):
        found.append(
            Edit(
                id=f"small/{i}",
                prompt=f"The home of {subject} is",
                target=target,
                rephrases=tuple(f"{'So, ' * j}people find {subject} in" for j in range(1, 2 + i % 3)),
                locality=tuple(Locality(f"Who saw number {i}{j}?", targets[(i + j) % 10]) for j in range(1, 2 + i % 2)),
                subject=subject,
                old_answer="Paris",
                relation="home",
            )
        )
    return found


@pytest.fixture
def make_lm(base, tokenizer):
    return lambda *modules: EditableLM(base, tokenizer, modules or (LAST,))


@pytest.fixture
def make_env(model_folder):
    """An environment on the tiny model, with two edited modules unless told otherwise."""

    def make(**arguments):
        defaults = {
            "model": model_folder,
            "modules": ["layers.1.mlp.down_proj", LAST],
            "split": "validation",
            "edits_per_step": 3,
            "horizon": 3,
        }
        return LifelongEditEnv(**(defaults | arguments))

    return make


@pytest.fixture
def small_world(monkeypatch, edits):
    """The ten edits stand in for every split of the data set."""
    monkeypatch.setattr("editenv.env.load_edits", lambda dataset, split, seed=None, options=None: list(edits))
    return edits


@pytest.fixture
def tenth_of_atlas(monkeypatch):
    """A tenth of the embedded world's edits: all of them take a fifth of a second to redraw, at each reset."""
    facts = tuple(fact for i, fact in enumerate(atlas.facts()) if i % 10 == 0 or fact.role.endswith("locality"))
    monkeypatch.setattr(atlas, "facts", lambda: facts)
    monkeypatch.setattr(atlas, "_canonical", lambda split: atlas._drawn(split, None))


@pytest.fixture(scope="session")
def taught(model_folder, tokenizer, edits):
    """A tiny model that has learned to answer half of the edits' prompts, and to stop afterwards."""
    model = LlamaForCausalLM.from_pretrained(model_folder)
    return teach(model, tokenizer, [(edit.prompt, edit.target) for edit in edits[:5]], steps=60)


@pytest.fixture
def command_line(monkeypatch, capsys):
    """The command line in this process: what it said on stdout and on stderr, and its exit status."""

    def run(*words):
        monkeypatch.setattr("sys.argv", ["editenv", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        said = capsys.readouterr()
        return said.out, said.err, code

    return run
