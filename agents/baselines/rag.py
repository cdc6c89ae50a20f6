"""RAG: the edited facts as sentences, of which the nearest are put before a question (as in WikiBigEdit)."""

from functools import lru_cache
from itertools import chain
from typing import Annotated, Any, Literal

from agents.base import Agent, Observation, ProgressCallback
from agents.baselines.no_edit import NoEdit
from agents.baselines.scope import GROUP, STRENGTH, trained_scope
from agents.covariance import training_edits
from editenv.arguments import PositiveInt, between
from editenv.context_retrieval import SCOPE, TERMS, Background, check_retriever
from editenv.contexts import CONTEXT, Context
from editenv.data import Edit, load_edits
from editenv.data.text import joined
from editenv.env import Action, LifelongEditEnv

FORM = "It is a fact that:\n{}\nTherefore:\n"
"""What is put before a question: a line stands between the fact and the question, for a small model that has read "A is B"
goes on from "A is" on the next line with something else.
"""


def sentence_of(edit: Edit) -> str:
    """An edit as a sentence: its prompt and its target."""
    return joined(edit.prompt, edit.target)


class RAG(Agent):
    """Puts each edit's sentence, prompt and target, into the context, with its prompt as the key; no weight is changed.

    A question is asked with the sentences of the nearest keys before it, each in the form below, if they are alike enough
    (:mod:`editenv.context_retrieval`); any other is asked as it is. An edit of a prompt that was edited before
    takes the earlier one's place. Needs the edits' prompts and targets; precomputes nothing but the background
    and the classifier of ``scope``, SERAC's, which needs training edits with rephrases and locality prompts.

    Of a few edits one cannot tell which words are the subject's and which are in every prompt, so that other texts count
    in how rare a word is: the background.

    The model must be able to read a context: one that was trained on single sentences is not helped by it.

    Args:
        retriever: ``"words"``, ``"characters"``, ``"scope"`` or an encoder of sentence-transformers.
        nearest: Sentences before a question at most.
        threshold: How alike a prompt must be to a question for its sentence to stand there.
        form: How a sentence, ``{}``, stands there; it ends with a line break.
        background: Which texts count: ``"package"``, the embedded data's training edits with their rephrases and locality
            prompts, in English; True, the prompts of the training edits, which are then needed; False, the
            edits' own prompts alone, as for a retriever that has no background.
    """

    changes: tuple[str, ...] = ("context",)
    independent_batches = True
    default_background: bool | Literal["package"] = "package"  # of retrievers that can have one

    def __init__(
        self,
        retriever: str = "words",
        nearest: PositiveInt = 1,
        threshold: Annotated[float, between(-1, 1)] = 0.5,
        form: str = FORM,
        background: bool | Literal["package"] | None = None,
    ) -> None:
        if form.count("{}") != 1 or not form.endswith("\n"):
            raise ValueError(f"form must have {{}} once, for the sentence, and end with a line break, not be {form!r}")
        self.retriever, self.nearest, self.threshold, self.form = retriever, nearest, threshold, form
        if background and retriever not in TERMS:
            raise ValueError(f"background: the retriever {retriever!r} has none; words and characters have")
        self.background = (
            (self.default_background if retriever in TERMS else False) if background is None else background
        )
        self.learns = type(self).learns or retriever == SCOPE or self.background is True
        self.group, self.strength = GROUP, STRENGTH
        self._weights: tuple[float, ...] = ()
        self._background: Background | None = None

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        """Trains the classifier, if the retriever has one, and counts the words of the background.

        Raises:
            ValueError: If what the retriever needs is not installed, or if it learns and the training edits have no
                rephrases or no locality prompts.
        """
        check_retriever(self.retriever)
        if self.retriever == SCOPE:
            self._weights = trained_scope(training_edits(env), self.group, self.strength)
        if self.background == "package":
            self._background = package_background(self.retriever)
        elif self.background:
            self._background = Background([edit.prompt for edit in training_edits(env)], self.retriever)

    def begin(self, env: LifelongEditEnv) -> None:
        self._env = env

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        return with_entries(observation, self.context({edit.prompt: self.text_of(edit) for edit in self._env.batch}))

    def text_of(self, edit: Edit) -> str:
        """What is put before a question that is about an edit."""
        sentence = sentence_of(edit)
        return self.form.replace("{}", f"{sentence}." if sentence[-1:].isalnum() else sentence)

    def context(self, entries: dict[str, str]) -> Context:
        """Entries, with how the context is searched."""
        if self._background is None:
            return Context(entries, self.retriever, self.nearest, self.threshold, self._weights)
        counts = self._background.of(list(entries))
        return Context(entries, self.retriever, self.nearest, self.threshold, (), counts, self._background.texts)


@lru_cache
def package_background(terms: str) -> Background:
    """Of the embedded data's training edits, with their rephrases and locality prompts."""
    edits = load_edits("atlas", "train")
    texts = chain.from_iterable(
        (edit.prompt, *edit.rephrases, *(item.prompt for item in edit.locality)) for edit in edits
    )
    return Background(list(texts), terms)


def with_entries(observation: Observation, context: Context) -> Action:
    """The action that changes no weight and puts entries into the context."""
    return {**NoEdit().act(observation, {}), CONTEXT: context}
