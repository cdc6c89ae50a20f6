"""SERAC (Mitchell et al. 2022): a trained scope classifier decides which questions are asked with the nearest edit."""

from collections.abc import Iterator, Sequence

import numpy as np

from agents.base import ProgressCallback
from agents.baselines.rag import RAG
from agents.covariance import training_edits
from editenv.arguments import PositiveFloat, PositiveInt
from editenv.context_retrieval import FEATURES, SCOPE, Scope
from editenv.contexts import Context
from editenv.data import Edit
from editenv.env import LifelongEditEnv


class SERAC(RAG):
    """Routes a question to a counterfactual model, with the edit it is likeliest about, or to the base model.

    With ``p_i(q)`` the probability that question ``q`` is in the scope of edit ``i``, and ``i*`` the largest::

        p_i*(q) >= 1/2    the counterfactual model reads edit i* (prompt and target) and then q
        else              the base model reads q

    The scope classifier is a logistic regression over how alike a question and an edit's prompt are
    (:class:`editenv.context_retrieval.Scope`). It is trained on training edits, ``group`` of them at a time as if they
    had been made: in scope are their rephrases; out of scope are their locality prompts, and their rephrases with
    another edit's prompt, each with the edit whose prompt it shares most of. The counterfactual model is the language
    model itself: no second one is trained.

    Precomputes the classifier; needs training edits with rephrases and locality prompts, and the edits' prompts and
    targets.

    Args:
        group: Training edits that a question is compared with at a time.
        strength: Inverse of the classifier's ridge penalty (scikit-learn's ``C``).
    """

    learns = True

    def __init__(self, group: PositiveInt = 100, strength: PositiveFloat = 10.0) -> None:
        super().__init__(retriever=SCOPE)
        self.group, self.strength = group, strength
        self._weights: tuple[float, ...] = ()

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        """Trains the classifier.

        Raises:
            ValueError: If no training edit has a rephrase, or none a locality prompt.
        """
        super().prepare(env, seed, progress)
        edits = list(training_edits(env))
        if not any(edit.rephrases for edit in edits) or not any(edit.locality for edit in edits):
            raise ValueError("serac: its scope classifier is trained on edits with rephrases and with locality prompts")
        self._weights = scope_classifier(list(examples(edits, self.group)), self.strength)

    def context(self, entries: dict[str, str]) -> Context:
        return Context(entries, SCOPE, 1, 0.5, self._weights)


def examples(edits: Sequence[Edit], group: int) -> Iterator[tuple[np.ndarray, bool]]:
    """The features of a question and an edit, and whether the question is in the edit's scope.

    Args:
        edits: Of training.
        group: Edits that a question is compared with; what is left over at the end is a smaller one.
    """
    for start in range(0, len(edits), group):
        some = edits[start : start + group]
        scope = Scope([edit.prompt for edit in some], (0.0,) * (1 + FEATURES))
        inside = [(i, text) for i, edit in enumerate(some) for text in edit.rephrases]
        outside = [item.prompt for edit in some for item in edit.locality]
        if inside:
            for (own, _), features in zip(inside, scope.features([text for _, text in inside]), strict=True):
                yield features[own], True
                others = np.delete(features, own, axis=0)
                if len(others):
                    yield others[others[:, 0].argmax()], False
        if outside:
            for features in scope.features(outside):
                yield features[features[:, 0].argmax()], False


def scope_classifier(labelled: Sequence[tuple[np.ndarray, bool]], strength: float) -> tuple[float, ...]:
    """The intercept and the weights of a logistic regression in which both classes count the same."""
    from sklearn.linear_model import LogisticRegression

    features, inside = zip(*labelled, strict=True)
    fitted = LogisticRegression(C=strength, class_weight="balanced", tol=1e-8, max_iter=1000).fit(
        np.stack(features), inside
    )
    return (float(fitted.intercept_[0]), *map(float, fitted.coef_[0]))
