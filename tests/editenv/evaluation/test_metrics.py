import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from plain import answer_logits, edited_weights, greedy, kl, nll, random_deltas, tokens
from transformers import GenerationConfig

from editenv.data import Edit, Locality, atlas
from editenv.evaluation import metrics
from editenv.evaluation.batch import EvaluationBatch, encode_evaluation
from editenv.language_model.prompts import Prompts


def test_teacher_forced_on_a_case_made_by_hand():
    """Two edits; prompts of 2 and 1 tokens, rephrases of 4 and 1 for the first alone, locality of 2 for the second."""
    lengths = torch.tensor([2, 1, 4, 1, 2])
    labels = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 9, 9])
    choices = torch.tensor([1, 0, 3, 4, 5, 6, 0, 0, 2, 9])
    initial_tokens = torch.tensor([2, 2])
    prompts = Prompts(torch.zeros(10, 1).split(lengths.tolist()), None, labels, lengths, [])
    edits = [Edit("a", "", ""), Edit("b", "", "")]
    edit_index, kind = torch.tensor([0, 1, 0, 0, 1]), torch.tensor([0, 0, 1, 1, 2])
    questions = EvaluationBatch(edits, [("", "")] * 5, prompts, edit_index, kind, initial_tokens)
    lm = SimpleNamespace(logits=lambda p: torch.nn.functional.one_hot(choices[p.rows], 10).float(), device="cpu")
    scores = metrics.teacher_forced(lm, questions)
    np.testing.assert_allclose(scores.efficacy, [1 / 2, 1])
    np.testing.assert_allclose(scores.generalization, [(3 / 4 + 0) / 2, math.nan])
    np.testing.assert_allclose(scores.specificity, [math.nan, 1 / 2])
    assert scores.percentages() == {
        "efficacy": 75.0,
        "generalization": 37.5,
        "specificity": 50.0,
        "locality_accuracy": 50.0,
    }


def test_percentages_of_nothing_are_none():
    nothing = np.array([math.nan])
    scores = metrics.Scores(np.array([1.0]), nothing, nothing, nothing).percentages()
    assert scores == {"efficacy": 100, "generalization": None, "specificity": None, "locality_accuracy": None}


def test_teacher_forced_is_the_share_of_first_choices_of_the_plain_model(taught_lm, taught, tokenizer, edits):
    scores = metrics.teacher_forced(taught_lm, encode_evaluation(taught_lm, edits))

    def share(prompt, answer):
        logits, labels = answer_logits(taught, tokenizer, prompt, answer)
        return float((logits.argmax(-1) == labels).float().mean())

    np.testing.assert_allclose(scores.efficacy, [share(e.prompt, e.target) for e in edits], atol=1e-6)
    expected = [np.mean([share(text, e.target) for text in e.rephrases]) for e in edits]
    np.testing.assert_allclose(scores.generalization, expected, atol=1e-6)
    assert scores.efficacy.min() < 1 == scores.efficacy.max()
    assert (scores.specificity == 1).all()


def test_specificity_is_agreement_with_theta_0_not_with_the_answer(taught_lm, tokenizer, taught):
    edit = Edit("x", "The home of Ada is", "Rome", locality=(Locality("The home of Iris is", "jazz New South Wales"),))
    questions = encode_evaluation(taught_lm, [edit])
    assert metrics.teacher_forced(taught_lm, questions).specificity == 1
    (name,) = taught_lm.modules
    delta = torch.randn(taught_lm.shape(name), generator=torch.Generator().manual_seed(0))
    taught_lm.apply({name: delta})
    after = metrics.teacher_forced(taught_lm, questions).specificity.item()
    taught_lm.restore()
    plain_before = answer_logits(taught, tokenizer, "The home of Iris is", "jazz New South Wales")[0].argmax(-1)
    weights = {f"{name}.weight": taught.get_submodule(name).weight + delta.T}
    plain_after = answer_logits(taught, tokenizer, "The home of Iris is", "jazz New South Wales", weights)[0].argmax(-1)
    assert after == pytest.approx(float((plain_before == plain_after).float().mean()))
    assert after < 1


def texts_of(edits):
    return [e.prompt for e in edits] + [text for e in edits for text in e.rephrases]


@pytest.mark.parametrize("batch_size", [256, 3])
def test_generate_is_greedy_token_by_token(taught_lm, taught, tokenizer, edits, batch_size):
    texts = texts_of(edits)
    written = metrics.generate(taught_lm, texts, limit=9, batch_size=batch_size)
    assert written == [greedy(taught, tokenizer, text, 9) for text in texts]
    assert len(set(written)) > 4


def test_generate_is_greedy_whatever_else_the_model_folder_asks_for(taught_lm, tokenizer, edits, monkeypatch):
    texts = texts_of(edits)
    plain = metrics.generate(taught_lm, texts, limit=9)
    asks = GenerationConfig(repetition_penalty=50.0, no_repeat_ngram_size=1, suppress_tokens=[5], do_sample=True)
    monkeypatch.setattr(taught_lm.model, "generation_config", asks)
    assert metrics.generate(taught_lm, texts, limit=9) == plain
    assert taught_lm.model.generation_config is asks


