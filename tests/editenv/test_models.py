import pytest
import torch
from transformers import AutoModelForCausalLM

from editenv.models import default_modules, load_model


def test_the_folder_is_loaded_as_it_is_and_once(model_folder):
    model, tokenizer = load_model(model_folder)
    plain = AutoModelForCausalLM.from_pretrained(model_folder)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert tokenizer("Rome")["input_ids"][0] == tokenizer.bos_token_id
    assert load_model(model_folder)[0] is model


def test_dtype(model_folder):
    assert load_model(model_folder, dtype="bfloat16")[0].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="float8"):
        load_model(model_folder, dtype="float8")


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_model(str(tmp_path))


def test_the_edited_modules_stand_in_the_config_or_have_to_be_named(base):
    assert default_modules(load_model("atlas")[0], "atlas") == ("layers.3.mlp.down_proj",)
    with pytest.raises(ValueError, match="some/model"):
        default_modules(base, "some/model")
