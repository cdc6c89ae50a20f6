"""SERAC: its classifier's examples, that it separates what it was trained to, and which questions then get an edit."""

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from agents.baselines.ike import IKE
from agents.baselines.lte import LTE, GatedLTE
from agents.baselines.oneedit import OneEdit
from agents.baselines.rag import RAG
from agents.baselines.scope import examples, scope_classifier
from agents.baselines.serac import SERAC
from agents.progress import silent
from agents.view import Actor
from editenv.context_retrieval import Scope
from editenv.contexts import Context, as_tensor, of_tensor
from editenv.data import Edit, Locality

NAMES = ("Ada", "Bo", "Cem", "Dunja", "Emre", "Fee", "Gus", "Hedda")


@pytest.fixture
def training(monkeypatch):
    """A rephrase names the subject, a locality prompt has the words of the prompt and another subject."""
    made = [
        Edit(
            id=name,
            prompt=f"The home of {name} is",
            target="there",
            rephrases=(f"It rained. {name} lives in",),
            locality=(Locality(f"The home of {name[::-1]}x is", "elsewhere"),),
        )
        for name in NAMES
    ]
    monkeypatch.setattr("agents.baselines.rag.training_edits", lambda env: made)
    return made


def test_features_are_two_shares_and_two_cosines_of_scikit_learn():
    keys, questions = ["The home of Ada is", "Bo plays"], ["So, Ada plays at home", "zzz", "The home of Ada is"]
    features = Scope(keys, (0.0,) * 5).features(questions)
    assert features.shape == (3, 2, 4)
    for column, options in ((2, {"token_pattern": r"\b\w+\b"}), (3, {"analyzer": "char_wb", "ngram_range": (3, 5)})):
        vectorizer = TfidfVectorizer(smooth_idf=False, **options).fit(keys)
        expected = cosine_similarity(vectorizer.transform(questions), vectorizer.transform(keys))
        assert features[..., column] == pytest.approx(expected, abs=1e-6)
    assert features[2, 0] == pytest.approx([1, 1, 1, 1])
    assert features[1] == pytest.approx(np.zeros((2, 4)))


def test_examples_are_rephrases_with_their_edit_and_with_another_and_locality_prompts(training):
    labelled = list(examples(training, 4))
    assert [inside for _, inside in labelled].count(True) == len(training)
    assert len(labelled) == 3 * len(training)
    scope = Scope([edit.prompt for edit in training[:4]], (0.0,) * 5)
    own = scope.features([training[0].rephrases[0]])[0]
    assert labelled[0][0] == pytest.approx(own[0])
    assert labelled[1][0] == pytest.approx(own[1:][own[1:, 0].argmax()])
    alone = list(examples(training[:1], 100))
    assert [inside for _, inside in alone] == [True, False], "there is no other edit"


def test_the_regression_is_where_its_gradient_vanishes(training):
    """Of the penalised log-likelihood in which both classes count the same."""
    labelled = list(examples(training, 100))
    features = torch.tensor(np.stack([row for row, _ in labelled]))
    inside = torch.tensor([label for _, label in labelled]).double()
    weights = torch.tensor(scope_classifier(labelled, 10.0), dtype=torch.float64, requires_grad=True)
    balance = torch.where(inside == 1, len(inside) / (2 * inside.sum()), len(inside) / (2 * (1 - inside).sum()))
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        weights[0] + features @ weights[1:], inside, reduction="none"
    )
    (10.0 * (balance * losses).sum() + weights[1:].square().sum() / 2).backward()
    assert weights.grad.abs().max() < 1e-3


def test_rephrases_get_their_edit_and_other_subjects_the_base_model(make_env, small_world, training):
    agent = SERAC(strength=1000.0)
    agent.prepare(make_env(), 0, silent)
    context = agent.context({edit.prompt: f"{edit.id}\n" for edit in training[2:]})
    asked = [edit.rephrases[0] for edit in training[2:]] + [edit.prompt for edit in training[2:]]
    assert context.before(asked) == [(f"{edit.id}\n",) for edit in training[2:]] * 2
    assert context.before([edit.locality[0].prompt for edit in training[2:]]) == [()] * 6
    assert context.before([training[0].rephrases[0], "Who saw it?"]) == [(), ()], "edits that were not made"


def test_the_classifier_goes_with_the_context(make_env, small_world, training):
    agent = SERAC()
    env = make_env()
    agent.prepare(env, 0, silent)
    env.reset(seed=0)
    actor = Actor(env, agent)
    actor.begin()
    env.step(actor.act(*actor.look()))
    context = env.language_model.context
    assert (context.retriever, context.nearest, context.threshold, len(context.scope)) == ("scope", 1, 0.5, 5)
    assert of_tensor(as_tensor(context)).as_json() == context.as_json()
    with pytest.raises(ValueError, match=r"scope: the retriever 'scope' has 5 weights, not 1"):
        Context({"a": "b\n"}, "scope", scope=(1.0,))
    with pytest.raises(ValueError, match=r"scope: the retriever 'words' has 0 weights, not 5"):
        Context({"a": "b\n"}, scope=context.scope)


@pytest.mark.parametrize("make", [RAG, IKE, OneEdit, LTE, GatedLTE])
def test_any_row_with_a_context_may_choose_by_the_classifier(make_env, small_world, training, monkeypatch, make):
    """And what it learns from must be there."""
    for module in ("ike", "lte"):
        monkeypatch.setattr(f"agents.baselines.{module}.training_edits", lambda env: training)
    env, agent, serac = make_env(), make(retriever="scope"), SERAC()
    assert agent.learns
    for each in (agent, serac):
        each.prepare(env, 0, silent)
    assert agent.context({"a": "b\n"}).scope == serac.context({"a": "b\n"}).scope != ()
    assert not RAG().learns


def test_training_edits_without_questions_of_both_kinds_are_refused(make_env, small_world, monkeypatch):
    bare = [Edit(id="1", prompt="a b", target="c", rephrases=("d",))]
    monkeypatch.setattr("agents.baselines.rag.training_edits", lambda env: bare)
    with pytest.raises(ValueError, match="trained on edits with rephrases and with locality prompts"):
        SERAC().prepare(make_env(), 0, silent)