def test_generate_gives_none_without_an_end_and_nothing_for_nothing(taught_lm, tokenizer, edits):
    longest = max(edits[:5], key=lambda e: len(tokens(tokenizer, "", e.target)[1]))
    needed = len(tokens(tokenizer, "", longest.target)[1]) + 1
    assert metrics.generate(taught_lm, [longest.prompt], needed) == [longest.target]
    assert metrics.generate(taught_lm, [longest.prompt], needed - 1) == [None]
    assert metrics.generate(taught_lm, [], 5) == []


def test_generation_is_right_exactly_where_every_forced_choice_and_the_end_are(taught_lm, taught, tokenizer, edits):
    scores = metrics.generation(taught_lm, encode_evaluation(taught_lm, edits))

    def all_right(prompt, answer):
        head, tail = tokens(tokenizer, prompt, answer)
        choices = taught(torch.tensor([head + tail])).logits[0, len(head) - 1 :].argmax(-1)
        return choices.tolist() == [*tail, tokenizer.eos_token_id]

    assert scores.efficacy.tolist() == [float(all_right(e.prompt, e.target)) for e in edits]
    np.testing.assert_allclose(
        scores.generalization, [np.mean([all_right(text, e.target) for text in e.rephrases]) for e in edits]
    )
    assert set(scores.efficacy) == {0.0, 1.0}


def test_generation_wants_the_exact_text(taught_lm, edits):
    right = edits[1]
    short = Edit("short", right.prompt, right.target.rsplit(" ", 1)[0])
    long = Edit("long", right.prompt, f"{right.target} {right.target}")
    scores = metrics.generation(taught_lm, encode_evaluation(taught_lm, [right, short, long]))
    assert scores.efficacy.tolist() == [1, 0, 0]


def test_an_unedited_model_agrees_with_itself_in_generation(make_lm, base, tokenizer, edits):
    """Whatever it writes: an untrained model hardly ever stops by itself."""
    lm = make_lm()
    questions = encode_evaluation(lm, edits)
    limit = metrics.generation_limit(questions)
    assert None in [greedy(base, tokenizer, item.prompt, limit) for e in edits for item in e.locality]
    assert (metrics.generation(lm, questions).specificity == 1).all()


def test_what_theta_0_wrote_can_be_given(taught_lm, edits):
    locality = tuple(Locality(e.prompt, e.target) for e in edits[:5])
    questions = encode_evaluation(taught_lm, [Edit("x", edits[0].prompt, edits[0].target, locality=locality)])
    before = metrics.initial_generations(taught_lm, questions)
    assert before == [e.target for e in edits[:5]]
    (name,) = taught_lm.modules
    taught_lm.apply({name: torch.randn(taught_lm.shape(name), generator=torch.Generator().manual_seed(0))})
    assert metrics.initial_generations(taught_lm, questions) == before
    changed = metrics.generation(taught_lm, questions).specificity
    assert changed == metrics.generation(taught_lm, questions, before).specificity
    assert changed < 1
    wrong = [f"not {text}" for text in before]
    assert metrics.generation(taught_lm, questions, wrong).specificity == 0


def test_what_theta_0_writes_is_written_once(taught_lm, edits, monkeypatch):
    """Also by another model that shares the cache of the frozen layers; other prompts are still asked."""
    taught_lm.activation_cache.clear()
    monkeypatch.setattr(metrics, "generation_limit", lambda batch: 11)
    batch = encode_evaluation(taught_lm, edits[:3])
    texts = metrics.initial_generations(taught_lm, batch)
    asked = []
    guess = metrics.generate_from_guesses
    monkeypatch.setattr(
        metrics, "generate_from_guesses", lambda lm, prompts, *rest: asked.append(prompts) or guess(lm, prompts, *rest)
    )
    assert metrics.initial_generations(taught_lm, batch) == texts
    assert asked == []
    more = encode_evaluation(taught_lm, edits[:4])
    assert metrics.initial_generations(taught_lm, more)[: len(texts)] == texts
    assert asked == [[item.prompt for item in edits[3].locality]]
    taught_lm.activation_cache.clear()
    metrics.initial_generations(taught_lm, batch)
    assert len(asked[1]) == len(texts)


def test_every_name_in_the_atlas_survives_encoding_and_decoding(tokenizer):
    names = sorted({name for group in atlas.objects().values() for name in group})
    rows = tokenizer([f" {name}" for name in names], add_special_tokens=False)["input_ids"]
    assert [tokenizer.decode(row).strip() for row in rows] == names


