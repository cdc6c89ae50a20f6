"""How alike a question and the keys of a context are: what decides which text is put before the question.

================  ====================================================================================================
``words``         the share of a key that the question has: ``sum of w_t over the key's words t that are in the
                  question / sum of w_t over the key's words``, with ``w_t = (count_t idf_t)^2`` and
                  ``idf_t = 1 + ln(keys / keys with t)``; with a background, over its texts and the keys together
``characters``    the same over three to five characters in a row within words: for languages that inflect much or put
                  no spaces between words
``scope``         the probability that a trained logistic regression gives: ``1 / (1 + exp(-(b + w . f)))``, with ``f``
                  the two shares above and the cosines of the same TF-IDF vectors, words before characters
any other name    the cosine of the two sentence vectors of that encoder of the package ``sentence-transformers``
================  ====================================================================================================

Terms are found by scikit-learn's analyzer, and weigh as in its ``TfidfVectorizer``. They are counted here, as a context
grows by a few keys at a time and is searched after each, where scikit-learn would count all of its keys again.

The share is that of the key, not a cosine, for a question may say other things beside (CounterFact's rephrases begin with
a sentence about something else), and a word that no key has must not make it less alike. Both begin from the keys alone:
nothing is trained, and nothing is fetched. A background tells of a few keys which words are rare, and not only rare among
them.
"""

import importlib
import importlib.util
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from scipy.special import expit

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

TERMS: dict[str, dict[str, Any]] = {
    "words": {"token_pattern": r"(?u)\b\w+\b"},  # scikit-learn's own leaves words of one character out
    "characters": {"analyzer": "char_wb", "ngram_range": (3, 5)},
}
"""Retrievers that need no encoder, and what scikit-learn takes for their terms."""

SCOPE = "scope"
"""The retriever whose weights come with the context."""

FEATURES = 4
"""Of a question and a key that :data:`SCOPE` looks at."""

DECIMALS = 12
"""Of a likeness that count: what is behind them depends on the order in which a key's weights were summed."""

AT_ONCE = 256
"""Questions that are compared with all keys together."""


