"""Baselines that a trained run must beat: the majority answer, and BM25."""

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

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Scores `[queries, texts]`."""
        tokens: Any = self._bm25s.tokenize(
            list(queries), return_ids=False, show_progress=False
        )
        nothing = np.zeros(self._size, np.float32)
        return np.stack(
            [self._index.get_scores(query) if query else nothing for query in tokens]
        )


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
