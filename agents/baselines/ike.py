"""IKE (Zheng et al. 2023): demonstrations of how to take a new fact, then the fact, before a question."""

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Annotated, Literal

from agents.base import ProgressCallback
from agents.baselines.rag import RAG, sentence_of
from agents.covariance import training_edits
from editenv.arguments import NonNegativeInt, PositiveInt, between
from editenv.context_retrieval import Retriever, make_retriever, nearest
from editenv.data import Edit
from editenv.data.text import joined
from editenv.env import LifelongEditEnv

KINDS = ("copy", "retain", "update", "retain", "update", "retain", "update", "retain")
"""Of demonstrations, the nearest first: copy, update and retain as 1 : 3 : 4, the paper's ratio."""


class IKE(RAG):
    """Puts each edit into the context with demonstrations before it; no weight is changed.

    A demonstration is a training edit's fact and a question with its answer, of one of three kinds: the fact's own prompt
    with the new target (*copy*), a rephrase with it (*update*), or a locality prompt with the answer that it keeps
    (*retain*). An edit gets those of the training edits whose facts are nearest to its own, each another edit's, the
    nearest last. Then comes the edit's fact, and behind it the question stands. Which question is asked with which edit
    is RAG's retrieval: the paper's questions come with the edit that they are about.

    Precomputes an index of the training edits' facts; needs those, and the edits' prompts and targets.

    Args:
        demonstrations: Before an edit's fact.
        retriever: Of demonstrations, and of what is put before a question: as RAG takes it.
        nearest: Edits before a question at most, each with its demonstrations.
        threshold: How alike a prompt must be to a question for its edit to stand there.
        background: As RAG takes it.
    """

    learns = True

    def __init__(
        self,
        demonstrations: NonNegativeInt = 8,
        retriever: str = "words",
        nearest: PositiveInt = 1,
        threshold: Annotated[float, between(-1, 1)] = 0.5,
        background: bool | Literal["package"] | None = None,
    ) -> None:
        super().__init__(retriever, nearest, threshold, background=background)
        self.demonstrations = demonstrations
        self._training: Sequence[Edit] = ()
        self._facts: Retriever | None = None

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        super().prepare(env, seed, progress)
        self._training = list(training_edits(env))
        if self._training and self.demonstrations:
            self._facts = make_retriever(self.retriever, [sentence_of(edit) for edit in self._training], self._weights)

    def text_of(self, edit: Edit) -> str:
        return "".join(reversed(self.demonstrations_for(edit))) + headed(sentence_of(edit))

    def demonstrations_for(self, edit: Edit) -> list[str]:
        """The nearest first; fewer than asked for if the training edits have no more of a kind."""
        if self._facts is None:
            return []
        (order,) = nearest(self._facts, [sentence_of(edit)], len(self._training), -1.0)
        return demonstrations_of([self._training[i] for i in order], self.demonstrations)


def demonstrations_of(edits: Sequence[Edit], count: int) -> list[str]:
    """For each kind in turn the first edit that has one and was not taken yet."""
    left, texts = list(edits), []
    for kind in islice(cycle(KINDS), count):
        for i, edit in enumerate(left):
            if (text := demonstration(edit, kind)) is not None:
                texts.append(text)
                del left[i]
                break
    return texts


def demonstration(edit: Edit, kind: str) -> str | None:
    """A fact, and a question with its answer; None if the edit has no such question."""
    question = answer = None
    if kind == "copy":
        question, answer = edit.prompt, edit.target
    elif kind == "update" and edit.rephrases:
        question, answer = edit.rephrases[0], edit.target
    elif kind == "retain" and edit.locality:
        question, answer = edit.locality[0].prompt, edit.locality[0].answer
    if question is None or answer is None:
        return None
    return f"{headed(sentence_of(edit))}{joined(question, answer)}\n\n"


def headed(fact: str) -> str:
    """What stands before a question; it begins a line, so that its tokens are those that it has by itself."""
    return f"New Fact: {fact}\nPrompt:\n"