class Retriever(Protocol):
    """Compares questions with keys.

    Attributes:
        bytes: Of what it keeps of the keys.
    """

    bytes: int

    def compare(self, questions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """``(n, m)`` how alike ``n`` questions and the ``m`` keys are, and the same to tell equals apart by."""


@dataclass(frozen=True)
class Counts:
    """How often each key has each term.

    Attributes:
        columns: Of the terms. Counts that were made from others share it, and put what is new behind what is there.
        rows: Of the keys.
        matrix: ``(m, terms)``; of terms that came later there is no column.
    """

    columns: dict[str, int]
    rows: Mapping[str, int]
    matrix: "csr_matrix"

    @classmethod
    def of(cls, keys: Sequence[str], analyze: Callable[[str], list[str]], like: "Counts | None") -> "Counts":
        """Of keys: counted once, and taken from counts that have them already.

        Args:
            keys: ``m`` texts.
            analyze: The terms of a text, in order.
            like: Such counts; None if there are none.
        """
        from scipy.sparse import csr_matrix, vstack

        columns: dict[str, int] = {} if like is None else like.columns
        known: Mapping[str, int] = {} if like is None else like.rows
        new = [key for key in dict.fromkeys(keys) if key not in known]
        counted = [Counter(analyze(key)) for key in new]
        for term in chain.from_iterable(counted):
            columns.setdefault(term, len(columns))
        matrix = _csr([{columns[term]: count for term, count in terms.items()} for terms in counted], len(columns))
        first = 0
        if like is not None:
            first = like.matrix.shape[0]
            parts = (like.matrix.data, like.matrix.indices, like.matrix.indptr)
            matrix = vstack([csr_matrix(parts, shape=(first, len(columns))), matrix], format="csr")
        row_of = {**known, **{key: first + i for i, key in enumerate(new)}}
        return cls(columns, {key: i for i, key in enumerate(keys)}, matrix[[row_of[key] for key in keys]])

    def of_questions(self, texts: Sequence[str], analyze: Callable[[str], list[str]]) -> "csr_matrix":
        """``(n, terms)`` of other texts, without terms that no key has."""
        width = self.matrix.shape[1]
        counted = [
            Counter(column for term in analyze(text) if (column := self.columns.get(term, width)) < width)
            for text in texts
        ]
        return _csr(counted, width)


def _csr(rows: Sequence[Mapping[int, int]], width: int) -> "csr_matrix":
    """Of each row's counts by column; rows that have the same have it in the same order."""
    from scipy.sparse import csr_matrix

    indptr = np.cumsum([0, *map(len, rows)])
    indices = np.fromiter((column for row in rows for column in row), np.int32, indptr[-1])
    data = np.fromiter((count for row in rows for count in row.values()), np.float64, indptr[-1])
    matrix = csr_matrix((data, indices, indptr), shape=(len(rows), width))
    matrix.sort_indices()
    return matrix


class Terms:
    """The first two of the table.

    Args:
        keys: ``m`` texts.
        terms: Of :data:`TERMS`.
        background: What :class:`Background` counts of the keys' terms, for how rare a term is.
        background_texts: Over how many texts.
        like: The same over other keys: what both have is not counted again.
    """

    def __init__(
        self,
        keys: Sequence[str],
        terms: str,
        background: Mapping[str, int] | None = None,
        background_texts: int = 0,
        like: "Terms | None" = None,
    ) -> None:
        self._analyze = _analyzer(terms)
        self.counts: Counts = Counts.of(keys, self._analyze, None if like is None else like.counts)
        counts = self.counts.matrix
        if not counts.nnz:  # of keys of punctuation alone
            raise ValueError(f"context: no key has a word to find it by, such as {keys[0]!r}")
        with_term = np.bincount(counts.indices, minlength=counts.shape[1]).astype(float)
        present = with_term > 0  # terms of keys that have gone still have a column
        if background_texts:
            of_others = background or {}
            with_term += [of_others.get(term, 0) for term in islice(self.counts.columns, len(with_term))]
        self._idf = np.zeros_like(with_term)
        self._idf[present] = 1 + np.log((len(keys) + background_texts) / with_term[present])
        vectors = self._weighted(counts)
        weights = vectors.multiply(vectors).tocsr()
        # A key without any term is like no question.
        self._totals = np.maximum(np.asarray(weights.sum(1)).ravel(), np.finfo(float).tiny)
        self._weights = weights.T.tocsr()
        kept = (self._weights, counts)
        self.bytes = sum(part.nbytes for rows in kept for part in (rows.data, rows.indices, rows.indptr))

    def compare(self, questions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        has = self.counts.of_questions(questions, self._analyze)
        has.data[:] = 1
        # The longer one of two keys that a question has as a whole says more of it.
        shared = (has @ self._weights).toarray()
        return shared / self._totals, shared

    def cosines(self, questions: Sequence[str]) -> np.ndarray:
        """``(n, m)`` of the TF-IDF vectors; terms that no key has are in none."""
        from sklearn.preprocessing import normalize

        asked = normalize(self._weighted(self.counts.of_questions(questions, self._analyze)))
        cosines: np.ndarray = (asked @ normalize(self._weighted(self.counts.matrix)).T).toarray()
        return cosines

    def _weighted(self, counts: "csr_matrix") -> "csr_matrix":
        """The TF-IDF vectors of counts."""
        vectors = counts.copy()
        vectors.data *= self._idf[vectors.indices]
        return vectors


def _analyzer(terms: str) -> Callable[[str], list[str]]:
    from sklearn.feature_extraction.text import CountVectorizer

    analyze: Callable[[str], list[str]] = CountVectorizer(**TERMS[terms]).build_analyzer()
    return analyze


class Background:
    """In how many texts each term is: of a few keys alone one cannot tell which of their terms are rare.

    Args:
        texts: Such as prompts of training edits.
        terms: Of :data:`TERMS`.
    """

    def __init__(self, texts: Sequence[str], terms: str) -> None:
        from sklearn.feature_extraction.text import CountVectorizer

        self._vectorizer = CountVectorizer(**TERMS[terms], binary=True)
        self._counts = np.asarray(self._vectorizer.fit_transform(texts).sum(0)).ravel()
        self.texts = len(texts)

    def of(self, keys: Sequence[str]) -> dict[str, int]:
        """Of the keys' terms, how many of the texts have each; a term that none has is left out."""
        analyze, column = self._vectorizer.build_analyzer(), self._vectorizer.vocabulary_
        terms = sorted({term for key in keys for term in analyze(key) if term in column})
        return {term: int(self._counts[column[term]]) for term in terms}


class Scope:
    """The third of the table.

    Args:
        keys: ``m`` texts.
        weights: The intercept ``b`` and the four of ``w``.
        like: As :class:`Terms` takes it.
    """

    def __init__(self, keys: Sequence[str], weights: Sequence[float], like: "Scope | None" = None) -> None:
        before = [None] * len(TERMS) if like is None else like._terms
        self._terms: list[Terms] = [Terms(keys, terms, like=one) for terms, one in zip(TERMS, before, strict=True)]
        self._weights = np.array(weights)
        self.bytes = sum(terms.bytes for terms in self._terms)

    def compare(self, questions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        logits = self._weights[0] + self.features(questions) @ self._weights[1:]
        return expit(logits), logits

    def features(self, questions: Sequence[str]) -> np.ndarray:
        """``(n, m, 4)`` of each question and key."""
        shares = [terms.compare(questions)[0] for terms in self._terms]
        return np.stack([*shares, *(terms.cosines(questions) for terms in self._terms)], -1)


class Encoder:
    """The last of the table.

    Args:
        keys: ``m`` texts.
        name: As ``SentenceTransformer`` takes it: a folder, or a hub id.
    """

    def __init__(self, keys: Sequence[str], name: str) -> None:
        self._name = name
        self._keys = _vectors(name, keys)
        self.bytes = self._keys.nbytes

    def compare(self, questions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        cosines = _vectors(self._name, questions) @ self._keys.T
        return cosines, cosines


@lru_cache(maxsize=2)
def _encoder(name: str) -> Any:
    # By name: the package is no requirement of this one, nor of an extra, and not among the pinned versions.
    return importlib.import_module("sentence_transformers").SentenceTransformer(name)


@lru_cache(maxsize=2**16)
def _vector(name: str, text: str) -> np.ndarray:
    """Of length 1; a text is encoded by itself, so that its vector does not depend on what comes with it."""
    vector: np.ndarray = _encoder(name).encode(text, normalize_embeddings=True, show_progress_bar=False)
    return vector


def _vectors(name: str, texts: Sequence[str]) -> np.ndarray:
    return np.stack([_vector(name, text) for text in texts])


def check_retriever(name: str) -> None:
    """Whether what a retriever needs is installed.

    Raises:
        ValueError: If not, naming the package.
    """
    if name in TERMS or name == SCOPE:
        if importlib.util.find_spec("sklearn") is None:
            raise ValueError(
                f'retriever {name!r} needs scikit-learn, which is not installed: pip install "lifelongedit[context]"'
            )
    elif importlib.util.find_spec("sentence_transformers") is None:
        raise ValueError(
            f"retriever {name!r} is taken for an encoder of sentence-transformers, which is not installed: "
            f"pip install sentence-transformers, or use one of {', '.join(TERMS)}"
        )


def make_retriever(
    name: str,
    keys: Sequence[str],
    weights: Sequence[float] = (),
    background: Mapping[str, int] | None = None,
    background_texts: int = 0,
    like: Retriever | None = None,
) -> Retriever:
    """The retriever of a name over the keys.

    Args:
        name: Of the table.
        keys: ``m`` texts.
        weights: Of :class:`Scope`.
        background, background_texts: Of :class:`Terms`.
        like: The retriever of this name over other keys, if there is one: keys that both have are not counted again.

    Raises:
        ValueError: If what it needs is not installed, or no key has a word.
    """
    check_retriever(name)
    if name == SCOPE:
        return Scope(keys, weights, like if isinstance(like, Scope) else None)
    if name in TERMS:
        return Terms(keys, name, background, background_texts, like if isinstance(like, Terms) else None)
    return Encoder(keys, name)


def nearest(retriever: Retriever, questions: Sequence[str], count: int, threshold: float) -> list[list[int]]:
    """Which keys each question gets: the numbers of at most ``count`` that are alike by ``threshold`` or more, the
    nearest first; of equals the one with more in common, then the later one.
    """
    chosen: list[list[int]] = []
    for start in range(0, len(questions), AT_ONCE):
        for alike, common in zip(*retriever.compare(questions[start : start + AT_ONCE]), strict=True):
            rows = np.flatnonzero(alike >= threshold - 10.0**-DECIMALS)
            order = np.lexsort((rows, common[rows], alike[rows].astype(float).round(DECIMALS)))[::-1]
            chosen.append(rows[order[:count]].tolist())
    return chosen
