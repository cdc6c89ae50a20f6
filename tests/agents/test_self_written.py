"""Text that a model writes by itself, and statistics of it."""

import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM

from agents import self_written
from agents.covariance import covariance_of, key_covariance, texts_of
from agents.self_written import SELF_WRITTEN, written_texts
from editenv.models import load_model

NAME = "model.layers.2.mlp.down_proj"


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(self_written, "TOKENS", 6)
    monkeypatch.setattr(self_written, "TOGETHER", 8)


def test_texts_follow_from_the_seed_and_leave_model_and_generator_alone(make_lm):
    lm = make_lm(NAME)
    lm.apply({NAME: torch.ones(lm.shape(NAME))})
    before = lm.snapshot()
    state = torch.get_rng_state()
    texts = list(written_texts(lm, 20))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(before[NAME], lm.snapshot()[NAME])
    assert len(texts) == 20
    assert len(set(texts)) > 15
    lm.restore()
    assert list(written_texts(lm, 20)) == texts, "theta_0 writes, whatever the model is now"
    assert list(itertools.islice(written_texts(lm, 100), 16)) == texts[:16]
    assert list(written_texts(lm, 20, seed=1)) != texts


def test_they_are_sampled_at_the_models_own_probabilities(model_folder, monkeypatch, make_lm):
    """The first written token's frequencies are those of the plain model's softmax."""
    monkeypatch.setattr(self_written, "TOKENS", 1)
    monkeypatch.setattr(self_written, "BEGINNINGS", ("The home of Ada is",))
    lm = make_lm(NAME)
    ids = lm.tokenizer("The home of Ada is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(model_folder)
        p = plain(ids).logits[0, -1].softmax(-1)
    likely = int(p.argmax())
    expected = lm.tokenizer.batch_decode([[*ids[0].tolist(), likely]], skip_special_tokens=True)[0].strip()
    count = 1200
    share = sum(text == expected for text in written_texts(lm, count)) / count
    same = [
        t
        for t in range(len(p))
        if lm.tokenizer.decode([*ids[0].tolist(), t], skip_special_tokens=True).strip() == expected
    ]
    probability = float(p[same].sum())
    assert abs(share - probability) < 4 * (probability * (1 - probability) / count) ** 0.5


def test_the_covariance_is_that_of_the_texts(make_env, monkeypatch):
    monkeypatch.setattr("agents.covariance.MOST", 12)
    env = make_env(modules=[NAME])
    lm = env.language_model
    texts = list(texts_of(lm, SELF_WRITTEN, 100_000))
    assert len(texts) == 12
    reported = []
    C = covariance_of(env, SELF_WRITTEN, 100_000, lambda *said: reported.append(said))
    torch.testing.assert_close(C[NAME], key_covariance(lm, texts, bos=True)[NAME])
    assert reported


def test_a_models_text_fits_into_its_context(model_folder):
    _, tokenizer = load_model(model_folder)
    longest = max(map(len, tokenizer(list(self_written.BEGINNINGS))["input_ids"]))
    assert longest + 48 < 128