def test_probability_compares_token_means_under_their_own_prefixes(taught_lm, taught, tokenizer, edits):
    with_old = [replace(e, old_answer=old) for e, old in zip(edits, ("Oslo", "New York", "Basel") * 4, strict=False)]
    with_old.append(replace(edits[0], id="new", old_answer=None))
    scores = metrics.probability(taught_lm, with_old)

    def likelier(prompt, one, other):
        values = [float(nll(taught, tokenizer, prompt, answer)) for answer in (one, other)]
        return float(values[0] < values[1])

    expected = [likelier(e.prompt, e.target, e.old_answer) if e.old_answer else math.nan for e in with_old]
    np.testing.assert_allclose(scores.efficacy, expected)
    rephrased = [[likelier(text, e.target, e.old_answer) for text in e.rephrases] for e in with_old if e.old_answer]
    np.testing.assert_allclose(scores.generalization, [*map(np.mean, rephrased), math.nan])
    kept = [np.mean([likelier(item.prompt, item.answer, e.target) for item in e.locality]) for e in with_old]
    np.testing.assert_allclose(scores.specificity, kept)
    for figures in (scores.efficacy, scores.generalization, scores.specificity):
        assert 0 < np.nanmean(figures) < 1


def test_an_answer_is_not_compared_with_itself(taught_lm, edits):
    """A locality prompt whose answer the edit makes true elsewhere says nothing about harm."""
    same = Locality("Who saw number 1?", edits[0].target)
    alone, both = replace(edits[0], locality=(same,)), replace(edits[0], locality=(*edits[0].locality, same))
    assert all(item.answer != edits[0].target for item in edits[1].locality)
    plain = replace(edits[0], locality=edits[1].locality)
    with_it = replace(plain, locality=(*edits[1].locality, same))
    assert np.isnan(metrics.probability(taught_lm, [alone]).specificity).all()
    scores = metrics.probability(taught_lm, [plain, with_it, both])
    assert scores.specificity[0] == scores.specificity[1]


def test_the_length_of_an_answer_is_no_disadvantage(taught_lm, taught, tokenizer, edits):
    """ROME's comparison is of means, not sums: a long answer that is known beats a short one that is not."""
    long = max(edits[:5], key=lambda e: len(e.target.split()))
    sums = [
        float(-nll(taught, tokenizer, long.prompt, a)) * len(tokens(tokenizer, "", a)[1]) for a in (long.target, "Peru")
    ]
    assert sums[0] > sums[1]
    pair = [replace(long, old_answer="Peru"), replace(long, target="Peru", old_answer=long.target)]
    assert metrics.probability(taught_lm, pair).efficacy.tolist() == [1, 0]


def test_locality_accuracy_is_agreement_with_the_data_set(taught_lm, edits):
    right, wrong = (tuple(Locality(e.prompt, answer) for e in edits[:2]) for answer in ("", "Quito"))
    right = tuple(Locality(e.prompt, e.target) for e in edits[:2])
    protected = [
        Edit("a", "The home of Iris is", "x", locality=right),
        Edit("b", "The home of Nils is", "x", locality=wrong),
    ]
    questions = encode_evaluation(taught_lm, protected)
    for scores in (metrics.teacher_forced(taught_lm, questions), metrics.generation(taught_lm, questions)):
        assert (scores.specificity == 1).all()
        assert scores.locality_accuracy[0] == 1
        assert scores.locality_accuracy[1] < 1


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_every_figure_is_the_same_at_any_batch_size(make_lm, edits, batch_size):
    lm = make_lm("layers.1.mlp.down_proj")
    questions = encode_evaluation(lm, edits)
    lm.apply(random_deltas(lm, scale=0.3))
    for scores, again in (
        (metrics.teacher_forced(lm, questions), metrics.teacher_forced(lm, questions, batch_size)),
        (metrics.generation(lm, questions), metrics.generation(lm, questions, batch_size=batch_size)),
        (metrics.probability(lm, edits), metrics.probability(lm, edits, batch_size)),
    ):
        for field in ("efficacy", "generalization", "specificity", "locality_accuracy"):
            np.testing.assert_array_equal(getattr(scores, field), getattr(again, field))
    texts = [f"{e.prompt} {e.target}" for e in edits]
    assert metrics.drift(lm, texts, batch_size) == pytest.approx(metrics.drift(lm, texts), rel=1e-5)


def test_drift_is_perplexity_and_divergence_of_the_plain_model(make_lm, base, tokenizer, edits):
    lm = make_lm()
    deltas = random_deltas(lm, scale=0.3)
    lm.apply(deltas)
    texts = [f"{e.prompt} {e.target}" for e in edits]
    weights = edited_weights(base, deltas)
    before, after, divergences = [], [], []
    for text in texts:
        head, tail = text.split(" ", 1)
        length = len(tokens(tokenizer, head, tail)[1])
        before += [float(nll(base, tokenizer, head, tail))] * length
        after += [float(nll(base, tokenizer, head, tail, weights))] * length
        divergences += [float(kl(base, tokenizer, head, tail, weights))] * length
    figures = metrics.drift(lm, [*texts, "word"])
    assert figures["perplexity_before"] == pytest.approx(math.exp(np.mean(before)), rel=1e-4)
    assert figures["perplexity"] == pytest.approx(math.exp(np.mean(after)), rel=1e-4)
    assert figures["kl"] == pytest.approx(np.mean(divergences), rel=1e-3)
    assert figures["kl"] > 0.01
