"""The training of :class:`editenv.context_retrieval.Scope`, which tells whether a question is about an edit."""

from collections.abc import Iterator, Sequence

import numpy as np

from editenv.context_retrieval import DECIMALS, FEATURES, Scope
from editenv.data import Edit

GROUP, STRENGTH = 100, 10.0
"""The examples and the penalty where nothing else is said."""


def trained_scope(edits: Sequence[Edit], group: int = GROUP, strength: float = STRENGTH) -> tuple[float, ...]:
    """The weights of a scope classifier that was trained on edits.

    In scope are their rephrases; out of scope are their locality prompts, and their rephrases with another edit's
    prompt, each with the edit whose prompt it shares most of.

    Args:
        edits: Of training.
        group: As :func:`examples` has it.
        strength: Inverse of the classifier's ridge penalty (scikit-learn's ``C``).

    Raises:
        ValueError: If no edit has a rephrase, or none a locality prompt.
    """
    if not any(edit.rephrases for edit in edits) or not any(edit.locality for edit in edits):
        raise ValueError("a scope classifier is trained on edits with rephrases and with locality prompts")
    return scope_classifier(list(examples(edits, group)), strength)


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
                    yield _nearest(others), False
        if outside:
            for features in scope.features(outside):
                yield _nearest(features), False


def _nearest(features: np.ndarray) -> np.ndarray:
    """Those of the key of which a question shares most; of equals the first."""
    nearest: np.ndarray = features[features[:, 0].round(DECIMALS).argmax()]
    return nearest


def scope_classifier(labelled: Sequence[tuple[np.ndarray, bool]], strength: float) -> tuple[float, ...]:
    """The intercept and the weights of a logistic regression in which both classes count the same."""
    from sklearn.linear_model import LogisticRegression

    features, inside = zip(*labelled, strict=True)
    fitted = LogisticRegression(C=strength, class_weight="balanced", tol=1e-8, max_iter=1000).fit(
        np.stack(features), inside
    )
    return (float(fitted.intercept_[0]), *map(float, fitted.coef_[0]))
