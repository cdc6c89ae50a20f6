"""SERAC (Mitchell et al. 2022): a trained scope classifier decides which questions are asked with the nearest edit."""

from agents.baselines.rag import RAG
from agents.baselines.scope import GROUP, STRENGTH
from editenv.arguments import PositiveFloat, PositiveInt
from editenv.context_retrieval import SCOPE


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

    def __init__(self, group: PositiveInt = GROUP, strength: PositiveFloat = STRENGTH) -> None:
        super().__init__(retriever=SCOPE)
        self.group, self.strength = group, strength
