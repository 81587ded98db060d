"""Baselines that a trained run must beat: the majority answer, BM25, TF-IDF."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from prefchat_jax.errors import UserError
from prefchat_jax.text.dialogue import Example


class Answers(NamedTuple):
    """The best stored answer for each question, and how sure the system is."""

    responses: list[str]
    confidence: np.ndarray


class Majority:
    """Always the most frequent response."""

    def __init__(self, examples: Sequence[Example]):
        responses = [example.response for example in examples]
        self._response = max(dict.fromkeys(responses), key=responses.count)

    def answer(self, questions: Sequence[str]) -> Answers:
        """Answers every question alike."""
        return Answers([self._response] * len(questions), np.ones(len(questions)))


class BM25:
    """BM25 scores of texts.

    Scores by `bm25s` (Lù, https://arxiv.org/abs/2407.03618), its defaults,
    English stop words removed.

    Raises:
      UserError: `bm25s` is not installed.
    """

    def __init__(self, texts: Sequence[str]):
        try:
            import bm25s
        except ImportError as error:
            raise UserError(
                "BM25 needs bm25s: pip install 'prefchat-jax[demo]'."
            ) from error
        logging.getLogger("bm25s").setLevel(logging.WARNING)
        self._bm25s, self._size = bm25s, len(texts)
        self._index = bm25s.BM25()
        tokens = bm25s.tokenize(list(texts), show_progress=False)
        self._index.index(tokens, show_progress=False)

    def scores(
        self, queries: Sequence[str], among: Sequence[int] | None = None
    ) -> np.ndarray:
        """Scores `[queries, texts]`, or of the texts at the places `among`."""
        tokens: Any = self._bm25s.tokenize(
            list(queries), return_ids=False, show_progress=False
        )
        places = slice(None) if among is None else np.asarray(among)
        nothing = np.zeros(self._size, np.float32)
        return np.stack(
            [
                (self._index.get_scores(query) if query else nothing)[places]
                for query in tokens
            ]
        )


class TfIdf:
    """Cosine of TF-IDF vectors, by scikit-learn.

    Words and pairs of words, `1 + log(count)`; the frequencies are those of the
    texts it is made of.

    Raises:
      UserError: scikit-learn is not installed.
    """

    def __init__(self, texts: Sequence[str]):
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError as error:
            raise UserError(
                "TF-IDF needs scikit-learn: pip install 'prefchat-jax[experiments]'."
            ) from error
        self._vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        self._vectors.fit(texts)

    def scores(self, queries: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """Scores `[queries, texts]`; 0 where no word is known."""
        from sklearn.metrics.pairwise import linear_kernel

        left, right = map(self._vectors.transform, (queries, texts))
        return linear_kernel(left, right)


class BM25Answers:
    """Answers with the response of the best entry: its question and its response."""

    def __init__(self, examples: Sequence[Example]):
        self._responses = [example.response for example in examples]
        texts = [f"{example.question} {example.response}" for example in examples]
        self._index = BM25(texts)

    def answer(self, questions: Sequence[str]) -> Answers:
        """The response of the highest score; the score is the confidence."""
        scores = self._index.scores(questions)
        best = scores.argmax(axis=1)
        return Answers([self._responses[i] for i in best], scores.max(axis=1))
