import pytest

from editenv.language_model.editable_lm import EditableLM


@pytest.fixture
def taught_lm(taught, tokenizer):
    return EditableLM(taught, tokenizer, ["layers.1.mlp.down_proj"])
