"""What a model is: a change that can change an output is noticed, and one that cannot is not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from editenv.identity import LIBRARIES, cautions, differences, identity, same
from editenv.language_model.editable_lm import EditableLM
from editenv.models import load_model

LAST = "model.layers.2.mlp.down_proj"


def with_json(folder, name, change):
    """Changes one of a model folder's JSON files."""
    path = Path(folder) / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def swapped(content):
    merges = content["model"]["merges"]
    merges[0], merges[-1] = merges[-1], merges[0]


BOS_TWICE = [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * 2 + [{"Sequence": {"id": "A", "type_id": 0}}]

CHANGES = {
    "hidden_act": ("config.json", lambda c: c.update(hidden_act="gelu")),
    "rms_norm_eps": ("config.json", lambda c: c.update(rms_norm_eps=1e-3)),
    "rope_theta": ("config.json", lambda c: c["rope_parameters"].update(rope_theta=500.0)),
    "eos_token_id": ("config.json", lambda c: c.update(eos_token_id=7)),
    "merges": ("tokenizer.json", swapped),
    "normalizer": ("tokenizer.json", lambda c: c.update(normalizer={"type": "Lowercase"})),
    "pre_tokenizer": ("tokenizer.json", lambda c: c["pre_tokenizer"].update(add_prefix_space=True)),
    "post_processor": ("tokenizer.json", lambda c: c["post_processor"].update(single=BOS_TWICE)),
    "decoder": ("tokenizer.json", lambda c: c.update(decoder={"type": "Fuse"})),
    "special tokens": ("tokenizer_config.json", lambda c: c.update(eos_token="<pad>")),
}
"""By what differences say: changes of which each gives other tokens, other logits or another text."""

WITHOUT_EFFECT = {
    "cache": ("config.json", lambda c: c.update(use_cache=False)),
    "path and version": ("config.json", lambda c: c.update(_name_or_path="elsewhere", transformers_version="4.40.0")),
    "labels": ("config.json", lambda c: c.update(id2label={"0": "good"}, label2id={"good": 0})),
    "chat template": ("tokenizer_config.json", lambda c: c.update(chat_template="{{ messages }}")),
    "longest text": ("tokenizer_config.json", lambda c: c.update(model_max_length=77)),
    "generation": ("generation_config.json", lambda c: c.update(do_sample=True, temperature=0.3)),
}


@pytest.fixture
def identity_of(model_folder, tmp_path):
    """The identity of the tiny model after a change of one of its files."""

    def make(change=None, dtype="float32"):
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(model_folder, folder)
        if change is not None:
            with_json(folder, *change)
        return identity(EditableLM(*load_model(str(folder), dtype=dtype), [LAST]))

    return make


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_outputs_is_another_model(identity_of, what):
    said = differences(identity_of(), identity_of(CHANGES[what]))
    assert len(said) == 1, said
    assert what in said[0]


@pytest.mark.parametrize("what", WITHOUT_EFFECT)
def test_what_changes_no_output_is_the_same_model(identity_of, what):
    before, after = identity_of(), identity_of(WITHOUT_EFFECT[what])
    assert not differences(before, after)
    assert not cautions(before, after)


def test_neither_precision_nor_use_nor_saving_makes_another_model(identity_of, tmp_path, model_folder):
    model, tokenizer = load_model(model_folder)
    before = identity(EditableLM(model, tokenizer, [LAST]))
    assert not differences(before, identity_of(dtype="bfloat16"))
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    assert not differences(before, identity(EditableLM(*load_model(str(tmp_path / "again")), [LAST])))


def test_a_buffer_that_is_saved_counts_and_one_that_is_computed_does_not(model_folder):
    model, tokenizer = load_model(model_folder)
    lm = EditableLM(model, tokenizer, [LAST])
    plain = identity(lm)
    lm.model.register_buffer("computed", torch.ones(3), persistent=False)
    assert not differences(plain, identity(lm))
    lm.model.register_buffer("saved", torch.ones(3))
    with_buffer = identity(lm)
    assert differences(plain, with_buffer) == ["other buffers of the model"]
    lm.model.saved[1] = 2
    assert differences(with_buffer, identity(lm)) == ["other buffers of the model"]


def test_another_version_of_a_library_is_said_and_taken(identity_of):
    here = identity_of()
    older = json.loads(json.dumps(here))
    older["libraries"]["transformers"] = "4.40.0"
    older["config"]["gone"] = True
    del older["config"]["mlp_bias"]
    assert not differences(older, here)
    (caution,) = cautions(older, here)
    assert "transformers 4.40.0" in caution
    assert all(f"{name} {here['libraries'][name]}" in caution for name in LIBRARIES)
    older["config"]["hidden_act"] = "gelu"
    assert differences(older, here) == ["config: hidden_act was 'gelu', is 'silu'"]
    older["libraries"] = here["libraries"]
    assert len(differences(older, here)) == 3  # of one version, what only one of them has counts


def test_of_records_without_an_identity_it_is_said_that_nothing_was_compared(identity_of):
    here = identity_of()
    assert differences(None, here) == []
    assert "not checked" in cautions(None, here)[0]
    assert same({"seed": 3}, {"seed": 3, "identity": here})
    assert not same({"seed": 4}, {"seed": 3, "identity": here})
    other = here | {"buffers": "0"}
    assert not same({"seed": 3, "identity": other}, {"seed": 3, "identity": here})


def test_a_tokenizer_in_python_is_known_by_its_files(identity_of, model_folder, tmp_path):
    """CTRL's has a vocabulary and merges in files, and no backend."""
    from transformers import CTRLTokenizer

    (tmp_path / "vocab.json").write_text(json.dumps({"<unk>": 0, "a</w>": 1, "b": 2, "bc</w>": 3, "c</w>": 4}))
    seen = []
    for merges in ("#version\nb c</w>\n\n", "#version\na b</w>\n\n"):
        (tmp_path / "merges.txt").write_text(merges)
        tokenizer = CTRLTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
        seen.append(identity(EditableLM(load_model(model_folder)[0], tokenizer, [LAST])))
    assert differences(*seen) == ["tokenizer: another merges.txt"]


def test_the_packaged_models_load_alike_by_name_and_from_a_copy(tmp_path):
    model, tokenizer = load_model("atlas")
    before = identity(EditableLM(model, tokenizer, ["layers.3.mlp.down_proj"]))
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tokenizer.name_or_path).save_pretrained(tmp_path)
    assert not differences(before, identity(EditableLM(*load_model(str(tmp_path)), ["layers.3.mlp.down_proj"])))
